//! The servers that are compared, each at its best configuration for the same work: TLS 1.3 with
//! required client certificates and a revocation list, a token's signature, issuer, audience and end,
//! a limit for each client that is never reached, the client's name in a header for the upstream,
//! upstream connections kept; no log of requests.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    debian::{self, Found},
    envoy,
    files::{AUDIENCE, Algorithm, Files, HOST, ISSUER, Keys},
    generator::Place,
    pypi,
};
use crate::harness::{clock, gateway::START_LIMIT, process};

/// The upstream of all.
pub const UPSTREAM: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9_001));
/// The path for which a certificate is enough.
pub const WITH_CERTIFICATE: &str = "/mtls/1";
/// The path that asks for a token besides.
pub const WITH_TOKEN: &str = "/orders/1";
/// Nobody reaches it; it has to be counted nevertheless.
pub const LIMIT_PER_S: u32 = 1_000_000;
/// Connections of anybody at once: the largest crowd and some. HAProxy asks for two descriptors for each,
/// and many a machine gives a process no more than 20,000.
const CONNECTIONS_MAX: u32 = 9_800;

/// A server that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The product.
    Ours,
    /// HAProxy.
    Haproxy,
    /// nginx, with njs for tokens.
    Nginx,
    /// Envoy, with its cache of tokens.
    Envoy,
}

impl fmt::Display for Product {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Product::Ours => "portcullis",
            Product::Haproxy => "haproxy",
            Product::Nginx => "nginx",
            Product::Envoy => "envoy",
        })
    }
}

/// A server that can be started here.
pub struct Installed {
    /// Which.
    pub product: Product,
    /// Its version and its cryptography's, in its own words.
    pub version: String,
    found: Found,
}

/// Those that can be had here, ours first; and for those that cannot, why.
///
/// # Errors
/// When ours does not say its version.
pub fn look(ours: &Path) -> Result<(Vec<Installed>, Vec<String>)> {
    let version = process::succeed(Command::new(ours).arg("--version"))?.trim().to_owned();
    let found = Found { program: ours.to_owned(), root: PathBuf::from("/") };
    let mut installed = vec![Installed { product: Product::Ours, version, found }];
    let mut absent = Vec::new();
    for product in [Product::Haproxy, Product::Nginx, Product::Envoy] {
        match find(product) {
            Ok(peer) => installed.push(peer),
            Err(why) => absent.push(format!("{product}: {why:#}")),
        }
    }
    Ok((installed, absent))
}

fn find(product: Product) -> Result<Installed> {
    let (found, word) = match product {
        Product::Ours => bail!("it is built, not looked for"),
        Product::Haproxy => (debian::find("usr/sbin/haproxy", &["haproxy"])?, "-vv"),
        Product::Nginx => {
            let module = debian::find(NJS, &["nginx", "libnginx-mod-http-js"])?;
            (Found { program: module.root.join("usr/sbin/nginx"), ..module }, "-V")
        }
        Product::Envoy => (pypi::find_envoy()?, "--version"),
    };
    let ended = process::run(found.command().arg(word))?;
    let said = format!("{}\n{}", ended.stdout, ended.stderr);
    let version = version(&said);
    if version.is_empty() {
        bail!("it does not run: {said}");
    }
    Ok(Installed { product, version, found })
}

/// What a server says of its version and its cryptography.
fn version(said: &str) -> String {
    let starts = ["HAProxy version", "Running on OpenSSL", "nginx version", "built with OpenSSL"];
    let lines = said.lines().filter_map(|line| {
        // Envoy's line begins with the path that it was called by.
        let own = line.split_once("version: ").filter(|_| line.ends_with("/BoringSSL"));
        own.map(|(_, version)| version)
            .or_else(|| starts.iter().any(|start| line.starts_with(start)).then_some(line))
    });
    lines.collect::<Vec<_>>().join("; ")
}

/// nginx's module for JavaScript, below the root.
const NJS: &str = "usr/lib/nginx/modules/ngx_http_js_module.so";

/// A running server; killed when dropped.
pub struct Server {
    /// Which.
    pub product: Product,
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Its processes.
    pub fn process_ids(&self) -> [i32; 1] {
        // A process id is positive and far below this bound (pid_max, proc(5)).
        [i32::try_from(self.child.id()).unwrap_or(i32::MAX)]
    }

    /// Octets of memory that are its own or its share of what it shares.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} tells no Pss"))? * 1_024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.child.kill();
        let _buried = self.child.wait();
    }
}

