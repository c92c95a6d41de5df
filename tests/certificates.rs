//! Certificates of every kind that a client may come with, made by `openssl` and presented by `openssl
//! s_client` and `curl`: who is let in, which alert the others get, and the word for it in log and metric.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    binary,
    harness::{
        client::{Credential, alert},
        process,
        site::Site,
    },
};

/// Usual extensions of a client's certificate.
const CLIENT: &str = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                      extendedKeyUsage=clientAuth\n";
/// Usual extensions of an authority's.
const AUTHORITY: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";

const P256: &[&str] = &["EC", "ec_paramgen_curve:P-256"];

/// Authorities and clients as files of one directory, by the commands that manuals give.
struct Workshop {
    directory: PathBuf,
}

/// A certificate to make.
struct Order<'o> {
    name: &'o str,
    issuer: &'o str,
    key: &'o [&'o str],
    subject: &'o str,
    extensions: &'o str,
    validity: (&'o str, &'o str),
    digest: &'o str,
}

impl<'o> Order<'o> {
    /// An ordinary client of an authority; cases change what they are about.
    fn client(name: &'o str, issuer: &'o str) -> Order<'o> {
        Order {
            name,
            issuer,
            key: P256,
            subject: "",
            extensions: CLIENT,
            validity: ("20250101000000Z", "20400101000000Z"),
            digest: "sha256",
        }
    }

    /// An ordinary authority below another.
    fn authority(name: &'o str, issuer: &'o str) -> Order<'o> {
        Order { extensions: AUTHORITY, ..Order::client(name, issuer) }
    }
}

