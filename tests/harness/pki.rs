//! Certificates: the product's own authority by its own commands, and a stranger's by `openssl`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use tempfile::TempDir;

use super::{client::Credential, process};

/// A private authority in a directory, run by `portcullis pki`.
#[derive(Debug)]
pub struct Authority {
    binary: PathBuf,
    directory: PathBuf,
}

impl Authority {
    /// `pki init` in `directory`, which may not exist yet.
    ///
    /// # Errors
    /// When the command fails.
    pub fn new(binary: &Path, directory: &Path) -> Result<Authority> {
        let authority = Authority { binary: binary.to_owned(), directory: directory.to_owned() };
        authority.pki(&["init"])?;
        Ok(authority)
    }

    fn pki(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.arg("pki").arg("--dir").arg(&self.directory).args(words);
        process::succeed(&mut command)
    }

    /// A file of the authority's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Its list of revoked certificates.
    pub fn revoked(&self) -> PathBuf {
        self.file("ca.crl")
    }

    /// A server certificate for names and addresses, in files called `base`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn server(&self, names: &[&str], base: &str) -> Result<Credential> {
        let mut words = vec!["server"];
        words.extend(names);
        words.extend(["--out", base]);
        self.pki(&words)?;
        Ok(self.credential(base))
    }

    /// A client certificate in files called `base`; `more` are further words for `pki client`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn client(&self, base: &str, more: &[&str]) -> Result<Credential> {
        let mut words = vec!["client", "--cn", base, "--out", base];
        words.extend(more);
        self.pki(&words)?;
        Ok(self.credential(base))
    }

    /// Revokes a certificate; the list is written anew.
    ///
    /// # Errors
    /// When the command fails.
    pub fn revoke(&self, credential: &Credential) -> Result<()> {
        let certificate = credential.certificate.to_string_lossy().into_owned();
        self.pki(&["revoke", &certificate]).map(drop)
    }

    fn credential(&self, base: &str) -> Credential {
        Credential {
            certificate: self.file(&format!("{base}.pem")),
            key: self.file(&format!("{base}.key")),
        }
    }
}

/// A client certificate of an authority that nobody trusts, made by `openssl`.
///
/// # Errors
/// When openssl fails.
pub fn stranger(directory: &TempDir) -> Result<Credential> {
    let file = |name: &str| directory.path().join(name);
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let (authority, authority_key) = (file("stranger-ca.pem"), file("stranger-ca.key"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-days", "30", "-subj", "/CN=Stranger CA"]).args(curve);
    command.arg("-out").arg(&authority).arg("-keyout").arg(&authority_key);
    process::succeed(&mut command)?;
    let credential = Credential { certificate: file("stranger.pem"), key: file("stranger.key") };
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-days", "30", "-subj", "/CN=stranger"]).args(curve);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.args(["-addext", "keyUsage=critical,digitalSignature"]);
    command.args(["-addext", "extendedKeyUsage=clientAuth"]);
    command.arg("-CA").arg(&authority).arg("-CAkey").arg(&authority_key);
    command.arg("-out").arg(&credential.certificate).arg("-keyout").arg(&credential.key);
    process::succeed(&mut command)?;
    Ok(credential)
}
