//! From one process to the next: what the new one starts with, and how the old one lets go.

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    rc::Rc,
};

use tokio::{net::UnixStream, task::spawn_blocking};

use super::{RunError, control::Control, doors::Sockets, listeners::Inherited};
use crate::{
    admin::socket::{self, Answer},
    config::{Config, Protocol},
    net::{
        activation::Passed,
        handover::{self, HandoverError, KeptKeys, Offer, Offered, PROTOCOL, Secret, Taken},
        listen,
        quic::{self, KEYS_BYTES},
        quic_passage,
    },
};

/// What a process starts with, besides its configuration.
#[derive(Debug, Default)]
pub(super) struct Estate {
    /// Listeners' sockets.
    pub(super) listeners: Inherited,
    /// What the process before signed retries and resets with.
    pub(super) quic_keys: Option<[u8; KEYS_BYTES]>,
    monitors: Vec<(SocketAddr, TcpListener)>,
    operators: Option<UnixListener>,
    /// Addresses of the listeners' sockets that have no use.
    pub(super) stale: Vec<SocketAddr>,
    /// Sockets that were passed and have no use, in words.
    pub(super) unused: Vec<String>,
    /// The process that they come from, while it waits to hear that this one serves.
    pub(super) before: Option<Taken>,
}

impl Estate {
    /// What systemd passes; and with `take_over` what the running daemon has, if one runs.
    ///
    /// # Errors
    /// A daemon runs and does not hand over.
    pub(super) fn gather(
        config: &Config,
        passed: Passed,
        take_over: bool,
    ) -> Result<Estate, RunError> {
        let mut estate = Estate { unused: passed.odd, ..Estate::default() };
        for (address, socket) in passed.tcp {
            estate.add(config, address, socket);
        }
        for (path, socket) in passed.unix {
            if path == config.admin.socket {
                estate.operators = Some(socket);
            } else {
                estate.unused.push(format!("{} is not [admin].socket", path.display()));
            }
        }
        if take_over {
            let taken = handover::take(&config.admin.socket).map_err(|error| {
                RunError::System(format!("the running daemon keeps serving: {error}"))
            })?;
            if let Some(taken) = taken {
                estate.adopt(config, taken);
            }
        }
        Ok(estate)
    }

    fn adopt(&mut self, config: &Config, mut taken: Taken) {
        for (address, socket) in std::mem::take(&mut taken.listeners) {
            self.add(config, address, TcpListener::from(socket));
        }
        for (address, socket) in std::mem::take(&mut taken.datagrams) {
            self.add_quic(config, address, socket);
        }
        let keys = taken.offer.quic_keys.take();
        self.quic_keys = keys.and_then(|Secret(keys)| keys.try_into().ok());
        if let Some((address, socket)) = taken.monitors.take() {
            self.add(config, address, TcpListener::from(socket));
        }
        self.operators = taken.operators.take().map(UnixListener::from);
        self.before = Some(taken);
    }

    fn add(&mut self, config: &Config, address: SocketAddr, socket: TcpListener) {
        if config.listeners.iter().any(|listener| listener.address == address) {
            self.listeners.streams.entry(address).or_default().push(socket);
        } else if config.admin.metrics == address {
            self.monitors.push((address, socket));
        } else {
            // Of an address that is listened on no longer: with its last holder it closes.
            self.unused.push(format!("no listener is at {address}"));
            self.stale.push(address);
        }
    }

    fn add_quic(&mut self, config: &Config, address: SocketAddr, socket: quic_passage::Inherited) {
        let serves = |listener: &&crate::config::Listener| {
            listener.address == address && listener.protocols.contains(&Protocol::Http3)
        };
        if config.listeners.iter().any(|listener| serves(&listener)) {
            self.listeners.datagrams.entry(address).or_default().push(socket);
        } else {
            // The process before reads on for what is open, since nobody passes anything on to it.
            self.unused.push(format!("no listener serves HTTP/3 at {address}"));
        }
    }

