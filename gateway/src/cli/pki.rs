//! `portcullis pki`: a private certificate authority for labs and small fleets.
//!
//! Everything is in one directory: `ca.pem`, `ca.key`, and `ca.crl`, which is also the authority's
//! memory of what it revoked. There is no other state to lose.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::rand;
use clap::{Args, Subcommand, ValueEnum};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer,
    revocation_list::CertificateRevocationList,
};

use super::file::{self, Existing, PRIVATE, PUBLIC};
use crate::identity::certificate::name::spiffe_rule_broken;

/// Arguments of `portcullis pki`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Directory of the authority
    #[arg(long, value_name = "DIR", default_value = "pki", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates the authority: ca.pem, ca.key and an empty revocation list ca.crl
    Init {
        /// Common name of the authority
        #[arg(long, value_name = "CN", default_value = "Portcullis CA")]
        name: String,
        /// Kind of its key
        #[arg(long, value_enum, default_value_t = KeyType::P256)]
        key_type: KeyType,
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration)]
        valid: Duration,
        /// Replaces an authority that is there; everything it issued becomes worthless
        #[arg(long)]
        force: bool,
    },
    /// Issues a server certificate for DNS names and addresses
    Server {
        /// DNS names or IP addresses; the first is also the common name
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        leaf: LeafArguments,
    },
    /// Issues a client certificate
    Client {
        /// Common name
        #[arg(long, value_name = "CN")]
        cn: Option<String>,
        /// SPIFFE ID, as in spiffe://example.org/orders
        #[arg(long, value_name = "URI", value_parser = spiffe)]
        spiffe: Option<String>,
        /// DNS name; may be repeated
        #[arg(long, value_name = "NAME")]
        dns: Vec<String>,
        #[command(flatten)]
        leaf: LeafArguments,
    },
    /// Revokes a certificate and rewrites the list
    Revoke {
        /// PEM file of the certificate
        #[arg(value_name = "CERT")]
        certificate: PathBuf,
        /// How long the new list is valid
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
        valid: Duration,
    },
    /// Issues the revocation list again with fresh dates
    Crl {
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration)]
        valid: Duration,
        /// Starts an empty list when ca.crl is lost or damaged: revoked certificates count again
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct LeafArguments {
    /// Files are BASENAME.pem and BASENAME.key, relative to the directory
    /// [default: the first name]
    #[arg(long, value_name = "BASENAME")]
    out: Option<PathBuf>,
    /// Kind of the key
    #[arg(long, value_enum, default_value_t = KeyType::P256)]
    key_type: KeyType,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration)]
    valid: Duration,
    /// Start of its validity, as in 2026-03-01T12:00:00Z [default: five minutes ago]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    not_before: Option<SystemTime>,
    /// End of its validity
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "valid")]
    not_after: Option<SystemTime>,
    /// Replaces files that are there
    #[arg(long)]
    force: bool,
}

/// Kinds of keys the authority makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyType {
    /// ECDSA on P-256: small and fast
    P256,
    /// RSA with 2048 bits: for old clients
    Rsa2048,
}

