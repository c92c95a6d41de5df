//! May they: route, then identity, then the route's rules.
//!
//! Cheapest first: who would be refused anyway never costs a signature. Each step takes what only
//! the step before it can make, so that an unauthorized request cannot be forwarded by a forgotten `if`.

pub mod facts;
pub mod penalty;
pub mod refusal;
pub mod route;

pub use refusal::{Reason, Refusal};

use self::route::Route;
use crate::identity::{Identity, certificate::CertificateError};

/// A request that may go to its upstream. Only [`permit`] makes one.
#[derive(Debug)]
pub struct Permit<'a> {
    route: &'a Route,
    identity: Identity<'a>,
}

impl<'a> Permit<'a> {
    /// The route it was permitted for.
    pub fn route(&self) -> &'a Route {
        self.route
    }

    /// Who was proven.
    pub fn identity(&self) -> &Identity<'a> {
        &self.identity
    }
}

/// Judges a proven identity by the rules of its route.
///
/// # Errors
/// What the route asks for and the identity lacks.
pub fn permit<'a>(route: &'a Route, identity: Identity<'a>) -> Result<Permit<'a>, Refusal> {
    if route.require_certificate && identity.peer().is_none() {
        return Err(Refusal::Certificate(CertificateError::NotPresented));
    }
    let claims = identity.claims();
    if route.require_token && claims.is_none() {
        return Err(Refusal::MissingToken);
    }
    let has = |scope: &String| claims.is_some_and(|claims| claims.scopes().contains(scope));
    if !route.scopes.iter().all(has) {
        return Err(Refusal::InsufficientScope { required: route.scopes.join(" ") });
    }
    Ok(Permit { route, identity })
}
