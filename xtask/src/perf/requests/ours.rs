//! Our own configuration for the work that is compared.

use std::net::SocketAddr;

use super::{
    REMEMBERED,
    files::{AUDIENCE, Files, ISSUER},
    servers::{CONNECTIONS_MAX, LIMIT_PER_S, UPSTREAM},
};

/// Listens at `address`, and for HTTP/3 at another: so nothing announces it in answers of HTTP/1.1.
pub fn config(
    files: &Files,
    server: &str,
    [address, quic]: [SocketAddr; 2],
    workers: usize,
) -> String {
    let file = |name: &str| format!("{:?}", files.path(name).display().to_string());
    let listener = |name: &str, address: SocketAddr, protocols: &str| {
        format!(
            r#"[[listener]]
name = "{name}"
address = "{address}"
protocols = {protocols}

[listener.tls]
certificate = {certificate}
private_key = {key}
client_auth = "required"
client_ca = {authority}
client_crl = [{list}]
"#,
            certificate = file(&format!("{server}.pem")),
            key = file(&format!("{server}.key")),
            authority = file("ca.pem"),
            list = file("ca.crl"),
        )
    };
    format!(
        r#"[server]
workers = {workers}
max_connections = {CONNECTIONS_MAX}

{tcp}
{udp}
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

# The clients that are to be refused come from addresses of the good ones.
[bans]
threshold = 1000

[admin]
socket = {socket}
metrics = "127.0.0.1:9090"

[log]
access = false
"#,
        tcp = listener("edge", address, r#"["h2", "http/1.1"]"#),
        udp = listener("edge-h3", quic, r#"["h3", "h2", "http/1.1"]"#),
        keys = file("jwks.json"),
        socket = file("admin.sock"),
        remembered = REMEMBERED,
    )
}
