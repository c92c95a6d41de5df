//! `[[identity]]`: which name of a certificate is taken, and what it is compared with.

use super::{
    super::{file, problem::Kind, section::At},
    Check,
};
use crate::identity::{
    pattern::Pattern,
    principal::{NameSource, Rule, Rules},
};

impl Check<'_> {
    pub(super) fn identities(&self, written: &[file::Identity]) -> Option<Rules> {
        let rules: Vec<Option<Rule>> = written.iter().map(|rule| self.identity(rule)).collect();
        Some(Rules::new(rules.into_iter().collect::<Option<_>>()?))
    }

    fn identity(&self, written: &file::Identity) -> Option<Rule> {
        let from = written.from.as_ref()?;
        let matches = written.matches.as_ref()?;
        let patterns: Vec<Option<Pattern>> =
            matches.iter().map(|one| self.identity_pattern(&from.value, one)).collect();
        // A fingerprint changes with each renewal, so the next one is named beside it.
        let most = if from.value == NameSource::Sha256 { 2 } else { 1 };
        if let Some(more) = matches.get(most) {
            let text = format!(
                "identity.match has more than {most} for {}; write an [[identity]] for each",
                from.value
            );
            self.contradiction(more.place, text);
        }
        match &from.value {
            NameSource::SubjectCn => {
                let text = "identity.from is \"subject_cn\", a free text that authorities check \
                            least; use san_uri or san_dns where the certificates have them";
                self.report.warning(from.place, text);
            }
            NameSource::Sha256 if matches.len() > 1 && written.principal.value.has_value() => {
                let text = "identity.principal is the fingerprint itself, which changes when the \
                            certificate does; write a name that stays";
                self.report.warning(written.principal.place, text);
            }
            _ => {}
        }
        Some(Rule {
            from: from.value.clone(),
            matches: patterns.into_iter().collect::<Option<_>>()?,
            principal: written.principal.value.clone(),
            roles: written.roles.as_ref()?.value.iter().map(|at| at.value.clone()).collect(),
            tenant: written.tenant.as_ref().map(|tenant| tenant.value.clone()),
        })
    }

    /// As the names it is compared with are written: DNS names and digests in lower case.
    fn identity_pattern(&self, from: &NameSource, written: &At<String>) -> Option<Pattern> {
        let text = match from {
            NameSource::SanDns => written.value.to_ascii_lowercase(),
            NameSource::Sha256 | NameSource::IssuerSerial => {
                // OpenSSL writes fingerprints with colons.
                written.value.replace(':', "").to_ascii_lowercase()
            }
            _ => written.value.clone(),
        };
        let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let wants_digest = matches!(from, NameSource::Sha256 | NameSource::IssuerSerial);
        if wants_digest && !is_digest && text != "*" {
            let text = format!(
                "identity.match is no SHA-256; {from} takes 64 hexadecimal digits, or \"*\" for every \
                 certificate"
            );
            self.problem(written.place, Kind::BadValue, text);
            return None;
        }
        Pattern::parse(&text)
            .map_err(|error| {
                let text = format!(
                    "identity.match has {error}; one stands for one or more characters, / among them"
                );
                self.problem(written.place, Kind::BadValue, text);
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::fake::{Fake, problem_lines, small};

    /// An identity table with these lines, before the rest.
    fn with_identity(lines: &str) -> String {
        small("[[upstream]]", &format!("[[identity]]\n{lines}\n[[upstream]]"))
    }

    #[test]
    fn identity_rules_are_read_or_refused() {
        let digest = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        for (lines, said) in [
            ("from = \"san_uri\"\nmatch = \"spiffe://example.org/*\"", ""),
            (
                "from = \"oid:1.2.3\"\nmatch = [\"*\"]\ntenant = \"{oid:1.2.4}\"\nroles = [\"a\"]",
                "",
            ),
            (&format!("from = \"sha256\"\nmatch = \"{colons}\"\nprincipal = \"partner\""), ""),
            ("from = \"issuer_serial\"\nmatch = \"*\"\nprincipal = \"partner:{value}\"", ""),
            ("from = \"san_uri\"", "13:1: [[identity]] has no match;"),
            ("match = \"x\"", "13:1: [[identity]] has no from;"),
            ("from = \"cn\"\nmatch = \"x\"", "14:8: identity.from is \"cn\"; write san_uri,"),
            (
                "from = \"san_uri\"\nmatch = \"*a*\"",
                "15:9: identity.match has more than one *; one stands for",
            ),
            (
                "from = \"san_uri\"\nmatch = [\"a\", \"b\"]",
                "15:15: identity.match has more than 1 for san_uri; write an [[identity]] for each",
            ),
            (
                "from = \"sha256\"\nmatch = \"abcd\"",
                "15:9: identity.match is no SHA-256; sha256 takes 64 hexadecimal digits,",
            ),
            (
                "from = \"san_uri\"\nmatch = \"x\"\nprincipal = \"{nobody}\"",
                "16:13: identity.principal is \"{nobody}\", in which {nobody} is neither",
            ),
            (
                "from = \"san_uri\"\nmatch = \"x\"\nroles = [\"a,b\"]",
                "16:10: identity.roles has \"a,b\"; write one role an entry",
            ),
            (
                "from = \"subject_cn\"\nmatch = \"x\"",
                "warning 14:8: identity.from is \"subject_cn\", a free text",
            ),
            (
                &format!("from = \"sha256\"\nmatch = [\"{digest}\", \"{}\"]", "0".repeat(64)),
                "warning 13:1: identity.principal is the fingerprint itself,",
            ),
        ] {
            let outcome = Fake::new().load(&with_identity(lines));
            let all = match &outcome {
                Ok((_, warnings)) => crate::config::fake::lines(warnings)
                    .iter()
                    .map(|line| format!("warning {line}"))
                    .collect(),
                Err(problems) => problem_lines(problems),
            };
            let held = match said {
                "" => all.is_empty(),
                said => all.iter().any(|line| line.starts_with(said)),
            };
            assert!(held, "{lines}: {all:#?}");
        }
    }
}
