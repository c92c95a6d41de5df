//! `[listener.tls]` and `[[listener.tls.sni]]`: what is inherited, and the files they name.

use std::path::PathBuf;

use rustls::pki_types::CertificateDer;

use super::{
    super::{
        CrlExpired, ListenerTls, TlsClients, TlsSite, file, material, section::At,
        value::ClientAuth,
    },
    Check, MATERIAL_MAX_BYTES, REVOCATION_LIST_MAX_BYTES,
};

/// What is asked of clients: by the listener itself, then by each of its other sites.
pub(super) fn asked(written: &file::Tls) -> impl Iterator<Item = ClientAuth> {
    let own = auth(&written.clients, ClientAuth::Required);
    let others = written.sni.iter().map(move |sni| auth(&sni.clients, own));
    std::iter::once(own).chain(others)
}

fn auth(clients: &file::Clients, default: ClientAuth) -> ClientAuth {
    clients.auth.as_ref().map_or(default, |auth| auth.value)
}

/// The keys about clients with what is inherited filled in.
struct Clients<'w> {
    auth: ClientAuth,
    ca: Option<&'w At<PathBuf>>,
    crl: &'w [At<PathBuf>],
    crl_expired: CrlExpired,
    max_chain_depth: usize,
    retired: &'w [At<PathBuf>],
}

impl<'w> Clients<'w> {
    /// Authorities and their lists belong together: who names other authorities names their lists too.
    fn merged(own: &'w file::Clients, listener: &'w file::Clients) -> Clients<'w> {
        let lists = own.crl.as_ref().or(match own.ca {
            Some(_) => None,
            None => listener.crl.as_ref(),
        });
        let retired = own.retired.as_ref().or(listener.retired.as_ref());
        let expired = own.crl_expired.as_ref().or(listener.crl_expired.as_ref());
        let depth = own.max_chain_depth.as_ref().or(listener.max_chain_depth.as_ref());
        Clients {
            auth: auth(own, auth(listener, ClientAuth::Required)),
            ca: own.ca.as_ref().or(listener.ca.as_ref()),
            crl: lists.map_or(&[], |lists| &lists.value),
            crl_expired: expired.map_or(CrlExpired::Deny, |expired| expired.value),
            // Two intermediates are as many as usual authorities have.
            max_chain_depth: depth.map_or(2, |depth| depth.value),
            retired: retired.map_or(&[], |retired| &retired.value),
        }
    }
}

