//! The whole of a configuration: defaults, what contradicts what, and the files it names.

use std::{path::Path, time::Duration};

use ipnet::IpNet;

use super::{
    super::{
        CrlExpired, Endpoint, KeySource, LogFormat, Protocol, Warning,
        fake::{Fake, LAB, SMALL, STRANGER_ID, lines, problem_lines, small},
    },
    *,
};
use crate::{
    identity::token::{Algorithm, TokenRules},
    kernel::{self, ByteRate, Mode, Rate, Service, Transport},
};

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn what_is_not_written_has_the_defaults_of_the_contract() {
    let (config, warnings) = Fake::new().load(SMALL).unwrap();
    assert_eq!(warnings, Vec::<Warning>::new());
    let Config { server, token_cache, bans, admin, log, .. } = &config;
    assert_eq!((server.workers, server.max_connections), (0, 100_000));
    assert_eq!(server.drain_timeout, Duration::from_secs(30));
    assert_eq!((token_cache.entries, token_cache.ttl), (65_536, Duration::from_secs(60)));
    assert_eq!((bans.enabled, bans.threshold), (true, 20));
    assert_eq!(bans.half_life, Duration::from_secs(30));
    assert_eq!(bans.ladder, [60, 600, 3600, 86_400].map(Duration::from_secs));
    assert!(bans.never.is_empty());
    assert_eq!(admin.socket, Path::new("/run/portcullis/admin.sock"));
    assert_eq!(admin.metrics, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(admin.allow, networks(&["127.0.0.0/8", "::1/128"]));
    assert_eq!((log.format, log.access), (LogFormat::Json, true));

    let listener = &config.listeners[0];
    assert_eq!(listener.protocols, [Protocol::Http2, Protocol::Http1]);
    let [site] = &listener.tls.sites[..] else { panic!("{:?}", listener.tls) };
    assert_eq!(site.certificate, Path::new("/etc/portcullis/tls/server.pem"));
    assert_eq!(site.private_key, Path::new("/etc/portcullis/tls/server.key"));
    let clients = site.clients.as_ref().unwrap();
    assert!(clients.required && clients.crl.is_empty() && clients.retired_ca.is_empty());
    assert_eq!(clients.ca, Path::new("/etc/portcullis/tls/clients-ca.pem"));
    assert_eq!((clients.crl_expired, clients.max_chain_depth), (CrlExpired::Deny, 2));
    assert_eq!(listener.tls.sessions, 20_000);

    let rules = TokenRules {
        name: "corp".into(),
        issuer: "https://idp.example.com".into(),
        audiences: vec!["orders-api".into()],
        algorithms: vec![Algorithm::Rs256, Algorithm::Es256],
        leeway: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(3600),
        client_id_claims: vec!["client_id".into(), "azp".into(), "sub".into()],
    };
    assert_eq!(config.issuers[0].rules, rules);
    let keys = &config.issuers[0].keys;
    assert!(matches!(keys, KeySource::File(file) if file == "/etc/portcullis/jwks.json"));

    let upstream = &config.upstreams[0];
    assert_eq!(
        upstream.servers,
        [Endpoint { host: "192.0.2.9".into(), port: 9001, is_tls: false }]
    );
    assert_eq!(upstream.connect_timeout, Duration::from_secs(2));
    assert_eq!(upstream.response_timeout, Duration::from_secs(30));

    let route = &config.routes[0];
    let demands = &route.demands;
    assert!(route.hosts.is_empty() && route.methods.is_empty() && demands.scopes.is_empty());
    assert_eq!((route.path.as_str(), route.upstream), ("/orders", 0));
    assert!(demands.certificate && demands.token && !route.pass_authorization);
    assert!(demands.roles.is_empty() && demands.hours.is_none());

    let xdp = kernel::Settings {
        interfaces: vec!["eth0".into()],
        mode: Mode::Auto,
        enforce: false,
        ports: vec![8443],
        management: vec![Service { port: 22, transport: Transport::Tcp }],
        exempt: networks(&["127.0.0.0/8", "::1/128", "192.0.2.9/32"]),
        deny: Vec::new(),
        packets: Some(Rate { per_s: 20_000, burst: 40_000 }),
        connections: Some(Rate { per_s: 100, burst: 200 }),
        bytes: None,
        new_sources: None,
        max_sources: 1_000_000,
        pin: "/sys/fs/bpf/portcullis".into(),
    };
    assert_eq!(config.xdp, Some(xdp));
}

#[test]
fn what_is_written_is_what_holds() {
    let text = small(
        "[xdp]\ninterfaces = [\"eth0\"]\n",
        r#"hosts = ["API.example.com"]
methods = ["GET", "POST"]
scopes = ["read"]
[xdp]
interfaces = ["eth0", "eth1"]
mode = "generic"
enforce = true
ports = [9443, 8443]
management = ["22/tcp", "53/udp"]
allow = ["192.0.2.9", "198.51.100.0/24"]
deny = ["203.0.113.0/24"]
packets = { rate = "6000/m", burst = 2 }
connections = { rate = "3600/h", burst = 7 }
bytes = { rate = "50MiB/s", burst = "64MiB" }
new_sources = { rate = "5000/s", burst = 9000 }
max_sources = 1024
pin = "/sys/fs/bpf/other"
[server]
workers = 2
drain_timeout = "500ms"
max_connections = 10
[token_cache]
entries = 0
ttl = "1m"
[bans]
enabled = false
threshold = 3
half_life = "1m"
ladder = ["5s", "10s"]
never = ["198.51.100.7"]
[admin]
socket = "run/admin.sock"
metrics = "[::1]:9100"
allow = ["::1"]
[log]
format = "text"
access = false
"#,
    );
    let (config, warnings) = Fake::new().load(&text).unwrap();
    assert_eq!(warnings, Vec::<Warning>::new());
    let route = &config.routes[0];
    assert_eq!(route.hosts, ["api.example.com"]);
    assert_eq!(route.methods, [http::Method::GET, http::Method::POST]);
    assert_eq!(route.demands.scopes, ["read"]);
    let xdp = kernel::Settings {
        interfaces: vec!["eth0".into(), "eth1".into()],
        mode: Mode::Generic,
        enforce: true,
        ports: vec![9443, 8443],
        management: vec![
            Service { port: 22, transport: Transport::Tcp },
            Service { port: 53, transport: Transport::Udp },
        ],
        exempt: networks(&["192.0.2.9/32", "198.51.100.0/24", "127.0.0.0/8", "::1/128"]),
        deny: networks(&["203.0.113.0/24"]),
        packets: Some(Rate { per_s: 100, burst: 2 }),
        connections: Some(Rate { per_s: 1, burst: 7 }),
        bytes: Some(ByteRate { bytes_per_s: 50 << 20, burst_bytes: 64 << 20 }),
        new_sources: Some(Rate { per_s: 5_000, burst: 9_000 }),
        max_sources: 1024,
        pin: "/sys/fs/bpf/other".into(),
    };
    assert_eq!(config.xdp, Some(xdp));
    assert_eq!((config.server.workers, config.server.max_connections), (2, 10));
    assert_eq!(config.server.drain_timeout, Duration::from_millis(500));
    assert_eq!((config.token_cache.entries, config.token_cache.ttl.as_secs()), (0, 60));
    assert_eq!((config.bans.enabled, config.bans.threshold), (false, 3));
    assert_eq!(config.bans.ladder, [5, 10].map(Duration::from_secs));
    assert_eq!(config.bans.never, networks(&["198.51.100.7/32"]));
    assert_eq!(config.admin.socket, Path::new("/etc/portcullis/run/admin.sock"));
    assert_eq!(config.admin.metrics, "[::1]:9100".parse().unwrap());
    assert_eq!((config.log.format, config.log.access), (LogFormat::Text, false));
}

/// Rows of: what is replaced in [`SMALL`], by what, and what is said.
type Row<'t> = (&'t str, &'t str, &'t [&'t str]);

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let rows: &[Row<'_>] = &[
        (
            "[[issuer]]",
            "[[listener]]\nname = \"edge\"\naddress = \"0.0.0.0:8443\"\ntls = { certificate = \
             \"tls/server.pem\", private_key = \"tls/server.key\", client_ca = \
             \"tls/clients-ca.pem\" }\n[[issuer]]",
            &["9:8: listener.name edge is taken already in /etc/portcullis/portcullis.toml:2; \
               give each its own"],
        ),
        (
            "[[issuer]]",
            "[[listener]]\nname = \"b\"\naddress = \"[::]:8443\"\ntls = { certificate = \
             \"tls/server.pem\", private_key = \"tls/server.key\", client_ca = \
             \"tls/clients-ca.pem\" }\n[[issuer]]",
            &["10:11: listener.address [::]:8443 is taken already in \
               /etc/portcullis/portcullis.toml:3; give each its own"],
        ),
        (
            "[[upstream]]",
            "[[issuer]]\nname = \"corp\"\nissuer = \"https://idp.example.com\"\naudiences = \
             [\"x\"]\njwks_file = \"jwks.json\"\n[[upstream]]\nname = \
             \"orders\"\nservers = [\"http://a\"]\n[[upstream]]",
            &[
                "14:8: issuer.name corp is taken already in \
                 /etc/portcullis/portcullis.toml:9; give each its own",
                "15:10: issuer.issuer https://idp.example.com is taken already in \
                 /etc/portcullis/portcullis.toml:10; give each its own",
                "22:8: upstream.name orders is taken already in \
                 /etc/portcullis/portcullis.toml:19; give each its own",
            ],
        ),
        (
            "[xdp]",
            "[[route]]\nname = \"orders\"\npath = \"/orders\"\nupstream = \"orders\"\nrequire = \
             [\"token\"]\n[xdp]",
            &[
                "22:8: route.name orders is taken already in \
                 /etc/portcullis/portcullis.toml:17; give each its own",
                "23:8: route.path \"/orders\", with its hosts and methods, is that of the \
                 route in /etc/portcullis/portcullis.toml:16, and the two cannot be told \
                 apart; change one of them or take it out",
            ],
        ),
        (
            "upstream = \"orders\"",
            "upstream = \"order\"",
            &["19:12: route.upstream \"order\" is no [[upstream]]; did you mean \"orders\"?"],
        ),
        (
            "upstream = \"orders\"",
            "upstream = \"billing\"",
            &["19:12: route.upstream \"billing\" is no [[upstream]]; add an [[upstream]] with \
               name = \"billing\""],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = [\"certificate\"]\nscopes = [\"read\"]",
            &["21:10: route.scopes are a token's, but require has no \"token\"; add it there, \
               or take scopes out"],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = []\nroles = [\"admin\"]\nhours = \"08:00-18:00\"\nprincipals = [\"**\"]",
            &[
                "22:9: route.hours has not the form; write it as in \"08:00-18:00 \
                 Europe/Berlin\" or \"Mon-Fri 08:00-18:00 Europe/Berlin\"",
                "23:15: route.principals has \"**\" with more than one *; one stands for any \
                 characters, / among them",
            ],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = []\nroles = [\"admin\"]",
            &[
                "21:9: route.roles are of somebody, but require is empty, so anybody may come; write \
               what must be proven, or take roles out",
            ],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = []\nscopes = [\"read\"]",
            &["21:10: route.scopes are a token's, but require has no \"token\"; add it there, \
               or take scopes out"],
        ),
        (
            "require = [\"certificate\", \"token\"]\n",
            "",
            &["16:1: [[route]] has no require; add what must be proven, as in require = \
               [\"certificate\", \"token\"], there is no default that could let somebody in by \
               mistake"],
        ),
        (
            "servers = [\"http://192.0.2.9:9001\"]",
            "servers = [\"http://127.0.0.1:8443\"]",
            &["15:12: upstream.servers has 127.0.0.1:8443, which is the gateway's own listener \
               (/etc/portcullis/portcullis.toml:3); name the server behind it"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "enforce = true",
            &["22:11: xdp.enforce is true, but interfaces is empty, so nothing can be \
               dropped; name the interfaces or take enforce out"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nmanagement = [\"8443/udp\", \"8443/tcp\"]",
            &["23:27: xdp.management has 8443/tcp, which no rule would touch, and the same \
               port is to be guarded; take it out of one of the two"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]",
            &["24:9: xdp.deny has 10.0.0.0/8, which is also in allow \
               (/etc/portcullis/portcullis.toml:23); take it out of one"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\npackets = { rate = \"20000/s\", burst = 399 }",
            &["23:39: xdp.packets.burst is 399, which at 20000/s is less than 20 ms, two ticks \
               of the kernel's clock; write at least 400"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nconnections = { rate = \"1000/s\", burst = 19 }",
            &["23:42: xdp.connections.burst is 19, which at 1000/s is less than 20 ms, two \
               ticks of the kernel's clock; write at least 20"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nbytes = { rate = \"50MiB/s\", burst = \"1000KiB\" }",
            &["23:37: xdp.bytes.burst is 1024000, which is less than 20 ms at the rate (two \
               ticks of the kernel's clock) or than one frame; write at least \"1024KiB\""],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\n[xdp.packets]\nburst = 400",
            &["23:1: [xdp.packets] has no rate; add it, as in rate = \"20000/s\""],
        ),
        (
            "[xdp]",
            "[bans]\nladder = [\"1m\", \"10m\", \"5m\", \"5m\"]\n[xdp]",
            &[
                "22:24: bans.ladder has 5m after 10m; write each ban longer than the one before",
                "22:30: bans.ladder has this entry twice; take one of them out",
            ],
        ),
        (
            "[xdp]",
            "[admin]\nmetrics = \"127.0.0.1:8443\"\n[xdp]",
            &["22:11: admin.metrics 127.0.0.1:8443 and the listener at [::]:8443 \
               (/etc/portcullis/portcullis.toml:3) want the same port; give one of them another"],
        ),
        (
            "address = \"[::]:8443\"",
            "address = \"127.0.0.1:9090\"",
            &["1:1: admin.metrics 127.0.0.1:9090 and the listener at 127.0.0.1:9090 \
               (/etc/portcullis/portcullis.toml:3) want the same port; give one of them another"],
        ),
        (
            "jwks_file = \"jwks.json\"",
            "jwks_file = \"jwks.json\"\nalgorithms = [\"ES256\", \"HS256\"]",
            &[
                "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" is open to everybody on \
                 this machine (mode 0644); take that away (chmod o-rwx), and replace the key if \
                 somebody may have copied it",
                "13:24: issuer.algorithms has HS256 beside others; whoever verifies it can also \
                 sign, so give it an [[issuer]] of its own or take it out",
            ],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = [\"token\"]\nbound_token = true",
            &["21:15: route.bound_token is true, which binds a token to a certificate, but \
               require lacks one of them; write [\"certificate\", \"token\"]"],
        ),
    ];
    for (from, to, expected) in rows {
        let problems = Fake::new().load(&small(from, to)).expect_err(to);
        assert_eq!(problem_lines(&problems), *expected, "{to}");
    }
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let rows: &[Row<'_>] = &[
        (
            "interfaces = [\"eth0\"]",
            "mode = \"native\"",
            &["22:8: xdp.mode is \"native\", but interfaces is empty, so no program is loaded; \
               name the interfaces or take mode out"],
        ),
        (
            "jwks_file = \"jwks.json\"",
            "jwks_file = \"jwks.json\"\nleeway = \"5m\"\nmax_lifetime = \"1m\"",
            &["14:16: issuer.leeway 5m is longer than max_lifetime 1m, so a token is good for \
               longer after its end than before; write a shorter one"],
        ),
        (
            "client_ca = \"tls/clients-ca.pem\"",
            "client_ca = \"tls/clients-ca.pem\"\ncrl_expired = \"allow\"",
            &["8:15: listener.tls.crl_expired says what an expired list means, but client_crl \
               names none; name the list or take crl_expired out"],
        ),
        (
            "require = [\"certificate\", \"token\"]",
            "require = []",
            &[
                "9:8: no route requires a token, so no issuer is ever asked; add \"token\" to \
                 route.require, or take the issuers out",
                "20:11: route.require is empty, yet every listener demands a client \
                 certificate before any request; write [\"certificate\"], which is what holds",
            ],
        ),
        (
            "[[upstream]]",
            "[[upstream]]\nname = \"spare\"\nservers = [\"http://b\"]\n[[upstream]]",
            &["14:8: upstream \"spare\" is used by no route; add a route to it or take it out"],
        ),
        (
            "path = \"/orders\"",
            "path = \"/orders\"\nmethods = [\"GTE\", \"PROPFIND\"]",
            &["19:12: route.methods has \"GTE\"; did you mean \"GET\"?"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nports = [443]",
            &["23:9: xdp.ports leaves out 8443, where a listener is \
               (/etc/portcullis/portcullis.toml:3); add it, or nothing guards that port"],
        ),
        (
            "interfaces = [\"eth0\"]",
            "interfaces = [\"eth0\"]\nallow = [\"::/0\", \"10.0.0.0/8\"]\ndeny = \
             [\"10.1.0.0/16\", \"127.0.0.1\", \"192.0.2.9\", \"0.0.0.0/0\"]",
            &[
                "23:10: xdp.allow has ::/0, which exempts everybody from every rule; write who \
                 is meant",
                "24:9: xdp.deny has 10.1.0.0/16, which does nothing, for 10.0.0.0/8 is exempt; \
                 take it out",
                "24:24: xdp.deny has 127.0.0.1/32, which does nothing, for 127.0.0.0/8 is \
                 exempt; take it out",
                "24:37: xdp.deny has 192.0.2.9/32, which does nothing, for 192.0.2.9/32 is \
                 exempt; take it out",
                "24:50: xdp.deny has 0.0.0.0/0, which refuses everybody who is not exempt; \
                 write who is meant",
            ],
        ),
        (
            "[xdp]",
            "[admin]\nallow = []\n[xdp]",
            &["22:9: admin.allow is empty, so nobody can read the metrics; write who may, as \
               in [\"127.0.0.0/8\"]"],
        ),
    ];
    for (from, to, expected) in rows {
        let (_, warnings) = Fake::new().load(&small(from, to)).expect(to);
        assert_eq!(lines(&warnings), *expected, "{to}");
    }
}

#[test]
fn every_file_that_is_named_is_judged() {
    type Change = fn(&mut Fake);
    let table: &[(Change, &str)] = &[
        (
            |fake| fake.files.clear(),
            "5:15: listener.tls.certificate \"/etc/portcullis/tls/server.pem\" does not exist; \
             correct the path or create the file\n\
             6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not exist; \
             correct the path or create the file\n\
             7:13: listener.tls.client_ca \"/etc/portcullis/tls/clients-ca.pem\" does not \
             exist; correct the path or create the file\n\
             12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" does not exist; correct the \
             path or create the file",
        ),
        (
            |fake| fake.content("tls/server.key").mode = 0o644,
            "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
             everybody on this machine (mode 0644); take that away (chmod o-rwx), and replace \
             the key if somebody may have copied it",
        ),
        (
            |fake| fake.content("tls/server.key").group = STRANGER_ID,
            "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
             group 1000 (mode 0640), which is not the daemon's own; take that away (chmod \
             g-rwx) or give it to the daemon's group (chgrp)",
        ),
        (
            |fake| fake.put("tls/server.key", &LAB.other_key, 0o600),
            "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not belong \
             to the certificate; name the key it was issued for",
        ),
        (
            // Both faults of the one file.
            |fake| fake.put("tls/server.key", &LAB.other_key, 0o604),
            "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not belong \
             to the certificate; name the key it was issued for\n\
             6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
             everybody on this machine (mode 0604); take that away (chmod o-rwx), and replace \
             the key if somebody may have copied it",
        ),
        (
            |fake| fake.put("tls/server.pem", &LAB.server_der, 0o644),
            "5:15: listener.tls.certificate \"/etc/portcullis/tls/server.pem\" holds DER; \
             convert the certificate to PEM (openssl … -inform DER)",
        ),
        (
            |fake| fake.put("tls/clients-ca.pem", "", 0o644),
            "7:13: listener.tls.client_ca \"/etc/portcullis/tls/clients-ca.pem\" holds no \
             certificate in PEM; name the right file",
        ),
        (
            |fake| fake.put("jwks.json", "{\"keys\": []}", 0o644),
            "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" holds no key, so every \
             token would be refused; fetch it again",
        ),
        (
            |fake| fake.put("jwks.json", vec![b' '; MATERIAL_MAX_BYTES + 1], 0o644),
            "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" is longer than 4096 KiB, \
             which is more than such a file can need; name the right file",
        ),
    ];
    for (change, expected) in table {
        let mut fake = Fake::new();
        change(&mut fake);
        let problems = fake.load(SMALL).expect_err(expected);
        assert_eq!(problem_lines(&problems).join("\n"), *expected);
    }
}

#[test]
fn files_that_are_odd_are_warned_of() {
    type Change = fn(&mut Fake);
    let table: &[(Change, &str)] = &[
        (|_| (), ""),
        (
            |fake| fake.content("tls/server.key").owner = STRANGER_ID,
            "6:15: listener.tls.private_key tls/server.key belongs to user 1000, who is \
             neither root nor the daemon; change its owner (chown)",
        ),
        (
            |fake| {
                let chain = format!("{}{}", LAB.server, LAB.authority);
                fake.put("tls/server.pem", chain, 0o644);
            },
            "5:15: certificate 2 of tls/server.pem did not issue the one before it; put the \
             leaf first, then each issuer",
        ),
        (
            |fake| {
                let anchors = format!("{}{}", LAB.authority, LAB.other_authority);
                fake.put("tls/clients-ca.pem", anchors, 0o644);
            },
            "8:14: listener.tls.client_crl has no list of \"CN=Other Root\", which \
             tls/clients-ca.pem trusts; add it, or what it revoked stays unknown",
        ),
        (
            |fake| {
                let anchors = format!("{}{}", LAB.authority, LAB.server);
                fake.put("tls/clients-ca.pem", anchors, 0o644);
            },
            "7:13: listener.tls.client_ca tls/clients-ca.pem: \"CN=edge.example\" is not the \
             certificate of an authority, no client certificate can chain to it; name the \
             authority's\n\
             8:14: listener.tls.client_crl has no list of \"CN=edge.example\", which \
             tls/clients-ca.pem trusts; add it, or what it revoked stays unknown",
        ),
    ];
    let ca = "client_ca = \"tls/clients-ca.pem\"";
    let text = small(ca, &format!("{ca}\nclient_crl = [\"tls/clients.crl\"]"));
    for (change, expected) in table {
        let mut fake = Fake::new();
        change(&mut fake);
        let (_, warnings) = fake.load(&text).expect(expected);
        assert_eq!(lines(&warnings).join("\n"), *expected);
    }
}