/// Runs the command. Tells what it wrote on `out`.
pub fn run(arguments: &Arguments, now: SystemTime, out: &mut dyn Write) -> Result<()> {
    let dir = arguments.dir.as_path();
    match &arguments.command {
        Command::Init { name, key_type, valid, force } => {
            let validity = Validity { from: backdated(now), until: later(now, *valid)? };
            init(dir, name, *key_type, validity, now, Existing::forced(*force), out)
        }
        Command::Server { names, leaf } => server(dir, names, leaf, now, out),
        Command::Client { cn, spiffe, dns, leaf } => {
            client(dir, cn.as_deref(), spiffe.as_deref(), dns, leaf, now, out)
        }
        Command::Revoke { certificate, valid } => revoke(dir, certificate, *valid, now, out),
        Command::Crl { valid, force } => {
            let authority = Authority::open(dir)?;
            let list = match List::read(dir) {
                Ok(list) => list,
                Err(_) if *force => List::lost(now),
                Err(error) => {
                    return Err(error.context("--force starts an empty list instead"));
                }
            };
            authority.publish(&list, *valid, now, out)
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Validity {
    from: SystemTime,
    until: SystemTime,
}

/// Clocks of clients and servers differ; a certificate made a moment ago must hold everywhere.
fn backdated(now: SystemTime) -> SystemTime {
    const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
    now.checked_sub(CLOCK_SKEW).unwrap_or(now)
}

fn later(now: SystemTime, by: Duration) -> Result<SystemTime> {
    /// The last year that X.509 times can say.
    const YEARS_MAX_S: u64 = 253_402_300_799;
    now.checked_add(by)
        .filter(|until| {
            until
                .duration_since(SystemTime::UNIX_EPOCH)
                .is_ok_and(|since| since.as_secs() <= YEARS_MAX_S)
        })
        .ok_or_else(|| anyhow!("valid until after the year 9999"))
}

fn init(
    dir: &Path,
    name: &str,
    key_type: KeyType,
    validity: Validity,
    now: SystemTime,
    existing: Existing,
    out: &mut dyn Write,
) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let paths = [dir.join("ca.pem"), dir.join("ca.key"), dir.join("ca.crl")];
    file::refuse_existing(&paths.each_ref().map(PathBuf::as_path), existing)?;

    let key = generate(key_type)?;
    let mut params = parameters(Some(name), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).context("signing the authority's certificate")?;

    let [certificate_path, key_path, _] = &paths;
    file::write(key_path, key.serialize_pem().as_bytes(), PRIVATE, existing)?;
    file::write(certificate_path, certificate.pem().as_bytes(), PUBLIC, existing)?;
    writeln!(out, "wrote {} and {}", certificate_path.display(), key_path.display())?;
    Authority::open(dir)?.publish(&List::default(), LIST_VALID, now, out)?;
    writeln!(
        out,
        "for the configuration: client_ca = \"{}\", client_crl = [\"{}\"]",
        certificate_path.display(),
        dir.join("ca.crl").display()
    )?;
    Ok(())
}

/// Validity of the first list; `pki crl` renews it.
const LIST_VALID: Duration = Duration::from_secs(30 * 24 * 60 * 60);

fn server(
    dir: &Path,
    names: &[String],
    leaf: &LeafArguments,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    let first = names.first().map(String::as_str);
    let mut params = parameters(first, validity(leaf, now)?)?;
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(dns_name(name)?.try_into()?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(dir, params, leaf, first.unwrap_or_default(), out)
}

fn client(
    dir: &Path,
    cn: Option<&str>,
    spiffe: Option<&str>,
    dns: &[String],
    leaf: &LeafArguments,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    let workload = spiffe.and_then(|uri| uri.rsplit('/').next());
    let Some(first) = cn.or(workload).or(dns.first().map(String::as_str)) else {
        bail!("a client needs a name: give --cn, --spiffe or --dns");
    };
    let mut params = parameters(cn, validity(leaf, now)?)?;
    if let Some(uri) = spiffe {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    for name in dns {
        params.subject_alt_names.push(SanType::DnsName(dns_name(name)?.try_into()?));
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(dir, params, leaf, first, out)
}

fn validity(leaf: &LeafArguments, now: SystemTime) -> Result<Validity> {
    let from = leaf.not_before.unwrap_or_else(|| backdated(now));
    let until = match leaf.not_after {
        Some(until) => until,
        // A start in the future moves the end along.
        None => later(from.max(now), leaf.valid)?,
    };
    ensure!(from < until, "the certificate would end before it starts");
    Ok(Validity { from, until })
}

fn parameters(cn: Option<&str>, validity: Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(cn) = cn {
        /// RFC 5280 appendix A.1, ub-common-name.
        const CN_MAX: usize = 64;
        ensure!(!cn.trim().is_empty(), "the common name is empty");
        ensure!(!cn.chars().any(char::is_control), "the common name has a control character");
        // A long DNS name stays an alternative name only, where it counts.
        if cn.chars().count() <= CN_MAX {
            params.distinguished_name.push(DnType::CommonName, cn);
        }
    }
    params.serial_number = Some(random_serial()?);
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 bits, of which the first two are fixed: positive, and always 16 octets.
fn random_serial() -> Result<SerialNumber> {
    let mut octets = [0; 16];
    rand::fill(&mut octets).map_err(|_| anyhow!("the system gives no random numbers"))?;
    octets[0] = octets[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&octets))
}

fn generate(key_type: KeyType) -> Result<KeyPair> {
    match key_type {
        KeyType::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
    }
    .context("generating a key")
}

fn issue(
    dir: &Path,
    params: CertificateParams,
    leaf: &LeafArguments,
    name: &str,
    out: &mut dyn Write,
) -> Result<()> {
    let base = leaf.out.clone().unwrap_or_else(|| PathBuf::from(file_name(name)));
    let certificate_path = dir.join(with_ending(&base, "pem"));
    let key_path = dir.join(with_ending(&base, "key"));
    let existing = Existing::forced(leaf.force);
    let authority = Authority::open(dir)?;
    for own in ["ca.pem", "ca.key", "ca.crl"] {
        let own = dir.join(own);
        ensure!(
            certificate_path != own && key_path != own,
            "{} is the authority's own; choose another --out",
            own.display()
        );
    }
    file::refuse_existing(&[&certificate_path, &key_path], existing)?;

    let key = generate(leaf.key_type)?;
    let certificate =
        params.signed_by(&key, &authority.issuer).context("signing the certificate")?;
    file::write(&key_path, key.serialize_pem().as_bytes(), PRIVATE, existing)?;
    file::write(&certificate_path, certificate.pem().as_bytes(), PUBLIC, existing)?;
    let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
    writeln!(
        out,
        "wrote {} and {}: serial {}, valid until {}",
        certificate_path.display(),
        key_path.display(),
        hexadecimal(&serial),
        humantime::format_rfc3339_seconds(params.not_after.into())
    )?;
    if authority.not_after < params.not_after.unix_timestamp() {
        writeln!(out, "warning: the authority's own certificate ends before this one")?;
    }
    Ok(())
}

/// `a.b` must become `a.b.pem`, which `Path::with_extension` would not do.
fn with_ending(base: &Path, ending: &str) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// A name as a file's: a star or a blank in it would surprise a shell.
fn file_name(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => character,
            '*' => '_',
            _ => '-',
        })
        .collect();
    name.trim_start_matches('.').to_owned()
}

/// The authority of a directory, alone while this value lives.
struct Authority {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key_id: KeyIdMethod,
    not_after: i64,
    /// Held until the end, so that of two revocations at once none is lost.
    _lock: File,
}

impl Authority {
    fn open(dir: &Path) -> Result<Self> {
        let certificate_path = dir.join("ca.pem");
        let key_path = dir.join("ca.key");
        let hint = || format!("{} has no usable authority; `pki init` makes one", dir.display());
        let lock = File::open(&key_path)
            .with_context(|| format!("opening {}", key_path.display()))
            .with_context(hint)?;
        lock.lock().with_context(|| format!("locking {}", key_path.display()))?;
        let key_pem = fs::read_to_string(&key_path)
            .with_context(|| format!("reading {}", key_path.display()))?;
        let key = KeyPair::from_pem(&key_pem)
            .with_context(|| format!("{} is not a private key", key_path.display()))?;
        let certificate = CertificateDer::from_pem_file(&certificate_path)
            .with_context(|| format!("reading {}", certificate_path.display()))
            .with_context(hint)?;
        let parsed = parsed_certificate(&certificate, &certificate_path)?;
        ensure!(
            parsed.public_key().subject_public_key.data == key.public_key_raw(),
            "{} is not the key of {}",
            key_path.display(),
            certificate_path.display()
        );
        let key_id = key_identifier(&parsed);
        let not_after = parsed.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .with_context(|| format!("{} is not usable", certificate_path.display()))?;
        Ok(Self { dir: dir.to_owned(), certificate, issuer, key_id, not_after, _lock: lock })
    }

    /// True when this authority issued the certificate.
    fn issued(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.certificate).is_ok_and(|(_, own)| {
            own.subject().as_raw() == certificate.issuer().as_raw()
                && certificate.verify_signature(Some(own.public_key())).is_ok()
        })
    }

    fn publish(
        &self,
        list: &List,
        valid: Duration,
        now: SystemTime,
        out: &mut dyn Write,
    ) -> Result<()> {
        let number = list.number.checked_add(1).context("the list's number is used up")?;
        let next_update = later(now, valid)?;
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: next_update.into(),
            // Written as a positive INTEGER of the fewest octets.
            crl_number: SerialNumber::from_slice(minimal(&number.to_be_bytes())),
            issuing_distribution_point: None,
            revoked_certs: list
                .revoked
                .iter()
                .map(|(serial, revoked)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: (*revoked).into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: self.key_id.clone(),
        };
        let signed = params.signed_by(&self.issuer).context("signing the revocation list")?;
        let path = self.dir.join("ca.crl");
        file::write(&path, signed.pem()?.as_bytes(), PUBLIC, Existing::Replace)?;
        writeln!(
            out,
            "wrote {}: list {number}, {} revoked, due again {}",
            path.display(),
            list.revoked.len(),
            humantime::format_rfc3339_seconds(next_update)
        )?;
        Ok(())
    }
}

fn minimal(octets: &[u8]) -> &[u8] {
    let zeros = octets.iter().take_while(|&&octet| octet == 0).count();
    &octets[zeros.min(octets.len().saturating_sub(1))..]
}

/// The identifier that the certificate states, so that the list states the same.
fn key_identifier(certificate: &X509Certificate<'_>) -> KeyIdMethod {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => {
                Some(KeyIdMethod::PreSpecified(id.0.to_vec()))
            }
            _ => None,
        })
        .unwrap_or(KeyIdMethod::Sha256)
}

