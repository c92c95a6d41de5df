//! Revocation lists (RFC 5280 section 5): verified once when they are loaded, then looked up.
//!
//! Complete lists only. A delta, indirect or partitioned list is refused when it is loaded,
//! because taken for a complete one it would call revoked certificates good.

use std::{collections::HashMap, fmt};

use rustls_pki_types::{CertificateRevocationListDer, UnixTime, pem::PemObject};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{
    anchors::{Anchors, AuthorityId},
    fields::{self, Serial, SignatureError, Signed},
    name,
};

/// Largest file taken. A list of a million entries is about 40 MB; this is read into memory on
/// every reload.
pub const LIST_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What is known of one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its issuer's list is current and does not name it.
    Good,
    /// Its issuer's list names it, current or not: nobody is taken off a list but by expiry.
    Revoked,
    /// There is no list of its issuer.
    Unknown,
    /// Its issuer's list is past `nextUpdate` and does not name it.
    Stale {
        /// When a newer list was due.
        next_update: UnixTime,
    },
}

/// The freshest list of one authority.
#[derive(Clone, Debug)]
pub struct List {
    issuer: String,
    this_update: UnixTime,
    next_update: UnixTime,
    /// Sorted, so that a lookup among 100,000 is 17 comparisons in 2 MB without any pointer.
    revoked: Vec<Serial>,
}

impl List {
    /// The authority's subject.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// When it was issued.
    pub fn this_update(&self) -> UnixTime {
        self.this_update
    }

    /// When the next one is due; from then on it is stale.
    pub fn next_update(&self) -> UnixTime {
        self.next_update
    }

    /// Number of certificates on it.
    pub fn revoked(&self) -> usize {
        self.revoked.len()
    }

    fn status(&self, serial: Serial, now: UnixTime) -> Status {
        if self.revoked.binary_search(&serial).is_ok() {
            return Status::Revoked;
        }
        if now > self.next_update {
            return Status::Stale { next_update: self.next_update };
        }
        Status::Good
    }
}

/// All lists of one listener, by authority.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    lists: HashMap<AuthorityId, List>,
}

/// Why a list cannot be used, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationsError {
    /// The file, as it was named by the caller.
    pub path: String,
    /// Which list of the file, counted from 1.
    pub index: usize,
    /// What is wrong with it.
    pub fault: ListFault,
}

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListFault {
    /// Larger than [`LIST_MAX_BYTES`].
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Neither PEM nor DER of a list.
    NotAList {
        /// What the parser said.
        detail: String,
    },
    /// The file has no list in it.
    Empty,
    /// No authority of the bundle has its issuer's name.
    UnknownIssuer {
        /// The list's issuer.
        issuer: String,
    },
    /// The authorities of that name did not sign it.
    BadSignature {
        /// The list's issuer.
        issuer: String,
    },
    /// Signed with an algorithm that is not accepted (SHA-1, RSA below 2048 bits, …).
    UnsupportedAlgorithm {
        /// The list's issuer.
        issuer: String,
    },
    /// The authority's keyUsage does not allow it to sign lists.
    IssuerMayNotSign {
        /// The list's issuer.
        issuer: String,
    },
    /// It has no `nextUpdate`, so nobody could tell when it is too old.
    NoNextUpdate {
        /// The list's issuer.
        issuer: String,
    },
    /// A delta, indirect or partitioned list, or one with a critical extension.
    Unsupported {
        /// Which kind, or the extension's object identifier.
        what: String,
    },
    /// A serial number longer than 20 octets.
    SerialTooLong,
}

impl fmt::Display for RevocationsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: revocation list {}: {}", self.path, self.index, self.fault)
    }
}

impl fmt::Display for ListFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes } => {
                write!(f, "{bytes} bytes; at most {LIST_MAX_BYTES} are read")
            }
            Self::NotAList { detail } => {
                write!(f, "does not parse: {detail}; was the file written completely?")
            }
            Self::Empty => f.write_str("there is none in this file"),
            Self::UnknownIssuer { issuer } => write!(
                f,
                "its issuer \"{issuer}\" is not among the client authorities; \
                 add the issuer's certificate to client_ca or leave the list out"
            ),
            Self::BadSignature { issuer } => write!(
                f,
                "not signed by the authority \"{issuer}\" of client_ca; \
                 an authority of the same name with another key may have made it"
            ),
            Self::UnsupportedAlgorithm { issuer } => write!(
                f,
                "\"{issuer}\" signed it with an algorithm that is not accepted; \
                 use SHA-256 or better and RSA of 2048 bits or more, ECDSA or Ed25519"
            ),
            Self::IssuerMayNotSign { issuer } => {
                write!(f, "the certificate of \"{issuer}\" does not allow cRLSign")
            }
            Self::NoNextUpdate { issuer } => {
                write!(f, "the list of \"{issuer}\" has no nextUpdate (RFC 5280 section 5.1.2.5)")
            }
            Self::Unsupported { what } => {
                write!(f, "{what} is not supported; give the authority's complete list")
            }
            Self::SerialTooLong => f.write_str("a serial number is longer than 20 octets"),
        }
    }
}

impl std::error::Error for RevocationsError {}