impl Check<'_> {
    pub(super) fn tls(&self, written: &file::Tls) -> Option<ListenerTls> {
        let names = written.sni.iter().filter_map(|sni| sni.names.as_ref()).flatten();
        self.unique("listener.tls.sni.names", names, String::clone);
        self.serving("listener.tls", written.certificate.as_ref(), written.private_key.as_ref());
        self.clients(&written.clients, &written.clients);
        for sni in &written.sni {
            let path = "listener.tls.sni";
            self.serving(path, sni.certificate.as_ref(), sni.private_key.as_ref());
            self.clients(&sni.clients, &written.clients);
        }
        let own = self.site(
            Some(Vec::new()),
            written.certificate.as_ref(),
            written.private_key.as_ref(),
            Clients::merged(&written.clients, &written.clients),
        );
        let others: Option<Vec<TlsSite>> = written
            .sni
            .iter()
            .map(|sni| {
                let names = sni.names.as_ref();
                self.site(
                    names.map(|names| names.iter().map(|name| name.value.clone()).collect()),
                    sni.certificate.as_ref().or(written.certificate.as_ref()),
                    sni.private_key.as_ref().or(written.private_key.as_ref()),
                    Clients::merged(&sni.clients, &written.clients),
                )
            })
            .collect();
        let sites = std::iter::once(own?).chain(others?).collect();
        Some(ListenerTls { sites, sessions: written.sessions.value })
    }

    fn site(
        &self,
        names: Option<Vec<String>>,
        certificate: Option<&At<PathBuf>>,
        private_key: Option<&At<PathBuf>>,
        clients: Clients<'_>,
    ) -> Option<TlsSite> {
        let resolved = |path: &At<PathBuf>| self.base.join(&path.value);
        let clients = match clients.auth {
            ClientAuth::Off => None,
            ClientAuth::Required | ClientAuth::Optional => Some(TlsClients {
                required: clients.auth == ClientAuth::Required,
                ca: resolved(clients.ca?),
                crl: clients.crl.iter().map(resolved).collect(),
                crl_expired: clients.crl_expired,
                max_chain_depth: clients.max_chain_depth,
                retired_ca: clients.retired.iter().map(resolved).collect(),
            }),
        };
        Some(TlsSite {
            names: names?,
            certificate: resolved(certificate?),
            private_key: resolved(private_key?),
            clients,
        })
    }

    /// A site's own certificate and key.
    pub(super) fn serving(
        &self,
        table: &str,
        certificate: Option<&At<PathBuf>>,
        private_key: Option<&At<PathBuf>>,
    ) {
        let chain = certificate.and_then(|path| {
            let key = format!("{table}.certificate");
            let chain = self.judged(&key, path, MATERIAL_MAX_BYTES, material::certificates)?;
            if let Some(number) = material::out_of_order(&chain) {
                let text = format!(
                    "certificate {number} of {} did not issue the one before it; put the leaf \
                     first, then each issuer",
                    path.value.display()
                );
                self.report.warning(path.place, text);
            }
            Some(chain)
        });
        let Some(path) = private_key else { return };
        let name = format!("{table}.private_key");
        let key = self.private_key(&name, path);
        if let (Some(chain), Some(key)) = (chain, key)
            && let Err(damage) = material::pair(chain, key)
        {
            self.bad_file(&name, path, damage);
        }
    }

    fn private_key(
        &self,
        key: &str,
        path: &At<PathBuf>,
    ) -> Option<rustls::pki_types::PrivateKeyDer<'static>> {
        let daemon = self.files.daemon();
        let content = self.read(key, path, MATERIAL_MAX_BYTES)?;
        if let Err(exposed) = material::private(&content, daemon) {
            self.bad_file(key, path, exposed);
        }
        if content.owner != 0 && !daemon.users.contains(&content.owner) {
            let (path_shown, owner) = (path.value.display(), content.owner);
            let text = format!(
                "{key} {path_shown} belongs to user {owner}, who is neither root nor the daemon; \
                 change its owner (chown)"
            );
            self.report.warning(path.place, text);
        }
        let parsed = material::private_key(&content.bytes);
        parsed.map_err(|damage| self.bad_file(key, path, damage)).ok()
    }

    /// What client certificates are checked against. Files are judged where they are written.
    fn clients(&self, written: &file::Clients, listener: &file::Clients) {
        let table = written.path;
        let merged = Clients::merged(written, listener);
        for path in written.retired.iter().flat_map(|paths| &paths.value) {
            let key = format!("{table}.retired_ca");
            self.judged(&key, path, MATERIAL_MAX_BYTES, material::certificates);
        }
        let mut lists = Vec::new();
        let mut all_lists = true;
        for path in written.crl.iter().flat_map(|paths| &paths.value) {
            let key = format!("{table}.client_crl");
            match self.judged(&key, path, REVOCATION_LIST_MAX_BYTES, material::revocation_lists) {
                Some(more) => lists.extend(more),
                None => all_lists = false,
            }
        }
        if let Some(expired) = &written.crl_expired
            && expired.value == CrlExpired::Allow
            && merged.crl.is_empty()
        {
            let text = format!(
                "{table}.crl_expired says what an expired list means, but client_crl names none; \
                 name the list or take crl_expired out"
            );
            self.report.warning(expired.place, text);
        }
        if let (ClientAuth::Off, Some(ca)) = (merged.auth, &written.ca) {
            let text = format!(
                "{table}.client_ca is not used, because client_auth is \"off\" and nobody is asked \
                 for a certificate; take it out, or write client_auth = \"optional\""
            );
            self.report.warning(ca.place, text);
        }
        let Some(path) = &written.ca else { return };
        let key = format!("{table}.client_ca");
        let anchors: Option<Vec<CertificateDer<'static>>> =
            self.judged(&key, path, MATERIAL_MAX_BYTES, material::certificates);
        let Some(anchors) = anchors else { return };
        for subject in material::not_authorities(&anchors) {
            let text = format!(
                "{key} {}: {subject:?} is not the certificate of an authority, no client \
                 certificate can chain to it; name the authority's",
                path.value.display()
            );
            self.report.warning(path.place, text);
        }
        if let Some(paths) = &written.crl
            && !lists.is_empty()
            && all_lists
        {
            for subject in material::without_list(&anchors, &lists) {
                let text = format!(
                    "{table}.client_crl has no list of {subject:?}, which {} trusts; add it, \
                     or what it revoked stays unknown",
                    path.value.display()
                );
                self.report.warning(paths.place, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        super::super::{
            Config, Problems, Warning,
            fake::{Fake, LAB, lines, problem_lines},
        },
        *,
    };

    /// A configuration with these lines in `[listener.tls]`, which begins in line 4, and a route that
    /// requires this.
    fn load(tls: &str, require: &str) -> Result<(Config, Vec<Warning>), Problems> {
        let mut fake = Fake::new();
        fake.put("tls/other-ca.pem", &LAB.other_authority, 0o644);
        fake.load(&format!(
            "[[listener]]\nname = \"edge\"\naddress = \"[::]:8443\"\n[listener.tls]\n{tls}\n\
             [[upstream]]\nname = \"orders\"\nservers = [\"http://127.0.0.1:9001\"]\n\
             [[route]]\nname = \"orders\"\npath = \"/\"\nupstream = \"orders\"\nrequire = {require}\n"
        ))
    }

    const PAIR: &str = "certificate = \"tls/server.pem\"\nprivate_key = \"tls/server.key\"\n";
    const CA: &str = "client_ca = \"tls/clients-ca.pem\"\n";

    #[test]
    fn what_a_site_does_not_say_is_as_the_listener_has_it() {
        let lists = "client_crl = [\"tls/clients.crl\"]\ncrl_expired = \"allow\"\n";
        let sites = "retired_ca = [\"tls/other-ca.pem\"]\nsessions = 0\n\
             [[listener.tls.sni]]\nnames = [\"A.example\", \"*.b.example\"]\n\
             [[listener.tls.sni]]\nnames = [\"c.example\"]\nclient_ca = \"tls/other-ca.pem\"\n\
             client_auth = \"optional\"\nmax_chain_depth = 0\n\
             [[listener.tls.sni]]\nnames = [\"d.example\"]\nclient_auth = \"off\"\n";
        let loaded = load(&format!("{PAIR}{CA}{lists}{sites}"), "[\"certificate\"]");
        let (config, warnings) = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(lines(&warnings), [] as [&str; 0]);
        let tls = &config.listeners[0].tls;
        assert_eq!(tls.sessions, 0);
        let path = |name: &str| Path::new("/etc/portcullis/tls").join(name);
        let [own, a, c, d] = &tls.sites[..] else { panic!("{tls:?}") };
        let of = |site: &TlsSite| {
            assert_eq!(site.certificate, path("server.pem"), "inherited");
            let clients = site.clients.clone()?;
            assert_eq!(clients.retired_ca, [path("other-ca.pem")]);
            assert_eq!(clients.crl_expired, CrlExpired::Allow);
            Some((clients.required, clients.ca, clients.crl.len(), clients.max_chain_depth))
        };
        assert_eq!(of(own), Some((true, path("clients-ca.pem"), 1, 2)));
        assert_eq!((a.names.join(" ").as_str(), of(a)), ("a.example *.b.example", of(own)));
        assert_eq!(of(c), Some((false, path("other-ca.pem"), 0, 0)), "other authorities' lists");
        assert_eq!(of(d), None);
    }

    #[test]
    fn contradictions_are_said() {
        for (tls, require, expected) in [
            (
                PAIR.to_owned(),
                "[]",
                "4:1: [listener.tls] has no client_ca; add it, as in client_ca = \
                 \"tls/clients-ca.pem\"",
            ),
            (
                format!("{PAIR}client_auth = \"off\""),
                "[\"certificate\"]",
                "15:12: route.require has \"certificate\", but client_auth is \"off\" everywhere, so \
                 nobody could come with one; ask for it in [listener.tls]",
            ),
            (
                format!(
                    "{PAIR}{CA}[[listener.tls.sni]]\nnames = [\"a.example\"]\n\
                     [[listener.tls.sni]]\nnames = [\"A.example\"]"
                ),
                "[\"certificate\"]",
                "11:10: listener.tls.sni.names a.example is taken already in \
                 /etc/portcullis/portcullis.toml:9; give each its own",
            ),
            (
                format!(
                    "{PAIR}{CA}[[listener.tls.sni]]\nnames = [\"a.example\"]\n\
                     certificate = \"tls/server.pem\""
                ),
                "[\"certificate\"]",
                "8:1: [[listener.tls.sni]] has no private_key; add it, as in private_key = \
                 \"tls/api.key\"",
            ),
            (
                format!("{PAIR}{CA}[[listener.tls.sni]]\nnames = []"),
                "[\"certificate\"]",
                "9:9: listener.tls.sni.names is empty; write at least one, as in names = \
                 [\"api.example.com\", \"*.example.org\"]",
            ),
            (
                format!("{PAIR}{CA}retired_ca = [\"tls/server.key\"]"),
                "[\"certificate\"]",
                "8:15: listener.tls.retired_ca \"/etc/portcullis/tls/server.key\" holds no \
                 certificate in PEM; name the right file",
            ),
        ] {
            let problems = problem_lines(&load(&tls, require).expect_err(&tls));
            assert!(problems.iter().any(|problem| problem == expected), "{tls}: {problems:#?}");
        }
        let loaded = load(&format!("{PAIR}{CA}client_auth = \"off\""), "[]");
        let (config, warnings) = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        assert!(config.listeners[0].tls.sites[0].clients.is_none());
        assert_eq!(
            lines(&warnings),
            [
                "7:13: listener.tls.client_ca is not used, because client_auth is \"off\" and nobody is \
              asked for a certificate; take it out, or write client_auth = \"optional\""
            ]
        );
        // Where a certificate is optional, a route for everybody is what it says.
        let optional = load(&format!("{PAIR}{CA}client_auth = \"optional\""), "[]");
        assert_eq!(lines(&optional.unwrap_or_else(|problems| panic!("{problems}")).1), [""; 0]);
    }
}
