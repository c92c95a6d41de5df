//! Certificate → principal: the rules of `[[identity]]`, of which the first that matches wins.
//!
//! A rule looks at one kind of name ([`NameSource`]). A certificate may have several of that kind, in
//! its own order; the first that the rule's patterns match is the rule's value. Where a kind that a
//! rule asks for cannot be read, the certificate is mapped to nobody: a name that is broken must not
//! make room for a weaker one further down.
//!
//! Without any rule a certificate's principal is [`Peer::principal`], without roles or tenant.

use std::{borrow::Cow, fmt, sync::Arc};

use super::{
    certificate::{
        AlternativeName, Peer, hexadecimal,
        name::{cut, shown_bytes},
    },
    pattern::Pattern,
};

/// The kind of name that a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// `san_uri`: a URI among the alternative names, such as a SPIFFE ID.
    SanUri,
    /// `san_dns`: a DNS name among them, in lower case.
    SanDns,
    /// `subject_cn`: the most specific CN of the subject.
    SubjectCn,
    /// `issuer_serial`: [`Peer::issuer_serial`] in lower-case hexadecimal.
    IssuerSerial,
    /// `oid:1.2.3.4`: the text of the extension with this identifier, else of the subject's attribute.
    Oid(String),
    /// `upn`: the user principal name of a directory.
    UserPrincipalName,
    /// `sha256`: the SHA-256 of the certificate, in lower-case hexadecimal.
    Sha256,
}

/// The start of [`NameSource::Oid`].
const OID: &str = "oid:";

impl NameSource {
    /// Reads the word of the configuration; `None` when it is none of them.
    pub fn parse(text: &str) -> Option<NameSource> {
        Some(match text {
            "san_uri" => NameSource::SanUri,
            "san_dns" => NameSource::SanDns,
            "subject_cn" => NameSource::SubjectCn,
            "issuer_serial" => NameSource::IssuerSerial,
            "upn" => NameSource::UserPrincipalName,
            "sha256" => NameSource::Sha256,
            _ => NameSource::Oid(text.strip_prefix(OID).filter(|oid| is_oid(oid))?.to_owned()),
        })
    }

    /// The values that a certificate has, in its order; `None` when one of them cannot be read.
    fn values<'p>(&self, peer: &'p Peer) -> Option<Vec<Cow<'p, str>>> {
        let names = |pick: fn(&AlternativeName) -> Option<&str>| {
            peer.sans().iter().filter_map(pick).map(Cow::Borrowed).collect()
        };
        let texts = |texts: Vec<&'p str>| texts.into_iter().map(Cow::Borrowed).collect();
        Some(match self {
            NameSource::SanUri => names(|name| match name {
                AlternativeName::Uri(uri) => Some(uri),
                _ => None,
            }),
            NameSource::SanDns => names(|name| match name {
                AlternativeName::Dns(name) => Some(name),
                _ => None,
            }),
            NameSource::SubjectCn => peer.common_name().map(Cow::Borrowed).into_iter().collect(),
            NameSource::IssuerSerial => vec![Cow::Owned(hexadecimal(peer.issuer_serial()))],
            NameSource::Oid(oid) => texts(peer.attributes().under(oid).ok()?),
            NameSource::UserPrincipalName => texts(peer.attributes().user_principal_names().ok()?),
            NameSource::Sha256 => vec![Cow::Owned(hexadecimal(peer.fingerprint()))],
        })
    }
}

impl fmt::Display for NameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameSource::SanUri => "san_uri",
            NameSource::SanDns => "san_dns",
            NameSource::SubjectCn => "subject_cn",
            NameSource::IssuerSerial => "issuer_serial",
            NameSource::Oid(oid) => return write!(f, "{OID}{oid}"),
            NameSource::UserPrincipalName => "upn",
            NameSource::Sha256 => "sha256",
        })
    }
}

/// Whether a text is an object identifier in dots, as X.660 has them: at least two numbers, the first
/// 0 to 2, none with a zero in front.
fn is_oid(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let mut parts = text.split('.');
    matches!(parts.next(), Some("0" | "1" | "2"))
        && text.contains('.')
        && text.len() <= 128
        && parts.all(number)
}