    /// Keys of issuers that the process before believes.
    pub(super) fn issuer_keys(&self) -> &[KeptKeys] {
        self.before.as_ref().map_or(&[], |before| &before.offer.issuer_keys)
    }

    /// The operators' and the monitors' sockets: those that were inherited, or new ones.
    ///
    /// # Errors
    /// What cannot be bound.
    pub(super) fn doors(&mut self, config: &Config) -> Result<Sockets, RunError> {
        let monitors = match self.monitors.pop() {
            Some((_, socket)) => socket,
            None => listen::single(config.admin.metrics)?,
        };
        let operators = match self.operators.take() {
            Some(socket) => socket,
            None => socket::bind(&config.admin.socket, config.admin.group.as_deref())
                .map_err(RunError::System)?,
        };
        Ok(Sockets { operators, monitors })
    }
}

/// The old side, for one asker: gives everything, and ends when the other serves; else goes on.
pub(super) async fn hand_over(control: Rc<Control>, protocol: u32, mut stream: UnixStream) {
    let begun = match protocol {
        PROTOCOL => control.begin_hand_over(),
        other => Err(format!(
            "this daemon hands over by protocol {PROTOCOL}, not {other}; stop it and start the other"
        )),
    };
    let (offer, sockets) = match begun {
        Ok(begun) => begun,
        Err(why) => {
            // Who asked may be gone.
            let _ = socket::write(&mut stream, &Answer::<()>::Error(why)).await;
            return;
        }
    };
    let outcome = converse(&control, stream, offer, sockets).await;
    control.end_hand_over(outcome);
}

/// Gives, waits, and says the last words; gives back who serves now.
async fn converse(
    control: &Control,
    stream: UnixStream,
    offer: Offer,
    sockets: Vec<OwnedFd>,
) -> Result<u32, HandoverError> {
    let lost = |_| HandoverError::Strange("the thread that handed over ended");
    let stream = stream.into_std()?;
    let pid = peer(&stream);
    let given = spawn_blocking(move || {
        handover::give(&stream, &offer, &sockets)?;
        Ok::<_, HandoverError>(stream)
    });
    let stream = given.await.map_err(lost)??;
    // Only now: what was banned while the other started is among it.
    let state = control.last_state();
    // Before the other hears that it may read them.
    control.give_datagrams();
    spawn_blocking(move || handover::finish(&stream, &state)).await.map_err(lost)??;
    Ok(pid)
}

/// The process at the other end, as the kernel knows it.
fn peer(stream: &std::os::unix::net::UnixStream) -> u32 {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    // A Unix socket always has them.
    getsockopt(stream, PeerCredentials).map_or(0, |peer| peer.pid().unsigned_abs())
}

/// What there is to give.
pub(super) fn offer(
    listeners: impl Iterator<Item = (SocketAddr, std::io::Result<OwnedFd>)>,
    datagrams: impl Iterator<Item = (SocketAddr, std::io::Result<quic_passage::Inherited>)>,
    quic_keys: Option<quic::Keys>,
    issuer_keys: Vec<KeptKeys>,
    doors: std::io::Result<Vec<(Offered, OwnedFd)>>,
) -> std::io::Result<(Offer, Vec<OwnedFd>)> {
    let (mut offered, mut sockets) = (Vec::<Offered>::new(), Vec::new());
    for (at, socket) in listeners {
        sockets.push(socket?);
        match offered.last_mut() {
            Some(Offered::Listener { address, count }) if *address == at => *count += 1,
            _ => offered.push(Offered::Listener { address: at, count: 1 }),
        }
    }
    for (address, socket) in datagrams {
        let (tags, descriptors) = socket?.into_parts()?;
        offered.push(Offered::Datagrams { address, tags });
        sockets.extend(descriptors);
    }
    for (what, socket) in doors? {
        offered.push(what);
        sockets.push(socket);
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let pid = std::process::id();
    let quic_keys = quic_keys.map(|keys| Secret(keys.to_bytes().to_vec()));
    let offer =
        Offer { protocol: PROTOCOL, version, pid, sockets: offered, quic_keys, issuer_keys };
    Ok((offer, sockets))
}
