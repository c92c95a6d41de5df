//! The handshake of a QUIC connection: the same sites, verifiers and sessions as over TCP.
//!
//! Over TCP the client's first message is read before its settings are made. QUIC wants the settings
//! first, so here they hold a `Choice` that is made when rustls asks for the certificate, which it
//! does before it asks anything else that depends on the site.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, StoresServerSessions,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    ListenerTls, Site,
    handshake::{Failure, Proven, Strangers, proven, shed},
    sessions::Resumption,
};
use crate::{identity::certificate::Verifier, policy::Reason};

/// What HTTP/3 is called in a handshake (RFC 9114 section 3.1).
const ALPN: &[u8] = b"h3";

/// The side of one handshake that chooses its site.
struct Choice {
    listener: ListenerTls,
    strangers: Strangers,
    now: UnixTime,
    /// Empty until the client has said which host it wants.
    chosen: OnceLock<Chosen>,
}

struct Chosen {
    server_name: Option<String>,
    site: Arc<Site>,
    verifier: Option<Arc<Verifier>>,
    resumption: Option<Arc<Resumption>>,
}

/// One handshake, before and after.
pub struct Handshake(Arc<Choice>);

impl Handshake {
    /// A handshake with a client that has not spoken yet.
    pub fn new(listener: &ListenerTls, strangers: Strangers, now: UnixTime) -> Handshake {
        let listener = listener.clone();
        Handshake(Arc::new(Choice { listener, strangers, now, chosen: OnceLock::new() }))
    }

