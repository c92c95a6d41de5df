//! nginx's configuration for the work that is compared, and what njs does with a token.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Result;

use super::{
    files::{Algorithm, Files, HOST},
    servers::{CONNECTIONS_MAX, LIMIT_PER_S, UPSTREAM},
};

/// nginx's module for JavaScript, below the root.
pub const NJS: &str = "usr/lib/nginx/modules/ngx_http_js_module.so";

/// A version's abilities, and how many processes it is to have.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// 1.30 with njs 1.0: HTTP/3, the faster engine, and a cache of tokens that all processes share.
    pub is_new: bool,
    /// 0: everything in one process, without one that could reload.
    pub workers: usize,
}

/// Listens at `address`, and for HTTP/3 at `quic` where this version speaks it.
pub fn config(
    files: &Files,
    server: &str,
    [address, quic]: [SocketAddr; 2],
    root: &Path,
    kind: Kind,
) -> String {
    let file = |name: &str| files.path(name).display().to_string();
    format!(
        r#"load_module {module};
daemon off;
{processes};
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
    {engine}
    limit_req_zone $ssl_client_s_dn zone=clients:10m rate={LIMIT_PER_S}r/s;
    upstream orders {{
        server {UPSTREAM};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        {listen}
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
        {requests_max}
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
        processes = match kind.workers {
            0 => "master_process off".to_owned(),
            workers => format!("user root;\nworker_processes {workers}"),
        },
        engine = if kind.is_new {
            // 10,000 tokens and what is kept with each.
            "js_engine qjs;\n    js_shared_dict_zone zone=tokens:12m timeout=3600s evict;"
        } else {
            ""
        },
        listen = if kind.is_new {
            format!(
                "listen {address} ssl backlog=4096;\n        http2 on;\n        listen {quic} quic reuseport;"
            )
        } else {
            format!("listen {address} ssl http2 backlog=4096;")
        },
        // Newer ones count by `keepalive_requests`.
        requests_max = if kind.is_new { "" } else { "http2_max_requests 1000000000;" },
        module = root.join(NJS).display(),
        pid = file(&format!("nginx-{}.pid", address.port())),
        temporary = file("nginx-temporary"),
        path = file(""),
        certificate = file(&format!("{server}.pem")),
        key = file(&format!("{server}.key")),
        authority = file("ca.pem"),
        list = file("ca.crl"),
    )
}

/// The check of a token, by njs.
pub fn script(files: &Files) -> Result<String> {
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
