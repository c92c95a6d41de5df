//! Connections with a client certificate, over TCP or QUIC.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    plan::{Plan, Protocol},
    quic::Quic,
};

/// Sources on loopback that take turns, so that ports of closed connections have time to become free.
const SOURCES: u8 = 200;
/// Sessions that one [`Connector`] remembers: it resumes the last one.
const SESSIONS: usize = 4;

/// Makes connections to one server as one client.
pub struct Connector {
    tls: Arc<ClientConfig>,
    /// What HTTP/3 needs besides.
    quic: Option<Quic>,
    server: SocketAddr,
    name: ServerName<'static>,
    turn: Cell<u8>,
}

impl Connector {
    /// As the plan says; `resumes` its own sessions.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(plan: &Plan, resumes: bool) -> Result<Connector> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&plan.authority)? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&plan.certificate)?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&plan.key)?;
        // What every server here speaks, so that all are asked for the same work.
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..aws_lc_rs::default_provider()
        };
        let mut tls = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = match plan.protocol {
            Protocol::H1 => vec![b"http/1.1".to_vec()],
            Protocol::H2 => vec![b"h2".to_vec()],
            Protocol::H3 => vec![b"h3".to_vec()],
        };
        tls.resumption =
            if resumes { Resumption::in_memory_sessions(SESSIONS) } else { Resumption::disabled() };
        let tls = Arc::new(tls);
        let quic = match plan.protocol {
            Protocol::H3 => Some(Quic::new(Arc::clone(&tls))?),
            Protocol::H1 | Protocol::H2 => None,
        };
        Ok(Connector {
            tls,
            quic,
            server: plan.server,
            name: ServerName::try_from(plan.name.clone())?,
            turn: Cell::new(0),
        })
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// When either fails.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.source())?;
        let stream = socket.connect(self.server).await.context("connect")?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(self.name.clone(), stream).await.context("handshake")?;
        let agreed = stream.get_ref().1.alpn_protocol();
        ensure!(
            agreed == self.tls.alpn_protocols.first().map(Vec::as_slice),
            "the server does not speak what was asked for"
        );
        Ok(stream)
    }

    /// The same over QUIC.
    ///
    /// # Errors
    /// When it fails, or the plan's protocol is another.
    pub async fn connect_quic(&self) -> Result<quinn::Connection> {
        let quic = self.quic.as_ref().context("QUIC is for HTTP/3")?;
        let ServerName::DnsName(name) = &self.name else { bail!("the server has no name") };
        quic.connect(self.source(), self.server, name.as_ref()).await
    }

    /// The next address that connections come from.
    fn source(&self) -> SocketAddr {
        let turn = (self.turn.get() + 1) % SOURCES;
        self.turn.set(turn);
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + turn)), 0)
    }
}

/// Whether an earlier session was resumed.
pub fn is_resumed(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}
