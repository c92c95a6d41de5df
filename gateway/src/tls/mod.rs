//! TLS 1.3 with client certificates: settings → what a handshake needs.

pub mod handshake;

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
};

use rustls_pki_types::UnixTime;

use crate::{config::Protocol, identity::certificate::Trust};

/// The server's certificate chain and key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// Hands it to each handshake.
    pub resolver: Arc<dyn ResolvesServerCert>,
    /// End of the leaf's validity.
    pub not_after: UnixTime,
}

/// What one listener's handshakes are made of.
#[derive(Clone)]
pub struct ListenerTls {
    /// The server's certificate.
    pub certificate: Arc<ServerCertificate>,
    /// Whose clients are trusted.
    pub trust: Arc<Trust>,
    /// Offered by ALPN, in this order.
    pub protocols: Vec<Vec<u8>>,
    /// The cryptography.
    pub provider: Arc<CryptoProvider>,
}

impl ListenerTls {
    /// The settings of one handshake, with the verifier that will judge this client.
    ///
    /// No tickets and no session storage: a resumed handshake would not ask the verifier again, so a
    /// revoked certificate could come back through it.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3, which the built-in one does not.
    pub fn config(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.certificate.resolver.clone());
        config.alpn_protocols.clone_from(&self.protocols);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The ALPN names (RFC 7301) of the configured protocols.
pub fn alpn(protocols: &[Protocol]) -> Vec<Vec<u8>> {
    protocols
        .iter()
        .map(|protocol| match protocol {
            Protocol::Http2 => b"h2".to_vec(),
            Protocol::Http1 => b"http/1.1".to_vec(),
        })
        .collect()
}
