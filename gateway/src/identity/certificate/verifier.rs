//! What rustls asks during one handshake, and what it found out.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    CertificateError, CertificateRefusal, Peer, Trust, fields, remembered::Presented, trust,
};

/// The client verifier of **one** connection: make one for each handshake, it is two pointers and
/// two empty cells. Afterwards [`outcome`](Self::outcome) tells who it was, or why not.
pub struct Verifier {
    trust: Arc<Trust>,
    required: bool,
    /// Set when the chain holds; not yet proof that the client has the key.
    judged: OnceLock<Judged>,
    outcome: OnceLock<Result<Arc<Peer>, CertificateRefusal>>,
}

/// A chain that holds.
struct Judged {
    peer: Arc<Peer>,
    /// What it is to be remembered by once the client has proven its key; `None`: it is already.
    unknown: Option<Presented>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Verifier {
    /// For one handshake. `required`: whether a client without a certificate is refused.
    pub fn new(trust: Arc<Trust>, required: bool) -> Self {
        Self { trust, required, judged: OnceLock::new(), outcome: OnceLock::new() }
    }

    /// What became of the client's certificate. `Ok` only once chain **and** handshake signature
    /// hold. `None`: the client sent no certificate, the handshake did not come that far, or the
    /// session was resumed without asking.
    pub fn outcome(&self) -> Option<&Result<Arc<Peer>, CertificateRefusal>> {
        self.outcome.get()
    }

    fn refuse(&self, refusal: CertificateRefusal) -> Error {
        let error = alert(&refusal.error);
        // A second verdict in one handshake cannot be better than the first, which stays.
        let _ = self.outcome.set(Err(refusal));
        error
    }

    fn signed(
        &self,
        certificate: &CertificateDer<'_>,
        verified: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match (verified, self.judged.get()) {
            (Ok(valid), Some(Judged { peer, unknown })) => {
                if let Some(presented) = unknown {
                    self.trust.remember(*presented, peer.clone());
                }
                let _ = self.outcome.set(Ok(peer.clone()));
                Ok(valid)
            }
            (Ok(_), None) => Err(Error::General("signature before certificate".to_owned())),
            (Err(error), _) => {
                let refusal = trust::refusal(certificate, CertificateError::NotPossessed);
                let _ = self.outcome.set(Err(refusal));
                Err(error)
            }
        }
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.hints()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let presented = Presented::new(end_entity, intermediates);
        let judged = match self.trust.known(presented, now) {
            Some(peer) => Ok(Judged { peer, unknown: None }),
            None => self
                .trust
                .judge(end_entity, intermediates, now)
                .map(|peer| Judged { peer: Arc::new(peer), unknown: Some(presented) }),
        };
        match judged {
            Ok(judged) => {
                let _ = self.judged.set(judged);
                Ok(ClientCertVerified::assertion())
            }
            Err(error) => Err(self.refuse(trust::refusal(end_entity, error))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, certificate, signature, &fields::ALGORITHMS);
        self.signed(certificate, verified)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, certificate, signature, &fields::ALGORITHMS);
        self.signed(certificate, verified)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        fields::ALGORITHMS.supported_schemes()
    }
}

/// The error that makes rustls send the fitting alert (RFC 8446 section 6.2).
fn alert(error: &CertificateError) -> Error {
    use rustls::CertificateError as Alert;
    Error::InvalidCertificate(match error {
        // `unknown_ca`. A wrong signature is the mark of another authority of the same name, and
        // `decrypt_error` would send the client's operator looking at the wrong end.
        CertificateError::UnknownIssuer { .. }
        | CertificateError::RetiredAuthority { .. }
        | CertificateError::NotPresented
        | CertificateError::BadSignature
        | CertificateError::ChainTooLong { .. }
        | CertificateError::PathLength
        | CertificateError::TooComplex => Alert::UnknownIssuer,
        CertificateError::RevocationUnknown { .. } => Alert::UnknownRevocationStatus,
        CertificateError::ListExpired { .. } => Alert::ExpiredRevocationList,
        // `certificate_expired`, which RFC 8446 also gives to those not yet valid.
        CertificateError::Expired { .. } => Alert::Expired,
        CertificateError::NotYetValid { .. } => Alert::NotValidYet,
        // `certificate_revoked`.
        CertificateError::Revoked { .. } => Alert::Revoked,
        // `unsupported_certificate`.
        CertificateError::ExtendedKeyUsage | CertificateError::KeyUsage => Alert::InvalidPurpose,
        // `bad_certificate`.
        CertificateError::UnsupportedAlgorithm
        | CertificateError::NameConstraint
        | CertificateError::CriticalExtension
        | CertificateError::NotAnEndEntity
        | CertificateError::Malformed { .. }
        | CertificateError::Name(_) => Alert::BadEncoding,
        // `decrypt_error`.
        CertificateError::NotPossessed => Alert::BadSignature,
    })
}
