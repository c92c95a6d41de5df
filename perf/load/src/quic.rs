//! QUIC: sockets that take turns, and the settings of their connections.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};

/// Sockets that one connector uses in turns: a closed connection's is free for the next only when the
/// server has heard of its end.
const SOCKETS: usize = 32;
/// Of a stream and of a connection: more than is ever on its way, so that windows cost nobody anything.
const WINDOW_BYTES: u32 = 1 << 24;

/// What makes QUIC's connections.
pub struct Quic {
    settings: ClientConfig,
    sockets: RefCell<VecDeque<Endpoint>>,
}

impl Quic {
    /// With these certificates and suites.
    ///
    /// # Errors
    /// When the suites lack the one that QUIC begins with (RFC 9001 section 5.2).
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Result<Quic> {
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
            .receive_window(VarInt::from_u32(WINDOW_BYTES));
        let mut settings = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        settings.transport_config(Arc::new(transport));
        Ok(Quic { settings, sockets: RefCell::default() })
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// When either fails.
    pub async fn connect(
        &self,
        source: SocketAddr,
        server: SocketAddr,
        name: &str,
    ) -> Result<quinn::Connection> {
        let connecting = self.socket(source)?.connect_with(self.settings.clone(), server, name)?;
        connecting.await.context("handshake")
    }

    /// A new one at that address, while there are few; else the one that was used longest ago.
    fn socket(&self, source: SocketAddr) -> Result<Endpoint> {
        let mut sockets = self.sockets.borrow_mut();
        let oldest = if sockets.len() < SOCKETS { None } else { sockets.pop_front() };
        let socket = match oldest {
            Some(socket) => socket,
            None => {
                let socket = UdpSocket::bind(source)?;
                let settings = EndpointConfig::default();
                Endpoint::new(settings, None, socket, Arc::new(TokioRuntime))?
            }
        };
        sockets.push_back(socket.clone());
        Ok(socket)
    }
}
