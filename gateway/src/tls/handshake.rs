//! TCP stream → TLS stream and a proven peer, within a deadline.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{HandshakeKind, server::Acceptor};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    ListenerTls, Site, VERSION,
    sessions::{Resumption, Sessions},
};
use crate::{
    identity::certificate::{CertificateRefusal, Peer, Verifier},
    policy::{Reason, refusal::certificate_reason},
    time,
};

/// What becomes of new clients that come without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// They are served where certificates are optional or not asked for.
    Served,
    /// The host sheds them: no signature is made for them where that can be told from their first word.
    Shed,
}

/// A completed handshake.
pub struct Secured {
    /// Decrypts and encrypts.
    pub stream: TlsStream<TcpStream>,
    /// Who is at its other end.
    pub client: Proven,
}

/// What a completed handshake has proven, over TCP or QUIC.
pub struct Proven {
    /// The client; `None` when it came without a certificate and may.
    pub peer: Option<Arc<Peer>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
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
pub async fn handshake(
    stream: TcpStream,
    listener: &ListenerTls,
    sessions: Option<&Arc<Sessions>>,
    strangers: Strangers,
    within: Duration,
) -> Result<Secured, Failure> {
    match timeout(within, negotiate(stream, listener, sessions, strangers)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::late(within)),
    }
}

impl Failure {
    /// The version that both sides had agreed on by then: only after that is a certificate asked for.
    pub fn tls_version(&self) -> Option<&'static str> {
        let asked = self.certificate.is_some()
            || matches!(self.reason, Reason::NoClientCertificate | Reason::BadCertificate);
        asked.then_some(VERSION)
    }

    /// What the certificate was refused for, or else what the transport says.
    pub(super) fn of(
        refused: Option<CertificateRefusal>,
        (reason, error): (Reason, &dyn fmt::Display),
        server_name: Option<String>,
    ) -> Failure {
        let (reason, detail) = match &refused {
            Some(refused) => (certificate_reason(&refused.error), refused.error.to_string()),
            None => (reason, error.to_string()),
        };
        Failure { reason, detail, certificate: refused, server_name }
    }

    /// There was none within that time.
    pub fn late(within: Duration) -> Failure {
        Failure {
            reason: Reason::HandshakeTimeout,
            detail: format!("no handshake within {}", humantime::format_duration(within)),
            certificate: None,
            server_name: None,
        }
    }
}

async fn negotiate(
    stream: TcpStream,
    listener: &ListenerTls,
    sessions: Option<&Arc<Sessions>>,
    strangers: Strangers,
) -> Result<Secured, Failure> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream)
        .await
        .map_err(|error| Failure::of(None, (reason(&error), &error), None))?;
    let server_name = start.client_hello().server_name().map(str::to_ascii_lowercase);
    let site = listener.sites.of(server_name.as_deref());
    let is_shedding = strangers == Strangers::Shed;
    if is_shedding && site.clients.is_none() {
        return Err(shed(server_name));
    }
    let verifier = site.clients.as_ref().map(|clients| {
        Arc::new(Verifier::new(clients.trust.clone(), clients.required || is_shedding))
    });
    // Who comes without one to a site that does not insist is no culprit.
    let may_be_shed = is_shedding && site.clients.as_ref().is_some_and(|one| !one.required);
    let resumption = sessions.map(|sessions| {
        let sessions = sessions.clone();
        Arc::new(Resumption::new(sessions, site.clone(), verifier.clone(), time::unix()))
    });
    let config = listener.config(
        site.certificate.resolver.clone(),
        verifier.clone().map(|verifier| verifier as _),
        resumption.clone().map(|resumption| resumption as _),
    );
    let config = match config {
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
    let outcome = verifier.as_ref().and_then(|verifier| verifier.outcome());
    let stream = match (accepted, outcome) {
        (Ok(stream), _) => stream,
        (Err(error), _) if may_be_shed && reason(&error) == Reason::NoClientCertificate => {
            return Err(shed(server_name));
        }
        (Err(error), outcome) => {
            let refused = outcome.and_then(|outcome| outcome.as_ref().err()).cloned();
            return Err(Failure::of(refused, (reason(&error), &error), server_name));
        }
    };
    let session = stream.get_ref().1;
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let (verifier, resumption) = (verifier.as_deref(), resumption.as_deref());
    match proven(site, verifier, resumption, resumed, leaf, time::unix()) {
        Some(peer) => Ok(Secured { client: Proven { peer, resumed, server_name }, stream }),
        None => Err(Failure {
            reason: Reason::NoClientCertificate,
            detail: "the handshake ended without a verified certificate".to_owned(),
            certificate: None,
            server_name,
        }),
    }
}

/// The host sheds this client.
pub(super) fn shed(server_name: Option<String>) -> Failure {
    Failure {
        reason: Reason::HostStrained,
        detail: "the host sheds new clients without a certificate".to_owned(),
        certificate: None,
        server_name,
    }
}

/// Who the client is; `leaf` is the certificate that rustls holds of it. rustls and the verifier
/// agree, or nobody was proven and the connection ends; and a site that requires a certificate serves
/// nobody without.
pub(super) fn proven(
    site: &Site,
    verifier: Option<&Verifier>,
    resumption: Option<&Resumption>,
    resumed: bool,
    leaf: Option<&CertificateDer<'_>>,
    now: UnixTime,
) -> Option<Option<Arc<Peer>>> {
    let peer = if resumed {
        resumption?.peer(leaf.map(AsRef::as_ref))?.peer
    } else {
        match (verifier.and_then(Verifier::outcome), leaf) {
            (Some(Ok(peer)), Some(_)) => Some(peer.clone()),
            (None, None) => None,
            _ => return None,
        }
    };
    site.admits(peer.as_deref(), now).ok()?;
    Some(peer)
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
