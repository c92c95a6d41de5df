//! What a route asks of whoever comes by it, and whether they have it.
//!
//! Two steps, because one needs a signature and the other does not: `Demands::admit` looks at where
//! a request comes from, when, and whose certificate it came with; `Demands::judge` at the token too.
//! Of a list of scopes each must be held; of the other lists one entry is enough.

use std::net::IpAddr;

use ipnet::IpNet;
use rustls_pki_types::UnixTime;

use super::{
    hours::Hours,
    refusal::{Denied, Refusal},
};
use crate::identity::{
    Certified, Identity, certificate::Peer, pattern::Pattern, principal::Principal, token::Binding,
};

/// What one route asks for; the empty ones ask for nothing.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// A client certificate that the identity rules map to a principal.
    pub certificate: bool,
    /// A bearer token.
    pub token: bool,
    /// Whether the token must be bound to the certificate.
    pub binding: Binding,
    /// Each must be among the token's scopes.
    pub scopes: Vec<String>,
    /// One must be held, by the rule of the certificate or by the token.
    pub roles: Vec<String>,
    /// One must match: the certificate's principal, or on a route that asks for a token only, the
    /// token's subject. Not both: they are names from different books.
    pub principals: Vec<Pattern>,
    /// One must hold the client's address.
    pub sources: Vec<IpNet>,
    /// When it is open.
    pub hours: Option<Hours>,
}

impl Demands {
    /// Judges what needs no signature: address, hour and certificate.
    ///
    /// # Errors
    /// What is asked for and is not there.
    pub(super) fn admit(
        &self,
        source: IpAddr,
        certificate: Option<&Certified>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        if !self.sources.is_empty() && !self.sources.iter().any(|net| net.contains(&source)) {
            return Err(Refusal::SourceNotAllowed);
        }
        if let Some(hours) = &self.hours
            && !hours.allow(now)
        {
            return Err(Refusal::OutsideHours { hours: hours.to_string() });
        }
        if !self.certificate {
            return Ok(());
        }
        let certificate = certificate.ok_or(Refusal::NoClientCertificate)?;
        match certificate.principal() {
            Ok(principal) => self.name(principal.name()),
            Err(unmapped) => Err(Refusal::IdentityUnmapped(unmapped.clone())),
        }
    }

    /// Judges what the token adds; for a request that was admitted.
    ///
    /// # Errors
    /// What is asked for and is not there.
    pub(super) fn judge(&self, identity: &Identity) -> Result<(), Refusal> {
        let claims = identity.claims();
        if self.token && claims.is_none() {
            return Err(Refusal::MissingToken);
        }
        if let Some(claims) = claims {
            let certificate = identity.peer().map(Peer::fingerprint);
            claims.check_binding(certificate, self.binding).map_err(Refusal::Token)?;
        }
        let has = |scope: &String| claims.is_some_and(|claims| claims.scopes().contains(scope));
        if !self.scopes.iter().all(has) {
            return Err(Refusal::InsufficientScope { required: self.scopes.join(" ") });
        }
        if !self.certificate {
            self.name(claims.and_then(|claims| claims.subject()).unwrap_or_default())?;
        }
        let tenants = (
            identity.principal().and_then(Principal::tenant),
            claims.and_then(|claims| claims.tenant()),
        );
        if let (Some(of_certificate), Some(of_token)) = tenants
            && of_certificate != of_token
        {
            return Err(Refusal::TenantMismatch {
                of_certificate: of_certificate.to_owned(),
                of_token: of_token.to_owned(),
            });
        }
        let held = |role: &str| self.roles.iter().any(|wanted| wanted == role);
        if !self.roles.is_empty() && !identity.roles().any(held) {
            return Err(Refusal::RouteDenied(Denied::Role { wanted: self.roles.join(", ") }));
        }
        Ok(())
    }

