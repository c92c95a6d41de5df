//! Names in certificates: distinguished names as text, alternative names, SPIFFE IDs.
//!
//! A name ends up in logs, headers and rules, so it is either clean enough for all of them or the
//! certificate is refused: [`Names::of`] is the only way in. Text that is only ever shown (a
//! distinguished name in RFC 4514 form) is escaped and cut instead.

use std::{
    fmt,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use x509_parser::{
    asn1_rs::{Any, Oid, Tag},
    certificate::X509Certificate,
    extensions::GeneralName,
    x509::X509Name,
};

/// Longest distinguished name shown, in bytes. Real ones are below 300; a hostile one may fill the
/// 64 KiB of a handshake message, and every refusal is logged.
pub const SHOWN_MAX_BYTES: usize = 1024;

/// Longest single name taken from a certificate, in bytes: the limit of a SPIFFE ID
/// (SPIFFE-ID section 2.3), and above any DNS name (255) or mailbox (320).
pub const NAME_MAX_BYTES: usize = 2048;

/// Most alternative names taken from one certificate. Client certificates carry one or two;
/// each is compared with rules and written to the log.
pub const NAMES_MAX: usize = 64;

/// One subject alternative name (RFC 5280 section 4.2.1.6), clean.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AlternativeName {
    /// `uniformResourceIdentifier`: printable ASCII without spaces.
    Uri(String),
    /// `dNSName`, lower case.
    Dns(String),
    /// `rfc822Name`: printable ASCII without spaces.
    Email(String),
    /// `iPAddress`.
    Ip(IpAddr),
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => write!(f, "URI:{uri}"),
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Email(mailbox) => write!(f, "email:{mailbox}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
        }
    }
}

/// Why a certificate's names cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    /// An alternative name holds something that does not belong in such a name.
    Unclean {
        /// `URI`, `DNS`, `email`, `IP` or `CN`.
        kind: &'static str,
        /// The name, escaped and cut.
        shown: String,
    },
    /// One name is longer than [`NAME_MAX_BYTES`].
    TooLong {
        /// As in `Unclean`.
        kind: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// More than [`NAMES_MAX`] alternative names.
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A URI starts with `spiffe://` and is not a SPIFFE ID.
    NotSpiffe {
        /// The URI.
        uri: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// More than one URI beside a SPIFFE ID (X509-SVID section 2 allows exactly one).
    SeveralSpiffe,
    /// The extension does not parse, or is there twice.
    Unreadable,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclean { kind, shown } => {
                write!(f, "the {kind} name \"{shown}\" has characters that do not belong in one")
            }
            Self::TooLong { kind, bytes } => {
                write!(f, "a {kind} name of {bytes} bytes; at most {NAME_MAX_BYTES} are taken")
            }
            Self::TooMany { count } => {
                write!(f, "{count} alternative names; at most {NAMES_MAX} are taken")
            }
            Self::NotSpiffe { uri, rule } => write!(f, "\"{uri}\" is not a SPIFFE ID: {rule}"),
            Self::SeveralSpiffe => {
                f.write_str("several URI names, one of them a SPIFFE ID; exactly one is allowed")
            }
            Self::Unreadable => f.write_str("the subject alternative names do not parse"),
        }
    }
}

impl std::error::Error for NameError {}

/// The names of one certificate, all clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    alternative: Vec<AlternativeName>,
    common_name: Option<String>,
    spiffe: Option<usize>,
}

impl Names {
    /// Reads the names of a parsed certificate. Other kinds of alternative names (directory
    /// names, other names) are passed over: nothing here decides on them.
    pub fn of(certificate: &X509Certificate<'_>) -> Result<Self, NameError> {
        let mut alternative = Vec::new();
        let extension =
            certificate.subject_alternative_name().map_err(|_| NameError::Unreadable)?;
        if let Some(extension) = extension {
            let names = &extension.value.general_names;
            if names.len() > NAMES_MAX {
                return Err(NameError::TooMany { count: names.len() });
            }
            for name in names {
                alternative.extend(alternative_name(name)?);
            }
        }
        let common_name = common_name(certificate.subject())?;
        let spiffe = spiffe(&alternative)?;
        Ok(Self { alternative, common_name, spiffe })
    }

    /// Every alternative name, in the certificate's order.
    pub fn alternative(&self) -> &[AlternativeName] {
        &self.alternative
    }

    /// The most specific CN of the subject.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The SPIFFE ID, checked for form.
    pub fn spiffe_id(&self) -> Option<&str> {
        match self.alternative.get(self.spiffe?) {
            Some(AlternativeName::Uri(uri)) => Some(uri),
            _ => None,
        }
    }