impl Workshop {
    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn openssl(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(&self.directory).args(words);
        process::succeed(&mut command).map(drop)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.path(file), text).with_context(|| file.to_owned())
    }

    /// Concatenates certificates into a chain or a bundle.
    fn join(&self, file: &str, parts: &[&str]) -> Result<PathBuf> {
        let mut text = String::new();
        for part in parts {
            text += &fs::read_to_string(self.path(&format!("{part}.pem")))?;
        }
        self.write(file, &text)?;
        Ok(self.path(file))
    }

    fn key(&self, name: &str, kind: &[&str]) -> Result<()> {
        let file = format!("{name}.key");
        let mut words = vec!["genpkey", "-quiet", "-algorithm", kind[0], "-out", &file];
        for option in &kind[1..] {
            words.extend(["-pkeyopt", option]);
        }
        // -quiet came with OpenSSL 3.2; without it the dots go to standard error.
        words.retain(|word| *word != "-quiet");
        self.openssl(&words)
    }

    /// What `openssl ca` keeps of an authority: its index, and how it issues.
    fn register(&self, name: &str) -> Result<()> {
        self.write(&format!("{name}.index"), "")?;
        self.write(
            &format!("{name}.cnf"),
            &format!(
                "[ca]\ndefault_ca=own\n[own]\ndatabase={name}.index\ncertificate={name}.pem\n\
                 private_key={name}.key\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\n\
                 policy=any\nunique_subject=no\ndefault_crl_days=30\n\
                 [any]\ncommonName=optional\n"
            ),
        )
    }

    /// An authority of its own.
    fn root(&self, name: &str, subject: &str) -> Result<()> {
        self.key(name, P256)?;
        self.write(
            &format!("{name}.req"),
            &format!("[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\n{AUTHORITY}"),
        )?;
        let [key, out, config] = ["key", "pem", "req"].map(|end| format!("{name}.{end}"));
        let words = ["req", "-x509", "-new", "-key", &key, "-out", &out, "-config", &config];
        self.openssl(&[&words[..], &["-subj", subject, "-days", "3650"]].concat())?;
        self.register(name)
    }

    /// Issues what is ordered, in files of its name.
    fn issue(&self, order: &Order<'_>) -> Result<()> {
        let &Order { name, issuer, subject, .. } = order;
        self.key(name, order.key)?;
        self.write("plain.req", "[req]\ndistinguished_name=dn\n[dn]\n")?;
        self.write(&format!("{name}.ext"), order.extensions)?;
        let [key, request, out, extensions] =
            ["key", "csr", "pem", "ext"].map(|end| format!("{name}.{end}"));
        let common_name = format!("/CN={name}");
        let subject = if subject.is_empty() { &common_name } else { subject };
        let words = ["req", "-new", "-key", &key, "-out", &request, "-subj", subject];
        self.openssl(&[&words[..], &["-config", "plain.req"]].concat())?;
        let config = format!("{issuer}.cnf");
        let (start, end) = order.validity;
        let ca = ["ca", "-batch", "-notext", "-config", &config, "-in", &request, "-out", &out];
        let when = ["-startdate", start, "-enddate", end, "-md", order.digest];
        self.openssl(&[&ca[..], &when[..], &["-extfile", &extensions]].concat())?;
        self.register(name)
    }

    /// Signs a request of an order that `openssl ca` will not: with an empty subject, or version 1.
    fn sign(
        &self,
        name: &str,
        issuer: &str,
        subject: &str,
        extensions: Option<&str>,
    ) -> Result<()> {
        self.key(name, P256)?;
        self.write("plain.req", "[req]\ndistinguished_name=dn\n[dn]\n")?;
        let [key, request, out, extension_file] =
            ["key", "csr", "pem", "ext"].map(|end| format!("{name}.{end}"));
        let words = ["req", "-new", "-key", &key, "-out", &request, "-subj", subject];
        self.openssl(&[&words[..], &["-config", "plain.req"]].concat())?;
        let (authority, authority_key) = (format!("{issuer}.pem"), format!("{issuer}.key"));
        let mut words = vec!["x509", "-req", "-in", &request, "-out", &out, "-days", "30"];
        words.extend(["-CA", &authority, "-CAkey", &authority_key, "-set_serial", "4242"]);
        if let Some(extensions) = extensions {
            self.write(&extension_file, extensions)?;
            words.extend(["-extfile", &extension_file]);
        }
        self.openssl(&words)?;
        self.register(name)
    }

    fn revoke(&self, name: &str, issuer: &str) -> Result<()> {
        let (config, certificate) = (format!("{issuer}.cnf"), format!("{name}.pem"));
        self.openssl(&["ca", "-config", &config, "-revoke", &certificate])
    }

    /// The authority's list; `expired`: due in 2025.
    fn list(&self, name: &str, expired: bool) -> Result<PathBuf> {
        let (config, out) = (format!("{name}.cnf"), format!("{name}.crl"));
        let mut words = vec!["ca", "-gencrl", "-config", &config, "-out", &out];
        if expired {
            words.extend(["-crl_lastupdate", "20250101000000Z"]);
            words.extend(["-crl_nextupdate", "20250201000000Z"]);
        }
        self.openssl(&words)?;
        Ok(self.path(&out))
    }

    fn credential(&self, name: &str) -> Credential {
        Credential {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        }
    }
}

/// A client: the certificates it sends besides its own, and what becomes of it.
struct Case {
    name: &'static str,
    sends: &'static [&'static str],
    /// Alert and word; `None` for those who are let in.
    refused: Option<(u8, &'static str)>,
    /// Something that the log's detail says.
    says: &'static str,
}

const fn good(name: &'static str, sends: &'static [&'static str]) -> Case {
    Case { name, sends, refused: None, says: "" }
}

const fn bad(
    name: &'static str,
    sends: &'static [&'static str],
    alert: u8,
    word: &'static str,
    says: &'static str,
) -> Case {
    Case { name, sends, refused: Some((alert, word)), says }
}

