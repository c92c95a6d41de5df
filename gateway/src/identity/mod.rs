//! Who is this: what the certificate and the token together prove.

pub mod certificate;
pub mod token;

use std::sync::Arc;

use self::{certificate::Peer, token::Claims};

/// What was proven of the one who asks. Its parts are evidence types: a [`Peer`] comes from the
/// verifier of the handshake, [`Claims`] from the verification of the token.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    peer: Option<&'a Peer>,
    claims: Option<Arc<Claims>>,
}

impl<'a> Identity<'a> {
    /// Joins what was proven.
    pub fn new(peer: Option<&'a Peer>, claims: Option<Arc<Claims>>) -> Identity<'a> {
        Identity { peer, claims }
    }

    /// Nobody.
    pub fn anonymous() -> Identity<'static> {
        Identity { peer: None, claims: None }
    }

    /// The client certificate.
    pub fn peer(&self) -> Option<&'a Peer> {
        self.peer
    }

    /// The token's claims.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_deref()
    }

    /// By what it was proven: the value of `X-Auth-Method`.
    pub fn method(&self) -> &'static str {
        match (self.peer.is_some(), self.claims.is_some()) {
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
        of_token.or_else(|| self.peer.map(Peer::principal))
    }

    /// On whose behalf: the token's subject, else the certificate's principal.
    pub fn user(&self) -> Option<&str> {
        let of_token = self.claims.as_deref().and_then(Claims::subject);
        of_token.or_else(|| self.peer.map(Peer::principal))
    }
}
