//! NIST's Public Key Interoperability Test Suite (PKITS 1.0.1), every end entity of it, against the
//! judgement that client certificates get.
//!
//! The names say what RFC 5280 wants (`Valid…`, `Invalid…`). Where the product decides otherwise there is
//! a row in [`DIFFERENCES`] with the reason; a row that no longer differs fails the test, as does a
//! difference without a row.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use gateway::{
    config::CrlExpired,
    identity::certificate::{Anchors, Revocations, Trust, Verifier},
};
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier as _,
};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer as _, revocation_list, x509::X509Name,
};

/// 2020-01-01: all that is valid in the suite is valid from 2010 to 2030.
const NOW_S: u64 = 1_577_836_800;

/// Refused although RFC 5280 allows it: nothing unsafe, and why.
const TOO_STRICT: &str = "refused";
/// Let in although a relying party that asks for it would refuse.
const NOT_ASKED: &str = "let in";

/// A name constraint of a kind that webpki does not compare is taken as broken.
const CONSTRAINT: &str = "only constraints on DNS names and addresses are compared; others refuse";
/// RFC 5280 section 6.1.4's policy tree is not built; what would need it is critical.
const POLICY: &str = "certificate policies are not processed, and a critical demand for it refuses";
/// Of one authority name with two keys.
const TWO_KEYS: &str = "a list speaks for the key that signed it; each key of a name needs its own";
/// Of lists for a part of the certificates.
const PARTIAL: &str = "indirect and partitioned lists are refused when they are loaded";
/// As octets, not folded.
const OCTETS: &str = "names are compared octet by octet, as webpki and most verifiers do";
/// An authority's own certificate.
const AUTHORITY: &str = "the end entity is an authority, which is nobody's client";

/// Start of the name, what happens instead, why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("DifferentPoliciesTest7", TOO_STRICT, AUTHORITY),
    ("DifferentPoliciesTest8", TOO_STRICT, AUTHORITY),
    ("OverlappingPoliciesTest6", TOO_STRICT, AUTHORITY),
    ("ValidpathLenConstraintTest8", TOO_STRICT, AUTHORITY),
    ("ValidpathLenConstraintTest14", TOO_STRICT, AUTHORITY),
    ("ValidonlyContainsCACertsTest13", TOO_STRICT, AUTHORITY),
    (
        "InvaliddeltaCRLTest4",
        NOT_ASKED,
        "it is on a delta list only, and the daemon does not start with a delta list in client_crl",
    ),
    (
        "ValiddeltaCRLTest5",
        TOO_STRICT,
        "a delta list would take it off the list; nobody is taken off a complete list here",
    ),
    ("ValidBasicSelfIssuedCRLSigningKeyTest6", TOO_STRICT, TWO_KEYS),
    ("ValidBasicSelfIssuedNewWithOldTest4", TOO_STRICT, TWO_KEYS),
    ("ValidBasicSelfIssuedOldWithNewTest1", TOO_STRICT, TWO_KEYS),
    ("ValidSelfIssuedpathLenConstraint", TOO_STRICT, TWO_KEYS),
    ("ValidSeparateCertificateandCRLKeysTest19", TOO_STRICT, TWO_KEYS),
    ("ValidDNnameConstraints", TOO_STRICT, CONSTRAINT),
    ("ValidDNandRFC822nameConstraints", TOO_STRICT, CONSTRAINT),
    ("ValidRFC822nameConstraints", TOO_STRICT, CONSTRAINT),
    ("ValidURInameConstraints", TOO_STRICT, CONSTRAINT),
    ("ValidPolicyMapping", TOO_STRICT, POLICY),
    ("ValidrequireExplicitPolicy", TOO_STRICT, POLICY),
    ("ValidinhibitAnyPolicy", TOO_STRICT, POLICY),
    ("ValidinhibitPolicyMapping", TOO_STRICT, POLICY),
    ("ValidSelfIssuedinhibit", TOO_STRICT, POLICY),
    ("ValidSelfIssuedrequireExplicitPolicy", TOO_STRICT, POLICY),
    ("inhibitAnyPolicyTest3", TOO_STRICT, POLICY),
    ("ValidIDPwithindirectCRL", TOO_STRICT, PARTIAL),
    ("ValidcRLIssuer", TOO_STRICT, PARTIAL),
    ("ValiddistributionPoint", TOO_STRICT, PARTIAL),
    ("ValidonlySomeReasons", TOO_STRICT, PARTIAL),
    ("ValidNameChaining", TOO_STRICT, OCTETS),
    ("ValidRolloverfromPrintableStringtoUTF8String", TOO_STRICT, OCTETS),
    ("ValidUTF8StringCaseInsensitiveMatch", TOO_STRICT, OCTETS),
    ("ValidDSA", TOO_STRICT, "DSA is not accepted; TLS 1.3 has no place for it"),
    (
        "ValidNameUIDs",
        TOO_STRICT,
        "webpki takes no subjectUniqueID, which RFC 5280 says not to use",
    ),
    ("Validpre2000UTCnotBeforeDate", TOO_STRICT, "webpki reads no dates before 1970"),
];