/// What each client's certificate has of its own is in `make`.
const CASES: &[Case] = &[
    good("plain", &[]),
    good("p384", &[]),
    good("ed25519", &[]),
    good("rsa2048", &[]),
    good("same-name-twice", &[]),
    good("no-subject", &[]),
    good("no-usages", &[]),
    good("below-sub", &["sub"]),
    // The bundle lends the intermediate.
    good("below-sub-alone", &[]),
    // The other way up is a stranger's, this one is ours.
    good("cross-signed", &["sub-by-stranger"]),
    bad("foreign", &[], alert::UNKNOWN_CA, "unknown_issuer", "CN=Stranger"),
    bad("self-signed", &[], alert::UNKNOWN_CA, "unknown_issuer", "CN=self-signed"),
    bad("below-absent", &[], alert::UNKNOWN_CA, "unknown_issuer", "CN=absent"),
    bad("below-absent-sent", &["absent"], alert::UNKNOWN_CA, "revocation_unknown", "CN=absent"),
    bad("expired", &[], alert::CERTIFICATE_EXPIRED, "certificate_expired", "2025-02-01"),
    bad("unborn", &[], alert::CERTIFICATE_EXPIRED, "certificate_not_yet_valid", "2039-01-01"),
    bad("revoked", &[], alert::CERTIFICATE_REVOKED, "revoked", "on its issuer's list"),
    bad("below-gone", &["gone"], alert::CERTIFICATE_REVOKED, "revoked", "on its issuer's list"),
    bad("of-expired-list", &[], alert::UNKNOWN_CA, "crl_expired", "CN=Other"),
    bad("of-retired", &[], alert::UNKNOWN_CA, "retired_ca", "CN=Retired"),
    bad("for-servers", &[], alert::UNSUPPORTED_CERTIFICATE, "bad_eku", "clientAuth"),
    bad(
        "for-encipherment",
        &[],
        alert::UNSUPPORTED_CERTIFICATE,
        "bad_key_usage",
        "digitalSignature",
    ),
    bad("too-deep", &["deep2", "deep1"], alert::UNKNOWN_CA, "chain_too_long", "2 intermediate"),
    bad("past-path-length", &["under-short", "short"], alert::UNKNOWN_CA, "chain_too_long", ""),
    bad("sha1", &[], alert::BAD_CERTIFICATE, "unsupported_certificate_algorithm", "SHA-1"),
    bad("rsa1024", &[], alert::BAD_CERTIFICATE, "unsupported_certificate_algorithm", "2048"),
    bad("outside-fence", &["fence"], alert::BAD_CERTIFICATE, "name_constraint", "nameConstraints"),
    bad("critical-extension", &[], alert::BAD_CERTIFICATE, "bad_certificate", "critical extension"),
    bad("unclean-name", &[], alert::BAD_CERTIFICATE, "bad_certificate_name", "characters"),
    bad("sub", &[], alert::BAD_CERTIFICATE, "bad_certificate", "authority's certificate"),
    bad("issued-by-client", &["plain"], alert::BAD_CERTIFICATE, "bad_certificate", "authority's"),
    bad("below-version-1", &["version-1"], alert::BAD_CERTIFICATE, "bad_certificate", "parse"),
    bad("of-impostor", &[], alert::UNKNOWN_CA, "bad_certificate_signature", "did not sign"),
    // A key for RSA-PSS only: openssl finds no signature that both sides know, and sends nothing.
    bad("rsa-pss", &[], alert::CERTIFICATE_REQUIRED, "no_client_cert", ""),
];

