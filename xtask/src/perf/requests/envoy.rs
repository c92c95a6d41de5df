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
pub fn config(files: &Files, server: &str, [address, quic]: [SocketAddr; 2]) -> Result<Value> {
    Ok(json!({
        "static_resources": {
            "listeners": [{
                "name": "edge",
                "address": socket(address, "TCP"),
                "tcp_backlog_size": 4096,
                "filter_chains": [{
                    "transport_socket": {
                        "name": "tls",
                        "typed_config": typed(
                            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                            tls(files, server, &["h2", "http/1.1"]),
                        ),
                    },
                    "filters": [{
                        "name": "http",
                        "typed_config": manager(files, "AUTO")?,
                    }],
                }],
            }, {
                "name": "edge-h3",
                "address": socket(quic, "UDP"),
                "udp_listener_config": {
                    "quic_options": {},
                    "downstream_socket_config": { "prefer_gro": true },
                },
                "filter_chains": [{
                    "transport_socket": {
                        "name": "quic",
                        "typed_config": {
                            "@type": format!(
                                "{TYPE}.extensions.transport_sockets.quic.v3.QuicDownstreamTransport"
                            ),
                            "downstream_tls_context": tls(files, server, &["h3"]),
                        },
                    },
                    "filters": [{
                        "name": "http",
                        "typed_config": manager(files, "HTTP3")?,
                    }],
                }],
            }],
            "clusters": [{
                "name": "orders",
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": "orders",
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(UPSTREAM, "TCP") } }] }],
                },
            }],
        },
    }))
}

fn socket(address: SocketAddr, protocol: &str) -> Value {
    let (address, port) = (address.ip().to_string(), address.port());
    json!({ "socket_address": { "protocol": protocol, "address": address, "port_value": port } })
}

fn typed(name: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("{TYPE}.{name}"));
    value
}

fn tls(files: &Files, server: &str, protocols: &[&str]) -> Value {
    let file = |name: &str| json!({ "filename": files.path(name) });
    json!({
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519"],
            },
            "alpn_protocols": protocols,
            "tls_certificates": [{
                "certificate_chain": file(&format!("{server}.pem")),
                "private_key": file(&format!("{server}.key")),
            }],
            "validation_context": {
                "trusted_ca": file("ca.pem"),
                "crl": file("ca.crl"),
            },
        },
    })
}

fn manager(files: &Files, codec: &str) -> Result<Value> {
    let keys = fs::read_to_string(files.path("jwks.json"))?;
    let route =
        |prefix: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": "orders" } });
    Ok(json!({
        "@type": format!(
            "{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "edge",
        "codec_type": codec,
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