/// What the suite wants of end entities whose names do not say it, with any policy acceptable and none
/// demanded (its default settings, section 4.8 on).
const UNNAMED: &[(&str, bool)] = &[
    ("AllCertificatesNoPoliciesTest2", true),
    ("AllCertificatesSamePoliciesTest10", true),
    ("AllCertificatesSamePoliciesTest13", true),
    ("AllCertificatesanyPolicyTest11", true),
    ("AnyPolicyTest14", true),
    ("CPSPointerQualifierTest20", true),
    // The path's policies have nothing in common, which matters only to who demands one.
    ("DifferentPoliciesTest", true),
    ("OverlappingPoliciesTest6", true),
    ("UserNoticeQualifierTest", true),
    ("inhibitAnyPolicyTest3", true),
];

struct Vectors {
    certificates: BTreeMap<String, Vec<u8>>,
    lists: Vec<(String, Vec<u8>)>,
}

/// Where `cargo xtask setup` puts them.
fn vectors() -> Option<Result<Vectors>> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/python/lib");
    let suite = fs::read_dir(library).ok()?.flatten().find_map(|python| {
        let place = "site-packages/cryptography_vectors/x509/PKITS_data";
        let suite = python.path().join(place);
        suite.is_dir().then_some(suite)
    })?;
    let read = |folder: &str| -> Result<Vec<(String, Vec<u8>)>> {
        let files = fs::read_dir(suite.join(folder))?;
        let paths: Vec<PathBuf> =
            files.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?;
        paths
            .into_iter()
            .filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path)))
            .map(|(name, path)| Ok((name, fs::read(path)?)))
            .collect()
    };
    Some(read("certs").and_then(|certificates| {
        let certificates = certificates.into_iter().collect();
        Ok(Vectors { certificates, lists: read("crls")? })
    }))
}

/// A name as those compare it who fold case and blanks (RFC 5280 section 7.1), to find what may belong
/// together; the product compares octets.
fn folded(name: &X509Name<'_>) -> String {
    name.to_string().to_lowercase().split_whitespace().collect()
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>> {
    Ok(X509Certificate::from_der(der)?.1)
}

/// A file's name and what it holds.
type File = (String, Vec<u8>);

/// Every authority's certificate on some way from the end entity up, and the lists of those
/// authorities: what a client would send, and an operator configure.
fn on_the_way<'v>(vectors: &'v Vectors, leaf: &[u8]) -> Result<(Vec<&'v [u8]>, Vec<&'v File>)> {
    let authorities = vectors
        .certificates
        .iter()
        .filter(|(name, _)| !name.ends_with("EE"))
        .map(|(_, der)| Ok((folded(parsed(der)?.subject()), der.as_slice())))
        .collect::<Result<Vec<_>>>()?;
    let mut names = vec![folded(parsed(leaf)?.issuer())];
    let mut chain = Vec::new();
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        next += 1;
        for (_, der) in authorities.iter().filter(|(subject, _)| *subject == name) {
            chain.push(*der);
            let issuer = folded(parsed(der)?.issuer());
            if !names.contains(&issuer) {
                names.push(issuer);
            }
        }
    }
    let mut lists = Vec::new();
    for list in &vectors.lists {
        let (_, parsed) = revocation_list::CertificateRevocationList::from_der(&list.1)?;
        if names.contains(&folded(parsed.issuer())) {
            lists.push(list);
        }
    }
    Ok((chain, lists))
}

