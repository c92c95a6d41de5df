//! HAProxy's configuration for the work that is compared.

use std::net::SocketAddr;

use super::{
    files::{AUDIENCE, Algorithm, Files, ISSUER},
    servers::{CONNECTIONS_MAX, LIMIT_PER_S, UPSTREAM},
};

/// Listens at `address`, and for HTTP/3 at `quic` where this version speaks it.
pub fn config(
    files: &Files,
    server: &str,
    address: SocketAddr,
    quic: Option<SocketAddr>,
    threads: usize,
) -> String {
    let file = |name: &str| files.path(name).display().to_string();
    let tls = format!(
        "ssl crt {both} ca-file {authority} crl-file {list} verify required curves X25519",
        both = file(&format!("{server}.both")),
        authority = file("ca.pem"),
        list = file("ca.crl"),
    );
    let quic = quic.map(|quic| format!("bind quic4@{quic} {tls} alpn h3")).unwrap_or_default();
    let key = |algorithm: Algorithm| file(&format!("{}.pub", algorithm.name()));
    format!(
        r#"global
    nbthread {threads}
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
    bind {address} {tls} alpn h2,http/1.1
    {quic}
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
        rsa = key(Algorithm::Rs256),
        p256 = key(Algorithm::Es256),
    )
}