/// A text with places for names of the certificate: `{value}` is what the rule matched, and the word
/// of a [`NameSource`] in braces is the first name of that kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value,
    First(NameSource),
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// A brace without its partner.
    Unbalanced,
    /// Braces around a word that is none.
    UnknownPlace(String),
    /// Nothing would be written.
    Empty,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TemplateError::Unbalanced => f.write_str("a brace has no partner"),
            TemplateError::UnknownPlace(word) => {
                write!(f, "{{{word}}} is neither {{value}} nor a word that from could have")
            }
            TemplateError::Empty => f.write_str("it is empty"),
        }
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (plain, braced) = rest.split_once('{').map_or((rest, None), |(a, b)| (a, Some(b)));
            if plain.contains('}') {
                return Err(TemplateError::Unbalanced);
            }
            if !plain.is_empty() {
                pieces.push(Piece::Text(plain.to_owned()));
            }
            let Some(braced) = braced else { break };
            let (word, after) = braced.split_once('}').ok_or(TemplateError::Unbalanced)?;
            pieces.push(match NameSource::parse(word) {
                _ if word == "value" => Piece::Value,
                Some(source) => Piece::First(source),
                None => return Err(TemplateError::UnknownPlace(word.to_owned())),
            });
            rest = after;
        }
        if pieces.is_empty() { Err(TemplateError::Empty) } else { Ok(Template { pieces }) }
    }

    /// `{value}`: the matched name itself.
    pub fn value() -> Template {
        Template { pieces: vec![Piece::Value] }
    }

    /// Whether what is written depends on what the rule matched.
    pub fn has_value(&self) -> bool {
        self.pieces.contains(&Piece::Value)
    }

    /// `Ok(None)`: the certificate has no name of a kind that is asked for.
    fn fill(&self, value: &str, peer: &Peer) -> Result<Option<String>, Unmapped> {
        let mut filled = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Value => filled.push_str(value),
                Piece::First(source) => {
                    let values = source.values(peer).ok_or_else(|| unreadable(source, peer))?;
                    match values.first() {
                        Some(first) => filled.push_str(first),
                        None => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(filled))
    }
}

/// One `[[identity]]`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The kind of name it looks at.
    pub from: NameSource,
    /// One of these must match; not empty.
    pub matches: Vec<Pattern>,
    /// What the certificate's owner is called.
    pub principal: Template,
    /// What the owner may act as.
    pub roles: Vec<String>,
    /// Whom the owner belongs to.
    pub tenant: Option<Template>,
}

/// All rules, in the order of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// The owner of a certificate by the rules of the configuration. Only [`Rules::map`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    name: String,
    roles: Vec<String>,
    tenant: Option<String>,
}

impl Principal {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it may act as.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// Whom it belongs to.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// A principal for the tests of other stages.
    #[cfg(test)]
    pub(crate) fn for_test(name: &str, roles: &[&str], tenant: Option<&str>) -> Principal {
        Principal {
            name: name.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            tenant: tenant.map(str::to_owned),
        }
    }
}

/// A certificate that is good and belongs to nobody by the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// No rule matches.
    NoRule {
        /// What a rule could look at, for whoever writes one.
        names: String,
    },
    /// A rule asks for a kind of name that is there and is not a clean text.
    Unreadable {
        /// Which.
        source: NameSource,
        /// As in `NoRule`.
        names: String,
    },
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmapped::NoRule { names } => write!(
                f,
                "no [[identity]] rule matches this certificate; it has {names}: add a rule for it"
            ),
            Unmapped::Unreadable { source, names } => write!(
                f,
                "{source} of this certificate is not a clean text; it has {names}: have it issued anew"
            ),
        }
    }
}

/// What the rules say of one certificate; made once for each connection.
pub type Mapped = Result<Arc<Principal>, Arc<Unmapped>>;

impl Rules {
    /// Takes the rules in order.
    pub fn new(rules: Vec<Rule>) -> Rules {
        Rules { rules }
    }

    /// In the order of matching.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// Whose certificate it is.
    ///
    /// # Errors
    /// Nobody's, and why.
    pub fn map(&self, peer: &Peer) -> Mapped {
        if self.rules.is_empty() {
            let name = peer.principal().to_owned();
            return Ok(Arc::new(Principal { name, roles: Vec::new(), tenant: None }));
        }
        self.first(peer).map(Arc::new).map_err(Arc::new)
    }

    fn first(&self, peer: &Peer) -> Result<Principal, Unmapped> {
        for rule in &self.rules {
            if let Some(principal) = rule.apply(peer)? {
                return Ok(principal);
            }
        }
        Err(Unmapped::NoRule { names: names_of(peer) })
    }
}

