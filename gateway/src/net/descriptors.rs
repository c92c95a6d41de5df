//! Descriptors: each connection takes one, and a process may have only so many.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Beside the connections: sockets, files, maps of the kernel half, and connections to upstreams.
const RESERVE: usize = 1_024;

/// How many connections fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Descriptors that the process may have.
    pub limit: usize,
    /// Connections at once: as many as wanted, or what the limit leaves room for.
    pub connections_max: usize,
    wanted: usize,
}

impl Room {
    /// Fewer than were wanted: what to tell the operator.
    pub fn shortage(&self) -> Option<Shortage> {
        (self.connections_max < self.wanted).then_some(Shortage(*self))
    }
}

/// `max_connections` is more than there are descriptors for.
#[derive(Clone, Copy, Debug)]
pub struct Shortage(Room);

impl fmt::Display for Shortage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage(Room { limit, connections_max, wanted }) = self;
        write!(
            formatter,
            "server.max_connections is {wanted}, but the process may have {limit} descriptors, room \
             for {connections_max} connections; more are refused. Set LimitNOFILE={} in the unit, or \
             a smaller max_connections",
            needed(*wanted)
        )
    }
}

/// One for the client and one for the upstream.
fn needed(connections: usize) -> usize {
    connections.saturating_mul(2).saturating_add(RESERVE)
}

/// What fits into a limit: connections that all ask at once find fewer, which they are told, but
/// logs, files and operators always have theirs.
fn room(limit: usize, wanted: usize) -> Room {
    let connections_max = wanted.min(limit.saturating_sub(RESERVE).max(1));
    Room { limit, connections_max, wanted }
}

/// Raises the process' limit as far as it may and as the connections need.
///
/// # Errors
/// The kernel does not tell the limit.
pub fn make_room(connections: usize) -> nix::Result<Room> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (needed(connections) as u64).clamp(soft, hard);
    // Refused, the limit is as it was.
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    };
    Ok(room(usize::try_from(limit).unwrap_or(usize::MAX), connections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_admitted_and_what_does_not_is_said() {
        for (limit, wanted, fits, says) in [
            (1_000_000, 100_000, 100_000, None),
            (20_000, 100_000, 18_976, Some("LimitNOFILE=201024")),
            (1_024, 100, 1, Some("LimitNOFILE=1224")),
            (0, 1, 1, None),
        ] {
            let room = room(limit, wanted);
            assert_eq!(room.connections_max, fits, "{limit} {wanted}");
            let said = room.shortage().map(|shortage| shortage.to_string());
            assert_eq!(said.is_some(), says.is_some(), "{said:?}");
            assert!(says.is_none_or(|says| said.unwrap().contains(says)));
        }
    }

    #[test]
    fn the_limit_is_never_lowered() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let room = make_room(1).unwrap();
        assert!(room.limit as u64 >= soft, "{room:?}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().1, hard);
    }
}
