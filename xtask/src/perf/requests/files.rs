//! What servers and clients show each other: certificates under an RSA-4096 authority, a revocation
//! list, and tokens.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::generator;
use crate::harness::{clock, process, tokens::Mint};

/// The name that the servers' certificates are for.
pub const HOST: &str = "gateway.test";
/// The tokens' issuer.
pub const ISSUER: &str = "https://issuer.test";
/// Their audience.
pub const AUDIENCE: &str = "orders-api";

/// A client that every server must refuse.
pub const REVOKED: &str = "revoked";
/// Certificates on the list besides that one.
const REVOKED_MORE: u32 = 199;
/// Longer than any run, well below what the servers are told to accept.
const TOKEN_LIFETIME_S: u64 = 6 * 3_600;

/// A kind of key, of servers and of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// ECDSA over P-256.
    P256,
    /// RSA with 2,048 bits.
    Rsa2048,
    /// RSA with 4,096 bits.
    Rsa4096,
}

impl Keys {
    /// All.
    const ALL: [Keys; 3] = [Keys::P256, Keys::Rsa2048, Keys::Rsa4096];

    /// As rows and files call it.
    pub fn name(self) -> &'static str {
        match self {
            Keys::P256 => "P-256",
            Keys::Rsa2048 => "RSA-2048",
            Keys::Rsa4096 => "RSA-4096",
        }
    }

    fn openssl(self) -> [&'static str; 4] {
        match self {
            Keys::P256 => ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Keys::Rsa2048 => ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Keys::Rsa4096 => ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
        }
    }
}

/// The algorithms of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA-2048 with SHA-256.
    Rs256,
    /// ECDSA over P-256 with SHA-256.
    Es256,
}

impl Algorithm {
    /// Both.
    pub const ALL: [Algorithm; 2] = [Algorithm::Rs256, Algorithm::Es256];

    /// As RFC 7518 calls it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
        }
    }
}

