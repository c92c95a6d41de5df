//! `protocols` of a `[[listener]]`.

use super::{
    super::{Protocol, file},
    Check,
};

impl Check<'_> {
    /// What is written, else what every client speaks. HTTP/3 does not stand alone: clients learn of
    /// it from an answer over TCP (RFC 9114 section 3.1.1), and go back there where UDP is blocked.
    pub(super) fn protocols(&self, written: &file::Listener) -> Vec<Protocol> {
        let Some(protocols) = &written.protocols else {
            return vec![Protocol::Http2, Protocol::Http1];
        };
        if protocols.value.iter().all(|protocol| *protocol == Protocol::Http3) {
            let text = "listener.protocols has \"h3\" alone; add \"h2\", over which clients find \
                        it and to which they go back where UDP is blocked";
            self.contradiction(protocols.place, text.to_owned());
        }
        protocols.value.clone()
    }
}