/// What the authority remembers: the contents of its list.
#[derive(Debug, Default)]
struct List {
    number: u64,
    /// When each serial number was revoked.
    revoked: BTreeMap<Vec<u8>, SystemTime>,
}

impl List {
    /// After a loss the old number is unknown; seconds since 1970 are above any that was counted
    /// up from 1.
    fn lost(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { number: since.as_secs(), revoked: BTreeMap::new() }
    }

    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("ca.crl");
        let der = CertificateRevocationListDer::from_pem_file(&path).with_context(|| {
            format!("{} holds what was revoked, and cannot be read", path.display())
        })?;
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| anyhow!("{} is damaged: {error}", path.display()))?;
        let number = list.crl_number().map(x509_parser::num_bigint::BigUint::to_bytes_be);
        let number = match number.as_deref() {
            None => 0,
            Some(octets) => octets
                .iter()
                .try_fold(0_u64, |number, octet| {
                    number.checked_mul(256).map(|number| number + u64::from(*octet))
                })
                .with_context(|| format!("{}: its number is too large", path.display()))?,
        };
        let revoked = list
            .iter_revoked_certificates()
            .map(|entry| (minimal(entry.raw_serial()).to_vec(), moment_of(entry.revocation_date)))
            .collect();
        Ok(Self { number, revoked })
    }
}

