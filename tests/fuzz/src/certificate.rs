//! Certificates and revocation lists.

use std::sync::LazyLock;

use gateway::identity::certificate::{
    Anchors, Attributes, Revocations,
    name::{NAME_MAX_BYTES, NAMES_MAX, Names, SHOWN_MAX_BYTES, distinguished},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

static ANCHORS: LazyLock<Anchors> =
    LazyLock::new(|| Anchors::parse(include_bytes!("../fixtures/ca.pem")).expect("an authority"));

/// A certificate's names, and the same bytes as a bundle of authorities.
pub(crate) fn certificate(bytes: &[u8]) {
    let _ = Anchors::parse(bytes);
    let Ok((_, certificate)) = X509Certificate::from_der(bytes) else { return };
    let shown = distinguished(certificate.subject());
    assert!(shown.len() <= SHOWN_MAX_BYTES + 3 && !shown.contains(char::is_control));
    let attributes = Attributes::of(&certificate);
    for oid in ["2.5.4.3", "2.5.4.11", "1.3.6.1.4.1.55555"] {
        for text in attributes.under(oid).unwrap_or_default() {
            clean(text);
        }
    }
    for text in attributes.user_principal_names().unwrap_or_default() {
        clean(text);
    }
    if let Ok(names) = Names::of(&certificate) {
        assert!(names.alternative().len() <= NAMES_MAX);
        for name in names.alternative() {
            clean(&name.to_string());
        }
        for text in [names.common_name(), names.spiffe_id(), names.principal()] {
            text.into_iter().for_each(clean);
        }
    }
}

fn clean(text: &str) {
    assert!(!text.is_empty() && text.len() <= NAME_MAX_BYTES + 8, "{text:?}");
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// A revocation list, for an authority that is known.
pub(crate) fn crl(bytes: &[u8]) {
    if let Err(error) = Revocations::parse(&[("fuzz.crl", bytes)], &ANCHORS) {
        assert!(error.to_string().len() < 8_192);
    }
}
