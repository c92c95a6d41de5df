//! TLS towards upstream servers: always 1.3, always verified, with a certificate of our own where one
//! is configured.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::ServerName;

use crate::config::{Endpoint, UpstreamProtocol};

/// ALPN's names (RFC 7301, RFC 9113 section 3.1).
pub const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What one upstream's handshakes are made of. Connections made by another one are not used again.
pub struct ClientTls {
    id: u64,
    /// For requests; offers what the upstream's `protocol` allows.
    requests: Arc<ClientConfig>,
    /// For upgrades, which are HTTP/1.1's.
    upgrades: Arc<ClientConfig>,
    name: Option<String>,
}

impl ClientTls {
    /// `identity` is what servers are shown that ask who connects; `name` what their certificates
    /// have to be for, instead of the host they are configured by.
    ///
    /// # Errors
    /// What the library says of it.
    pub fn new(
        roots: RootCertStore,
        identity: Option<CertifiedKey>,
        protocol: UpstreamProtocol,
        name: Option<String>,
    ) -> Result<ClientTls, rustls::Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let mut requests = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            None => builder.with_no_client_auth(),
        };
        let mut upgrades = requests.clone();
        let offered: &[&[u8]] = match protocol {
            UpstreamProtocol::Auto => &[HTTP2, HTTP1],
            UpstreamProtocol::Http1 => &[HTTP1],
            UpstreamProtocol::Http2 => &[HTTP2],
        };
        requests.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        upgrades.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(ClientTls {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            requests: Arc::new(requests),
            upgrades: Arc::new(upgrades),
            name,
        })
    }

    /// Differs from every other's of the process, and is never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// For connections that requests share.
    pub fn requests(&self) -> &Arc<ClientConfig> {
        &self.requests
    }

    /// For connections that speak HTTP/1.1 only.
    pub fn upgrades(&self) -> &Arc<ClientConfig> {
        &self.upgrades
    }

    /// The name that this server's certificate has to be for; `None` when there can be none.
    pub fn name(&self, endpoint: &Endpoint) -> Option<ServerName<'static>> {
        ServerName::try_from(self.name.clone().unwrap_or_else(|| endpoint.host.clone())).ok()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("id", &self.id).field("name", &self.name).finish()
    }
}
