//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, alive, who is the main
//! process now, and the sockets to keep while there is none.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, RawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const SENT_AT_ONCE: usize = 200;

/// The manager's socket, if one is to be told.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    alive_every: Option<Duration>,
}

impl Notify {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Notify {
        let read = |name| std::env::var(name).ok();
        let Some(name) = read("NOTIFY_SOCKET") else { return Notify::default() };
        let socket = connect(&name).map_err(|error| {
            tracing::warn!(error = %error, "the service manager cannot be told anything");
        });
        let alive_every = alive_every(
            read("WATCHDOG_USEC").as_deref(),
            read("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Notify { socket: socket.ok(), alive_every }
    }

    /// How often [`Notify::alive`] is expected; `None`: not at all.
    pub fn alive_every(&self) -> Option<Duration> {
        self.alive_every
    }

    /// It serves; also, what was reloaded is in force.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// It reloads; `monotonic_us` is now, by `CLOCK_MONOTONIC`. [`Notify::ready`] has to follow.
    pub fn reloading(&self, monotonic_us: u128) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={monotonic_us}"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// It is alive.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// Another process is the service now.
    pub fn main_is(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
    }

    /// Keeps these sockets for the next run.
    pub fn keep(&self, name: &str, sockets: &[RawFd]) {
        for sockets in sockets.chunks(SENT_AT_ONCE) {
            self.send(&format!("FDSTORE=1\nFDNAME={name}"), sockets);
        }
    }

    /// Keeps the sockets of that name no longer.
    pub fn forget(&self, name: &str) {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    fn say(&self, text: &str) {
        self.send(text, &[]);
    }

    fn send(&self, text: &str, sockets: &[RawFd]) {
        let Some(socket) = &self.socket else { return };
        let rights = [ControlMessage::ScmRights(sockets)];
        let rights = if sockets.is_empty() { &rights[..0] } else { &rights[..] };
        let parts = [IoSlice::new(text.as_bytes())];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Err(error) = sendmsg::<()>(socket.as_raw_fd(), &parts, rights, flags, None) {
            tracing::warn!(error = %error, "the service manager was not told: {text}");
        }
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// A quarter of the time that the manager waits, when it waits for this process: a worker may be late
/// twice.
fn alive_every(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_asked_for_by_time_and_process() {
        for (usec, pid, expected) in [
            (Some("2000000"), None, Some(Duration::from_millis(500))),
            (Some("2000000"), Some("7"), Some(Duration::from_millis(500))),
            (Some("2000000"), Some("8"), None),
            (Some("2000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, Some("7"), None),
        ] {
            assert_eq!(alive_every(usec, pid, 7), expected, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn the_manager_hears_every_word() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify { socket: connect(path.to_str().unwrap()).ok(), alive_every: None };
        notify.ready();
        notify.reloading(42);
        notify.main_is(7);
        notify.keep("tcp", &[manager.as_raw_fd()]);
        let mut text = [0; 256];
        for expected in
            ["READY=1", "RELOADING=1\nMONOTONIC_USEC=42", "MAINPID=7", "FDSTORE=1\nFDNAME=tcp"]
        {
            let length = manager.recv(&mut text).unwrap();
            assert_eq!(std::str::from_utf8(&text[..length]), Ok(expected));
        }
        Notify::default().ready();
    }
}