    /// What this certificate calls its owner: the SPIFFE ID, else the first DNS name, else CN.
    pub fn principal(&self) -> Option<&str> {
        let dns = || {
            self.alternative.iter().find_map(|name| match name {
                AlternativeName::Dns(name) => Some(name.as_str()),
                _ => None,
            })
        };
        self.spiffe_id().or_else(dns).or_else(|| self.common_name())
    }
}

/// In a subject written from the general to the special, the last CN is the owner's.
fn common_name(subject: &X509Name<'_>) -> Result<Option<String>, NameError> {
    let Some(attribute) = subject.iter_common_name().last() else { return Ok(None) };
    let value = attribute.attr_value();
    let Some(text) = text(value) else {
        return Err(NameError::Unclean { kind: "CN", shown: shown_bytes(value.data) });
    };
    if text.len() > NAME_MAX_BYTES {
        return Err(NameError::TooLong { kind: "CN", bytes: text.len() });
    }
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err(NameError::Unclean { kind: "CN", shown: shown_bytes(text.as_bytes()) });
    }
    Ok(Some(text))
}

fn alternative_name(name: &GeneralName<'_>) -> Result<Option<AlternativeName>, NameError> {
    Ok(Some(match name {
        GeneralName::URI(uri) => AlternativeName::Uri(clean("URI", uri, printable)?.to_owned()),
        GeneralName::DNSName(name) => {
            AlternativeName::Dns(clean("DNS", name, host_character)?.to_ascii_lowercase())
        }
        GeneralName::RFC822Name(mailbox) => {
            AlternativeName::Email(clean("email", mailbox, printable)?.to_owned())
        }
        GeneralName::IPAddress(octets) => AlternativeName::Ip(address(octets)?),
        // The tag says which kind it was meant to be; one that cannot be read must not make room
        // for a weaker name further down.
        GeneralName::Invalid(_, value) => {
            return Err(NameError::Unclean {
                kind: "subject alternative",
                shown: shown_bytes(value),
            });
        }
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_) => return Ok(None),
    }))
}

fn clean<'a>(
    kind: &'static str,
    name: &'a str,
    allowed: fn(u8) -> bool,
) -> Result<&'a str, NameError> {
    if name.len() > NAME_MAX_BYTES {
        return Err(NameError::TooLong { kind, bytes: name.len() });
    }
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(NameError::Unclean { kind, shown: shown_bytes(name.as_bytes()) });
    }
    Ok(name)
}

fn printable(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

/// Letters, digits, hyphen and dot; the underscore of service names and the star of wildcards.
fn host_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*')
}

fn address(octets: &[u8]) -> Result<IpAddr, NameError> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Ok(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    <[u8; 16]>::try_from(octets)
        .map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
        .map_err(|_| NameError::Unclean { kind: "IP", shown: shown_bytes(octets) })
}

/// Index of the one SPIFFE ID. X509-SVID section 5.2: an SVID with more than one URI is refused.
fn spiffe(names: &[AlternativeName]) -> Result<Option<usize>, NameError> {
    let uris = || {
        names.iter().enumerate().filter_map(|(index, name)| match name {
            AlternativeName::Uri(uri) => Some((index, uri.as_str())),
            _ => None,
        })
    };
    let Some((index, uri)) = uris().find(|(_, uri)| starts_with_scheme(uri)) else {
        return Ok(None);
    };
    if uris().count() > 1 {
        return Err(NameError::SeveralSpiffe);
    }
    match spiffe_rule_broken(uri) {
        None => Ok(Some(index)),
        Some(rule) => Err(NameError::NotSpiffe { uri: uri.to_owned(), rule }),
    }
}

const SPIFFE_SCHEME: &str = "spiffe://";

fn starts_with_scheme(uri: &str) -> bool {
    uri.get(..SPIFFE_SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SPIFFE_SCHEME))
}

/// The rule of SPIFFE-ID section 2 that a URI breaks; `None` for a SPIFFE ID.
pub fn spiffe_rule_broken(uri: &str) -> Option<&'static str> {
    let Some(rest) = uri.strip_prefix(SPIFFE_SCHEME) else {
        return Some("it must start with spiffe://");
    };
    let (domain, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if domain.is_empty() || domain.len() > 255 {
        return Some("the trust domain must have 1 to 255 characters");
    }
    if !domain
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte))
    {
        return Some("the trust domain may hold only a-z 0-9 - . _");
    }
    for segment in path.split('/').skip(1) {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Some("the path may not hold empty, . or .. segments");
        }
        if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
            return Some("the path may hold only letters, digits, - . _ and /");
        }
    }
    None
}

/// A distinguished name as RFC 4514 writes it (most specific part first), every control character
/// escaped, cut at [`SHOWN_MAX_BYTES`].
pub fn distinguished(name: &X509Name<'_>) -> String {
    let mut shown = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, part) in parts.iter().rev().enumerate() {
        if index > 0 {
            shown.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                shown.push('+');
            }
            attribute_text(&mut shown, attribute.attr_type(), attribute.attr_value());
        }
        if shown.len() > SHOWN_MAX_BYTES {
            break;
        }
    }
    cut(shown)
}

