//! Host, path and method → route.

use http::Method;

use super::{Refusal, authorize::Demands, facts::Facts};
use crate::host::Stage;

/// One route, ready to be matched.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, in logs and metrics.
    pub name: std::sync::Arc<str>,
    /// Its place among the routes; the label of its counters.
    pub index: usize,
    /// Lower-case hosts; empty: any.
    pub hosts: Vec<String>,
    /// Whole-segment prefix without a trailing slash; empty for `/`.
    pub path: String,
    /// Empty: any.
    pub methods: Vec<Method>,
    /// Index into the snapshot's upstreams.
    pub upstream: usize,
    /// What it asks of whoever comes by it.
    pub demands: Demands,
    /// The client's `Authorization` goes on to the upstream.
    pub pass_authorization: bool,
    /// Whether it is shed when the host is short of something.
    pub priority: Priority,
    /// Indices into the snapshot's limits.
    pub limits: Vec<usize>,
}

/// What a route is worth when the host cannot do everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Served as long as the host serves at all.
    #[default]
    Normal,
    /// Refused from [`Stage::Essential`] on.
    Low,
}

impl Priority {
    /// Whether requests are served in this stage.
    ///
    /// # Errors
    /// [`Refusal::HostStrained`].
    pub fn check(self, stage: Stage) -> Result<(), Refusal> {
        match self {
            Priority::Low if stage >= Stage::Essential => Err(Refusal::HostStrained { stage }),
            Priority::Low | Priority::Normal => Ok(()),
        }
    }
}

/// All routes, the most particular first.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    ordered: Vec<Route>,
}

impl Routes {
    /// Orders the routes: a named host before any host, a longer path before a shorter one.
    pub fn new(mut routes: Vec<Route>) -> Routes {
        for route in &mut routes {
            route.path.truncate(route.path.trim_end_matches('/').len());
        }
        routes.sort_by_key(|route| {
            (route.hosts.is_empty(), std::cmp::Reverse(route.path.len()), route.methods.is_empty())
        });
        Routes { ordered: routes }
    }

    /// The route of a request.
    ///
    /// Where the best host and path have routes, but none for the method, the answer is 405 and not a
    /// less particular route: a narrower rule must not be evaded by another method.
    ///
    /// A path with parameters (`/orders;x=1`) must lead to the same route with and without them: some
    /// servers take them off before they look what is meant, and some do not.
    ///
    /// # Errors
    /// [`Refusal::NoRoute`], [`Refusal::MethodNotAllowed`], or [`Refusal::MalformedRequest`] for a path
    /// that leads to two routes.
    pub fn find(&self, facts: &Facts<'_>) -> Result<&Route, Refusal> {
        let found = self.find_at(facts, facts.path().decoded());
        if let Some(bare) = facts.path().without_parameters() {
            let index =
                |found: &Result<&Route, Refusal>| found.as_ref().ok().map(|route| route.index);
            if index(&found) != index(&self.find_at(facts, &bare)) {
                return Err(Refusal::MalformedRequest("with its parameters the path is another"));
            }
        }
        found
    }

    fn find_at(&self, facts: &Facts<'_>, path: &[u8]) -> Result<&Route, Refusal> {
        let mut best: Option<&Route> = None;
        let mut allow: Vec<&str> = Vec::new();
        for route in &self.ordered {
            if let Some(best) = best
                && (best.hosts.is_empty(), best.path.len())
                    != (route.hosts.is_empty(), route.path.len())
            {
                break;
            }
            if !route.matches_place(facts, path) {
                continue;
            }
            if route.methods.is_empty() || route.methods.contains(facts.method()) {
                return Ok(route);
            }
            best = Some(route);
            allow.extend(route.methods.iter().map(Method::as_str));
        }
        match best {
            Some(_) => Err(Refusal::MethodNotAllowed { allow: allow.join(", ") }),
            None => Err(Refusal::NoRoute),
        }
    }