/// All files of a run, in one directory.
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Makes certificates and keys.
    ///
    /// # Errors
    /// When openssl or the product cannot make them.
    pub fn new(directory: &Path, product: &Path) -> Result<Files> {
        let files = Files { directory: directory.to_owned() };
        files.make_authority()?;
        for keys in Keys::ALL {
            let names = format!("subjectAltName=DNS:{HOST}\nextendedKeyUsage=serverAuth\n");
            files.certify(&files.server(keys), keys, HOST, &names)?;
            files.certify_client(&files.client(keys), keys)?;
        }
        files.certify_client(REVOKED, Keys::P256)?;
        files.list_revoked()?;
        files.make_token_keys(product)?;
        Ok(files)
    }

    /// Any file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The name of a server's files: `.pem`, `.key`, and both in `.both`.
    pub fn server(&self, keys: Keys) -> String {
        format!("server-{}", keys.name())
    }

    /// The name of a client's files.
    pub fn client(&self, keys: Keys) -> String {
        format!("client-{}", keys.name())
    }

    /// Tokens of an algorithm, so many different ones, one a line.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub fn tokens(&self, load: &Path, algorithm: Algorithm, count: usize) -> Result<PathBuf> {
        let file = self.path(&format!("{}-{count}.tokens", algorithm.name()));
        if !file.exists() {
            let now_s = clock::unix_s();
            let order = json!({
                "algorithm": algorithm.name(),
                "key": self.path(&format!("{}.key", algorithm.name())),
                "key_id": algorithm.name(),
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "issued_s": now_s - 60,
                "expires_s": now_s + TOKEN_LIFETIME_S,
                "count": count,
                "file": file,
            });
            let path = self.path("order.json");
            fs::write(&path, order.to_string())?;
            process::succeed(Command::new(load).arg("tokens").arg(&path))?;
        }
        Ok(file)
    }

    /// Tokens that no server may accept: another signature, no signature, an end in the past.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn bad_tokens(&self, load: &Path, algorithm: Algorithm) -> Result<Vec<PathBuf>> {
        let good = fs::read_to_string(self.tokens(load, algorithm, 2)?)?;
        let [one, other] = good.lines().collect::<Vec<_>>()[..] else {
            anyhow::bail!("two tokens were asked for")
        };
        let (text, _) = one.rsplit_once('.').context("a token has three parts")?;
        let (_, foreign) = other.rsplit_once('.').context("a token has three parts")?;
        let (_, claims) = text.split_once('.').context("a token has three parts")?;
        let unsigned = generator::base64_url(r#"{"alg":"none","typ":"JWT"}"#);
        let bad = [
            ("foreign", format!("{text}.{foreign}\n")),
            ("unsigned", format!("{unsigned}.{claims}.\n")),
        ];
        bad.into_iter()
            .map(|(name, token)| {
                let file = self.path(&format!("{}-{name}.tokens", algorithm.name()));
                fs::write(&file, token)?;
                Ok(file)
            })
            .collect()
    }

    fn openssl(&self, words: &[&str]) -> Result<()> {
        process::succeed(Command::new("openssl").current_dir(&self.directory).args(words))?;
        Ok(())
    }

    fn make_authority(&self) -> Result<()> {
        self.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:4096",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "30",
            "-subj",
            "/CN=perf authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ])
    }

    fn certify_client(&self, name: &str, keys: Keys) -> Result<()> {
        let names =
            format!("subjectAltName=URI:spiffe://perf.test/{name}\nextendedKeyUsage=clientAuth\n");
        self.certify(name, keys, name, &names)
    }

    fn certify(&self, name: &str, keys: Keys, common_name: &str, names: &str) -> Result<()> {
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let (extensions, certificate) = (format!("{name}.ext"), format!("{name}.pem"));
        let lines =
            format!("{names}keyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n");
        fs::write(self.path(&extensions), lines)?;
        self.openssl(&[&["genpkey", "-out", &key], &keys.openssl()[..]].concat())?;
        let subject = format!("/CN={common_name}");
        self.openssl(&["req", "-new", "-key", &key, "-out", &request, "-subj", &subject])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-days",
            "20",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ])?;
        // HAProxy takes both from one file.
        let both = [fs::read(self.path(&certificate))?, fs::read(self.path(&key))?].concat();
        fs::write(self.path(&format!("{name}.both")), both)?;
        Ok(())
    }

    fn list_revoked(&self) -> Result<()> {
        fs::write(
            self.path("ca.cnf"),
            "[ca]\ndefault_ca=it\n[it]\ndatabase=index.txt\ncertificate=ca.pem\nprivate_key=ca.key\n\
             default_md=sha256\ndefault_crl_days=20\n",
        )?;
        let mut lines = String::new();
        for number in 1..=REVOKED_MORE {
            // State, end, moment of revocation, serial, file, subject: openssl-ca(1).
            writeln!(
                lines,
                "R\t491231235959Z\t250101000000Z\t{number:08X}\tunknown\t/CN=r{number}"
            )?;
        }
        fs::write(self.path("index.txt"), lines)?;
        let certificate = format!("{REVOKED}.pem");
        self.openssl(&["ca", "-config", "ca.cnf", "-revoke", &certificate])?;
        self.openssl(&["ca", "-config", "ca.cnf", "-gencrl", "-out", "ca.crl"])
    }

    /// Keys by the product's own command; all public ones in one set, and each in PEM for others.
    fn make_token_keys(&self, product: &Path) -> Result<()> {
        let mut keys = Vec::new();
        for algorithm in Algorithm::ALL {
            let name = algorithm.name();
            let mint = Mint::new(product, &self.directory, name, name)?;
            let set: Value = serde_json::from_str(&fs::read_to_string(mint.jwks())?)?;
            keys.extend(set["keys"].as_array().context("a key set has keys")?.clone());
            let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
            self.openssl(&["pkey", "-in", &key, "-pubout", "-out", &public])?;
        }
        fs::write(self.path("jwks.json"), json!({ "keys": keys }).to_string())?;
        Ok(())
    }
}