impl Rule {
    /// `Ok(None)`: the rule is about other certificates.
    fn apply(&self, peer: &Peer) -> Result<Option<Principal>, Unmapped> {
        let values = self.from.values(peer).ok_or_else(|| unreadable(&self.from, peer))?;
        let matched = |value: &&Cow<'_, str>| self.matches.iter().any(|one| one.matches(value));
        let Some(value) = values.iter().find(matched) else { return Ok(None) };
        let Some(name) = self.principal.fill(value, peer)? else { return Ok(None) };
        let tenant = match &self.tenant {
            None => None,
            Some(template) => match template.fill(value, peer)? {
                Some(tenant) => Some(tenant),
                None => return Ok(None),
            },
        };
        Ok(Some(Principal { name, roles: self.roles.clone(), tenant }))
    }
}

fn unreadable(source: &NameSource, peer: &Peer) -> Unmapped {
    Unmapped::Unreadable { source: source.clone(), names: names_of(peer) }
}

/// What rules can look at, as an operator would write it; bounded.
fn names_of(peer: &Peer) -> String {
    let mut names = Vec::new();
    for source in [
        NameSource::SanUri,
        NameSource::SanDns,
        NameSource::UserPrincipalName,
        NameSource::SubjectCn,
        NameSource::IssuerSerial,
        NameSource::Sha256,
    ] {
        for value in source.values(peer).unwrap_or_default().iter().take(3) {
            names.push(format!("{source} \"{}\"", shown_bytes(value.as_bytes())));
        }
    }
    cut(names.join(", "))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CustomExtension, DnType, OtherNameValue, SanType, SerialNumber,
    };

    use super::{super::certificate::tests::peer_with, *};

    const TENANT: [u64; 7] = [1, 3, 6, 1, 4, 1, 55555];

    fn rule(from: &str, matches: &[&str], principal: &str) -> Rule {
        Rule {
            from: NameSource::parse(from).unwrap(),
            matches: matches.iter().map(|text| Pattern::parse(text).unwrap()).collect(),
            principal: Template::parse(principal).unwrap(),
            roles: vec![from.to_owned()],
            tenant: None,
        }
    }

    /// A DER string of this tag.
    fn der(tag: u8, text: &[u8]) -> Vec<u8> {
        let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
        der.extend_from_slice(text);
        der
    }

    fn tenant(params: &mut CertificateParams, contents: Vec<u8>) {
        params.custom_extensions.push(CustomExtension::from_oid_content(&TENANT, contents));
    }

    fn full(params: &mut CertificateParams) {
        params.subject_alt_names = vec![
            SanType::DnsName("first.example.org".try_into().unwrap()),
            SanType::DnsName("Second.Example.ORG".try_into().unwrap()),
            SanType::URI("spiffe://example.org/orders".try_into().unwrap()),
            SanType::OtherName((
                vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                OtherNameValue::Utf8String("alice@corp.example".into()),
            )),
        ];
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Tills");
        tenant(params, der(0x0c, b"acme"));
    }

    #[test]
    fn the_first_rule_that_matches_names_the_owner() {
        let peer = peer_with("Root", "till-7", full);
        let fingerprint = hexadecimal(peer.fingerprint());
        let issuer_serial = hexadecimal(peer.issuer_serial());
        for (rules, expected) in [
            (
                vec![rule("san_uri", &["spiffe://example.org/*"], "{value}")],
                Some("spiffe://example.org/orders"),
            ),
            (vec![rule("san_uri", &["spiffe://example.com/*"], "{value}")], None),
            (vec![rule("san_dns", &["second.*"], "{value}")], Some("second.example.org")),
            (vec![rule("subject_cn", &["till-*"], "machine:{value}")], Some("machine:till-7")),
            (vec![rule("upn", &["*@corp.example"], "{value}")], Some("alice@corp.example")),
            (vec![rule("oid:1.3.6.1.4.1.55555", &["*"], "{value}")], Some("acme")),
            (
                vec![rule("oid:2.5.4.11", &["Tills"], "till of {oid:1.3.6.1.4.1.55555}")],
                Some("till of acme"),
            ),
            (vec![rule("oid:2.5.4.10", &["*"], "{value}")], None),
            (vec![rule("sha256", &["00", &fingerprint], "partner")], Some("partner")),
            (vec![rule("issuer_serial", &[&issuer_serial], "partner")], Some("partner")),
            (vec![rule("issuer_serial", &["*"], "{san_uri}")], Some("spiffe://example.org/orders")),
            // A name that the template asks for and the certificate lacks: another rule's business.
            (
                vec![
                    rule("subject_cn", &["*"], "{oid:2.5.4.10}"),
                    rule("subject_cn", &["*"], "second"),
                ],
                Some("second"),
            ),
            (
                vec![rule("subject_cn", &["till-*"], "first"), rule("san_dns", &["*"], "second")],
                Some("first"),
            ),
            (
                vec![rule("subject_cn", &["desk-*"], "first"), rule("san_dns", &["*"], "second")],
                Some("second"),
            ),
            (vec![], Some("spiffe://example.org/orders")),
        ] {
            let shown = format!("{rules:?}");
            let mapped = Rules::new(rules).map(&peer);
            assert_eq!(mapped.as_ref().ok().map(|principal| principal.name()), expected, "{shown}");
        }
        let mut with_tenant = rule("san_uri", &["*"], "{value}");
        with_tenant.tenant = Some(Template::parse("{oid:1.3.6.1.4.1.55555}").unwrap());
        let principal = Rules::new(vec![with_tenant]).map(&peer).unwrap();
        assert_eq!(
            (principal.tenant(), principal.roles()),
            (Some("acme"), &["san_uri".to_owned()][..])
        );
    }

    #[test]
    fn a_name_that_cannot_be_read_makes_no_room_for_another() {
        type Change = fn(&mut CertificateParams);
        let rows: [(&str, bool, Change); 6] = [
            ("a control character", false, |params| tenant(params, der(0x0c, b"ac\nme"))),
            ("not a string", false, |params| tenant(params, der(0x02, b"\x07"))),
            ("broken UTF-8", false, |params| tenant(params, der(0x0c, b"\xff\xfe"))),
            ("bytes after its end", false, |params| tenant(params, b"\x0c\x01ab".to_vec())),
            ("blank at the end", false, |params| tenant(params, der(0x13, b"acme "))),
            ("there is none", true, |_| {}),
        ];
        let rules = Rules::new(vec![
            rule("oid:1.3.6.1.4.1.55555", &["*"], "{value}"),
            rule("subject_cn", &["*"], "{value}"),
        ]);
        for (what, falls_through, change) in rows {
            let mapped = rules.map(&peer_with("Root", "alice", change));
            match mapped {
                Ok(principal) => assert!(falls_through && principal.name() == "alice", "{what}"),
                Err(unmapped) => {
                    assert!(!falls_through, "{what}");
                    assert!(matches!(*unmapped, Unmapped::Unreadable { .. }), "{what}");
                }
            }
        }
    }

    #[test]
    fn who_is_not_mapped_is_told_with_what_a_rule_could_look_at() {
        let peer = peer_with("Root", "al\"ice", full);
        let unmapped = Rules::new(vec![rule("san_uri", &["x"], "{value}")]).map(&peer).unwrap_err();
        let text = unmapped.to_string();
        for part in ["san_uri \"spiffe://example.org/orders\"", "al\\\"ice", "upn", "sha256"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn issuer_and_serial_together_are_one_name() {
        let serial = |value: u64| {
            move |params: &mut CertificateParams| {
                params.serial_number = Some(SerialNumber::from(value));
            }
        };
        let id =
            |issuer: &str, value: u64| *peer_with(issuer, "alice", serial(value)).issuer_serial();
        assert_eq!(
            id("Root", 1),
            id("Root", 1),
            "the key and the rest of the certificate do not matter"
        );
        assert_ne!(id("Root", 1), id("Root", 2));
        assert_ne!(id("Root", 1), id("Roots", 1));
    }

    #[test]
    fn words_of_the_configuration_are_read_or_refused() {
        for (text, good) in [
            ("san_uri", true),
            ("oid:2.5.4.11", true),
            ("oid:1.0", true),
            ("oid:", false),
            ("oid:1", false),
            ("oid:3.1", false),
            ("oid:1.02", false),
            ("oid:1..2", false),
            ("cn", false),
        ] {
            let read = NameSource::parse(text);
            assert_eq!(read.is_some(), good, "{text}");
            assert!(read.is_none_or(|source| source.to_string() == text));
        }
        for (text, expected) in [
            ("{value}", Ok(())),
            ("a {value} b {san_uri}", Ok(())),
            ("plain", Ok(())),
            ("", Err(TemplateError::Empty)),
            ("{value", Err(TemplateError::Unbalanced)),
            ("value}", Err(TemplateError::Unbalanced)),
            ("{value}}", Err(TemplateError::Unbalanced)),
            ("{{value}}", Err(TemplateError::UnknownPlace("{value".into()))),
            ("{nobody}", Err(TemplateError::UnknownPlace("nobody".into()))),
        ] {
            assert_eq!(Template::parse(text).map(drop), expected, "{text}");
        }
    }
}
