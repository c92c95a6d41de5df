//! `[[upstream]]`: servers, what is spoken to them, and the files of their TLS.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    super::{HealthProbe, Upstream, UpstreamTls, file, material, section::At},
    Check, MATERIAL_MAX_BYTES,
    file::File,
    listener::{canonical, overlap},
};

/// `ca` that is no file: the authorities of the operating system.
const SYSTEM: &str = "system";

impl Check<'_> {
    pub(super) fn upstreams(&self, file: &File) -> Option<Vec<Upstream>> {
        let written = &file.upstreams;
        let names = written.iter().filter_map(|upstream| upstream.name.as_ref());
        self.unique("upstream.name", names, String::clone);
        for server in written.iter().filter_map(|upstream| upstream.servers.as_ref()).flatten() {
            self.not_ourselves(server, &file.listeners);
        }
        // Each is judged, also behind one that is refused.
        let upstreams: Vec<_> = written.iter().map(|written| self.upstream(written)).collect();
        upstreams.into_iter().collect()
    }

    fn upstream(&self, written: &file::Upstream) -> Option<Upstream> {
        let is_tls = written.servers.as_ref().and_then(|servers| self.one_scheme(servers));
        let tls = self.upstream_tls(written.tls.as_ref(), is_tls);
        let health = match &written.health {
            Some(health) => Some(self.health(health)?),
            None => None,
        };
        let servers = written.servers.as_ref()?.iter().map(|server| server.value.clone());
        Some(Upstream {
            name: written.name.as_ref()?.value.clone(),
            servers: servers.collect(),
            protocol: written.protocol.value,
            balance: written.balance.value,
            connect_timeout: written.connect_timeout.value,
            response_timeout: written.response_timeout.value,
            idle_timeout: written.idle_timeout.value,
            max_requests: written.max_requests.value,
            max_waiting: written.max_waiting.value,
            health,
            tls: if is_tls? { Some(tls) } else { None },
        })
    }

    /// An upstream that is one of the listeners would go round for ever.
    fn not_ourselves(&self, server: &At<super::super::Endpoint>, listeners: &[file::Listener]) {
        let Ok(ip) = server.value.host.parse::<IpAddr>() else { return };
        let address = canonical(&SocketAddr::new(ip, server.value.port));
        let ours = |listener: &SocketAddr| {
            let local = address.ip().is_loopback() && overlap(listener, &address);
            local || canonical(listener) == address
        };
        let addresses = listeners.iter().filter_map(|listener| listener.address.as_ref());
        if let Some(listener) = addresses.into_iter().find(|listener| ours(&listener.value)) {
            let line = self.report.line_of(listener.place);
            let text = format!(
                "upstream.servers has {address}, which is the gateway's own listener ({line}); \
                 name the server behind it"
            );
            self.contradiction(server.place, text);
        }
    }

    /// A request must not go over TLS now and in the clear the next time.
    fn one_scheme(&self, servers: &[At<super::super::Endpoint>]) -> Option<bool> {
        let is_tls = servers.first()?.value.is_tls;
        if let Some(other) = servers.iter().find(|server| server.value.is_tls != is_tls) {
            let text = "upstream.servers has both http:// and https://; write the one that all of \
                        them speak, or make two upstreams of it";
            self.contradiction(other.place, text);
            return None;
        }
        Some(is_tls)
    }

    fn upstream_tls(
        &self,
        written: Option<&file::UpstreamTlsFile>,
        is_tls: Option<bool>,
    ) -> UpstreamTls {
        let Some(written) = written else {
            return UpstreamTls { ca: None, identity: None, server_name: None };
        };
        if is_tls == Some(false) {
            let text = "upstream.tls is for https:// servers, and these are http://; write https:// \
                        or take it out";
            self.contradiction(written.place, text);
        }
        let key = "upstream.tls";
        self.serving(key, written.certificate.as_ref(), written.private_key.as_ref());
        let ca = written.ca.as_ref().filter(|ca| ca.value != Path::new(SYSTEM));
        if let Some(path) = ca {
            let key = "upstream.tls.ca";
            self.judged(key, path, MATERIAL_MAX_BYTES, material::certificates);
        }
        let resolved = |path: &At<std::path::PathBuf>| self.base.join(&path.value);
        let pair = written.certificate.as_ref().zip(written.private_key.as_ref());
        UpstreamTls {
            ca: ca.map(resolved),
            identity: pair.map(|(chain, key)| (resolved(chain), resolved(key))),
            server_name: written.server_name.as_ref().map(|name| name.value.clone()),
        }
    }

    fn health(&self, written: &file::HealthFile) -> Option<HealthProbe> {
        if written.timeout.value > written.interval.value {
            let text = "upstream.health.timeout is longer than interval, so questions would pile \
                        up; write it shorter";
            self.contradiction(written.timeout.place, text);
        }
        Some(HealthProbe {
            path: written.path.as_ref()?.value.clone(),
            interval: written.interval.value,
            timeout: written.timeout.value,
            healthy: written.healthy.value,
            unhealthy: written.unhealthy.value,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::super::{
            Balance, UpstreamProtocol, Warning,
            fake::{Fake, LAB, lines, problem_lines},
        },
        *,
    };

    /// The only upstream of a configuration, with these lines from line 10 on.
    fn load(text: &str) -> Result<(Upstream, Vec<Warning>), String> {
        let mut fake = Fake::new();
        fake.put("tls/upstream.pem", &LAB.server, 0o644);
        fake.put("tls/upstream.key", &LAB.server_key, 0o600);
        fake.put("tls/upstream-ca.pem", &LAB.other_authority, 0o644);
        let loaded = fake.load(&format!(
            "[[listener]]\nname = \"edge\"\naddress = \"[::]:8443\"\n[listener.tls]\n\
             certificate = \"tls/server.pem\"\nprivate_key = \"tls/server.key\"\n\
             client_ca = \"tls/clients-ca.pem\"\n[[upstream]]\nname = \"orders\"\n{text}\n\
             [[route]]\nname = \"orders\"\npath = \"/\"\nupstream = \"orders\"\nrequire = [\"certificate\"]\n"
        ));
        match loaded {
            Ok((mut config, warnings)) => Ok((config.upstreams.remove(0), warnings)),
            Err(problems) => Err(problem_lines(&problems).join("\n")),
        }
    }

    #[test]
    fn everything_has_a_default() {
        let (upstream, warnings) = load("servers = [\"http://192.0.2.1:9001\"]").unwrap();
        assert_eq!(lines(&warnings), [] as [&str; 0]);
        assert_eq!(upstream.protocol, UpstreamProtocol::Auto);
        assert_eq!(upstream.balance, Balance::RoundRobin);
        assert_eq!((upstream.max_requests, upstream.max_waiting), (1_000, 1_000));
        assert_eq!(upstream.idle_timeout, Duration::from_secs(300));
        assert_eq!((upstream.health, upstream.tls), (None, None));
    }

    #[test]
    fn tls_is_verified_by_the_system_or_by_a_file() {
        let servers = "servers = [\"https://orders.internal\"]\n";
        let path = |name: &str| Path::new("/etc/portcullis/tls").join(name);
        let pair = Some((path("upstream.pem"), path("upstream.key")));
        let keys = "certificate = \"tls/upstream.pem\", private_key = \"tls/upstream.key\"";
        for (tls, ca, identity, server_name) in [
            (String::new(), None, None, None),
            ("tls = { ca = \"system\" }".to_owned(), None, None, None),
            (
                "tls = { ca = \"tls/upstream-ca.pem\", server_name = \"Orders.Test\" }".to_owned(),
                Some(path("upstream-ca.pem")),
                None,
                Some("orders.test"),
            ),
            (format!("tls = {{ {keys} }}"), None, pair, None),
        ] {
            let (upstream, _) = load(&format!("{servers}{tls}")).unwrap();
            assert_eq!(
                (&*upstream.servers[0].host, upstream.servers[0].port),
                ("orders.internal", 443)
            );
            let expected =
                UpstreamTls { ca, identity, server_name: server_name.map(str::to_owned) };
            assert_eq!(upstream.tls, Some(expected), "{tls}");
        }
    }

    #[test]
    fn contradictions_are_said() {
        let plain = "servers = [\"http://192.0.2.1\"]\n";
        let secure = "servers = [\"https://192.0.2.1\"]\n";
        for (text, expected) in [
            (
                "servers = [\"http://192.0.2.1\", \"https://192.0.2.2\"]".to_owned(),
                "10:32: upstream.servers has both http:// and https://; write the one that all of \
                 them speak, or make two upstreams of it",
            ),
            (
                format!("{plain}tls = {{ ca = \"system\" }}"),
                "11:7: upstream.tls is for https:// servers, and these are http://; write https:// \
                 or take it out",
            ),
            (
                format!("{secure}tls = {{ certificate = \"tls/upstream.pem\" }}"),
                "11:7: [upstream.tls] has no private_key; add it, as in private_key = \
                 \"tls/upstream.key\"",
            ),
            (
                format!("{secure}tls = {{ ca = \"tls/upstream.key\" }}"),
                "11:14: upstream.tls.ca \"/etc/portcullis/tls/upstream.key\" holds no certificate \
                 in PEM; name the right file",
            ),
            (
                format!("{plain}health = {{ path = \"/h\", interval = \"1s\", timeout = \"2s\" }}"),
                "11:52: upstream.health.timeout is longer than interval, so questions would pile \
                 up; write it shorter",
            ),
            (
                format!("{plain}health = {{ path = \"h\" }}"),
                "11:19: upstream.health.path is \"h\", which is no path; write it as in \"/health\"",
            ),
            (
                format!("{plain}health = {{ interval = \"5s\" }}"),
                "11:10: [upstream.health] has no path; add it, as in path = \"/health\"",
            ),
            (
                format!("{plain}balance = \"random\""),
                "11:11: upstream.balance is \"random\"; write \"round_robin\" or \"least_connections\"",
            ),
        ] {
            assert_eq!(load(&text).unwrap_err(), expected, "{text}");
        }
    }
}