fn moment_of(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn revoke(
    dir: &Path,
    certificate: &Path,
    valid: Duration,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    let authority = Authority::open(dir)?;
    let der = CertificateDer::from_pem_file(certificate)
        .with_context(|| format!("reading {}", certificate.display()))?;
    let parsed = parsed_certificate(&der, certificate)?;
    ensure!(
        authority.issued(&parsed),
        "{} was not issued by the authority in {}",
        certificate.display(),
        dir.display()
    );
    let mut list = List::read(dir)?;
    let serial = minimal(parsed.raw_serial()).to_vec();
    let shown = hexadecimal(&serial);
    match list.revoked.entry(serial) {
        Entry::Occupied(_) => {
            writeln!(out, "serial {shown} was revoked before; the list is issued again")?;
        }
        Entry::Vacant(free) => {
            free.insert(now);
            writeln!(out, "revoked serial {shown}")?;
        }
    }
    authority.publish(&list, valid, now, out)
}

fn parsed_certificate<'a>(der: &'a CertificateDer<'_>, path: &Path) -> Result<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| anyhow!("{} is not a certificate: {error}", path.display()))
}

fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn dns_name(name: &str) -> Result<&str> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    ensure!(
        name.len() <= 253 && rest.split('.').all(label),
        "\"{name}\" is neither a DNS name nor an address"
    );
    Ok(name)
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be more than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as in 30d or 12h")),
    }
}

