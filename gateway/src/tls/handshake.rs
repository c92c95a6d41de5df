//! TCP stream → TLS stream and a proven peer, within a deadline.

use std::{io, sync::Arc, time::Duration};

use rustls::server::Acceptor;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::ListenerTls;
use crate::{
    identity::certificate::{CertificateRefusal, Peer, Verifier},
    policy::{Reason, refusal::certificate_reason},
};

/// A handshake takes two round trips and a signature at each end; a client that needs longer than
/// this either is on a link that no request would get through, or holds the connection on purpose.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// A completed handshake.
pub struct Secured {
    /// Decrypts and encrypts.
    pub stream: TlsStream<TcpStream>,
    /// The client, proven.
    pub peer: Arc<Peer>,
    /// The host that the client asked for (RFC 6066 section 3), lower case.
    pub server_name: Option<String>,
}

/// A handshake that failed: why, and who it was as far as that is known.
#[derive(Debug)]
pub struct Failure {
    /// The word.
    pub reason: Reason,
    /// For the operator.
    pub detail: String,
    /// The certificate that was refused.
    pub certificate: Option<CertificateRefusal>,
    /// The host that the client asked for.
    pub server_name: Option<String>,
}

/// Performs the server's side of the handshake.
///
/// # Errors
/// Why it failed; the alert has been sent.
pub async fn handshake(stream: TcpStream, listener: &ListenerTls) -> Result<Secured, Failure> {
    match timeout(HANDSHAKE_MAX, negotiate(stream, listener)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure {
            reason: Reason::HandshakeTimeout,
            detail: format!("no handshake within {} s", HANDSHAKE_MAX.as_secs()),
            certificate: None,
            server_name: None,
        }),
    }
}

async fn negotiate(stream: TcpStream, listener: &ListenerTls) -> Result<Secured, Failure> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream)
        .await
        .map_err(|error| failure(&error, None, None))?;
    let server_name = start.client_hello().server_name().map(str::to_ascii_lowercase);
    let verifier = Arc::new(Verifier::new(listener.trust.clone()));
    let config = match listener.config(verifier.clone()) {
        Ok(config) => config,
        Err(error) => {
            return Err(Failure {
                reason: Reason::TlsIncompatible,
                detail: error.to_string(),
                certificate: None,
                server_name,
            });
        }
    };
    let accepted = start.into_stream(Arc::new(config)).await;
    match (accepted, verifier.outcome()) {
        (Ok(stream), Some(Ok(peer))) => Ok(Secured { stream, peer: peer.clone(), server_name }),
        // Client certificates are required, so a handshake cannot complete without a verdict; should it
        // ever, nobody was proven.
        (Ok(_), _) => Err(Failure {
            reason: Reason::NoClientCertificate,
            detail: "the handshake ended without a verified certificate".to_owned(),
            certificate: None,
            server_name,
        }),
        (Err(error), Some(Err(refused))) => {
            Err(failure(&error, Some(refused.clone()), server_name))
        }
        (Err(error), _) => Err(failure(&error, None, server_name)),
    }
}

fn failure(
    error: &io::Error,
    certificate: Option<CertificateRefusal>,
    server_name: Option<String>,
) -> Failure {
    let reason = match &certificate {
        Some(refused) => certificate_reason(&refused.error),
        None => reason(error),
    };
    let detail = match &certificate {
        Some(refused) => refused.error.to_string(),
        None => error.to_string(),
    };
    Failure { reason, detail, certificate, server_name }
}

fn reason(error: &io::Error) -> Reason {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        // The connection ended or broke: an impatient client or a balancer's probe.
        return Reason::HandshakeAborted;
    };
    match tls {
        rustls::Error::NoCertificatesPresented => Reason::NoClientCertificate,
        rustls::Error::InvalidCertificate(_) => Reason::BadCertificate,
        rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => {
            Reason::TlsIncompatible
        }
        rustls::Error::AlertReceived(_) => Reason::HandshakeAborted,
        _ => Reason::NotTls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_words() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, expected) in [
            (tls(rustls::Error::NoCertificatesPresented), Reason::NoClientCertificate),
            (
                tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
                Reason::NotTls,
            ),
            (tls(rustls::PeerIncompatible::Tls13RequiredForQuic.into()), Reason::TlsIncompatible),
            (tls(rustls::Error::NoApplicationProtocol), Reason::TlsIncompatible),
            (io::ErrorKind::UnexpectedEof.into(), Reason::HandshakeAborted),
        ] {
            assert_eq!(reason(&error), expected, "{error}");
        }
    }
}
