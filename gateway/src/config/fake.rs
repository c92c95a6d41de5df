//! Files that exist in a test's memory only, with a lab's certificates among them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};

use super::{
    Config, Problems, Warning,
    disk::{Content, Daemon, FileError, Files},
};

/// Where the main file of [`Fake::load`] is.
pub(super) const MAIN: &str = "/etc/portcullis/portcullis.toml";

/// Ids that are not root's.
pub(super) const DAEMON_ID: u32 = 901;
pub(super) const STRANGER_ID: u32 = 1000;

/// A file system.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    pub(super) files: BTreeMap<PathBuf, Content>,
    daemon: Daemon,
}

/// Made once: keys take time.
pub(super) struct Lab {
    pub(super) authority: String,
    pub(super) other_authority: String,
    pub(super) intermediate: String,
    pub(super) server: String,
    pub(super) server_der: Vec<u8>,
    pub(super) server_key: String,
    pub(super) other_key: String,
    pub(super) revoked: String,
    pub(super) revoked_der: Vec<u8>,
}

pub(super) static LAB: LazyLock<Lab> = LazyLock::new(|| {
    let root = CertifiedIssuer::self_signed(authority("Lab Root"), key()).unwrap();
    let other = CertifiedIssuer::self_signed(authority("Other Root"), key()).unwrap();
    let intermediate = CertifiedIssuer::signed_by(authority("Lab Issuer"), key(), &root).unwrap();
    let server_key = key();
    let mut server = CertificateParams::new(vec!["edge.example".to_owned()]).unwrap();
    server.distinguished_name.push(DnType::CommonName, "edge.example");
    let server = server.signed_by(&server_key, &intermediate).unwrap();
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2035, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root).unwrap();
    Lab {
        authority: root.pem(),
        other_authority: other.pem(),
        intermediate: intermediate.pem(),
        server: server.pem(),
        server_der: server.der().to_vec(),
        server_key: server_key.serialize_pem(),
        other_key: key().serialize_pem(),
        revoked: list.pem().unwrap(),
        revoked_der: list.der().to_vec(),
    }
});

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A key set whose key is nobody's: it is judged by its form.
pub(super) const KEY_SET: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1"}]}"#;

impl Fake {
    /// With every file that the sample configuration names.
    pub(super) fn new() -> Fake {
        let daemon = Daemon { users: vec![DAEMON_ID], groups: vec![DAEMON_ID] };
        let mut fake = Fake { files: BTreeMap::new(), daemon };
        let chain = format!("{}{}", LAB.server, LAB.intermediate);
        fake.put("tls/server.pem", &chain, 0o644);
        fake.put("tls/server.key", &LAB.server_key, 0o640);
        fake.put("tls/clients-ca.pem", &LAB.authority, 0o644);
        fake.put("tls/clients.crl", &LAB.revoked, 0o644);
        fake.put("jwks.json", KEY_SET, 0o644);
        fake
    }

    /// Writes a file beside the main one, as root, for the daemon's group.
    pub(super) fn put(&mut self, path: &str, bytes: impl AsRef<[u8]>, mode: u32) {
        let path = Path::new(MAIN).with_file_name(path);
        let bytes = bytes.as_ref().to_vec();
        self.files.insert(path, Content { bytes, mode, owner: 0, group: DAEMON_ID });
    }

    /// What is written about a file of [`Fake::put`].
    pub(super) fn content(&mut self, path: &str) -> &mut Content {
        self.files.get_mut(&Path::new(MAIN).with_file_name(path)).expect("it was put there")
    }

    /// With this as the main file.
    pub(super) fn load(mut self, text: &str) -> Result<(Config, Vec<Warning>), Problems> {
        self.put("portcullis.toml", text, 0o644);
        super::load(Path::new(MAIN), &self)
    }
}

impl Files for Fake {
    fn read(&self, path: &Path, limit_bytes: usize) -> Result<Content, FileError> {
        let content = self.files.get(path).ok_or(FileError::NotFound)?;
        if content.bytes.len() > limit_bytes {
            return Err(FileError::TooLong { limit_bytes });
        }
        Ok(content.clone())
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        let inside = |path: &&PathBuf| path.parent() == Some(directory);
        let paths: Vec<PathBuf> = self.files.keys().rev().filter(inside).cloned().collect();
        if paths.is_empty() { Err(FileError::NotFound) } else { Ok(paths) }
    }

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// `line:column: text` of each, without the name of the file.
pub(super) fn lines(findings: &[super::Finding]) -> Vec<String> {
    let line = |f: &super::Finding| format!("{}:{}: {}", f.line(), f.column(), f.text());
    findings.iter().map(line).collect()
}

/// As [`lines`], of problems.
pub(super) fn problem_lines(problems: &Problems) -> Vec<String> {
    problems.iter().map(|f| format!("{}:{}: {}", f.line(), f.column(), f.text())).collect()
}

/// Everything that must be written, and an interface.
pub(super) const SMALL: &str = r#"[[listener]]
name = "edge"
address = "[::]:8443"
[listener.tls]
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/clients-ca.pem"
[[issuer]]
name = "corp"
issuer = "https://idp.example.com"
audiences = ["orders-api"]
jwks_file = "jwks.json"
[[upstream]]
name = "orders"
servers = ["http://192.0.2.9:9001"]
[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate", "token"]
[xdp]
interfaces = ["eth0"]
"#;

/// With a part of it replaced, which must be there.
pub(super) fn small(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    SMALL.replace(from, to)
}
