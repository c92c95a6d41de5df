//! What a list of 100,000 revoked certificates costs a handshake: the whole of it, both sides, in memory.
//!
//! `cargo bench -p gateway --bench handshake` prints the medians of many rounds, in which an empty list
//! and the long one take turns, so that a machine that is busy is busy for both; and their ratio, which
//! is meant to stay at or below 1.05. Nothing is asserted.

use std::{sync::Arc, time::Duration};

use gateway::{
    config::CrlExpired,
    identity::certificate::{Anchors, Revocations, Trust, Verifier},
    time,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};

const ENTRIES: u64 = 100_000;
const ROUNDS: usize = 401;
/// Handshakes of one round: some milliseconds.
const HANDSHAKES: u32 = 4;

type Failure = Box<dyn std::error::Error>;

/// A certificate with its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn identity(name: &str, authority: &Issuer<'_, KeyPair>) -> Result<Identity, Failure> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
    // Even, and the listed ones are odd.
    parameters.serial_number = Some(SerialNumber::from(ENTRIES));
    let certificate = parameters.signed_by(&key, authority)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Identity { chain: vec![certificate.der().clone()], key })
}

/// Trust in the authority, whose list has so many entries.
fn trust(authority: &CertifiedIssuer<'_, KeyPair>, entries: u64) -> Result<Arc<Trust>, Failure> {
    let revoked = |number: u64| RevokedCertParams {
        serial_number: SerialNumber::from(number * 2 + 1),
        revocation_time: date_time_ymd(2025, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2090, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: (0..entries).map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(authority)?;
    let anchors = Anchors::parse(authority.pem().as_bytes())?;
    let revocations = Revocations::parse(&[("list", list.der())], &anchors)?;
    Ok(Arc::new(Trust::new(anchors, revocations, CrlExpired::Deny, 2)))
}

/// Carries what each side has to say to the other until both are done.
fn shake(client: &mut Connection, server: &mut Connection) -> Result<(), Failure> {
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        for turn in 0..2 {
            let (from, to) =
                if turn == 0 { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
            while from.wants_write() {
                from.write_tls(&mut wire)?;
            }
            let mut octets = wire.as_slice();
            while !octets.is_empty() {
                to.read_tls(&mut octets)?;
                to.process_new_packets()?;
            }
            wire.clear();
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, "Long");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
    let (server, client) =
        (identity("server.test", &authority)?, identity("client.test", &authority)?);
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let mut asking = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(client.chain, client.key)?;
    asking.resumption = rustls::client::Resumption::disabled();
    let asking = Arc::new(asking);
    let name = ServerName::try_from("server.test")?;

    // A verifier a connection, as in the daemon.
    let handshakes = |trust: &Arc<Trust>| -> Result<Duration, Failure> {
        let start = time::monotonic();
        for _ in 0..HANDSHAKES {
            let serving = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::new(Verifier::new(trust.clone(), true)))
                .with_single_cert(server.chain.clone(), server.key.clone_key())?;
            let mut client = ClientConnection::new(asking.clone(), name.clone())?.into();
            let mut server = ServerConnection::new(Arc::new(serving))?.into();
            shake(&mut client, &mut server)?;
        }
        Ok((time::monotonic() - start) / HANDSHAKES)
    };
    let (empty, long) = (trust(&authority, 0)?, trust(&authority, ENTRIES)?);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(handshakes(&empty)?);
        with.push(handshakes(&long)?);
    }
    without.sort_unstable();
    with.sort_unstable();
    let (without, with) = (without[ROUNDS / 2], with[ROUNDS / 2]);
    println!(
        "a handshake, both sides: {without:?} with an empty list, {with:?} with {ENTRIES} entries: \
         ratio {:.3}",
        with.as_secs_f64() / without.as_secs_f64()
    );
    Ok(())
}
