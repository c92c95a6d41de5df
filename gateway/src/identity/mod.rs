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
pub struct Certified<'a> {
    peer: &'a Peer,
    mapped: Mapped,
}

impl<'a> Certified<'a> {
    /// Joins a proven certificate and what [`principal::Rules::map`] said of it.
    pub fn new(peer: &'a Peer, mapped: Mapped) -> Certified<'a> {
        Certified { peer, mapped }
    }

    /// The certificate.
    pub fn peer(&self) -> &'a Peer {
        self.peer
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
pub struct Identity<'a> {
    certificate: Option<Certified<'a>>,
    claims: Option<Arc<Claims>>,
}

impl<'a> Identity<'a> {
    /// Joins what was proven.
    pub fn new(certificate: Option<Certified<'a>>, claims: Option<Arc<Claims>>) -> Identity<'a> {
        Identity { certificate, claims }
    }

    /// Nobody.
    pub fn anonymous() -> Identity<'static> {
        Identity { certificate: None, claims: None }
    }

    /// The client certificate with its owner.
    pub fn certificate(&self) -> Option<&Certified<'a>> {
        self.certificate.as_ref()
    }

    /// The client certificate.
    pub fn peer(&self) -> Option<&'a Peer> {
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