fn moment(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text)
        .map_err(|error| format!("{error}; write it as in 2026-03-01T12:00:00Z"))
}

fn spiffe(text: &str) -> Result<String, String> {
    match spiffe_rule_broken(text) {
        None => Ok(text.to_owned()),
        Some(rule) => Err(rule.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, process::Command as Process};

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// 2026-03-01T12:00:00Z: everything below is judged at this time.
    const NOW_S: u64 = 1_772_366_400;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    /// Runs one command line with its words separated by blanks; names with blanks are not used.
    fn pki(dir: &Path, line: &str) -> Result<String> {
        let words = ["pki", "--dir"].map(str::to_owned).into_iter();
        let line =
            words.chain([dir.display().to_string()]).chain(line.split(' ').map(str::to_owned));
        let parsed = Line::try_parse_from(line)?;
        let mut out = Vec::new();
        run(&parsed.arguments, now(), &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    fn openssl(dir: &Path, line: &str) -> (bool, String) {
        let output = Process::new("openssl")
            .args(line.split(' '))
            .current_dir(dir)
            .output()
            .expect("these tests need the openssl command");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    fn verify(dir: &Path, purpose: &str, leaf: &str) -> (bool, String) {
        let line = format!(
            "verify -attime {NOW_S} -x509_strict -purpose {purpose} -CAfile ca.pem -crl_check \
             -CRLfile ca.crl {leaf}"
        );
        openssl(dir, &line)
    }

    #[test]
    fn openssl_accepts_what_it_issues_and_refuses_what_it_revoked() {
        for key_type in ["p256", "rsa2048"] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            pki(dir, &format!("init --key-type {key_type}")).unwrap();
            pki(dir, "server gw.example.org 127.0.0.1 ::1 --out server").unwrap();
            pki(dir, "client --cn alice --out alice").unwrap();
            pki(dir, "client --spiffe spiffe://example.org/orders --dns orders.local").unwrap();
            for (purpose, leaf) in [
                ("sslserver", "server.pem"),
                ("sslclient", "alice.pem"),
                ("sslclient", "orders.pem"),
            ] {
                let (accepted, said) = verify(dir, purpose, leaf);
                assert!(accepted, "{key_type} {leaf}: {said}");
            }
            assert!(!verify(dir, "sslclient", "server.pem").0);

            pki(dir, "revoke alice.pem").unwrap_err(); // relative to the working directory
            let alice = dir.join("alice.pem").display().to_string();
            let said = pki(dir, &format!("revoke {alice}")).unwrap();
            assert!(said.contains("1 revoked"), "{said}");
            let (accepted, said) = verify(dir, "sslclient", "alice.pem");
            assert!(!accepted && said.contains("revoked"), "{said}");
            assert!(verify(dir, "sslclient", "orders.pem").0);

            // Fresh dates keep the memory; revoking twice adds nothing.
            pki(dir, "crl").unwrap();
            assert!(pki(dir, &format!("revoke {alice}")).unwrap().contains("1 revoked"));
            let orders = dir.join("orders.pem").display().to_string();
            assert!(pki(dir, &format!("revoke {orders}")).unwrap().contains("2 revoked"));
            let (_, shown) = openssl(dir, "crl -in ca.crl -noout -crlnumber");
            assert_eq!(shown.trim(), "crlNumber=0x05");
        }
    }

    #[test]
    fn keys_are_private_and_nothing_is_replaced_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        pki(dir, "init").unwrap();
        pki(dir, "client --cn bob").unwrap();
        for key in ["ca.key", "bob.key"] {
            let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        for line in ["init", "client --cn bob", "client --cn x --out ca", "client --dns bob"] {
            let refusal = pki(dir, line).unwrap_err().to_string();
            assert!(refusal.contains("--force") || refusal.contains("--out"), "{line}: {refusal}");
        }
        let before = fs::read(dir.join("bob.pem")).unwrap();
        pki(dir, "client --cn bob --force").unwrap();
        assert_ne!(fs::read(dir.join("bob.pem")).unwrap(), before);
        assert!(pki(dir, "client --cn x --out ca --force").is_err());
    }

    #[test]
    fn validity_is_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        pki(dir, "init").unwrap();
        let dates = |line: &str| {
            pki(dir, &format!("{line} --out leaf --force")).unwrap();
            let der = CertificateDer::from_pem_file(dir.join("leaf.pem")).unwrap();
            let (_, leaf) = X509Certificate::from_der(&der).unwrap();
            let validity = leaf.validity();
            (validity.not_before.timestamp(), validity.not_after.timestamp())
        };
        let start = i64::try_from(NOW_S).unwrap();
        let day = 24 * 60 * 60;
        assert_eq!(dates("client --cn a"), (start - 300, start + 365 * day));
        assert_eq!(dates("client --cn a --valid 1h"), (start - 300, start + 3600));
        let future = "client --cn a --not-before 2026-03-02T12:00:00Z --valid 1d";
        assert_eq!(dates(future), (start + day, start + 2 * day));
        let past =
            "client --cn a --not-before 2026-02-01T00:00:00Z --not-after 2026-02-02T00:00:00Z";
        assert_eq!(dates(past), (1_769_904_000, 1_769_990_400));
        for line in [
            "client --cn a --not-before 2026-03-02T12:00:00Z --not-after 2026-03-01T12:00:00Z",
            "client --cn a --valid 0s",
            "client --cn a --valid 9999y",
            "client --cn a --not-after 2026-03-02T12:00:00Z --valid 1d",
            "client",
            "client --spiffe https://example.org/x",
            "client --dns exa..mple",
            "server",
            "server bad_name!",
        ] {
            assert!(pki(dir, line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_lost_list_is_not_forgotten_silently() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        pki(dir, "init").unwrap();
        pki(dir, "client --cn a").unwrap();
        let leaf = dir.join("a.pem").display().to_string();
        fs::write(dir.join("ca.crl"), "cut off").unwrap();
        for line in ["crl".to_owned(), format!("revoke {leaf}")] {
            assert!(pki(dir, &line).is_err(), "{line}");
        }
        assert!(pki(dir, "crl --force").unwrap().contains(" 0 revoked"));
        pki(dir, &format!("revoke {leaf}")).unwrap();
    }

    #[test]
    fn revokes_only_its_own() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        pki(ours.path(), "init").unwrap();
        pki(theirs.path(), "init").unwrap(); // the same name, another key
        pki(theirs.path(), "client --cn a").unwrap();
        let leaf = theirs.path().join("a.pem").display().to_string();
        let refusal = pki(ours.path(), &format!("revoke {leaf}")).unwrap_err().to_string();
        assert!(refusal.contains("not issued"), "{refusal}");
    }

    #[test]
    fn names_become_file_names() {
        for (name, file) in [
            ("*.example.org", "_.example.org"),
            ("::1", "--1"),
            ("a b/c", "a-b-c"),
            ("../x", "-x"),
            ("alice", "alice"),
        ] {
            assert_eq!(file_name(name), file, "{name}");
        }
    }
}
