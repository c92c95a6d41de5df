//! May they: route, limits by address, identity, the route's rules, limits by identity.
//!
//! Cheapest first: who would be refused anyway never costs a signature. Each step takes what only
//! the step before it can make, so that an unauthorized request cannot be forwarded by a forgotten `if`.

pub mod authorize;
pub mod facts;
pub mod hours;
pub mod limit;
pub mod path;
pub mod penalty;
pub mod refusal;
pub mod route;
pub mod vouch;

use std::{net::IpAddr, sync::Arc};

use rustls_pki_types::UnixTime;

pub use refusal::{Reason, Refusal};

use self::{
    limit::{Arrived, Counting, Verdict},
    route::Route,
};
use crate::identity::{Certified, Identity, token::Claims};

/// A request that its route lets in as far as address, hour and certificate go. Only [`admit`] makes
/// one.
#[derive(Debug)]
pub struct Admitted<'a> {
    route: &'a Route,
    certificate: Option<Certified>,
}

/// An admitted request with everything that was proven of who makes it.
#[derive(Debug)]
pub struct Candidate<'a> {
    route: &'a Route,
    identity: Identity,
}

impl<'a> Candidate<'a> {
    /// Who was proven.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// A request that may go to its upstream. Only [`permit`] makes one.
#[derive(Debug)]
pub struct Permit<'a> {
    route: &'a Route,
    identity: Identity,
}

impl<'a> Permit<'a> {
    /// The route it was permitted for.
    pub fn route(&self) -> &'a Route {
        self.route
    }

    /// Who was proven.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Judges a request, within the limits that count by address, by the rules of its route that need no
/// token.
///
/// # Errors
/// What the route asks for and is not there.
pub fn admit<'a>(
    route: &'a Route,
    arrived: &Arrived,
    certificate: Option<Certified>,
    now: UnixTime,
) -> Result<Admitted<'a>, Refusal> {
    route.demands.admit(arrived.address(), certificate.as_ref(), now)?;
    Ok(Admitted { route, certificate })
}

impl<'a> Admitted<'a> {
    /// Joins what the token proved, if there is one.
    pub fn join(self, claims: Option<Arc<Claims>>) -> Candidate<'a> {
        let Admitted { route, certificate } = self;
        Candidate { route, identity: Identity::new(certificate, claims) }
    }
}

/// Judges by today's rules what was permitted before and goes on. It costs nothing of any limit: it was
/// counted when it began. `claims` are looked for only where the rest holds.
///
/// # Errors
/// What the route asks for and is not there.
pub fn recheck(
    route: &Route,
    address: IpAddr,
    certificate: Option<Certified>,
    now: UnixTime,
    claims: impl FnOnce() -> Result<Option<Arc<Claims>>, Refusal>,
) -> Result<(), Refusal> {
    route.demands.admit(address, certificate.as_ref(), now)?;
    route.demands.judge(&Identity::new(certificate, claims()?))
}

/// Judges an admitted request by the rest of the rules of its route, then takes what it costs from the
/// limits that count by identity: nobody pays for a request that would have been refused anyway. What
/// each limit said is added to `verdicts`.
///
/// # Errors
/// What the route asks for and the identity lacks, or the limit that is exceeded.
pub fn permit<'a>(
    candidate: Candidate<'a>,
    counting: &Counting<'_>,
    verdicts: &mut Vec<Verdict>,
) -> Result<Permit<'a>, Refusal> {
    let Candidate { route, identity } = candidate;
    route.demands.judge(&identity)?;
    counting.charge(route, &identity, verdicts)?;
    Ok(Permit { route, identity })
}