impl Installed {
    /// Starts it with a certificate of that kind, and waits until it accepts.
    ///
    /// # Errors
    /// When it does not come up; its own words are then on standard error.
    pub fn start(&self, files: &Files, keys: Keys, place: &Place) -> Result<Server> {
        let port = match self.product {
            Product::Ours => 8_443,
            Product::Haproxy => 8_444,
            Product::Nginx => 8_445,
            Product::Envoy => 8_446,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = files.path(&format!("{}.conf", self.product));
        let server = files.server(keys);
        let mut command = self.found.command_at(place);
        match self.product {
            Product::Ours => {
                fs::write(&config, ours(files, &server, address))?;
                command.arg("--config").arg(&config).arg("run");
            }
            Product::Haproxy => {
                fs::write(&config, haproxy(files, &server, address))?;
                command.arg("-db").arg("-f").arg(&config);
            }
            Product::Nginx => {
                fs::write(files.path("token.js"), njs(files)?)?;
                fs::write(&config, nginx(files, &server, address, &self.found.root))?;
                command.arg("-c").arg(&config).arg("-p").arg(files.path(""));
            }
            Product::Envoy => {
                let config = config.with_extension("json");
                fs::write(&config, envoy::config(files, &server, address)?.to_string())?;
                command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "error"]);
                command.arg("-c").arg(&config);
            }
        }
        let log = fs::File::create(files.path(&format!("{}.log", self.product)))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = place.spawn(&mut command)?;
        let mut server = Server { product: self.product, address, child };
        clock::wait_for(&format!("{} to accept", self.product), START_LIMIT, || {
            if let Some(status) = server.child.try_wait()? {
                let log = fs::read_to_string(files.path(&format!("{}.log", self.product)))?;
                bail!("{} ended with {status}: {log}", self.product);
            }
            let connected = place.namespace.within(|| TcpStream::connect(address))?;
            Ok(connected.ok())
        })?;
        Ok(server)
    }
}

fn ours(files: &Files, server: &str, address: SocketAddr) -> String {
    let file = |name: &str| format!("{:?}", files.path(name).display().to_string());
    format!(
        r#"[server]
workers = 1
max_connections = {CONNECTIONS_MAX}

[[listener]]
name = "edge"
address = "{address}"
protocols = ["h2", "http/1.1"]

[listener.tls]
certificate = {certificate}
private_key = {key}
client_auth = "required"
client_ca = {authority}
client_crl = [{list}]

[[issuer]]
name = "corp"
issuer = "{ISSUER}"
audiences = ["{AUDIENCE}"]
algorithms = ["RS256", "ES256"]
max_lifetime = "24h"
jwks_file = {keys}

[token_cache]
entries = {remembered}

[[upstream]]
name = "orders"
servers = ["http://{UPSTREAM}"]

[[limit]]
name = "each"
key = "client_id"
rates = ["{LIMIT_PER_S}/s"]
announce = false

[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate", "token"]
limits = ["each"]

[[route]]
name = "mtls"
path = "/mtls"
upstream = "orders"
require = ["certificate"]
limits = ["each"]

[admin]
socket = {socket}
metrics = "127.0.0.1:9090"

[log]
access = false
"#,
        certificate = file(&format!("{server}.pem")),
        key = file(&format!("{server}.key")),
        authority = file("ca.pem"),
        list = file("ca.crl"),
        keys = file("jwks.json"),
        socket = file("admin.sock"),
        remembered = super::REMEMBERED,
    )
}

fn haproxy(files: &Files, server: &str, address: SocketAddr) -> String {
    let file = |name: &str| files.path(name).display().to_string();
    let key = |algorithm: Algorithm| file(&format!("{}.pub", algorithm.name()));
    format!(
        r#"global
    nbthread 1
    maxconn {CONNECTIONS_MAX}
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    tune.ssl.default-dh-param 2048
    tune.ssl.cachesize 20000

defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 60s
    timeout http-keep-alive 300s
    http-reuse always

backend clients
    stick-table type string len 64 size 100k expire 60s store http_req_rate(1s)

frontend edge
    bind {address} ssl crt {both} ca-file {authority} crl-file {list} verify required curves X25519 alpn h2,http/1.1
    http-request track-sc0 ssl_c_s_dn(cn) table clients
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {LIMIT_PER_S} }}
    acl with_token path_beg /orders
    http-request set-var(txn.bearer) http_auth_bearer if with_token
    http-request set-var(txn.alg) var(txn.bearer),jwt_header_query('$.alg') if with_token
    http-request set-var(txn.iss) var(txn.bearer),jwt_payload_query('$.iss') if with_token
    http-request set-var(txn.aud) var(txn.bearer),jwt_payload_query('$.aud') if with_token
    http-request set-var(txn.exp) var(txn.bearer),jwt_payload_query('$.exp','int') if with_token
    http-request set-var(txn.now) date() if with_token
    http-request deny deny_status 401 if with_token !{{ var(txn.alg) -m str RS256 ES256 }}
    http-request deny deny_status 401 if with_token !{{ var(txn.iss) -m str {ISSUER} }}
    http-request deny deny_status 401 if with_token !{{ var(txn.aud) -m str {AUDIENCE} }}
    http-request deny deny_status 401 if with_token {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
    http-request deny deny_status 401 if with_token {{ var(txn.alg) -m str RS256 }} !{{ var(txn.bearer),jwt_verify(txn.alg,"{rsa}") -m int 1 }}
    http-request deny deny_status 401 if with_token {{ var(txn.alg) -m str ES256 }} !{{ var(txn.bearer),jwt_verify(txn.alg,"{p256}") -m int 1 }}
    http-request set-header X-Client-CN %[ssl_c_s_dn(cn)]
    default_backend orders

backend orders
    server orders {UPSTREAM}
"#,
        both = file(&format!("{server}.both")),
        authority = file("ca.pem"),
        list = file("ca.crl"),
        rsa = key(Algorithm::Rs256),
        p256 = key(Algorithm::Es256),
    )
}

