//! TLS 1.3: settings → what a handshake needs.
//!
//! A listener has one or more [`Site`]s, chosen by the host that a client names (SNI): each with its
//! own certificate, and its own word on whose clients are trusted.

pub mod handshake;
mod pieces;
pub mod quic;
pub mod sessions;

use std::{collections::HashMap, fmt, sync::Arc};

use http::HeaderValue;
use ipnet::IpNet;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{
        NoServerSessionStorage, ResolvesServerCert, StoresServerSessions,
        danger::ClientCertVerifier,
    },
};
use rustls_pki_types::UnixTime;

use self::sessions::Sessions;
use crate::{
    config::Protocol,
    identity::certificate::{CertificateError, Hosts, Peer, Trust},
};

/// The only version that is spoken, as log lines name it.
pub const VERSION: &str = "1.3";

/// The server's certificate chain and key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// Hands it to each handshake.
    pub resolver: Arc<dyn ResolvesServerCert>,
    /// Start of the leaf's validity.
    pub not_before: UnixTime,
    /// End of the leaf's validity.
    pub not_after: UnixTime,
    /// Bits of the leaf's key when it is an RSA key.
    pub rsa_bits: Option<usize>,
    /// The hosts that the leaf is for.
    pub hosts: Hosts,
}

/// What one listener's handshakes are made of.
#[derive(Clone)]
pub struct ListenerTls {
    /// The proxies that may connect, each with a PROXY header; `None`: clients connect themselves.
    pub proxies: Option<Arc<[IpNet]>>,
    /// Chosen by the host's name.
    pub sites: Sites,
    /// Offered over TCP by ALPN, in this order.
    pub protocols: Vec<Vec<u8>>,
    /// Says that HTTP/3 is served too (RFC 7838), for answers over TCP; `None` where it is not.
    pub alternative: Option<HeaderValue>,
    /// The cryptography.
    pub provider: Arc<CryptoProvider>,
    /// Tickets handed out after a handshake; 0: no session is ever resumed.
    pub tickets: usize,
    /// Sessions that clients may resume; `None`: none ever.
    pub sessions: Option<Arc<Sessions>>,
}

/// What is served under certain names.
#[derive(Debug)]
pub struct Site {
    /// Lower case, `*.` in front for every name of one label more; empty for the listener's own.
    pub names: Vec<String>,
    /// What the client sees.
    pub certificate: Arc<ServerCertificate>,
    /// `None`: clients are not asked who they are.
    pub clients: Option<Clients>,
}

/// Whose certificates a site accepts.
#[derive(Clone, Debug)]
pub struct Clients {
    /// False: a client may come without one.
    pub required: bool,
    /// Who decides.
    pub trust: Arc<Trust>,
}

impl Site {
    /// Whether this client, who was let in before, would be let in now.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, peer: Option<&Peer>, now: UnixTime) -> Result<(), CertificateError> {
        match (&self.clients, peer) {
            (None, None) => Ok(()),
            // Nobody is left who could say that the certificate still holds.
            (None, Some(peer)) => {
                Err(CertificateError::UnknownIssuer { missing: peer.issuer().to_owned() })
            }
            (Some(clients), None) if clients.required => Err(CertificateError::NotPresented),
            (Some(_), None) => Ok(()),
            (Some(clients), Some(peer)) => clients.trust.recheck(peer, now),
        }
    }
}

/// The sites of one listener by name. The first is the listener's own, for clients that name no host
/// or one that is in no other.
#[derive(Clone)]
pub struct Sites {
    all: Vec<Arc<Site>>,
    /// By name, and by what follows the star of a pattern.
    exact: HashMap<String, usize>,
    below: HashMap<String, usize>,
}

impl fmt::Debug for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|site| &site.names)).finish()
    }
}

impl Sites {
    /// The listener's own, then the others.
    pub fn new(own: Site, others: Vec<Site>) -> Sites {
        let all: Vec<Arc<Site>> = std::iter::once(own).chain(others).map(Arc::new).collect();
        let mut sites = Sites { all, exact: HashMap::new(), below: HashMap::new() };
        for (index, site) in sites.all.iter().enumerate() {
            for name in &site.names {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut sites.below, suffix),
                    None => (&mut sites.exact, name.as_str()),
                };
                table.entry(name.to_owned()).or_insert(index);
            }
        }
        sites
    }

    /// In the order of the configuration, the listener's own first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.all.iter()
    }

    /// The site of a lower-case host name: one that has it, else one whose pattern covers it, which
    /// is by one label as in certificates (RFC 9525 section 6.3), else the listener's own.
    pub fn of(&self, name: Option<&str>) -> &Arc<Site> {
        &self.all[self.index(name)]
    }

    /// Whether two names are served by the same site.
    pub fn are_one(&self, name: Option<&str>, other: Option<&str>) -> bool {
        name == other || self.index(name) == self.index(other)
    }

    fn index(&self, name: Option<&str>) -> usize {
        let Some(name) = name else { return 0 };
        // A name may end in a dot, which says nothing new.
        let name = name.strip_suffix('.').unwrap_or(name);
        let covered = || self.below.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(covered).copied().unwrap_or(0)
    }
}