    /// In the order of matching.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.ordered.iter()
    }
}

impl Route {
    fn matches_place(&self, facts: &Facts<'_>, path: &[u8]) -> bool {
        let host = self.hosts.is_empty()
            || facts.host().is_some_and(|host| self.hosts.iter().any(|ours| ours == host));
        host && path
            .strip_prefix(self.path.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Uri, header};

    use super::*;

    fn route(name: &str, host: &str, path: &str, methods: &[Method]) -> Route {
        Route {
            name: name.into(),
            index: 0,
            hosts: if host.is_empty() { vec![] } else { vec![host.to_owned()] },
            path: path.to_owned(),
            methods: methods.to_vec(),
            upstream: 0,
            demands: Demands::default(),
            pass_authorization: false,
            priority: Priority::Normal,
            limits: vec![],
        }
    }

    fn find(routes: &Routes, method: Method, host: &str, path: &str) -> Result<String, u16> {
        let uri: Uri = path.parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        let facts = Facts::read(&method, &uri, &headers, None).unwrap();
        routes
            .find(&facts)
            .map(|route| route.name.to_string())
            .map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn the_most_particular_route_wins() {
        let routes = Routes::new(vec![
            route("any", "", "/", &[]),
            route("orders", "", "/orders", &[]),
            route("write", "", "/orders/new", &[Method::POST]),
            route("admin", "admin.example", "/", &[]),
        ]);
        for (method, host, path, expected) in [
            (Method::GET, "a.example", "/", Ok("any")),
            (Method::GET, "a.example", "/ordersx", Ok("any")),
            (Method::GET, "a.example", "/orders", Ok("orders")),
            (Method::GET, "a.example", "/orders/7", Ok("orders")),
            (Method::GET, "a.example", "/%6Frders/7", Ok("orders")),
            (Method::POST, "a.example", "/orders/new", Ok("write")),
            (Method::GET, "a.example", "/orders/new", Err(405)),
            (Method::GET, "admin.example", "/orders", Ok("admin")),
        ] {
            assert_eq!(
                find(&routes, method, host, path),
                expected.map(str::to_owned),
                "{host}{path}"
            );
        }
        let none = Routes::new(vec![route("orders", "", "/orders", &[])]);
        assert_eq!(find(&none, Method::GET, "a", "/x"), Err(404));
    }

    #[test]
    fn parameters_lead_to_no_other_route() {
        let mut routes = vec![
            route("any", "", "/", &[]),
            route("admin", "", "/admin", &[]),
            route("health", "", "/admin/health", &[]),
        ];
        for (index, route) in routes.iter_mut().enumerate() {
            route.index = index;
        }
        let routes = Routes::new(routes);
        for (path, expected) in [
            ("/admin/x;v=1", Ok("admin")),
            ("/x;v=1/admin", Ok("any")),
            ("/admin;v=1/x", Err(400)),
            ("/admin;x", Err(400)),
            ("/admin%3bx", Err(400)),
            ("/admin/health;x", Err(400)),
        ] {
            let found = find(&routes, Method::GET, "a", path);
            assert_eq!(found, expected.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn methods_may_divide_a_path() {
        let routes = Routes::new(vec![
            route("read", "", "/orders", &[Method::GET]),
            route("write", "", "/orders", &[Method::POST]),
        ]);
        assert_eq!(find(&routes, Method::GET, "a", "/orders"), Ok("read".into()));
        assert_eq!(find(&routes, Method::POST, "a", "/orders"), Ok("write".into()));
        assert_eq!(find(&routes, Method::DELETE, "a", "/orders"), Err(405));
    }

    #[test]
    fn what_matters_less_is_shed_first() {
        for stage in Stage::ALL {
            assert!(Priority::Normal.check(stage).is_ok(), "{stage}");
            assert_eq!(Priority::Low.check(stage).is_ok(), stage < Stage::Essential, "{stage}");
        }
    }
}
