//! Good and bad certificates from authorities made on the spot, each through the real verifier.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
    ServerConnection, client::ResolvesClientCert, server::danger::ClientCertVerifier,
    sign::CertifiedKey, time_provider::TimeProvider,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
    pem::PemObject,
};

use super::{remembered::Presented, *};
use crate::config::CrlExpired;

/// 2026-03-01T12:00:00Z.
pub(crate) const NOW_S: u64 = 1_772_366_400;
const HOUR_S: u64 = 3600;

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn set_validity(params: &mut CertificateParams, from_s: u64, until_s: u64) {
    let moment = |seconds| std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    params.not_before = moment(from_s).into();
    params.not_after = moment(until_s).into();
}

/// A certificate authority for tests.
pub(crate) struct TestAuthority {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
    pem: String,
}

/// A leaf and its key.
pub(crate) struct TestLeaf {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) key: KeyPair,
}

impl TestAuthority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, NOW_S - 1000 * HOUR_S, NOW_S + 1000 * HOUR_S);
        params
    }

    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), params, key }
    }

    fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        params.serial_number = Some(SerialNumber::from(name.len() as u64));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), params, key }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn client(&self, name: &str) -> TestLeaf {
        self.client_with(name, |_| {})
    }

    fn client_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> TestLeaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(7));
        set_validity(&mut params, NOW_S - HOUR_S, NOW_S + HOUR_S);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        TestLeaf { der: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// A list of this authority, issued and due again so many hours from now.
    fn list(&self, serials: &[u64], issued_h: i64, due_h: i64) -> Vec<u8> {
        let moment = |hours: i64| {
            let seconds = NOW_S.checked_add_signed(hours * HOUR_S as i64).unwrap();
            std::time::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let params = CertificateRevocationListParams {
            this_update: moment(issued_h).into(),
            next_update: moment(due_h).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|&serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: moment(issued_h).into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().pem().unwrap().into_bytes()
    }
}

fn anchors(authorities: &[&TestAuthority]) -> Anchors {
    let pem: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
    Anchors::parse(pem.as_bytes()).unwrap()
}

fn trust(authorities: &[&TestAuthority], lists: &[&[u8]], crl_expired: CrlExpired) -> Trust {
    let anchors = anchors(authorities);
    let files: Vec<(&str, &[u8])> = lists.iter().map(|list| ("x.crl", *list)).collect();
    let revocations = Revocations::parse(&files, &anchors).unwrap();
    Trust::new(anchors, revocations, crl_expired, 2)
}

/// For the tests of other stages.
pub(crate) fn peer_of_fresh_authority(common_name: &str) -> Peer {
    peer_with("Test Root", common_name, |_| {})
}

/// The same of an authority of this name, with more in the certificate.
pub(crate) fn peer_with(
    authority: &str,
    common_name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Peer {
    let root = TestAuthority::root(authority);
    let leaf = root.client_with(common_name, change);
    trust(&[&root], &[], CrlExpired::Deny).judge(&leaf.der, &[], at(NOW_S)).unwrap()
}

fn reason(outcome: &Result<Peer, CertificateError>) -> &'static str {
    match outcome {
        Ok(_) => "good",
        Err(error) => error.reason(),
    }
}

fn extension(oid: &[u64], contents: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, contents.to_vec());
    extension.set_criticality(critical);
    extension
}

#[test]
fn each_rule_of_a_single_certificate_has_its_reason() {
    let root = TestAuthority::root("Root");
    let trust = trust(&[&root], &[], CrlExpired::Deny);
    type Change = fn(&mut CertificateParams);
    let rows: [(&str, Change); 22] = [
        ("good", |_| {}),
        ("good", |params| params.extended_key_usages.clear()),
        ("good", |params| params.key_usages.clear()),
        ("good", |params| set_validity(params, NOW_S, NOW_S)),
        ("certificate_expired", |params| set_validity(params, NOW_S - 9, NOW_S - 1)),
        ("certificate_not_yet_valid", |params| set_validity(params, NOW_S + 1, NOW_S + 9)),
        ("bad_eku", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("bad_key_usage", |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        ("bad_certificate", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        ("bad_certificate", |params| {
            params.custom_extensions.push(extension(&[1, 2, 3, 4], &[5, 0], true));
        }),
        ("good", |params| {
            params.custom_extensions.push(extension(&[1, 2, 3, 4], &[5, 0], false));
        }),
        // A keyUsage that does not parse must not count as absent; nor must alternative names,
        // which would make room for the CN.
        ("bad_certificate", |params| {
            params.key_usages.clear();
            params.custom_extensions.push(extension(&[2, 5, 29, 15], &[4, 1, 0], true));
        }),
        ("bad_certificate", |params| {
            params.custom_extensions.push(extension(&[2, 5, 29, 17], &[4, 1, 0], false));
        }),
        ("bad_certificate_name", |params| uri(params, "spiffe://Example.org/x")),
        ("bad_certificate_name", |params| uri(params, "SPIFFE://example.org/x")),
        ("bad_certificate_name", |params| uri(params, "spiffe://example.org/a b")),
        ("bad_certificate_name", |params| uri(params, "https://example.org/\n")),
        ("bad_certificate_name", |params| {
            uri(params, "https://example.org/");
            uri(params, "spiffe://example.org/x");
        }),
        ("bad_certificate_name", |params| {
            params
                .subject_alt_names
                .push(SanType::DnsName("orders\r\nx-user-id: admin".try_into().unwrap()));
        }),
        ("bad_certificate_name", |params| {
            params.distinguished_name.push(DnType::CommonName, "alice\u{0}.example.org");
        }),
        ("bad_certificate", |params| {
            params.serial_number = Some(SerialNumber::from_slice(&[0x7f; 21]));
        }),
        ("bad_certificate_name", |params| {
            for number in 0..=name::NAMES_MAX {
                uri(params, &format!("urn:x:{number}"));
            }
        }),
    ];
    for (index, (expected, change)) in rows.into_iter().enumerate() {
        let leaf = root.client_with("alice", change);
        let outcome = trust.judge(&leaf.der, &[], at(NOW_S));
        assert_eq!(reason(&outcome), expected, "row {index}: {outcome:?}");
    }
}

fn uri(params: &mut CertificateParams, uri: &str) {
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
}

#[test]
fn the_principal_is_the_most_specific_name() {
    let root = TestAuthority::root("Root");
    let trust = trust(&[&root], &[], CrlExpired::Deny);
    type Change = fn(&mut CertificateParams);
    let rows: [(&str, Change); 5] = [
        ("alice", |_| {}),
        ("alice", |params| uri(params, "https://example.org/x")),
        ("orders.example.org", |params| {
            for name in ["Orders.Example.ORG", "second.example.org"] {
                params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
            }
        }),
        ("spiffe://example.org/orders", |params| {
            params.subject_alt_names.push(SanType::DnsName("a.example.org".try_into().unwrap()));
            uri(params, "spiffe://example.org/orders");
        }),
        ("sha256:", |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "nobody");
        }),
    ];
    for (expected, change) in rows {
        let peer = trust.judge(&root.client_with("alice", change).der, &[], at(NOW_S)).unwrap();
        assert!(peer.principal().starts_with(expected), "{} {expected}", peer.principal());
    }
}

#[test]
fn chains_end_at_an_anchor_within_the_depth() {
    let root = TestAuthority::root("Root");
    let one = root.intermediate("One");
    let two = one.intermediate("Two");
    let three = two.intermediate("Three");
    let other = TestAuthority::root("Other");
    let namesake = TestAuthority::root("Root");
    let tight = root.intermediate_with("Tight", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below_tight = tight.intermediate("Below");
    let constrained = root.intermediate_with("Constrained", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
            excluded_subtrees: vec![],
        });
    });
    let elsewhere = constrained.client_with("x", |params| {
        params.subject_alt_names.push(SanType::DnsName("x.example.net".try_into().unwrap()));
    });
    let no_authority = root.client("not an authority");
    let rows: [(&str, &[&TestAuthority], TestLeaf, &[&CertificateDer<'static>]); 16] = [
        ("good", &[&root], root.client("a"), &[]),
        ("good", &[&root], root.client("a"), &[&root.der]),
        ("good", &[&root], two.client("a"), &[&two.der, &one.der]),
        ("good", &[&root], two.client("a"), &[&one.der, &other.der, &two.der]),
        ("chain_too_long", &[&root], three.client("a"), &[&three.der, &two.der, &one.der]),
        ("unknown_issuer", &[&root], two.client("a"), &[&one.der]),
        ("unknown_issuer", &[&other], root.client("a"), &[]),
        ("bad_certificate_signature", &[&namesake], root.client("a"), &[]),
        ("good", &[&namesake, &root], root.client("a"), &[]),
        // An intermediate of the bundle need not be sent, and one alone is an anchor.
        ("good", &[&root, &one], one.client("a"), &[]),
        ("good", &[&one], one.client("a"), &[]),
        ("good", &[&three], three.client("a"), &[]),
        ("chain_too_long", &[&root, &one, &two, &three], three.client("a"), &[]),
        ("chain_too_long", &[&root], below_tight.client("a"), &[&below_tight.der, &tight.der]),
        ("name_constraint", &[&root], elsewhere, &[&constrained.der]),
        (
            "chain_too_long",
            &[&root],
            root.client("a"),
            &[
                &other.der, &one.der, &one.der, &one.der, &one.der, &one.der, &one.der, &one.der,
                &one.der,
            ],
        ),
    ];
    for (index, (expected, authorities, leaf, presented)) in rows.into_iter().enumerate() {
        let trust = trust(authorities, &[], CrlExpired::Deny);
        let presented: Vec<_> = presented.iter().map(|&der| der.clone()).collect();
        let outcome = trust.judge(&leaf.der, &presented, at(NOW_S));
        assert_eq!(reason(&outcome), expected, "row {index}: {outcome:?}");
    }
    // A leaf cannot issue: it is no authority, whatever it signs.
    let mut forged = TestAuthority::params("not an authority");
    forged.is_ca = IsCa::NoCa;
    let issuer = Issuer::from_params(&forged, &no_authority.key);
    let mut params = CertificateParams::default();
    set_validity(&mut params, NOW_S - 1, NOW_S + 1);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let trust = trust(&[&root], &[], CrlExpired::Deny);
    let outcome = trust.judge(leaf.der(), &[no_authority.der], at(NOW_S));
    assert_eq!(reason(&outcome), "bad_certificate", "{outcome:?}");
}

#[test]
fn revocation_is_judged_for_each_issuer() {
    let root = TestAuthority::root("Root");
    let one = root.intermediate("One"); // serial 3
    let other = TestAuthority::root("Other");
    let fresh = root.list(&[], -1, 24);
    let revokes = root.list(&[7, 9], -1, 24);
    let revokes_one = root.list(&[3], -1, 24);
    let expired = root.list(&[], -48, -1);
    let expired_revokes = root.list(&[7], -48, -1);
    let of_one = one.list(&[], -1, 24);
    let one_revokes = one.list(&[7], -1, 24);
    let of_other = other.list(&[7], -1, 24);
    let two_expired_of_one = one.list(&[], -48, -1);
    let (deny, allow) = (CrlExpired::Deny, CrlExpired::Allow);
    let direct = || root.client("a");
    let through = || one.client("a");
    let all: &[&TestAuthority] = &[&root, &one, &other];
    let rows: [(&str, &[&[u8]], CrlExpired, TestLeaf); 18] = [
        ("good", &[], deny, direct()),
        ("good", &[&fresh], deny, direct()),
        ("revoked", &[&revokes], deny, direct()),
        ("revoked", &[&revokes], allow, direct()),
        ("crl_expired", &[&expired], deny, direct()),
        ("good", &[&expired], allow, direct()),
        ("revoked", &[&expired_revokes], deny, direct()),
        ("revoked", &[&expired_revokes], allow, direct()),
        // The freshest counts, in any order; an old one beside it does no harm.
        ("good", &[&fresh, &expired_revokes], deny, direct()),
        ("good", &[&expired_revokes, &fresh], deny, direct()),
        ("revoked", &[&revokes, &expired], deny, direct()),
        // Only another issuer's list: unknown. Its entry with the same serial means nothing.
        ("revocation_unknown", &[&of_other], deny, direct()),
        ("revocation_unknown", &[&of_other], allow, direct()),
        ("revocation_unknown", &[&fresh], deny, through()),
        ("good", &[&fresh, &of_one], deny, through()),
        ("revoked", &[&fresh, &one_revokes], deny, through()),
        ("revoked", &[&revokes_one, &of_one], deny, through()),
        ("crl_expired", &[&fresh, &two_expired_of_one], deny, through()),
    ];
    for (index, (expected, lists, policy, leaf)) in rows.into_iter().enumerate() {
        let trust = trust(all, lists, policy);
        let outcome = trust.judge(&leaf.der, &[], at(NOW_S));
        assert_eq!(reason(&outcome), expected, "row {index}: {outcome:?}");
    }
}

#[test]
fn a_revoked_cross_certificate_leaves_the_other_way_open() {
    let (first, second) = (TestAuthority::root("First"), TestAuthority::root("Second"));
    let one = first.intermediate("One"); // serial 3
    let crossed = one.params.signed_by(&one.key, &second.issuer()).unwrap().der().clone();
    let leaf = one.client("a");
    let lists = [first.list(&[3], -1, 24), second.list(&[], -1, 24)];
    let anchors = anchors(&[&first, &second, &one]);
    let of_one = one.list(&[], -1, 24);
    let revocations =
        Revocations::parse(&[("1", &lists[0]), ("2", &lists[1]), ("3", &of_one)], &anchors);
    let trust = Trust::new(anchors, revocations.unwrap(), CrlExpired::Deny, 2);
    assert_eq!(reason(&trust.judge(&leaf.der, &[], at(NOW_S))), "revoked");
    for presented in [[one.der.clone(), crossed.clone()], [crossed, one.der.clone()]] {
        assert_eq!(reason(&trust.judge(&leaf.der, &presented, at(NOW_S))), "good");
    }
}

#[test]
fn a_namesakes_list_never_speaks_for_another_key() {
    let (old, new) = (TestAuthority::root("Root"), TestAuthority::root("Root"));
    let old_revokes = old.list(&[7], -2, 24);
    let newer_and_empty = new.list(&[], -1, 24);
    let trust = trust(&[&old, &new], &[&old_revokes, &newer_and_empty], CrlExpired::Deny);
    assert_eq!(reason(&trust.judge(&old.client("a").der, &[], at(NOW_S))), "revoked");
    assert_eq!(reason(&trust.judge(&new.client("a").der, &[], at(NOW_S))), "good");
}

#[test]
fn a_list_is_stale_from_the_second_after_next_update() {
    let root = TestAuthority::root("Root");
    let list = root.list(&[], -1, 0);
    let trust = trust(&[&root], &[&list], CrlExpired::Deny);
    let leaf = root.client("a");
    assert_eq!(reason(&trust.judge(&leaf.der, &[], at(NOW_S))), "good");
    assert_eq!(reason(&trust.judge(&leaf.der, &[], at(NOW_S + 1))), "crl_expired");
}

#[test]
fn an_open_connection_is_judged_by_todays_trust() {
    let root = TestAuthority::root("Root");
    let one = root.intermediate("One");
    let other = TestAuthority::root("Other");
    let leaf = one.client("a");
    let before = trust(&[&root], &[], CrlExpired::Deny);
    let peer = before.judge(&leaf.der, std::slice::from_ref(&one.der), at(NOW_S)).unwrap();
    let fresh = root.list(&[], -1, 24);
    let revokes_one = root.list(&[3], -1, 24);
    let of_one = one.list(&[], -1, 24);
    let one_revokes = one.list(&[7], -1, 24);
    let recheck = |trust: &Trust, now_s| match trust.recheck(&peer, at(now_s)) {
        Ok(()) => "good",
        Err(error) => error.reason(),
    };
    assert_eq!(recheck(&before, NOW_S), "good");
    assert_eq!(recheck(&before, NOW_S + HOUR_S), "good");
    assert_eq!(recheck(&before, NOW_S + HOUR_S + 1), "certificate_expired");
    assert_eq!(recheck(&before, NOW_S - HOUR_S - 1), "certificate_not_yet_valid");
    let lists = |lists: &[&[u8]]| trust(&[&root, &one], lists, CrlExpired::Deny);
    assert_eq!(recheck(&lists(&[&fresh, &of_one]), NOW_S), "good");
    assert_eq!(recheck(&lists(&[&fresh, &one_revokes]), NOW_S), "revoked");
    assert_eq!(recheck(&lists(&[&revokes_one, &of_one]), NOW_S), "revoked");
    assert_eq!(recheck(&lists(&[&of_one]), NOW_S), "revocation_unknown");
    assert_eq!(recheck(&trust(&[&other], &[], CrlExpired::Deny), NOW_S), "unknown_issuer");
    let shallow = Trust::new(anchors(&[&root]), Revocations::default(), CrlExpired::Deny, 0);
    assert_eq!(recheck(&shallow, NOW_S), "chain_too_long");
}

#[test]
fn a_peer_tells_who_it_is() {
    let root = TestAuthority::root("Root, \"the\" first");
    let leaf = root.client_with("alice", |params| {
        params.distinguished_name.push(DnType::OrganizationName, "Acme+Co; <x>");
        params.serial_number = Some(SerialNumber::from_slice(&[0xab, 0xcd, 0x01]));
        uri(params, "spiffe://example.org/alice");
        params.subject_alt_names.push(SanType::DnsName("a.example.org".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress("192.0.2.1".parse().unwrap()));
    });
    let peer = trust(&[&root], &[], CrlExpired::Deny).judge(&leaf.der, &[], at(NOW_S)).unwrap();
    assert_eq!(peer.subject(), "O=Acme\\+Co\\; \\<x\\>,CN=alice");
    assert_eq!(peer.issuer(), "CN=Root\\, \\\"the\\\" first");
    assert_eq!(peer.serial(), "abcd01");
    assert_eq!(peer.common_name(), Some("alice"));
    assert_eq!(peer.spiffe_id(), Some("spiffe://example.org/alice"));
    let sans: Vec<_> = peer.sans().iter().map(ToString::to_string).collect();
    assert_eq!(sans, ["URI:spiffe://example.org/alice", "DNS:a.example.org", "IP:192.0.2.1"]);
    assert_eq!(peer.not_after(), at(NOW_S + HOUR_S));
    assert_eq!(peer.fingerprint().len(), 32);
    assert_eq!(Peer::for_test("bob").principal(), "bob");
}

#[test]
fn bundles_that_cannot_be_used_say_which_certificate() {
    let root = TestAuthority::root("Root");
    let leaf = root.client("a leaf");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cut = &root.pem[..root.pem.len() / 2];
    for (pem, expected) in [
        (String::new(), "no certificate"),
        ("hello".to_owned(), "no certificate"),
        (root.key.serialize_pem(), "no certificate"),
        (format!("{}{broken}", root.pem), "certificate 2 does not parse"),
        (format!("{}{}", root.pem, leaf.pem), "certificate 2 (CN=a leaf) is not a certificate au"),
        (format!("{}{cut}", root.pem), "after 1 certificates the PEM text is broken"),
    ] {
        let said = Anchors::parse(pem.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let twice = Anchors::parse(format!("# a comment\n{0}{0}", root.pem).as_bytes()).unwrap();
    assert_eq!(twice.authorities().len(), 1);
}

#[test]
fn lists_that_cannot_be_used_say_which_and_why() {
    let root = TestAuthority::root("Root");
    let namesake = TestAuthority::root("Root");
    let other = TestAuthority::root("Other");
    let mute = TestAuthority::root_with("Mute", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    let anchors = anchors(&[&root, &mute]);
    let good = root.list(&[1], -1, 24);
    let der = CertificateRevocationListDer::from_pem_slice(&good).unwrap();
    let mut flipped = der.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let mut trailing = der.to_vec();
    trailing.push(0);
    // rcgen rightly refuses to sign with an authority that may not; another name for the same key.
    let mut may = mute.params.clone();
    may.key_usages = vec![KeyUsagePurpose::CrlSign];
    let by_mute = TestAuthority {
        params: may,
        key: KeyPair::from_pem(&mute.key.serialize_pem()).unwrap(),
        der: mute.der.clone(),
        pem: mute.pem.clone(),
    }
    .list(&[], -1, 24);
    let partitioned = {
        let params = CertificateRevocationListParams {
            this_update: std::time::UNIX_EPOCH.into(),
            next_update: (std::time::UNIX_EPOCH + Duration::from_secs(NOW_S)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: Some(rcgen::CrlIssuingDistributionPoint {
                distribution_point: rcgen::CrlDistributionPoint {
                    uris: vec!["http://example.org/1.crl".to_owned()],
                },
                scope: Some(rcgen::CrlScope::UserCertsOnly),
            }),
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&root.issuer()).unwrap().der().to_vec()
    };
    let mut two = good.clone();
    two.extend_from_slice(&other.list(&[], -1, 24));
    for (bytes, expected) in [
        (b"".to_vec(), "x.crl: revocation list 1: there is none"),
        (root.pem.clone().into_bytes(), "there is none"),
        (good[..good.len() / 2].to_vec(), "does not parse"),
        (der[..der.len() / 2].to_vec(), "does not parse"),
        (vec![0x30, 0x03, 1, 2, 3], "does not parse"),
        (flipped, "not signed by the authority \"CN=Root\""),
        (trailing, "1 bytes too many"),
        (namesake.list(&[], -1, 24), "not signed by the authority \"CN=Root\""),
        (other.list(&[], -1, 24), "issuer \"CN=Other\" is not among the client authorities"),
        (two, "x.crl: revocation list 2: its issuer \"CN=Other\""),
        (by_mute, "does not allow cRLSign"),
        (partitioned, "issuingDistributionPoint"),
    ] {
        let said = Revocations::parse(&[("x.crl", &bytes)], &anchors).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let both = Revocations::parse(&[("a", &good), ("b", &der)], &anchors).unwrap();
    assert_eq!(both.lists().map(|list| list.revoked()).collect::<Vec<_>>(), [1]);
}

#[test]
fn serials_are_compared_as_numbers() {
    let serial = |octets: &[u8]| Serial::new(octets);
    assert_eq!(serial(&[0, 0, 0x80]), serial(&[0, 0x80]));
    assert_ne!(serial(&[0, 0x80]), serial(&[0x80]), "128 and -128");
    assert_ne!(serial(&[0x80, 0]), serial(&[0x80]));
    assert_eq!(serial(&[0xff]).unwrap().to_string(), "negative ff");
    assert_eq!(serial(&[0]).unwrap().to_string(), "00");
    assert_eq!(serial(&[0, 0x8f, 1]).unwrap().to_string(), "8f01");
    assert!(serial(&[1; 20]).is_some() && serial(&[1; 21]).is_none() && serial(&[]).is_none());
}

// A real handshake over memory.

#[derive(Debug)]
struct FixedClock(UnixTime);

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Shakes hands with a client that presents `chain` and signs with `key`; returns what the server
/// made of it and the alert that the client got.
fn handshake(
    trust: Arc<Trust>,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> (Arc<Verifier>, Option<AlertDescription>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server_root = TestAuthority::root("Server Root");
    let server_leaf = server_root.client_with("server", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names.push(SanType::DnsName("localhost".try_into().unwrap()));
    });
    let private = |key: &KeyPair| PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let verifier = Arc::new(Verifier::new(trust, true));
    let mut server =
        ServerConfig::builder_with_details(provider.clone(), Arc::new(FixedClock(at(NOW_S))))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.clone() as Arc<dyn ClientCertVerifier>)
            .with_single_cert(vec![server_leaf.der.clone()], private(&server_leaf.key))
            .unwrap();
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(server_root.der.clone()).unwrap();
    let signing = provider.key_provider.load_private_key(private(key)).unwrap();
    let client = ClientConfig::builder_with_details(provider, Arc::new(FixedClock(at(NOW_S))))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(Presents(Arc::new(CertifiedKey::new(chain, signing)))));
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut alert = None;
    // Three flights, and one for the alert.
    for _ in 0..4 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        let _ = server.process_new_packets();
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        if let Err(rustls::Error::AlertReceived(received)) = client.process_new_packets() {
            alert = Some(received);
        }
    }
    assert_eq!(alert.is_none(), !server.is_handshaking());
    (verifier, alert)
}

#[test]
fn a_handshake_tells_the_peer_or_the_whole_reason() {
    let root = TestAuthority::root("Root");
    let stranger = TestAuthority::root("Stranger");
    let namesake = TestAuthority::root("Root");
    let list = root.list(&[9], -1, 24);
    let trust = Arc::new(trust(&[&root], &[&list], CrlExpired::Deny));
    let leaf = |change: fn(&mut CertificateParams)| root.client_with("alice", change);
    let rows = [
        ("good", None, leaf(|_| {})),
        (
            "revoked",
            Some(AlertDescription::CertificateRevoked),
            leaf(|params| {
                params.serial_number = Some(SerialNumber::from(9));
            }),
        ),
        (
            "certificate_expired",
            Some(AlertDescription::CertificateExpired),
            leaf(|params| {
                set_validity(params, NOW_S - 9, NOW_S - 1);
            }),
        ),
        (
            "certificate_not_yet_valid",
            Some(AlertDescription::CertificateExpired),
            leaf(|params| {
                set_validity(params, NOW_S + 1, NOW_S + 9);
            }),
        ),
        (
            "bad_eku",
            Some(AlertDescription::UnsupportedCertificate),
            leaf(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "bad_certificate_name",
            Some(AlertDescription::BadCertificate),
            leaf(|params| {
                uri(params, "spiffe://");
            }),
        ),
        ("unknown_issuer", Some(AlertDescription::UnknownCA), stranger.client("mallory")),
        ("bad_certificate_signature", Some(AlertDescription::UnknownCA), namesake.client("m")),
    ];
    for (expected, alert, leaf) in rows {
        let (verifier, received) = handshake(trust.clone(), vec![leaf.der.clone()], &leaf.key);
        assert_eq!(received, alert, "{expected}");
        match verifier.outcome().unwrap() {
            Ok(peer) => assert_eq!((expected, peer.principal()), ("good", "alice")),
            Err(refusal) => {
                assert_eq!(refusal.error.reason(), expected);
                assert!(refusal.subject.starts_with("CN="), "{refusal}");
                assert!(!refusal.serial.is_empty() && !refusal.issuer.is_empty());
            }
        }
    }
    // Somebody else's certificate without its key.
    let (victim, thief) = (root.client("alice"), root.client("mallory"));
    let (verifier, received) = handshake(trust, vec![victim.der.clone()], &thief.key);
    assert_eq!(received, Some(AlertDescription::DecryptError));
    let refusal = verifier.outcome().unwrap().as_ref().unwrap_err();
    assert_eq!(refusal.error.reason(), "bad_handshake_signature");
}

#[test]
fn who_comes_back_is_known_and_proves_the_key_again() {
    let root = TestAuthority::root("Root");
    let trust = Arc::new(trust(&[&root], &[], CrlExpired::Deny));
    let (alice, thief) = (root.client("alice"), root.client("mallory"));
    let presented = Presented::new(&alice.der, &[]);
    let shake = |key| handshake(trust.clone(), vec![alice.der.clone()], key);

    assert_eq!(shake(&thief.key).1, Some(AlertDescription::DecryptError));
    assert!(trust.known(presented, at(NOW_S)).is_none(), "nobody has proven the key");
    assert_eq!(shake(&alice.key).1, None);
    let known = trust.known(presented, at(NOW_S)).unwrap();
    let (again, alert) = shake(&alice.key);
    assert_eq!(alert, None);
    assert!(Arc::ptr_eq(again.outcome().unwrap().as_ref().unwrap(), &known));
    let (verifier, alert) = shake(&thief.key);
    assert_eq!(alert, Some(AlertDescription::DecryptError));
    assert!(verifier.outcome().unwrap().is_err());

    let expired = at(known.not_after().as_secs() + 1);
    assert!(trust.known(presented, expired).is_none(), "the time is judged anew");
    let others = [root.client("other").der];
    assert!(trust.known(Presented::new(&alice.der, &others), at(NOW_S)).is_none());
}

#[test]
fn a_refusal_is_bounded_whatever_the_certificate_holds() {
    let stranger = TestAuthority::root("Stranger");
    let root = TestAuthority::root("Root");
    let leaf = stranger.client_with("x", |params| {
        params.distinguished_name.push(DnType::CommonName, "\u{1b}[2J\n".repeat(2000).as_str());
        for number in 0..40 {
            uri(params, &format!("{number}{}", "a".repeat(400)));
        }
    });
    let trust = trust(&[&root], &[], CrlExpired::Deny);
    let error = trust.judge(&leaf.der, &[], at(NOW_S)).unwrap_err();
    let refusal = trust::refusal(&leaf.der, error);
    assert_eq!(refusal.error.reason(), "unknown_issuer");
    assert!(refusal.subject.len() < 1100 && refusal.sans.len() == 8);
    assert!(refusal.sans.iter().all(|name| name.len() < 200));
    assert!(!format!("{refusal}").contains(char::is_control));
}

#[test]
fn a_key_that_is_not_understood_is_never_shown() {
    let leaf = TestAuthority::root("Root").client("edge");
    let line = leaf.key.serialize_pem().replace('\n', "");
    let said = server_key(leaf.pem.as_bytes(), line.as_bytes()).unwrap_err();
    let said = format!("{said} {said:?}");
    // Neither as text nor as the numbers of its octets.
    assert!(!said.contains(&line[40..60]) && !said.contains("45, 45"), "{said}");
}

#[test]
fn server_keys_come_in_every_usual_form_and_must_match() {
    let root = TestAuthority::root("Root");
    let leaf = root.client("server");
    let stranger = root.client("stranger");
    let chain = format!("{}{}", leaf.pem, root.pem);
    let key = leaf.key.serialize_pem();
    assert_eq!(server_key(chain.as_bytes(), key.as_bytes()).unwrap().cert.len(), 2);
    let both = format!("{key}{chain}");
    assert!(server_key(both.as_bytes(), both.as_bytes()).is_ok());
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let wrong = stranger.key.serialize_pem();
    let turned = format!("{}{}", root.pem, leaf.pem);
    for (chain, key, expected) in [
        ("", key.as_str(), "certificate: none in the file"),
        (&chain, "", "private_key: none in the file"),
        (&chain, &chain, "private_key: none in the file"),
        (&chain, encrypted, "openssl pkey"),
        (&chain, &wrong, "not the key of the certificate \"CN=server\""),
        (&turned, &key, "belongs to certificate 2"),
        (&chain[..200], &key, "certificate 1 does not parse"),
        (&chain, "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "not usable"),
    ] {
        let said = server_key(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes from outside never make the judgement panic.
    #[test]
    fn any_bytes_are_judged(leaf: Vec<u8>, other: Vec<u8>) {
        let root = shared_root();
        let outcome = root.judge(&leaf.clone().into(), &[other.clone().into()], at(NOW_S));
        prop_assert!(outcome.is_err());
        let _ = Anchors::parse(&leaf);
        let _ = Revocations::parse(&[("x", &leaf), ("y", &other)], root.anchors());
        let _ = server_key(&leaf, &other);
    }
}

/// No damage to a good certificate leaves it good: every octet is under the signature, or is
/// the signature.
#[test]
fn any_changed_bit_is_refused() {
    let (trust, leaf) = shared_leaf();
    for bit in 0..leaf.len() * 8 {
        let mut der = leaf.to_vec();
        der[bit / 8] ^= 1 << (bit % 8);
        assert!(trust.judge(&der.into(), &[], at(NOW_S)).is_err(), "bit {bit}");
    }
}

fn shared_leaf() -> &'static (Trust, CertificateDer<'static>) {
    static SHARED: std::sync::LazyLock<(Trust, CertificateDer<'static>)> =
        std::sync::LazyLock::new(|| {
            let root = TestAuthority::root("Root");
            let leaf = root.client("alice");
            (trust(&[&root], &[], CrlExpired::Deny), leaf.der)
        });
    &SHARED
}

fn shared_root() -> &'static Trust {
    &shared_leaf().0
}

/// Certificates, keys and lists as the manuals have them made (`openssl req`, `x509`, `ca`).
#[test]
fn takes_what_openssl_makes() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |line: &str| {
        let output = std::process::Command::new("openssl")
            .args(line.split(' '))
            .current_dir(dir.path())
            .output()
            .expect("this test needs the openssl command");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "client.ext",
        "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\n\
        extendedKeyUsage=clientAuth\nsubjectAltName=DNS:orders.example.org\n",
    );
    // No crlnumber: then the list is of version 1, as in many old setups.
    write(
        "ca.conf",
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ndefault_md=sha256\n\
        default_crl_days=30\ncertificate=ca.pem\nprivate_key=ca.key\n",
    );
    write("index", "");
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -sha256 -days 3650 -subj /C=DE/O=Acme/CN=Root \
             -keyout ca.key -out ca.pem",
    );
    for name in ["good", "bad"] {
        openssl(&format!(
            "req -new -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -sha256 \
             -extfile client.ext -out {name}.pem"
        ));
    }
    openssl("ca -config ca.conf -revoke bad.pem");
    openssl("ca -config ca.conf -gencrl -out ca.crl");
    openssl("crl -in ca.crl -outform der -out ca.der");

    let der = |name: &str| CertificateDer::from_pem_slice(&read(name)).unwrap();
    // openssl knows no other time than the host's, so the judgement has to be at that time.
    let validity_start = {
        use x509_parser::prelude::FromDer;
        let leaf = der("good.pem");
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
        at(u64::try_from(leaf.validity().not_before.timestamp()).unwrap() + 60)
    };
    for list in ["ca.crl", "ca.der"] {
        let anchors = Anchors::parse(&read("ca.pem")).unwrap();
        let revocations = Revocations::parse(&[(list, &read(list))], &anchors).unwrap();
        let trust = Trust::new(anchors, revocations, CrlExpired::Deny, 2);
        let good = trust.judge(&der("good.pem"), &[], validity_start).unwrap();
        assert_eq!(
            (good.principal(), good.issuer()),
            ("orders.example.org", "CN=Root,O=Acme,C=DE")
        );
        let bad = trust.judge(&der("bad.pem"), &[], validity_start);
        assert_eq!(reason(&bad), "revoked");
    }

    openssl("rsa -in good.key -traditional -out good.pkcs1");
    assert!(read("good.pkcs1").starts_with(b"-----BEGIN RSA PRIVATE KEY"));
    openssl("ecparam -name prime256v1 -genkey -out ec.sec1"); // EC PARAMETERS before the key
    assert!(read("ec.sec1").starts_with(b"-----BEGIN EC PARAMETERS"));
    openssl("req -x509 -key ec.sec1 -subj /CN=ec -days 9 -out ec.pem");
    openssl("rsa -in good.key -aes128 -passout pass:x -out good.enc");
    for (chain, key) in
        [("good.pem", "good.key"), ("good.pem", "good.pkcs1"), ("ec.pem", "ec.sec1")]
    {
        assert!(server_key(&read(chain), &read(key)).is_ok(), "{key}");
    }
    let refusal = server_key(&read("good.pem"), &read("good.enc")).unwrap_err();
    assert_eq!(refusal, ServerKeyError::EncryptedKey);
}