    fn name(&self, name: &str) -> Result<(), Refusal> {
        if self.principals.is_empty() || self.principals.iter().any(|one| one.matches(name)) {
            return Ok(());
        }
        Err(Refusal::RouteDenied(Denied::Principal { name: name.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, LazyLock},
        time::Duration,
    };

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        identity::{certificate::Peer, principal::Unmapped, token::Claims},
        policy::{
            Reason, admit,
            limit::{Counting, Limiters},
            permit,
            route::{Priority, Route},
        },
    };

    static PEER: LazyLock<Arc<Peer>> = LazyLock::new(|| Arc::new(Peer::for_test("alice")));

    /// Monday 2026-03-02, 12:00 UTC.
    const MONDAY_NOON_S: u64 = 1_772_452_800;

    /// Who asks.
    #[derive(Clone, Debug)]
    enum Certificate {
        None,
        Unmapped,
        Of { name: &'static str, roles: Vec<&'static str>, tenant: Option<&'static str> },
    }

    fn certified(certificate: &Certificate) -> Option<Certified> {
        let mapped = match certificate {
            Certificate::None => return None,
            Certificate::Unmapped => Err(Arc::new(Unmapped::NoRule { names: String::new() })),
            Certificate::Of { name, roles, tenant } => {
                Ok(Arc::new(Principal::for_test(name, roles, *tenant)))
            }
        };
        Some(Certified::new(PEER.clone(), mapped))
    }

    fn of(name: &'static str, roles: &[&'static str]) -> Certificate {
        Certificate::Of { name, roles: roles.to_vec(), tenant: None }
    }

    fn route(demands: Demands) -> Route {
        Route {
            name: "route".into(),
            index: 0,
            hosts: vec![],
            path: String::new(),
            methods: vec![],
            upstream: 0,
            demands,
            pass_authorization: false,
            priority: Priority::Normal,
            limits: vec![],
        }
    }

    /// Through both steps, as a request goes.
    fn judge(
        demands: &Demands,
        source: &str,
        certificate: &Certificate,
        claims: Option<Claims>,
        now_s: u64,
    ) -> Option<Reason> {
        let route = route(demands.clone());
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        let limiters = Limiters::default();
        let counting = Counting {
            limiters: &limiters,
            address: source.parse().unwrap(),
            now: crate::time::monotonic(),
        };
        let arrived = counting.arrive(&route, false, &mut vec![]).unwrap();
        let admitted = admit(&route, &arrived, certified(certificate), now);
        let outcome = admitted.and_then(|admitted| {
            permit(admitted.join(claims.map(Arc::new)), &counting, &mut vec![]).map(drop)
        });
        outcome.err().map(|refusal| refusal.reason())
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn patterns(list: &[&str]) -> Vec<Pattern> {
        list.iter().map(|text| Pattern::parse(text).unwrap()).collect()
    }

    #[test]
    fn each_demand_has_its_word() {
        let alice = of("alice", &["staff"]);
        let claims = |members: serde_json::Value| Some(Claims::for_test(&members));
        let certificate = Demands { certificate: true, ..Demands::default() };
        let token = Demands { token: true, ..Demands::default() };
        let both = Demands { certificate: true, token: true, ..Demands::default() };
        let scoped = Demands { scopes: texts(&["read", "write"]), ..token.clone() };
        let admins = Demands { roles: texts(&["admin", "root"]), ..both.clone() };
        let named = Demands { principals: patterns(&["alice", "spiffe://a/*"]), ..both.clone() };
        let subjects = Demands { principals: patterns(&["alice"]), ..token.clone() };
        let inside = Demands { sources: vec!["10.0.0.0/8".parse().unwrap()], ..Demands::default() };
        let weekend = Demands {
            hours: Some(Hours::parse("Sat-Sun 00:00-24:00 UTC").unwrap()),
            ..Demands::default()
        };
        for (what, demands, certificate, claims, expected) in [
            ("public", &Demands::default(), &Certificate::None, None, None),
            ("public, unmapped", &Demands::default(), &Certificate::Unmapped, None, None),
            ("certificate", &certificate, &alice, None, None),
            (
                "no certificate",
                &certificate,
                &Certificate::None,
                None,
                Some(Reason::NoClientCertificate),
            ),
            (
                "unmapped",
                &certificate,
                &Certificate::Unmapped,
                None,
                Some(Reason::IdentityUnmapped),
            ),
            (
                "unmapped where a token is enough",
                &token,
                &Certificate::Unmapped,
                claims(json!({})),
                None,
            ),
            (
                "unmapped before the token",
                &both,
                &Certificate::Unmapped,
                None,
                Some(Reason::IdentityUnmapped),
            ),
            ("no token", &both, &alice, None, Some(Reason::MissingToken)),
            (
                "all scopes",
                &scoped,
                &Certificate::None,
                claims(json!({"scope": "write read x"})),
                None,
            ),
            (
                "all scopes, as a list",
                &scoped,
                &Certificate::None,
                claims(json!({"scope": ["write", "read"]})),
                None,
            ),
            (
                "one scope of two",
                &scoped,
                &Certificate::None,
                claims(json!({"scope": "read"})),
                Some(Reason::InsufficientScope),
            ),
            (
                "scope in another case",
                &scoped,
                &Certificate::None,
                claims(json!({"scope": "Read write"})),
                Some(Reason::InsufficientScope),
            ),
            ("no role", &admins, &alice, claims(json!({})), Some(Reason::RouteDenied)),
            ("role by token", &admins, &alice, claims(json!({"roles": ["admin"]})), None),
            ("role by certificate", &admins, &of("alice", &["root"]), claims(json!({})), None),
            (
                "a role's beginning",
                &admins,
                &alice,
                claims(json!({"roles": ["adm", "administrator"]})),
                Some(Reason::RouteDenied),
            ),
            ("named", &named, &alice, claims(json!({"sub": "bob"})), None),
            ("named by star", &named, &of("spiffe://a/b", &[]), claims(json!({})), None),
            (
                "a token does not name a certificate",
                &named,
                &of("bob", &[]),
                claims(json!({"sub": "alice"})),
                Some(Reason::RouteDenied),
            ),
            ("subject", &subjects, &of("bob", &[]), claims(json!({"sub": "alice"})), None),
            (
                "another subject",
                &subjects,
                &alice,
                claims(json!({"sub": "bob"})),
                Some(Reason::RouteDenied),
            ),
            (
                "no subject",
                &subjects,
                &alice,
                claims(json!({"sub": ""})),
                Some(Reason::RouteDenied),
            ),
            ("from inside", &inside, &Certificate::None, None, Some(Reason::SourceNotAllowed)),
            ("at the weekend", &weekend, &Certificate::None, None, Some(Reason::OutsideHours)),
        ] {
            assert_eq!(
                judge(demands, "192.0.2.1", certificate, claims, MONDAY_NOON_S),
                expected,
                "{what}"
            );
        }
        assert_eq!(judge(&inside, "10.1.2.3", &Certificate::None, None, MONDAY_NOON_S), None);
        let sunday = MONDAY_NOON_S - 86_400;
        assert_eq!(judge(&weekend, "10.1.2.3", &Certificate::None, None, sunday), None);
    }

    #[test]
    fn two_tenants_are_not_one_caller() {
        let acme = |name| Certificate::Of { name, roles: vec![], tenant: Some("acme") };
        let token = Demands { token: true, ..Demands::default() };
        for (certificate, members, expected) in [
            (acme("a"), json!({"tenant": "acme"}), None),
            (acme("a"), json!({"tenant": "other"}), Some(Reason::TenantMismatch)),
            (acme("a"), json!({"tid": "other"}), Some(Reason::TenantMismatch)),
            (acme("a"), json!({}), None),
            (of("a", &[]), json!({"tenant": "other"}), None),
        ] {
            let claims = Some(Claims::for_test(&members));
            let seen = judge(&token, "192.0.2.1", &certificate, claims, MONDAY_NOON_S);
            assert_eq!(seen, expected, "{certificate:?} {members}");
        }
    }

    /// The policy that is usually written in Rego for such a gateway, as routes: `/admin` for the role
    /// admin, `/api` for the role user, `/health` open, everything else denied.
    #[test]
    fn a_table_of_roles_gives_what_rego_would() {
        let of_role =
            |role: &str| Demands { token: true, roles: texts(&[role]), ..Demands::default() };
        let routes = [
            ("/admin", of_role("admin")),
            ("/api", of_role("user")),
            ("/health", Demands::default()),
        ];
        let rego = |path: &str, roles: &[&str]| {
            (path.starts_with("/admin/") && roles.contains(&"admin"))
                || (path.starts_with("/api/") && roles.contains(&"user"))
                || path == "/health"
        };
        let built = crate::policy::route::Routes::new(
            routes.map(|(path, demands)| Route { path: path.to_owned(), ..route(demands) }).into(),
        );
        for path in ["/admin/users", "/api/orders", "/health", "/adminx/users", "/", "/other"] {
            for roles in [&["admin"][..], &["user"], &["admin", "user"], &[], &["guest"]] {
                let uri: http::Uri = path.parse().unwrap();
                let headers = http::HeaderMap::new();
                let facts =
                    crate::policy::facts::Facts::read(&http::Method::GET, &uri, &headers, None);
                let allowed = built.find(&facts.unwrap()).is_ok_and(|route| {
                    let claims = Some(Claims::for_test(&json!({ "roles": roles })));
                    judge(&route.demands, "192.0.2.1", &Certificate::None, claims, MONDAY_NOON_S)
                        .is_none()
                });
                assert_eq!(allowed, rego(path, roles), "{path} {roles:?}");
            }
        }
    }

    const WORDS: [&str; 3] = ["a", "b", "c"];

    fn words() -> impl Strategy<Value = Vec<&'static str>> {
        prop::sample::subsequence(WORDS.to_vec(), 0..=3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Let in exactly when each demand, taken alone, holds.
        #[test]
        fn agrees_with_each_demand_alone(
            demands_proofs: (bool, bool),
            (scopes, roles, principals) in (words(), words(), words()),
            certificate in prop_oneof![
                Just(Certificate::None),
                Just(Certificate::Unmapped),
                (prop::sample::select(&WORDS[..]), words())
                    .prop_map(|(name, roles)| Certificate::Of { name, roles, tenant: None }),
            ],
            token in prop::option::of((words(), words(), prop::sample::select(&WORDS[..]))),
        ) {
            let (certificate_demanded, token_demanded) = demands_proofs;
            let demands = Demands {
                certificate: certificate_demanded,
                token: token_demanded,
                scopes: texts(&scopes),
                roles: texts(&roles),
                principals: patterns(&principals),
                ..Demands::default()
            };
            let claims = token.as_ref().map(|(scopes, roles, subject)| {
                Claims::for_test(&json!({"scope": scopes, "roles": roles, "sub": subject}))
            });
            let (owner, owner_roles) = match &certificate {
                Certificate::Of { name, roles, .. } => (Some(*name), roles.clone()),
                _ => (None, vec![]),
            };
            let (held_scopes, token_roles, subject) = token.clone().unwrap_or((vec![], vec![], ""));
            let name = if certificate_demanded { owner.unwrap_or_default() } else { subject };
            let expected = (!certificate_demanded || owner.is_some())
                && (!token_demanded || token.is_some())
                && scopes.iter().all(|scope| held_scopes.contains(scope))
                && (roles.is_empty()
                    || roles.iter().any(|role| owner_roles.contains(role) || token_roles.contains(role)))
                && (principals.is_empty() || principals.contains(&name));
            let seen = judge(&demands, "192.0.2.1", &certificate, claims, MONDAY_NOON_S);
            prop_assert_eq!(seen.is_none(), expected, "{:?}", seen);
        }
    }
}
