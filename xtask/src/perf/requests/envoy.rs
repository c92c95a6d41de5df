//! Envoy's configuration, with its cache of tokens.

use std::{fs, net::SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    REMEMBERED,
    files::{AUDIENCE, Files, ISSUER},
    servers::{LIMIT_PER_S, UPSTREAM},
};

const TYPE: &str = "type.googleapis.com/envoy";

/// The document that it starts from.
///
/// # Errors
/// When the key set cannot be read.
pub fn config(files: &Files, server: &str, address: SocketAddr) -> Result<Value> {
    Ok(json!({
        "static_resources": {
            "listeners": [{
                "name": "edge",
                "address": socket(address),
                "tcp_backlog_size": 4096,
                "filter_chains": [{
                    "transport_socket": tls(files, server),
                    "filters": [{
                        "name": "http",
                        "typed_config": manager(files)?,
                    }],
                }],
            }],
            "clusters": [{
                "name": "orders",
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": "orders",
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(UPSTREAM) } }] }],
                },
            }],
        },
    }))
}

fn socket(address: SocketAddr) -> Value {
    let (address, port) = (address.ip().to_string(), address.port());
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn tls(files: &Files, server: &str) -> Value {
    let file = |name: &str| json!({ "filename": files.path(name) });
    json!({
        "name": "tls",
        "typed_config": {
            "@type": format!("{TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "ecdh_curves": ["X25519"],
                },
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": file(&format!("{server}.pem")),
                    "private_key": file(&format!("{server}.key")),
                }],
                "validation_context": {
                    "trusted_ca": file("ca.pem"),
                    "crl": file("ca.crl"),
                },
            },
        },
    })
}

fn manager(files: &Files) -> Result<Value> {
    let keys = fs::read_to_string(files.path("jwks.json"))?;
    let route =
        |prefix: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": "orders" } });
    Ok(json!({
        "@type": format!(
            "{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "edge",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": { "subject": true },
        "route_config": {
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [route("/orders"), route("/mtls")],
            }],
        },
        "http_filters": [
            {
                "name": "limit",
                "typed_config": {
                    "@type": format!("{TYPE}.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"),
                    "stat_prefix": "limit",
                    "token_bucket": {
                        "max_tokens": LIMIT_PER_S,
                        "tokens_per_fill": LIMIT_PER_S,
                        "fill_interval": "1s",
                    },
                    "filter_enabled": always(),
                    "filter_enforced": always(),
                },
            },
            {
                "name": "token",
                "typed_config": {
                    "@type": format!("{TYPE}.extensions.filters.http.jwt_authn.v3.JwtAuthentication"),
                    "providers": {
                        "corp": {
                            "issuer": ISSUER,
                            "audiences": [AUDIENCE],
                            "local_jwks": { "inline_string": keys },
                            "jwt_cache_config": { "jwt_cache_size": REMEMBERED },
                        },
                    },
                    "rules": [{
                        "match": { "prefix": "/orders" },
                        "requires": { "provider_name": "corp" },
                    }],
                },
            },
            {
                "name": "router",
                "typed_config": { "@type": format!("{TYPE}.extensions.filters.http.router.v3.Router") },
            },
        ],
    }))
}

fn always() -> Value {
    json!({ "default_value": { "numerator": 100, "denominator": "HUNDRED" } })
}
