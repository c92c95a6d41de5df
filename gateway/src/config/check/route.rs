//! `[[route]]`: each told apart from the others, to an upstream that is there, and with demands that somebody can meet.

use std::collections::HashMap;

use super::{
    super::{
        Route,
        file::{self, File},
        schema,
        section::At,
        value::{ClientAuth, Proof},
    },
    Check, tls, values,
};
use crate::{identity::token::Binding, policy::authorize::Demands};

impl Check<'_> {
    pub(super) fn routes(&self, file: &File) -> Option<Vec<Route>> {
        let names = file.routes.iter().filter_map(|route| route.name.as_ref());
        self.unique("route.name", names, String::clone);
        self.distinct(&file.routes);
        let upstreams: HashMap<&str, usize> = file
            .upstreams
            .iter()
            .enumerate()
            .filter_map(|(index, upstream)| Some((upstream.name.as_ref()?.value.as_str(), index)))
            .collect();
        let routes: Vec<Option<Route>> =
            file.routes.iter().map(|route| self.route(route, file, &upstreams)).collect();
        routes.into_iter().collect()
    }

    fn route(
        &self,
        written: &file::Route,
        file: &File,
        upstreams: &HashMap<&str, usize>,
    ) -> Option<Route> {
        let upstream = written.upstream.as_ref().and_then(|name| {
            let index = upstreams.get(name.value.as_str()).copied();
            // One that has no name, or a bad one, may be the one that is meant.
            let all_named = file.upstreams.iter().all(|upstream| upstream.name.is_some());
            if index.is_none() && all_named {
                self.no_upstream(name, upstreams);
            }
            index
        });
        self.methods(written.methods.as_deref().unwrap_or_default());
        let require = written.require.as_ref();
        if let Some(require) = require {
            self.proofs(require, written, file);
        }
        let limits = self.limits_of(written, file);
        let requires = |proof| require.map(|list| list.value.iter().any(|at| at.value == proof));
        Some(Route {
            name: written.name.as_ref()?.value.clone(),
            hosts: written.hosts.clone()?,
            path: written.path.as_ref()?.value.clone(),
            methods: written.methods.as_ref()?.iter().map(|at| at.value.clone()).collect(),
            upstream: upstream?,
            demands: Demands {
                certificate: requires(Proof::Certificate)?,
                token: requires(Proof::Token)?,
                binding: if written.bound_token.value {
                    Binding::Always
                } else {
                    Binding::WhenBound
                },
                scopes: values(written.scopes.as_ref()?),
                roles: values(written.roles.as_ref()?),
                principals: values(written.principals.as_ref()?),
                sources: values(written.sources.as_ref()?),
                hours: written.hours.as_ref()?.value.clone(),
            },
            pass_authorization: written.pass_authorization.value,
            priority: written.priority.value,
            limits: limits?,
        })
    }

    fn no_upstream(&self, name: &At<String>, upstreams: &HashMap<&str, usize>) {
        let mut names: Vec<&str> = upstreams.keys().copied().collect();
        names.sort_unstable();
        let advice = match schema::nearest(&name.value, names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("add an [[upstream]] with name = {:?}", name.value),
        };
        let text = format!("route.upstream {:?} is no [[upstream]]; {advice}", name.value);
        self.contradiction(name.place, text);
    }

    /// A method that is spelled wrong looks like one of somebody's own.
    fn methods(&self, methods: &[At<http::Method>]) {
        /// RFC 9110 section 9 and RFC 5789.
        const USUAL: [&str; 8] =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
        for method in methods.iter().filter(|method| !USUAL.contains(&method.value.as_str())) {
            if let Some(near) = schema::nearest(method.value.as_str(), USUAL) {
                let text = format!(
                    "route.methods has {:?}; did you mean {near:?}?",
                    method.value.as_str()
                );
                self.report.warning(method.place, text);
            }
        }
    }

    /// What a route requires, against what there is to prove it with.
    fn proofs(&self, require: &At<Vec<At<Proof>>>, route: &file::Route, file: &File) {
        let token = require.value.iter().find(|at| at.value == Proof::Token);
        if let Some(token) = token
            && file.issuers.is_empty()
        {
            let text = "route.require has \"token\", but there is no [[issuer]] whose tokens could \
                        be believed; add one, or take \"token\" out";
            self.contradiction(token.place, text);
        }
        let certificate = require.value.iter().any(|at| at.value == Proof::Certificate);
        if route.bound_token.value && (token.is_none() || !certificate) {
            let text = "route.bound_token is true, which binds a token to a certificate, but \
                        require lacks one of them; write [\"certificate\", \"token\"]";
            self.contradiction(route.bound_token.place, text);
        }
        self.identities_of(require, route, file);
        let Some(scopes) = &route.scopes else { return };
        if token.is_none() && !scopes.value.is_empty() {
            let text = "route.scopes are a token's, but require has no \"token\"; add it there, or \
                        take scopes out";
            self.contradiction(scopes.place, text);
        }
        let tables = file.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let asked: Vec<ClientAuth> = tables.flat_map(tls::asked).collect();
        let certificate = require.value.iter().find(|at| at.value == Proof::Certificate);
        if let Some(certificate) = certificate
            && !asked.is_empty()
            && asked.iter().all(|asked| *asked == ClientAuth::Off)
        {
            let text = "route.require has \"certificate\", but client_auth is \"off\" everywhere, \
                        so nobody could come with one; ask for it in [listener.tls]";
            self.contradiction(certificate.place, text);
        }
        let everybody = asked.iter().all(|asked| *asked == ClientAuth::Required);
        if require.value.is_empty() && scopes.value.is_empty() && everybody {
            let text = "route.require is empty, yet every listener demands a client certificate \
                        before any request; write [\"certificate\"], which is what holds";
            self.report.warning(require.place, text);
        }
    }

    /// The roles and principals of a route, against who there can be.
    fn identities_of(&self, require: &At<Vec<At<Proof>>>, route: &file::Route, file: &File) {
        let (Some(roles), Some(principals)) = (&route.roles, &route.principals) else { return };
        let lists = [
            ("roles", roles.place, roles.value.is_empty()),
            ("principals", principals.place, principals.value.is_empty()),
        ];
        for (key, place, is_empty) in lists {
            if require.value.is_empty() && !is_empty {
                let text = format!(
                    "route.{key} are of somebody, but require is empty, so anybody may come; write \
                     what must be proven, or take {key} out"
                );
                self.contradiction(place, text);
            }
        }
        let requires = |proof| require.value.iter().any(|at| at.value == proof);
        let given = |role: &String| {
            let rules = file.identities.iter().filter_map(|rule| rule.roles.as_ref());
            rules.flat_map(|roles| &roles.value).any(|at| at.value == *role)
        };
        if requires(Proof::Certificate) && !requires(Proof::Token) {
            for role in roles.value.iter().filter(|role| !given(&role.value)) {
                let text = format!(
                    "route.roles has {:?}, which no [[identity]] gives and no token is asked for; \
                     add it to the roles of one",
                    role.value
                );
                self.report.warning(role.place, text);
            }
        }
        if !principals.value.is_empty()
            && !requires(Proof::Certificate)
            && requires(Proof::Token)
            && file.issuers.len() > 1
        {
            let text = "route.principals are compared with the subjects of tokens, and there is more \
                        than one issuer, who may each name a subject so; ask for a scope instead";
            self.report.warning(principals.place, text);
        }
    }

    /// No two routes with the same path, a host and a method in common.
    fn distinct(&self, routes: &[file::Route]) {
        let mut by_path: HashMap<&str, Vec<&file::Route>> = HashMap::new();
        for route in routes {
            let Some(path) = &route.path else { continue };
            let earlier = by_path.entry(&path.value).or_default();
            if let Some(first) = earlier.iter().find(|earlier| same_requests(earlier, route)) {
                let line = self.report.line_of(first.place);
                let text = format!(
                    "route.path {:?}, with its hosts and methods, is that of the route in {line}, \
                     and the two cannot be told apart; change one of them or take it out",
                    path.value
                );
                self.contradiction(path.place, text);
            }
            earlier.push(route);
        }
    }
}

