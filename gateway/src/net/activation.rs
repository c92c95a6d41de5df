//! Sockets that systemd passes when it starts the daemon: those of a socket unit, and those that an
//! earlier run left in its keeping (sd_listen_fds(3)). They are told apart by what they are bound to;
//! names are for people.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{AddressFamily, SockType, getsockopt, sockopt},
};
use socket2::SockRef;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Sockets that are looked at: systemd keeps no more than `FileDescriptorStoreMax`, and a process has
/// hardly more.
const PASSED_MAX: usize = 16_384;

/// What was passed, by what it is.
#[derive(Debug, Default)]
pub struct Passed {
    /// TCP sockets that listen.
    pub tcp: Vec<(SocketAddr, TcpListener)>,
    /// Unix sockets that listen.
    pub unix: Vec<(PathBuf, UnixListener)>,
    /// What has no use here, in words.
    pub odd: Vec<String>,
}

/// The descriptors that were passed to this process: their number, if they are for it.
fn count(pid: Option<&str>, fds: Option<&str>, own_pid: u32) -> usize {
    // Without LISTEN_PID they are somebody else's, inherited by mistake.
    if pid.and_then(|pid| pid.parse().ok()) != Some(own_pid) {
        return 0;
    }
    fds.and_then(|fds| fds.parse().ok()).filter(|count| *count <= PASSED_MAX).unwrap_or(0)
}

/// Takes what was passed. To be called once, before any other descriptor is opened.
pub fn passed() -> Passed {
    let read = |name| std::env::var(name).ok();
    let count =
        count(read("LISTEN_PID").as_deref(), read("LISTEN_FDS").as_deref(), std::process::id());
    let mut passed = Passed::default();
    for number in 0..count {
        // At most `PASSED_MAX`.
        let raw = FIRST + number as RawFd;
        // SAFETY: borrowed for two calls that fail where there is no such descriptor.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(raw) };
        if fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
            passed.odd.push(format!("descriptor {raw} is not open"));
            continue;
        }
        // SAFETY: it is open, was passed to this very process to be owned by it (LISTEN_PID), and is
        // taken once, before anything else was opened.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        if let Err(error) = passed.sort_in(socket) {
            passed.odd.push(format!("descriptor {raw}: {error}"));
        }
    }
    passed
}

impl Passed {
    fn sort_in(&mut self, socket: OwnedFd) -> io::Result<()> {
        let kind = getsockopt(&socket, sockopt::SockType)?;
        let is_listening = getsockopt(&socket, sockopt::AcceptConn)?;
        if kind != SockType::Stream || !is_listening {
            return Err(io::Error::other("no stream socket that listens"));
        }
        let address = SockRef::from(&socket).local_addr()?;
        SockRef::from(&socket).set_nonblocking(true)?;
        if let Some(address) = address.as_socket() {
            self.tcp.push((address, TcpListener::from(socket)));
        } else if let Some(path) = address.as_pathname() {
            self.unix.push((path.to_owned(), UnixListener::from(socket)));
        } else {
            let family = AddressFamily::from_i32(i32::from(address.family()));
            return Err(io::Error::other(format!("a socket of {family:?} without a path")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_ours_only_when_they_are_said_to_be() {
        for (pid, fds, expected) in [
            (Some("7"), Some("3"), 3),
            (Some("8"), Some("3"), 0),
            (None, Some("3"), 0),
            (Some("7"), None, 0),
            (Some("7"), Some("-1"), 0),
            (Some("7"), Some("99999999"), 0),
            (Some(""), Some(""), 0),
        ] {
            assert_eq!(count(pid, fds, 7), expected, "{pid:?} {fds:?}");
        }
    }

    #[test]
    fn sockets_are_told_apart_by_what_they_are_bound_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let mut passed = Passed::default();
        passed.sort_in(tcp.into()).unwrap();
        passed.sort_in(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert_eq!(passed.tcp[0].0, address);
        assert_eq!(passed.unix[0].0, path);
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(passed.sort_in(datagrams.into()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(passed.sort_in(file.into()).is_err());
    }
}
