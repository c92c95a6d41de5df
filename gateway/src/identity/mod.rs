//! Who is this: what the certificate and the token together prove.

pub mod certificate;
pub mod pattern;
pub mod principal;
pub mod token;

use std::sync::Arc;

use self::{
    certificate::Peer,
    principal::{Mapped, Principal, Unmapped},
    token::Claims,
};

/// A client certificate with whom the rules call its owner.
#[derive(Clone, Debug)]
pub struct Certified {
    peer: Arc<Peer>,
    mapped: Mapped,
}

impl Certified {
    /// Joins a proven certificate and what [`principal::Rules::map`] said of it.
    pub fn new(peer: Arc<Peer>, mapped: Mapped) -> Certified {
        Certified { peer, mapped }
    }

    /// The certificate.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Its owner.
    ///
    /// # Errors
    /// The rules know none.
    pub fn principal(&self) -> Result<&Principal, &Arc<Unmapped>> {
        self.mapped.as_deref()
    }
}

/// What was proven of the one who asks. Its parts are evidence types: a [`Peer`] comes from the
/// verifier of the handshake, a [`Principal`] from the rules, [`Claims`] from the verification of the
/// token.
#[derive(Clone, Debug)]
pub struct Identity {
    certificate: Option<Certified>,
    claims: Option<Arc<Claims>>,
}

impl Identity {
    /// Joins what was proven.
    pub fn new(certificate: Option<Certified>, claims: Option<Arc<Claims>>) -> Identity {
        Identity { certificate, claims }
    }

    /// Nobody.
    pub fn anonymous() -> Identity {
        Identity { certificate: None, claims: None }
    }

    /// The client certificate with its owner.
    pub fn certificate(&self) -> Option<&Certified> {
        self.certificate.as_ref()
    }

    /// The client certificate.
    pub fn peer(&self) -> Option<&Peer> {
        self.certificate.as_ref().map(Certified::peer)
    }

    /// The owner of the certificate.
    pub fn principal(&self) -> Option<&Principal> {
        self.certificate.as_ref()?.principal().ok()
    }

    /// The token's claims.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_deref()
    }

    /// Whether both are the same pieces of evidence, and not only alike: what was said of one holds for
    /// the other.
    pub fn is_same(&self, other: &Identity) -> bool {
        let peer = |of: &Identity| of.certificate.as_ref().map(|of| Arc::as_ptr(&of.peer));
        let claims = |of: &Identity| of.claims.as_ref().map(Arc::as_ptr);
        let owner = |of: &Identity| {
            of.certificate
                .as_ref()
                .map(|of| of.mapped.as_ref().map(Arc::as_ptr).map_err(Arc::as_ptr))
        };
        peer(self) == peer(other) && claims(self) == claims(other) && owner(self) == owner(other)
    }

    /// A number that goes with the pieces of evidence and says nothing of them; many have none but 0.
    pub fn place(&self) -> usize {
        let peer = self.certificate.as_ref().map_or(0, |of| Arc::as_ptr(&of.peer).addr());
        peer ^ self.claims.as_ref().map_or(0, |claims| Arc::as_ptr(claims).addr())
    }

    /// By what it was proven: the value of `X-Auth-Method`.
    pub fn method(&self) -> &'static str {
        match (self.certificate.is_some(), self.claims.is_some()) {
            (true, true) => "certificate+token",
            (true, false) => "certificate",
            (false, true) => "token",
            (false, false) => "none",
        }
    }

    /// The client: the token's when there is one, else the certificate's principal. It counts
    /// requests by consumer.
    pub fn client_id(&self) -> Option<&str> {
        let of_token = self.claims.as_deref().and_then(Claims::client_id);
        of_token.or_else(|| self.principal().map(Principal::name))
    }

    /// On whose behalf: the token's subject, else the certificate's principal.
    pub fn user(&self) -> Option<&str> {
        let of_token = self.claims.as_deref().and_then(Claims::subject);
        of_token.or_else(|| self.principal().map(Principal::name))
    }

    /// Whom the caller belongs to: what the rule of the certificate says, else what the token does.
    /// [`policy::permit`](crate::policy::permit) refuses where the two differ.
    pub fn tenant(&self) -> Option<&str> {
        let of_certificate = self.principal().and_then(Principal::tenant);
        of_certificate.or_else(|| self.claims.as_deref().and_then(Claims::tenant))
    }

    /// What the caller may act as: the roles of the certificate's rule, then those of the token's
    /// `roles` that are not among them.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        let of_certificate = self.principal().map_or(&[][..], Principal::roles);
        let of_token = self.claims.as_deref().map_or(&[][..], Claims::roles);
        let more = of_token.iter().filter(|role| !of_certificate.contains(role));
        of_certificate.iter().chain(more).map(String::as_str)
    }
}