/// Whether some request could go to either, with nothing to choose by: the same path is given.
fn same_requests(a: &file::Route, b: &file::Route) -> bool {
    let (Some(a_hosts), Some(b_hosts)) = (&a.hosts, &b.hosts) else { return false };
    let (Some(a_methods), Some(b_methods)) = (&a.methods, &b.methods) else { return false };
    let same_method = |a: &At<http::Method>, b: &At<http::Method>| a.value == b.value;
    intersect(a_hosts, b_hosts, |a, b| a == b) && intersect(a_methods, b_methods, same_method)
}

/// Whether two lists, where an empty one is any value, have one in common with nothing to choose
/// by: a route for one host or method goes before a route for any.
fn intersect<T>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    if a.is_empty() || b.is_empty() {
        return a.is_empty() && b.is_empty();
    }
    a.iter().any(|a| b.iter().any(|b| same(a, b)))
}

#[cfg(test)]
mod tests {
    use crate::config::{
        Warning,
        fake::{Fake, SMALL, lines, problem_lines, small},
    };

    #[test]
    fn what_a_route_demands_is_read() {
        let text = small(
            "require = [\"certificate\", \"token\"]",
            "require = [\"certificate\", \"token\"]\nroles = [\"admin\"]\n\
             principals = [\"spiffe://a/*\", \"b\"]\nsources = [\"10.0.0.0/8\"]\n\
             hours = \"Mon-Fri 08:00-18:00 Europe/Berlin\"\npass_authorization = true",
        );
        let (config, warnings) = Fake::new().load(&text).unwrap();
        assert_eq!(warnings, Vec::<Warning>::new());
        let route = &config.routes[0];
        assert_eq!(
            format!("{:?}", route.demands),
            "Demands { certificate: true, token: true, binding: WhenBound, scopes: [], roles: [\"admin\"], principals: \
             [Pattern { before: \"spiffe://a/\", after: Some(\"\") }, Pattern { before: \"b\", after: \
             None }], sources: [10.0.0.0/8], hours: Some(Hours(\"Mon-Fri 08:00-18:00 \
             Europe/Berlin\")) }"
        );
        assert!(route.pass_authorization);
    }