    /// Its settings.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3 or the cipher of first packets, which the built-in one does not.
    pub fn crypto(&self) -> Result<QuicServerConfig, CryptoError> {
        let choice = &self.0;
        let sessions: Arc<dyn StoresServerSessions> = match &choice.listener.sessions {
            Some(_) => choice.clone(),
            None => Arc::new(NoServerSessionStorage {}),
        };
        let listener = &choice.listener;
        let mut config = listener
            .config(choice.clone(), Some(choice.clone() as _), Some(sessions))
            .map_err(CryptoError::Tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No early data: it can be replayed (RFC 8446 section 8).
        config.max_early_data_size = 0;
        QuicServerConfig::try_from(config).map_err(CryptoError::Cipher)
    }

    /// Who the client is, once rustls is content. `leaf` is the certificate that rustls holds. `None`
    /// when rustls and the verifier do not agree: nobody was proven.
    pub fn finish(&self, leaf: Option<&CertificateDer<'_>>) -> Option<Proven> {
        let chosen = self.0.chosen.get()?;
        let verifier = chosen.verifier.as_deref();
        let resumption = chosen.resumption.as_deref();
        // Without a word of the verifier, a certificate can only be that of an earlier session.
        let judged = verifier.is_some_and(|verifier| verifier.outcome().is_some());
        let resumed = !judged && resumption.is_some_and(Resumption::is_taken);
        let peer = proven(&chosen.site, verifier, resumption, resumed, leaf, self.0.now)?;
        Some(Proven { peer, resumed, server_name: chosen.server_name.clone() })
    }

    /// Nobody was proven.
    pub fn nobody(&self) -> Failure {
        Failure {
            reason: Reason::NoClientCertificate,
            detail: "the handshake ended without a verified certificate".to_owned(),
            certificate: None,
            server_name: self.0.chosen.get().and_then(|chosen| chosen.server_name.clone()),
        }
    }

    /// Why it failed.
    pub fn failure(&self, error: &quinn::ConnectionError) -> Failure {
        let chosen = self.0.chosen.get();
        let refused =
            chosen.and_then(|chosen| chosen.verifier.as_ref()?.outcome()?.as_ref().err()).cloned();
        let server_name = chosen.and_then(|chosen| chosen.server_name.clone());
        let is_shed = self.0.strangers == Strangers::Shed
            && chosen.is_some_and(|chosen| match &chosen.site.clients {
                // Who comes without one to a site that does not insist is no culprit.
                Some(clients) => !clients.required && reason(error) == Reason::NoClientCertificate,
                None => true,
            });
        if is_shed {
            shed(server_name)
        } else {
            Failure::of(refused, (reason(error), error), server_name)
        }
    }
}

/// Why there are no settings.
#[derive(Debug)]
pub enum CryptoError {
    /// rustls' word.
    Tls(Error),
    /// quinn's.
    Cipher(NoInitialCipherSuite),
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CryptoError::Tls(error) => write!(f, "{error}"),
            CryptoError::Cipher(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for CryptoError {}

/// Of QUIC's errors those of TLS are 0x100 and the alert (RFC 9001 section 4.8); alerts have their
/// numbers from RFC 8446 section 6.
fn reason(error: &quinn::ConnectionError) -> Reason {
    use quinn::ConnectionError as Quic;
    match error {
        Quic::TransportError(error) => match u64::from(error.code).checked_sub(0x100) {
            Some(116) => Reason::NoClientCertificate,
            Some(42..=46 | 48) => Reason::BadCertificate,
            Some(40 | 70 | 71 | 109 | 110 | 120) => Reason::TlsIncompatible,
            _ => Reason::NotTls,
        },
        Quic::VersionMismatch => Reason::TlsIncompatible,
        Quic::TimedOut => Reason::HandshakeTimeout,
        Quic::ConnectionClosed(_)
        | Quic::ApplicationClosed(_)
        | Quic::Reset
        | Quic::LocallyClosed
        | Quic::CidsExhausted => Reason::HandshakeAborted,
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice").finish_non_exhaustive()
    }
}

impl Choice {
    fn choose(&self, server_name: Option<&str>) -> &Chosen {
        self.chosen.get_or_init(|| {
            let server_name = server_name.map(str::to_ascii_lowercase);
            let site = self.listener.sites.of(server_name.as_deref()).clone();
            let is_shedding = self.strangers == Strangers::Shed;
            let verifier = site.clients.as_ref().map(|clients| {
                Arc::new(Verifier::new(clients.trust.clone(), clients.required || is_shedding))
            });
            let resumption = self.listener.sessions.as_ref().map(|sessions| {
                let sessions = sessions.clone();
                Arc::new(Resumption::new(sessions, site.clone(), verifier.clone(), self.now))
            });
            Chosen { server_name, site, verifier, resumption }
        })
    }

    fn verifier(&self) -> Option<&Arc<Verifier>> {
        self.chosen.get()?.verifier.as_ref()
    }

    fn resumption(&self) -> Option<&Arc<Resumption>> {
        self.chosen.get()?.resumption.as_ref()
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.choose(hello.server_name());
        if self.strangers == Strangers::Shed && chosen.site.clients.is_none() {
            // No signature is made for those who are shed.
            return None;
        }
        chosen.site.certificate.resolver.resolve(hello)
    }
}

impl ClientCertVerifier for Choice {
    fn offer_client_auth(&self) -> bool {
        // Before the choice: perhaps.
        self.chosen.get().is_none_or(|chosen| chosen.verifier.is_some())
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier().is_some_and(|verifier| verifier.client_auth_mandatory())
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier().map_or(&[], |verifier| verifier.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verifier() {
            Some(verifier) => verifier.verify_client_cert(end_entity, intermediates, now),
            None => Err(not_asked()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.verifier() {
            Some(verifier) => verifier.verify_tls13_signature(message, certificate, signature),
            None => Err(not_asked()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier().map_or_else(Vec::new, |verifier| verifier.supported_verify_schemes())
    }
}

fn not_asked() -> Error {
    Error::General("a certificate that was not asked for".to_owned())
}

impl StoresServerSessions for Choice {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.resumption().is_some_and(|resumption| resumption.put(key, value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumption()?.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumption()?.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use quinn::ConnectionError;

    use super::*;

    #[test]
    fn errors_have_their_words() {
        for (error, expected) in [
            (ConnectionError::TimedOut, Reason::HandshakeTimeout),
            (ConnectionError::Reset, Reason::HandshakeAborted),
            (ConnectionError::VersionMismatch, Reason::TlsIncompatible),
        ] {
            assert_eq!(reason(&error), expected, "{error}");
        }
    }
}