/// A bundle of what can be in one, the suite's root first.
fn bundle(root: &[u8], authorities: &[&[u8]]) -> Result<Anchors> {
    let pem = |der: &[u8]| {
        let text = base64_lines(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n")
    };
    let mut text = pem(root);
    for der in authorities {
        let more = format!("{text}{}", pem(der));
        // Authorities that are none are what some tests are about: they come from the client only.
        if Anchors::parse(more.as_bytes()).is_ok() {
            text = more;
        }
    }
    Ok(Anchors::parse(text.as_bytes())?)
}

fn base64_lines(der: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(der) + "\n"
}

/// The product's verdict: nothing, or the word and text of its refusal.
fn verdict(vectors: &Vectors, leaf: &[u8]) -> Result<Option<String>> {
    let root = &vectors.certificates["TrustAnchorRootCertificate"];
    let (chain, lists) = on_the_way(vectors, leaf)?;
    let others: Vec<&[u8]> = chain.iter().copied().filter(|der| der != root).collect();
    let anchors = bundle(root, &others)?;
    // A list that cannot be taken is refused with the configuration; here it is as if it were not
    // there, which refuses everybody of its authority as long as there is any list.
    let mut unusable = Vec::new();
    let usable: Vec<(&str, &[u8])> = lists
        .iter()
        .map(|(name, der)| (name.as_str(), der.as_slice()))
        .filter(|file| match Revocations::parse(&[*file], &anchors) {
            Ok(_) => true,
            Err(error) => {
                unusable.push(error.to_string());
                false
            }
        })
        .collect();
    let revocations = Revocations::parse(&usable, &anchors)?;
    let trust = Trust::new(anchors, revocations, CrlExpired::Deny, 6);
    let verifier = Verifier::new(Arc::new(trust), true);
    let der = |der: &[u8]| CertificateDer::from(der.to_vec());
    let sent: Vec<_> = others.into_iter().map(der).collect();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
    let judged = verifier.verify_client_cert(&der(leaf), &sent, now);
    Ok(match (judged, verifier.outcome()) {
        (Ok(_), _) => None,
        (Err(_), Some(Err(refusal))) => Some(format!("{} {unusable:?}", refusal.error)),
        (Err(error), _) => Some(error.to_string()),
    })
}

#[test]
fn the_public_suite_is_judged_as_rfc_5280_says_or_a_row_says_why_not() -> Result<()> {
    let Some(vectors) = vectors() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "PKITS is not there; `cargo xtask setup` installs it (cryptography-vectors)"
        );
        eprintln!("NOT RUN: PKITS is not there; `cargo xtask setup` installs it");
        return Ok(());
    };
    let vectors = vectors?;
    let mut judged = 0;
    let mut wrong = Vec::new();
    let mut used = vec![0; DIFFERENCES.len()];
    for (name, leaf) in vectors.certificates.iter().filter(|(name, _)| name.ends_with("EE")) {
        let test = name.trim_end_matches("EE");
        let wanted = if test.starts_with("Valid") {
            true
        } else if test.starts_with("Invalid") {
            false
        } else {
            let rows = UNNAMED.iter().filter(|(start, _)| test.starts_with(start));
            rows.max_by_key(|(start, _)| start.len()).context(test.to_owned())?.1
        };
        let verdict = verdict(&vectors, leaf).with_context(|| test.to_owned())?;
        judged += 1;
        let expected = DIFFERENCES.iter().position(|(start, ..)| test.starts_with(start));
        let differs = match (wanted, &verdict) {
            (true, Some(_)) => Some(TOO_STRICT),
            (false, None) => Some(NOT_ASKED),
            _ => None,
        };
        match (differs, expected) {
            (None, None) => {}
            (Some(how), Some(row)) if DIFFERENCES[row].1 == how => used[row] += 1,
            _ => wrong.push(format!("{test}: {differs:?} {verdict:?}")),
        }
    }
    for (row, used) in DIFFERENCES.iter().zip(used) {
        if used == 0 {
            wrong.push(format!("no test differs by the row {row:?}"));
        }
    }
    println!("{judged} end entities, {} rows of differences", DIFFERENCES.len());
    ensure!(judged > 200, "only {judged} end entities found");
    ensure!(wrong.is_empty(), "{} verdicts:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