impl Revocations {
    /// Reads lists, each PEM or DER, any number for each authority; the freshest of an authority
    /// wins, whatever the order. Every signature is verified here and never again.
    pub fn parse(files: &[(&str, &[u8])], anchors: &Anchors) -> Result<Self, RevocationsError> {
        let mut revocations = Self::default();
        for (path, bytes) in files {
            let at =
                |index| move |fault| RevocationsError { path: (*path).to_owned(), index, fault };
            let ders = list_ders(bytes).map_err(|(index, fault)| at(index)(fault))?;
            for (index, der) in ders.iter().enumerate() {
                let (authority, list) = list(der, anchors).map_err(at(index + 1))?;
                revocations.keep_freshest(authority, list);
            }
        }
        Ok(revocations)
    }

    fn keep_freshest(&mut self, authority: AuthorityId, list: List) {
        let age = |list: &List| (list.this_update, list.next_update);
        match self.lists.get(&authority) {
            Some(held) if age(held) >= age(&list) => {}
            _ => {
                self.lists.insert(authority, list);
            }
        }
    }

    /// True when no list was given: then nothing is looked up.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Every list in use, in no particular order.
    pub fn lists(&self) -> impl Iterator<Item = &List> {
        self.lists.values()
    }

    /// What is known of the certificate that `issuer` gave `serial`.
    pub fn status(&self, issuer: AuthorityId, serial: Serial, now: UnixTime) -> Status {
        self.lists.get(&issuer).map_or(Status::Unknown, |list| list.status(serial, now))
    }
}

/// The DER of every list in a file.
fn list_ders(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'_>>, (usize, ListFault)> {
    if bytes.len() > LIST_MAX_BYTES {
        return Err((1, ListFault::TooLarge { bytes: bytes.len() }));
    }
    // A DER list starts with the octet of a SEQUENCE; text never does, whatever stands before its
    // first block.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let mut ders = Vec::new();
    for block in CertificateRevocationListDer::pem_slice_iter(bytes) {
        let der = block.map_err(|error| {
            (ders.len() + 1, ListFault::NotAList { detail: name::cut(error.to_string()) })
        })?;
        ders.push(der);
    }
    if ders.is_empty() {
        return Err((1, ListFault::Empty));
    }
    Ok(ders)
}

fn list(der: &[u8], anchors: &Anchors) -> Result<(AuthorityId, List), ListFault> {
    let (rest, parsed) = CertificateRevocationList::from_der(der)
        .map_err(|error| ListFault::NotAList { detail: name::cut(error.to_string()) })?;
    if !rest.is_empty() {
        return Err(ListFault::NotAList {
            detail: format!("{} bytes too many at its end", rest.len()),
        });
    }
    if parsed.tbs_cert_list.signature != parsed.signature_algorithm {
        return Err(ListFault::NotAList {
            detail: "it names two different signature algorithms".to_owned(),
        });
    }
    let authority = signer(der, &parsed, anchors)?;
    check_extensions(&parsed)?;
    let issuer = name::distinguished(parsed.issuer());
    let Some(next_update) = parsed.next_update() else {
        return Err(ListFault::NoNextUpdate { issuer });
    };
    Ok((
        authority,
        List {
            issuer,
            this_update: fields::unix_time(&parsed.last_update()),
            next_update: fields::unix_time(&next_update),
            revoked: serials(&parsed)?,
        },
    ))
}

/// The authority of the bundle that signed the list.
fn signer(
    der: &[u8],
    parsed: &CertificateRevocationList<'_>,
    anchors: &Anchors,
) -> Result<AuthorityId, ListFault> {
    let issuer = || name::distinguished(parsed.issuer());
    let signed = Signed::parse(der).ok_or_else(|| ListFault::NotAList {
        detail: "its outer structure is not a signed list".to_owned(),
    })?;
    let mut fault = ListFault::UnknownIssuer { issuer: issuer() };
    for authority in anchors.authorities() {
        if authority.subject_der != parsed.issuer().as_raw() {
            continue;
        }
        fault = match signed.verify(&authority.key_der) {
            Ok(()) if authority.may_sign_lists => return Ok(authority.id),
            Ok(()) => ListFault::IssuerMayNotSign { issuer: issuer() },
            Err(SignatureError::Wrong) => ListFault::BadSignature { issuer: issuer() },
            Err(SignatureError::UnsupportedAlgorithm) => {
                ListFault::UnsupportedAlgorithm { issuer: issuer() }
            }
        };
    }
    Err(fault)
}

fn check_extensions(parsed: &CertificateRevocationList<'_>) -> Result<(), ListFault> {
    for extension in parsed.extensions() {
        let oid = extension.oid.to_id_string();
        let what = match oid.as_str() {
            // RFC 5280 sections 5.2.4 and 5.2.5, critical or not.
            "2.5.29.27" => "a delta list".to_owned(),
            "2.5.29.28" => "a partitioned or indirect list (issuingDistributionPoint)".to_owned(),
            _ if extension.critical => format!("the critical extension {oid}"),
            _ => continue,
        };
        return Err(ListFault::Unsupported { what });
    }
    Ok(())
}

fn serials(parsed: &CertificateRevocationList<'_>) -> Result<Vec<Serial>, ListFault> {
    let mut serials = Vec::new();
    for entry in parsed.iter_revoked_certificates() {
        if let Some(extension) = entry.extensions().iter().find(|extension| extension.critical) {
            return Err(ListFault::Unsupported {
                what: format!("an entry's critical extension {}", extension.oid.to_id_string()),
            });
        }
        serials.push(Serial::new(entry.raw_serial()).ok_or(ListFault::SerialTooLong)?);
    }
    serials.sort_unstable();
    serials.dedup();
    Ok(serials)
}