fn attribute_text(shown: &mut String, kind: &Oid<'_>, value: &Any<'_>) {
    let dotted = kind.to_id_string();
    match short_name(&dotted) {
        Some(short) => shown.push_str(short),
        None => shown.push_str(&dotted),
    }
    shown.push('=');
    match text(value) {
        Some(text) => escape(shown, &text),
        None => {
            shown.push('#');
            for byte in value.data.iter().take(SHOWN_MAX_BYTES / 2) {
                // Writing to a String cannot fail.
                let _ = write!(shown, "{byte:02X}");
            }
        }
    }
}

/// RFC 4514 section 3, and the mail address that many private authorities still write.
fn short_name(dotted: &str) -> Option<&'static str> {
    Some(match dotted {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// A DirectoryString or IA5String as text, if its bytes are what its tag says.
pub(super) fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.data).ok().map(str::to_owned),
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString => {
            value.data.is_ascii().then(|| String::from_utf8_lossy(value.data).into_owned())
        }
        Tag::BmpString => {
            let (units, rest) = value.data.as_chunks::<2>();
            let units: Vec<u16> = units.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            if rest.is_empty() { String::from_utf16(&units).ok() } else { None }
        }
        _ => None,
    }
}

/// RFC 4514 section 2.4.
fn escape(shown: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, character) in value.chars().enumerate().take(SHOWN_MAX_BYTES) {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => {
                shown.push('\\');
                shown.push(character);
            }
            ' ' if index == 0 || index == last => shown.push_str("\\ "),
            '#' if index == 0 => shown.push_str("\\#"),
            _ if character.is_control() => {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(shown, "\\{byte:02X}");
                }
            }
            _ => shown.push(character),
        }
    }
}

/// Bytes from outside as something a log may hold: ASCII, escaped, cut.
pub(crate) fn shown_bytes(bytes: &[u8]) -> String {
    /// Enough to recognise a name by.
    const SHOWN: usize = 128;
    let mut shown =
        bytes.iter().take(SHOWN).copied().collect::<Vec<_>>().escape_ascii().to_string();
    if bytes.len() > SHOWN {
        shown.push('…');
    }
    shown
}

/// Cuts at a character boundary and marks the cut.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > SHOWN_MAX_BYTES {
        text.truncate(text.floor_char_boundary(SHOWN_MAX_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_have_one_form() {
        let long = format!("spiffe://{}/x", "a".repeat(256));
        for (uri, good) in [
            ("spiffe://example.org", true),
            ("spiffe://example.org/orders", true),
            ("spiffe://example-1.org/ns/Prod/sa/a_b.c-d", true),
            ("spiffe://", false),
            ("spiffe:///orders", false),
            ("spiffe://example.org/", false),
            ("spiffe://example.org//orders", false),
            ("spiffe://example.org/orders/", false),
            ("spiffe://example.org/../orders", false),
            ("spiffe://example.org/./orders", false),
            ("spiffe://Example.org/orders", false),
            ("spiffe://example.org:8443/orders", false),
            ("spiffe://user@example.org/orders", false),
            ("spiffe://example.org/orders?x=1", false),
            ("spiffe://example.org/orders#x", false),
            ("spiffe://example.org/%2e%2e/orders", false),
            ("spiffe://example.org/\u{e9}", false),
            ("SPIFFE://example.org/orders", false),
            ("https://example.org/orders", false),
            (&long, false),
        ] {
            assert_eq!(spiffe_rule_broken(uri).is_none(), good, "{uri}");
        }
    }

    #[test]
    fn text_is_escaped_as_rfc_4514_asks() {
        for (text, escaped) in [
            ("plain", "plain"),
            (" lead and trail ", "\\ lead and trail\\ "),
            ("#1", "\\#1"),
            ("a,b+c\"d\\e<f>g;h", "a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;h"),
            ("a\nb\0\u{9b}", "a\\0Ab\\00\\C2\\9B"),
            ("M\u{fc}ller", "M\u{fc}ller"),
            (" ", "\\ "),
        ] {
            let mut shown = String::new();
            escape(&mut shown, text);
            assert_eq!(shown, escaped);
        }
    }

    #[test]
    fn what_is_shown_is_cut_at_a_character() {
        let shown = cut("\u{20ac}".repeat(SHOWN_MAX_BYTES));
        assert!(shown.len() <= SHOWN_MAX_BYTES + 3 && shown.ends_with('\u{2026}'));
        assert_eq!(cut("short".to_owned()), "short");
        assert!(shown_bytes(&[0xff; 4096]).len() < 600);
    }
}
