//! `[[issuer]]`: where its keys come from, for how long they are believed, and the tokens taken back.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    super::{
        IdpLost, Issuer, KeyLocation, KeySource, RemoteKeys,
        file::{self, File},
        material,
        section::At,
    },
    Check, MATERIAL_MAX_BYTES, REVOKED_TOKENS_MAX_BYTES,
};
use crate::identity::token::{RefreshRules, RevokedTokens, TokenRules};

/// From one good answer of an issuer to the next question: a key that it took back is believed for
/// no longer, and it is asked no more often than it can bear from many gateways.
const REFRESH_EVERY: Duration = Duration::from_secs(15 * 60);

/// For keys that are not known yet; every stranger can cause a question that often.
const REFRESH_COOLDOWN: Duration = Duration::from_secs(30);

/// How long an issuer may be away: over a night, till somebody looks.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// `idp_lost = "strict"`: refuses after this.
const STRICT_BELIEVED: Duration = Duration::from_secs(300);

/// And so asks this often: one lost answer is not the loss of an issuer.
const STRICT_EVERY: Duration = Duration::from_secs(60);

impl Check<'_> {
    pub(super) fn issuers(&self, written: &[file::Issuer]) -> Option<Vec<Issuer>> {
        let names = written.iter().filter_map(|issuer| issuer.name.as_ref());
        self.unique("issuer.name", names, String::clone);
        let issuers = written.iter().filter_map(|issuer| issuer.issuer.as_ref());
        self.unique("issuer.issuer", issuers, String::clone);
        let issuers: Vec<Option<Issuer>> =
            written.iter().map(|issuer| self.issuer(issuer)).collect();
        issuers.into_iter().collect()
    }

    fn issuer(&self, written: &file::Issuer) -> Option<Issuer> {
        let is_symmetric = self.symmetric(written);
        let keys = self.key_source(&written.keys, is_symmetric);
        if let Some(path) = &written.keys.file {
            let key = "issuer.jwks_file";
            self.judged(key, path, MATERIAL_MAX_BYTES, material::key_set);
            if is_symmetric
                && let Some(content) = self.read(key, path, MATERIAL_MAX_BYTES)
                && let Err(exposed) = material::private(&content, self.files.daemon())
            {
                self.bad_file(key, path, exposed);
            }
        }
        let (leeway, lifetime) = (&written.leeway, &written.max_lifetime);
        if leeway.value > lifetime.value {
            let text = format!(
                "issuer.leeway {} is longer than max_lifetime {}, so a token is good for longer \
                 after its end than before; write a shorter one",
                humantime::format_duration(leeway.value),
                humantime::format_duration(lifetime.value)
            );
            // One of them may be a default, which stands at the head of the table.
            self.report.warning(leeway.place.max(lifetime.place), text);
        }
        Some(Issuer {
            rules: TokenRules {
                name: written.name.as_ref()?.value.clone(),
                issuer: written.issuer.as_ref()?.value.clone(),
                audiences: written.audiences.clone()?,
                algorithms: written.algorithms.iter().map(|one| one.value).collect(),
                leeway: leeway.value,
                max_lifetime: lifetime.value,
                client_id_claims: written.client_id_claims.clone(),
            },
            keys: keys?,
        })
    }

    /// Whether the issuer's tokens are signed by a key that we hold too. Beside public keys that
    /// would let anybody sign with what everybody may know (RFC 8725 section 2.1).
    fn symmetric(&self, written: &file::Issuer) -> bool {
        let mut symmetric = written.algorithms.iter().filter(|one| one.value.is_symmetric());
        let Some(first) = symmetric.next() else { return false };
        if written.algorithms.len() > 1 {
            let text = format!(
                "issuer.algorithms has {} beside others; whoever verifies it can also sign, so \
                 give it an [[issuer]] of its own or take it out",
                first.value
            );
            self.contradiction(first.place, text);
        }
        true
    }

    fn key_source(&self, written: &file::Keys, is_symmetric: bool) -> Option<KeySource> {
        let file::Keys { file, url, discovery_url, .. } = written;
        let file_place = file.as_ref().map(|at| ("jwks_file", at.place));
        let url_place = url.as_ref().map(|at| ("jwks_url", at.place));
        let discovery_place = discovery_url.as_ref().map(|at| ("discovery_url", at.place));
        let sources: Vec<_> =
            [file_place, url_place, discovery_place].into_iter().flatten().collect();
        if let [(first, _), (second, place), ..] = sources.as_slice() {
            let text = format!(
                "issuer.{second} stands beside {first}, and an issuer's keys come from one place; \
                 take one of them out"
            );
            self.contradiction(*place, text);
        }
        let location = match (url, discovery_url) {
            (Some(url), _) => KeyLocation::Keys(url.value.clone()),
            (None, Some(url)) => KeyLocation::Description(url.value.clone()),
            (None, None) => {
                let file = file.as_ref()?;
                self.settings_of_fetching(written);
                return Some(KeySource::File(self.base.join(&file.value)));
            }
        };
        if let Some((name, place)) = url_place.or(discovery_place)
            && is_symmetric
        {
            let text = format!(
                "issuer.{name} would show a shared key to whoever asks; keep the key of HS256 in a \
                 file, named by jwks_file"
            );
            self.contradiction(place, text);
        }
        if let Some(path) = &written.authorities {
            self.judged("issuer.ca", path, MATERIAL_MAX_BYTES, material::certificates);
        }
        let addresses = written.addresses.as_ref()?.value.iter().map(|at| at.value);
        Some(KeySource::Remote(Arc::new(RemoteKeys {
            location,
            authorities: written.authorities.as_ref().map(|path| self.base.join(&path.value)),
            addresses: addresses.collect(),
            refresh: self.refresh(written),
        })))
    }

    /// Settings of fetching, where nothing is fetched.
    fn settings_of_fetching(&self, written: &file::Keys) {
        let addresses = written.addresses.as_ref().filter(|list| !list.value.is_empty());
        for (key, place) in [
            ("ca", written.authorities.as_ref().map(|at| at.place)),
            ("addresses", addresses.map(|at| at.place)),
            ("refresh", written.refresh.as_ref().map(|at| at.place)),
            ("cooldown", written.cooldown.as_ref().map(|at| at.place)),
            ("idp_lost", written.idp_lost.as_ref().map(|at| at.place)),
            ("max_stale", written.max_stale.as_ref().map(|at| at.place)),
        ] {
            if let Some(place) = place {
                let text = format!(
                    "issuer.{key} is about keys that are fetched, and these come from a file; take \
                     it out, or name the issuer's jwks_url or discovery_url"
                );
                self.contradiction(place, text);
            }
        }
    }

    fn refresh(&self, written: &file::Keys) -> RefreshRules {
        let value = |at: &Option<At<Duration>>, default| at.as_ref().map_or(default, |at| at.value);
        let every = value(&written.refresh, REFRESH_EVERY);
        let cooldown = value(&written.cooldown, REFRESH_COOLDOWN);
        if written.idp_lost.as_ref().map(|at| at.value) != Some(IdpLost::Strict) {
            return RefreshRules {
                every,
                cooldown,
                believed: value(&written.max_stale, STALE_MAX),
            };
        }
        if let Some(stale) = &written.max_stale {
            let text = "issuer.max_stale is how long old keys serve, but idp_lost is \"strict\", \
                        which refuses after 5 minutes; take one of them out";
            self.contradiction(stale.place, text);
        }
        RefreshRules { every: every.min(STRICT_EVERY), cooldown, believed: STRICT_BELIEVED }
    }

    pub(super) fn revoked_tokens(&self, file: &File) -> Option<PathBuf> {
        let path = file.revoked_tokens.as_ref()?;
        let key = "revocation.tokens_file";
        self.judged(key, path, REVOKED_TOKENS_MAX_BYTES, RevokedTokens::parse);
        if file.issuers.is_empty() {
            let text = "revocation.tokens_file lists tokens, but there is no [[issuer]] whose \
                        tokens are believed; take it out";
            self.report.warning(path.place, text);
        }
        Some(self.base.join(&path.value))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{
        Warning,
        fake::{Fake, LAB, SMALL, problem_lines, small},
    };

    #[test]
    fn keys_come_from_one_place() {
        let issuer = |lines: &str| {
            let text = small("jwks_file = \"jwks.json\"", lines);
            let mut fake = Fake::new();
            fake.put("idp-ca.pem", &LAB.authority, 0o644);
            fake.load(&text).map_err(|problems| problem_lines(&problems).join("\n"))
        };
        let second = Duration::from_secs;
        let default =
            RefreshRules { every: second(900), cooldown: second(30), believed: second(24 * 3600) };
        for (lines, expected) in [
            ("jwks_url = \"https://idp.example.com/keys\"", default),
            (
                "discovery_url = \"https://idp.example.com/d\"\nca = \"idp-ca.pem\"\n\
                 addresses = [\"192.0.2.77:443\"]\nrefresh = \"1m\"\ncooldown = \"2s\"\n\
                 idp_lost = \"available\"\nmax_stale = \"1h\"",
                RefreshRules { every: second(60), cooldown: second(2), believed: second(3600) },
            ),
            (
                "jwks_url = \"http://127.0.0.1:9/k\"\nidp_lost = \"strict\"",
                RefreshRules { every: second(60), believed: second(300), ..default },
            ),
        ] {
            let (config, warnings) = issuer(lines).unwrap();
            assert_eq!(warnings, Vec::<Warning>::new());
            let KeySource::Remote(keys) = &config.issuers[0].keys else { panic!("{lines}") };
            assert_eq!(keys.refresh, expected, "{lines}");
            let exempt = config.xdp.map(|xdp| xdp.exempt).unwrap_or_default();
            let stands = exempt.contains(&"192.0.2.77/32".parse().unwrap());
            assert_eq!(stands, !keys.addresses.is_empty());
        }
        for (lines, expected) in [
            (
                "leeway = \"1s\"",
                "8:1: [[issuer]] has no jwks_file; add it, as in jwks_file = \"jwks.json\"",
            ),
            (
                "jwks_file = \"jwks.json\"\njwks_url = \"https://idp/\"",
                "13:12: issuer.jwks_url stands beside jwks_file, and an issuer's keys come from one \
                 place; take one of them out",
            ),
            (
                "jwks_url = \"http://idp.example.com/keys\"",
                "12:12: issuer.jwks_url is \"http://idp.example.com/keys\": it is not https://, \
                 and http:// is for this machine's loopback only; write it as in \
                 \"https://idp.example.com/keys\"",
            ),
            (
                "jwks_file = \"jwks.json\"\nmax_stale = \"1h\"",
                "13:13: issuer.max_stale is about keys that are fetched, and these come from a \
                 file; take it out, or name the issuer's jwks_url or discovery_url",
            ),
            (
                "jwks_url = \"https://idp/\"\nidp_lost = \"strict\"\nmax_stale = \"1h\"",
                "14:13: issuer.max_stale is how long old keys serve, but idp_lost is \"strict\", \
                 which refuses after 5 minutes; take one of them out",
            ),
            (
                "jwks_url = \"https://idp/\"\nalgorithms = [\"HS256\"]",
                "12:12: issuer.jwks_url would show a shared key to whoever asks; keep the key of \
                 HS256 in a file, named by jwks_file",
            ),
        ] {
            assert_eq!(issuer(lines).unwrap_err(), expected, "{lines}");
        }
    }

    #[test]
    fn revoked_tokens_are_listed_whole() {
        let text = SMALL.to_owned() + "[revocation]\ntokens_file = \"revoked.jti\"\n";
        let listed = |list: Option<&str>| {
            let mut fake = Fake::new();
            if let Some(list) = list {
                fake.put("revoked.jti", list, 0o644);
            }
            fake.load(&text).map_err(|problems| problem_lines(&problems).join("\n"))
        };
        let (config, warnings) = listed(Some("https://idp.example.com 7f3c\n")).unwrap();
        assert_eq!(
            config.revoked_tokens.as_deref(),
            Some(Path::new("/etc/portcullis/revoked.jti"))
        );
        assert_eq!(warnings, Vec::<Warning>::new());
        for (list, expected) in [
            (None, "does not exist; correct the path or create the file"),
            (
                Some("https://idp.example.com 7f3c"),
                "the last line has no end, so it may be half written; end each line with a newline",
            ),
        ] {
            let expected =
                format!("24:15: revocation.tokens_file \"/etc/portcullis/revoked.jti\" {expected}");
            assert_eq!(listed(list).unwrap_err(), expected);
        }
    }
}