    #[test]
    fn a_token_needs_an_issuer() {
        let (before, rest) = SMALL.split_once("[[issuer]]").unwrap();
        let (_, after) = rest.split_once("[[upstream]]").unwrap();
        let problems = Fake::new().load(&format!("{before}[[upstream]]{after}")).unwrap_err();
        assert_eq!(
            problem_lines(&problems),
            [
                "15:27: route.require has \"token\", but there is no [[issuer]] whose tokens could be \
              believed; add one, or take \"token\" out"
            ]
        );
    }

    #[test]
    fn a_role_that_nobody_can_have_is_a_warning() {
        let route = |lines: &str| {
            small(
                "require = [\"certificate\", \"token\"]",
                &format!("require = [\"certificate\"]\nroles = [\"till\"]\n{lines}"),
            )
        };
        let (_, warnings) = Fake::new().load(&route("")).unwrap();
        let said = lines(&warnings);
        let expected = "21:10: route.roles has \"till\", which no [[identity]] gives and no token is \
                        asked for; add it to the roles of one";
        assert!(said.iter().any(|line| line == expected), "{said:#?}");
        let rule = "[[identity]]\nfrom = \"san_uri\"\nmatch = \"*\"\nroles = [\"till\"]\n";
        let (_, warnings) = Fake::new().load(&route(rule)).unwrap();
        assert!(!lines(&warnings).iter().any(|line| line.contains("route.roles")));
    }

    #[test]
    fn routes_are_apart_by_host_method_or_path() {
        let route = |name: &str, rest: &str| {
            format!(
                "[[route]]\nname = {name:?}\nupstream = \"orders\"\nrequire = [\"token\"]\n{rest}\n"
            )
        };
        for (one, other, apart) in [
            ("path = \"/a\"", "path = \"/b\"", true),
            ("path = \"/a\"", "path = \"/a/b\"", true),
            ("path = \"/a\"", "path = \"/a\"", false),
            ("path = \"/a\"\nhosts = [\"x\"]", "path = \"/a\"", true),
            ("path = \"/a\"\nhosts = [\"x\"]", "path = \"/a\"\nhosts = [\"y\"]", true),
            ("path = \"/a\"\nhosts = [\"x\", \"y\"]", "path = \"/a\"\nhosts = [\"Y\"]", false),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"", true),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"\nmethods = [\"PUT\"]", true),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"\nmethods = [\"GET\"]", false),
            (
                "path = \"/a\"\nmethods = [\"GET\"]\nhosts = [\"x\"]",
                "path = \"/a\"\nmethods = [\"GET\"]\nhosts = [\"y\"]",
                true,
            ),
        ] {
            let routes = format!("{}{}[xdp]", route("one", one), route("other", other));
            let loaded = Fake::new().load(&small("[xdp]", &routes));
            assert_eq!(loaded.is_ok(), apart, "{one}\n{other}");
        }
    }
}