fn make(workshop: &Workshop) -> Result<()> {
    for (name, subject) in [
        ("root", "/CN=Root"),
        ("other", "/CN=Other"),
        ("retired", "/CN=Retired"),
        ("stranger", "/CN=Stranger"),
        ("impostor", "/CN=Root"),
    ] {
        workshop.root(name, subject)?;
    }
    let fence = format!("{AUTHORITY}nameConstraints=critical,permitted;DNS:inside.test\n");
    let short =
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n";
    for order in [
        Order::authority("sub", "root"),
        Order::authority("absent", "root"),
        Order::authority("gone", "root"),
        Order::authority("deep1", "root"),
        Order::authority("deep2", "deep1"),
        Order { extensions: &fence, ..Order::authority("fence", "root") },
        Order { extensions: short, ..Order::authority("short", "root") },
        Order::authority("under-short", "short"),
    ] {
        workshop.issue(&order)?;
    }
    workshop.sign("version-1", "root", "/CN=version-1", None)?;
    // The same authority, by the word of a stranger.
    let words = ["x509", "-req", "-in", "sub.csr", "-out", "sub-by-stranger.pem", "-days", "30"];
    let more = ["-CA", "stranger.pem", "-CAkey", "stranger.key", "-set_serial", "7"];
    workshop.openssl(&[&words[..], &more[..], &["-extfile", "sub.ext"]].concat())?;
    let with = |more: &str| format!("{CLIENT}{more}\n");
    let twice = with("subjectAltName=DNS:twice.test,DNS:twice.test");
    let outside = with("subjectAltName=DNS:outside.test");
    let unclean = with("subjectAltName=DNS:un clean.test");
    let critical = with("1.2.3.4.5=critical,ASN1:UTF8String:x");
    let servers = CLIENT.replace("clientAuth", "serverAuth");
    let encipherment = CLIENT.replace("digitalSignature", "keyEncipherment");
    for order in [
        Order::client("plain", "root"),
        Order { key: &["EC", "ec_paramgen_curve:P-384"], ..Order::client("p384", "root") },
        Order { key: &["ED25519"], ..Order::client("ed25519", "root") },
        Order { key: &["RSA", "rsa_keygen_bits:2048"], ..Order::client("rsa2048", "root") },
        Order { key: &["RSA", "rsa_keygen_bits:1024"], ..Order::client("rsa1024", "root") },
        Order { key: &["RSA-PSS", "rsa_keygen_bits:2048"], ..Order::client("rsa-pss", "root") },
        Order { extensions: &twice, ..Order::client("same-name-twice", "root") },
        Order {
            extensions: "basicConstraints=critical,CA:FALSE\n",
            ..Order::client("no-usages", "root")
        },
        Order::client("below-sub", "sub"),
        Order::client("below-sub-alone", "sub"),
        Order::client("cross-signed", "sub"),
        Order::client("foreign", "stranger"),
        Order::client("below-absent", "absent"),
        Order::client("below-absent-sent", "absent"),
        Order {
            validity: ("20250101000000Z", "20250201000000Z"),
            ..Order::client("expired", "root")
        },
        Order {
            validity: ("20390101000000Z", "20400101000000Z"),
            ..Order::client("unborn", "root")
        },
        Order::client("revoked", "root"),
        Order::client("below-gone", "gone"),
        Order::client("of-expired-list", "other"),
        Order::client("of-retired", "retired"),
        Order { extensions: &servers, ..Order::client("for-servers", "root") },
        Order { extensions: &encipherment, ..Order::client("for-encipherment", "root") },
        Order::client("too-deep", "deep2"),
        Order::client("past-path-length", "under-short"),
        Order { digest: "sha1", ..Order::client("sha1", "root") },
        Order { extensions: &outside, ..Order::client("outside-fence", "fence") },
        Order { extensions: &critical, ..Order::client("critical-extension", "root") },
        Order { extensions: &unclean, ..Order::client("unclean-name", "root") },
        Order::client("below-version-1", "version-1"),
        Order::client("issued-by-client", "plain"),
        Order::client("of-impostor", "impostor"),
    ] {
        workshop.issue(&order).with_context(|| order.name.to_owned())?;
    }
    let named = with("subjectAltName=URI:spiffe://site.test/nameless");
    workshop.sign("no-subject", "root", "/", Some(&named))?;
    workshop.root("self-signed", "/CN=self-signed")?;
    let words = ["req", "-x509", "-new", "-key", "self-signed.key", "-out", "self-signed.pem"];
    workshop.write(
        "self.req",
        &format!("[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\n{CLIENT}"),
    )?;
    let more = ["-config", "self.req", "-subj", "/CN=self-signed", "-days", "30"];
    workshop.openssl(&[&words[..], &more[..]].concat())?;
    workshop.revoke("revoked", "root")?;
    workshop.revoke("gone", "root")
}

/// The site with these authorities, and the workshop that made them.
fn site(label: &str) -> Result<(Site, Workshop)> {
    let mut site = Site::new(binary(), label)?;
    let directory = site.directory.path().join("workshop");
    fs::create_dir(&directory)?;
    let workshop = Workshop { directory };
    make(&workshop)?;
    site.config.bans = "enabled = false".to_owned();
    site.config.client_authority = workshop.join("clients-ca.pem", &["root", "sub", "other"])?;
    site.config.revoked = vec![
        workshop.list("root", false)?,
        workshop.list("sub", false)?,
        workshop.list("other", true)?,
    ];
    let retired = workshop.path("retired.pem");
    site.config.tls =
        format!("max_chain_depth = 1\nretired_ca = [{:?}]", retired.display().to_string());
    Ok((site, workshop))
}