impl ListenerTls {
    /// Goes on with the sessions that were remembered before, unless there is to be room for another
    /// number of them. Each is judged by today's rules before it is resumed.
    pub fn keep_sessions(&mut self, before: &ListenerTls) {
        if let (Some(ours), Some(theirs)) = (&mut self.sessions, &before.sessions)
            && ours.room() == theirs.room()
        {
            *ours = theirs.clone();
        }
    }

    /// The settings of one handshake: the certificate, the verifier that will judge this client, or
    /// none where clients are not asked, and the sessions it may resume.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3, which the built-in one does not.
    fn config(
        &self,
        certificate: Arc<dyn ResolvesServerCert>,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
        sessions: Option<Arc<dyn StoresServerSessions>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(certificate);
        config.alpn_protocols.clone_from(&self.protocols);
        config.send_tls13_tickets = self.tickets;
        config.session_storage = sessions.unwrap_or_else(|| Arc::new(NoServerSessionStorage {}));
        Ok(config)
    }
}

/// The ALPN names (RFC 7301) of the configured protocols over TCP.
pub fn alpn(protocols: &[Protocol]) -> Vec<Vec<u8>> {
    protocols
        .iter()
        .filter_map(|protocol| match protocol {
            Protocol::Http3 => None,
            Protocol::Http2 => Some(b"h2".to_vec()),
            Protocol::Http1 => Some(b"http/1.1".to_vec()),
        })
        .collect()
}

/// A client may keep to HTTP/3 for this long without asking again. It falls back by itself when UDP
/// does not get through, so a day is no risk.
const ALTERNATIVE_MAX_AGE_S: u32 = 24 * 3600;

/// `Alt-Svc` of a listener on that port, where it serves HTTP/3 (RFC 9114 section 3.1.1).
pub fn alternative(protocols: &[Protocol], port: u16) -> Option<HeaderValue> {
    if !protocols.contains(&Protocol::Http3) {
        return None;
    }
    HeaderValue::from_str(&format!("h3=\":{port}\"; ma={ALTERNATIVE_MAX_AGE_S}")).ok()
}

#[cfg(test)]
mod tests {
    use rustls::sign::CertifiedKey;

    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl ResolvesServerCert for Nothing {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }

    fn site(names: &[&str]) -> Site {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        Site {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            certificate: Arc::new(ServerCertificate {
                resolver: Arc::new(Nothing),
                not_before: at(0),
                not_after: at(1),
                rsa_bits: None,
                hosts: Hosts::default(),
            }),
            clients: None,
        }
    }

    #[test]
    fn http_3_is_announced_beside_what_tcp_offers() {
        let all = [Protocol::Http3, Protocol::Http2, Protocol::Http1];
        assert_eq!(alpn(&all), [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(alternative(&all, 8443).unwrap(), "h3=\":8443\"; ma=86400");
        assert_eq!(alternative(&all[1..], 8443), None);
    }

    #[test]
    fn a_site_is_found_by_name_then_by_pattern_then_it_is_the_listeners_own() {
        let sites = Sites::new(
            site(&[]),
            vec![site(&["api.example.com", "*.example.org"]), site(&["www.example.org"])],
        );
        for (name, expected) in [
            (None, 0),
            (Some(""), 0),
            (Some("."), 0),
            (Some("example.com"), 0),
            (Some("api.example.com"), 1),
            (Some("api.example.com."), 1),
            (Some("x.api.example.com"), 0),
            (Some("any.example.org"), 1),
            (Some("a.b.example.org"), 0), // one label only
            (Some("example.org"), 0),
            (Some("www.example.org"), 2), // the name before the pattern
            (Some("*.example.org"), 1),
        ] {
            assert_eq!(sites.index(name), expected, "{name:?}");
        }
        assert!(sites.are_one(Some("a.example.org"), Some("b.example.org")));
        assert!(!sites.are_one(None, Some("b.example.org")));
    }
}
