//! Who may connect to a listener, and how many.

use ipnet::IpNet;

use super::{
    super::{
        file::{self, File},
        value::ProxyProtocol,
    },
    Check, values,
};
use crate::config::Protocol;

impl Check<'_> {
    /// The proxies of a listener; `Some(None)`: clients connect themselves.
    pub(super) fn proxies(&self, written: &file::Listener) -> Option<Option<Vec<IpNet>>> {
        let trusted = written.trusted_proxies.as_ref()?;
        let protocol = &written.proxy_protocol;
        match protocol.value {
            ProxyProtocol::Off => {
                if !trusted.value.is_empty() {
                    let text = "listener.trusted_proxies are those whose PROXY header is believed, \
                                but proxy_protocol is \"off\"; write \"required\", or take them out";
                    self.contradiction(trusted.place, text);
                }
                Some(None)
            }
            ProxyProtocol::Required => {
                // A PROXY header goes before a TCP stream; over QUIC everybody would be who they say.
                let protocols = written.protocols.as_ref();
                if let Some(protocols) =
                    protocols.filter(|some| some.value.contains(&Protocol::Http3))
                {
                    let text = "listener.proxy_protocol is \"required\", which HTTP/3 does not \
                                have; take \"h3\" out of protocols";
                    self.contradiction(protocols.place, text);
                }
                if trusted.value.is_empty() {
                    let text = "listener.proxy_protocol is \"required\", but trusted_proxies is \
                                empty, so nobody could connect; write the proxies' addresses";
                    self.contradiction(protocol.place, text);
                }
                for network in trusted.value.iter().filter(|at| at.value.prefix_len() == 0) {
                    let text = format!(
                        "listener.trusted_proxies has {}, which lets everybody say who they are; \
                         write the proxies' addresses",
                        network.value
                    );
                    self.contradiction(network.place, text);
                }
                Some(Some(values(trusted)))
            }
        }
    }

    /// The share of a source against the whole.
    pub(super) fn shares(&self, file: &File) {
        let (whole, share) =
            (&file.server.max_connections, &file.server.max_connections_per_source);
        // Written too large; the default bounds nothing where the whole is smaller, and says nothing.
        if share.value > whole.value && share.value != 1_000 {
            let text = format!(
                "server.max_connections_per_source {} is more than max_connections {}; write less",
                share.value, whole.value
            );
            self.report.warning(share.place.max(whole.place), text);
        }
    }
}