fn nginx(files: &Files, server: &str, address: SocketAddr, root: &Path) -> String {
    let file = |name: &str| files.path(name).display().to_string();
    format!(
        r#"load_module {module};
daemon off;
master_process off;
pid {pid};
error_log stderr crit;
worker_rlimit_nofile 20000;
events {{ worker_connections {CONNECTIONS_MAX}; }}
http {{
    access_log off;
    client_body_temp_path {temporary};
    proxy_temp_path {temporary};
    fastcgi_temp_path {temporary};
    uwsgi_temp_path {temporary};
    scgi_temp_path {temporary};
    js_path {path};
    js_import token from token.js;
    limit_req_zone $ssl_client_s_dn zone=clients:10m rate={LIMIT_PER_S}r/s;
    upstream orders {{
        server {UPSTREAM};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {address} ssl http2 backlog=4096;
        server_name {HOST};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        ssl_ecdh_curve X25519;
        ssl_client_certificate {authority};
        ssl_crl {list};
        ssl_verify_client on;
        ssl_session_cache shared:sessions:10m;
        keepalive_requests 1000000000;
        keepalive_timeout 300s;
        http2_max_requests 1000000000;
        limit_req zone=clients burst=100000 nodelay;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header X-Client-DN $ssl_client_s_dn;
        location /mtls {{ proxy_pass http://orders; }}
        location /orders {{
            auth_request /token;
            proxy_pass http://orders;
        }}
        location = /token {{ internal; js_content token.check; }}
    }}
}}
"#,
        module = root.join(NJS).display(),
        pid = file("nginx.pid"),
        temporary = file("nginx-temporary"),
        path = file(""),
        certificate = file(&format!("{server}.pem")),
        key = file(&format!("{server}.key")),
        authority = file("ca.pem"),
        list = file("ca.crl"),
    )
}

/// nginx's check of a token, by njs.
fn njs(files: &Files) -> Result<String> {
    let key =
        |algorithm: Algorithm| fs::read_to_string(files.path(&format!("{}.pub", algorithm.name())));
    let (rsa, p256) = (key(Algorithm::Rs256)?, key(Algorithm::Es256)?);
    Ok(format!(
        r#"const KINDS = {{
    RS256: {{ key: `{rsa}`, as: {{ name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }}, by: {{ name: 'RSASSA-PKCS1-v1_5' }} }},
    ES256: {{ key: `{p256}`, as: {{ name: 'ECDSA', namedCurve: 'P-256' }}, by: {{ name: 'ECDSA', hash: 'SHA-256' }} }},
}};
{NJS_CHECK}"#
    ))
}

const NJS_CHECK: &str = include_str!("token.js");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_servers_say() {
        for (said, expected) in [
            (
                "HAProxy version 2.6.12 2023\nStatus: x\nRunning on OpenSSL version : OpenSSL 3.0.19\n",
                "HAProxy version 2.6.12 2023; Running on OpenSSL version : OpenSSL 3.0.19",
            ),
            (
                "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22\n",
                "nginx version: nginx/1.22.1; built with OpenSSL 3.0.22",
            ),
            (
                "\n/x/envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL\n",
                "abc/1.40.0/Clean/RELEASE/BoringSSL",
            ),
            ("error while loading shared libraries", ""),
        ] {
            assert_eq!(version(said), expected);
        }
    }
}