/// The log's line about the client of this name.
fn refusal(line: &Value, subject: &str, word: &str) -> bool {
    line["event"] == "handshake_refused"
        && line["reason"] == word
        && (line["certificate"]["subject"] == subject || word == "no_client_cert")
}

#[test]
fn every_kind_of_certificate_is_judged_and_each_refusal_has_its_word() -> Result<()> {
    privileged!();
    let (site, workshop) = site("matrix")?;
    let gateway = site.start()?;
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Case { name, sends, refused, says } in CASES {
        let chain = workshop.join("sent.chain", sends)?.display().to_string();
        // Security level 0: openssl itself refuses to use some of these.
        let mut more = vec!["-cipher", "DEFAULT@SECLEVEL=0"];
        if !sends.is_empty() {
            more.extend(["-cert_chain", &chain]);
        }
        let handshake = site.handshake(Some(&workshop.credential(name)), &more)?;
        let seen = (handshake.alert, handshake.answered);
        let wanted = (refused.map(|(alert, _)| alert), refused.is_none());
        if seen != wanted {
            let log = gateway.log_text();
            let last = log.lines().rev().find(|line| line.contains("handshake_refused"));
            wrong
                .push(format!("{name}: {seen:?} and not {wanted:?}: {last:?}\n{}", handshake.said));
            continue;
        }
        let Some((_, word)) = refused else { continue };
        *counts.entry(word).or_default() += 1.0;
        let subject = format!("CN={name}");
        let line = gateway
            .wait_log(&format!("the refusal of {name}"), |line| refusal(line, &subject, word))?;
        assert_eq!(line["tls_version"], "1.3", "{name}: {line}");
        let detail = line["detail"].as_str().unwrap_or_default();
        if !detail.contains(says) {
            wrong.push(format!("{name}: {detail:?} does not say {says:?}"));
        }
        if *word != "no_client_cert" {
            ensure!(line["certificate"]["issuer"].is_string(), "{line}");
            ensure!(line["certificate"]["serial"].is_string(), "{line}");
            ensure!(line["source"] == "10.99.0.2" && line["sni"] == "gateway.test", "{line}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (word, count) in counts {
        let labels = [("reason", word)];
        gateway.wait_metric("gateway_tls_handshake_failures_total", &labels, count)?;
    }
    Ok(())
}

#[test]
fn curl_gets_in_with_a_good_certificate_and_to_the_right_route_only() -> Result<()> {
    privileged!();
    let (mut site, workshop) = site("curl")?;
    site.config.routes.push_str(
        "\n[[route]]\nname = \"theirs\"\npath = \"/theirs\"\nupstream = \"orders\"\n\
         require = [\"certificate\"]\nprincipals = [\"somebody-else\"]\n",
    );
    let _gateway = site.start()?;
    for (who, path, status) in [
        (Some("plain"), "/machines/1", 200),
        (Some("rsa2048"), "/machines/1", 200),
        (Some("plain"), "/theirs/1", 403),
        (Some("foreign"), "/machines/1", 0),
        (Some("expired"), "/machines/1", 0),
        (Some("revoked"), "/machines/1", 0),
        (None, "/machines/1", 0),
    ] {
        let mut request = bare_request(&site, path);
        if let Some(who) = who {
            request = request.certificate(&workshop.credential(who));
        }
        let answer = request.send()?;
        assert_eq!(answer.status, status, "{who:?} {path}: {answer:?}");
    }
    assert_eq!(site.upstream.requests(), 2, "what was refused reached the upstream");
    Ok(())
}

#[test]
fn each_site_has_clients_of_its_own() -> Result<()> {
    privileged!();
    let (mut site, workshop) = site("sites")?;
    let open = site.authority.server(&["open.test"], "open-site")?;
    let theirs = site.authority.server(&["theirs.test", "*.theirs.test"], "their-site")?;
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    site.config.tls += &format!(
        "\n[[listener.tls.sni]]\nnames = [\"open.test\"]\ncertificate = {}\nprivate_key = {}\n\
         client_auth = \"optional\"\n\
         [[listener.tls.sni]]\nnames = [\"theirs.test\", \"*.theirs.test\"]\ncertificate = {}\n\
         private_key = {}\nclient_ca = {}\n",
        quoted(&open.certificate),
        quoted(&open.key),
        quoted(&theirs.certificate),
        quoted(&theirs.key),
        quoted(&workshop.path("stranger.pem")),
    );
    let _gateway = site.start()?;
    let gateway_host = "gateway.test";
    for (host, header, who, path, status) in [
        (gateway_host, "", Some("plain"), "/machines/1", 200),
        (gateway_host, "", Some("foreign"), "/machines/1", 0),
        ("theirs.test", "", Some("foreign"), "/machines/1", 200),
        ("a.theirs.test", "", Some("foreign"), "/machines/1", 200),
        ("theirs.test", "", Some("plain"), "/machines/1", 0),
        ("open.test", "", None, "/public/1", 200),
        ("open.test", "", None, "/machines/1", 403),
        ("open.test", "", Some("plain"), "/machines/1", 200),
        // One that is sent must be good.
        ("open.test", "", Some("foreign"), "/public/1", 0),
        // Shook hands as one, asks for the other.
        ("theirs.test", "Host: gateway.test:8443", Some("foreign"), "/machines/1", 421),
        ("open.test", "Host: gateway.test:8443", None, "/public/1", 421),
    ] {
        let mut request = crate::harness::client::Request::new(
            &site.client_host,
            crate::harness::site::SERVER,
            host,
            path,
            site.authority.certificate(),
        );
        if !header.is_empty() {
            request = request.header(header);
        }
        if let Some(who) = who {
            request = request.certificate(&workshop.credential(who));
        }
        let answer = request.send()?;
        assert_eq!(answer.status, status, "{host} {header} {who:?} {path}: {answer:?}");
    }
    Ok(())
}

#[test]
fn check_tells_what_has_ended_is_dear_or_stands_twice() -> Result<()> {
    privileged!();
    let (mut site, workshop) = site("advice")?;
    workshop.issue(&Order {
        key: &["RSA", "rsa_keygen_bits:4096"],
        validity: ("20200101000000Z", "20270101000000Z"),
        ..Order::client("dear", "root")
    })?;
    site.config.server = workshop.credential("dear");
    let bundle = ["root", "sub", "other", "root"];
    site.config.client_authority = workshop.join("twice-ca.pem", &bundle)?;
    // One name of two is in its certificate, and a pattern is not covered by one of its names.
    let theirs = site.authority.server(&["theirs.test", "a.other.test"], "their-site")?;
    site.config.tls += &format!(
        "\n[[listener.tls.sni]]\nnames = [\"theirs.test\", \"*.other.test\"]\ncertificate = {:?}\n\
         private_key = {:?}\n",
        theirs.certificate.display().to_string(),
        theirs.key.display().to_string(),
    );
    let ended = site.launch()?.ended(&["check", "--json"])?;
    let told: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    assert_eq!(told["ok"], true, "{told}");
    let warnings = told["warnings"].as_array().context("warnings")?;
    for says in [
        "dear.pem: its key is RSA of 4096 bits",
        "dear.pem: end",
        "\"CN=Root\" is in it twice",
        "the list of \"CN=Other\" was due for renewal 2025-02-01",
        "dear.pem: has no subjectAltName with a host in it",
        "their-site.pem: is served to who asks for \"*.other.test\" and is not for that host (it is \
         for theirs.test, a.other.test)",
    ] {
        let said = warnings.iter().any(|line| line.as_str().unwrap_or_default().contains(says));
        assert!(said, "{says}: {told}");
    }
    assert!(!told.to_string().contains("who asks for \\\"theirs.test"), "{told}");
    let strict = site.launch()?.ended(&["check", "--strict"])?;
    assert_eq!(strict.status, Some(78), "{}", strict.stdout);
    Ok(())
}

/// A request without the site's own client certificate.
fn bare_request<'s>(site: &'s Site, path: &str) -> crate::harness::client::Request<'s> {
    crate::harness::client::Request::new(
        &site.client_host,
        crate::harness::site::SERVER,
        crate::harness::site::HOST,
        path,
        site.authority.certificate(),
    )
}
