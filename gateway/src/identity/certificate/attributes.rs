//! Text that a certificate holds under object identifiers: attributes of its subject, extensions and
//! other names. Identity rules may ask for any of it, so it is kept as read; what cannot be read is
//! kept as that, so that a rule which asks for it can refuse instead of passing on to the next.

use x509_parser::{
    asn1_rs::{Any, FromDer},
    certificate::X509Certificate,
    extensions::GeneralName,
};

use super::name::{NAME_MAX_BYTES, text};

/// The user principal name of a directory, an `otherName` (MS-WCCE section 2.2.2.7.7.2).
pub const USER_PRINCIPAL_NAME: &str = "1.3.6.1.4.1.311.20.2.3";

/// Most attributes kept of one certificate. Real subjects have about five; the rest of a larger one
/// cannot be asked for.
pub const ATTRIBUTES_MAX: usize = 64;

/// The arc of the standard extensions (RFC 5280 section 4.2.1), none of which is a text.
const STANDARD_EXTENSIONS: &str = "2.5.29.";

/// Where a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Extension,
    Subject,
    OtherName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attribute {
    place: Place,
    oid: String,
    /// `None`: not a text, or not a clean one.
    text: Option<String>,
}

/// A text was asked for, and what stands there is not a clean one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The texts of one certificate, clean: no control character, no blank at an end, not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    found: Vec<Attribute>,
}

impl Attributes {
    /// Reads those of a parsed certificate.
    pub fn of(certificate: &X509Certificate<'_>) -> Attributes {
        let extensions = certificate.extensions().iter().filter_map(|extension| {
            let oid = extension.oid.to_id_string();
            (!oid.starts_with(STANDARD_EXTENSIONS)).then(|| Attribute {
                place: Place::Extension,
                oid,
                text: der_text(extension.value),
            })
        });
        let subject = certificate.subject().iter_attributes().map(|attribute| Attribute {
            place: Place::Subject,
            oid: attribute.attr_type().to_id_string(),
            text: clean(text(attribute.attr_value())),
        });
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|extension| &extension.value.general_names);
        let others = names.filter_map(|name| match name {
            GeneralName::OtherName(oid, value) => Some(Attribute {
                place: Place::OtherName,
                oid: oid.to_id_string(),
                text: other_name_text(value),
            }),
            _ => None,
        });
        Attributes { found: extensions.chain(subject).chain(others).take(ATTRIBUTES_MAX).collect() }
    }

    /// The texts under an object identifier: of an extension when there is one, else of the subject,
    /// because an authority takes a subject from a request more easily than an extension.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn under(&self, oid: &str) -> Result<Vec<&str>, Unreadable> {
        let of_extension = self.at(Place::Extension, oid)?;
        if of_extension.is_empty() { self.at(Place::Subject, oid) } else { Ok(of_extension) }
    }

    /// The user principal names.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn user_principal_names(&self) -> Result<Vec<&str>, Unreadable> {
        self.at(Place::OtherName, USER_PRINCIPAL_NAME)
    }

    fn at(&self, place: Place, oid: &str) -> Result<Vec<&str>, Unreadable> {
        let found = self.found.iter().filter(|found| found.place == place && found.oid == oid);
        found.map(|found| found.text.as_deref().ok_or(Unreadable)).collect()
    }
}

/// An extension's value that is one DER string and nothing after it.
fn der_text(der: &[u8]) -> Option<String> {
    let (rest, value) = Any::from_der(der).ok()?;
    if rest.is_empty() { clean(text(&value)) } else { None }
}

/// An other name's value, in its explicit tag or without it, as parsers differ in what they leave.
fn other_name_text(der: &[u8]) -> Option<String> {
    der_text(der).or_else(|| {
        let (rest, tagged) = Any::from_der(der).ok()?;
        if rest.is_empty() { der_text(tagged.data) } else { None }
    })
}

fn clean(text: Option<String>) -> Option<String> {
    text.filter(|text| {
        !text.is_empty()
            && text.len() <= NAME_MAX_BYTES
            && text.trim() == text
            && !text.chars().any(char::is_control)
    })
}
