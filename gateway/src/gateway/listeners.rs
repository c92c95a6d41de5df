//! Addresses that are listened on, as reloads change them: new sockets are bound before old ones are
//! given up, and an address that stays keeps its sockets with everything that waits in them.
//!
//! A change is prepared, which may fail and changes nothing, and then made, which cannot fail.

use std::{
    cell::OnceCell,
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    time::Instant,
};

use tokio::sync::watch;

use super::course::Course;
use crate::{
    config::{self, Protocol},
    net::{
        listen::{self, ListenError},
        quic, quic_passage,
        worker::{self, Listening, Phase},
    },
};

/// Names of listeners that one process can have had: each keeps its counts. Only a program that
/// invents names comes here.
const PLACES_MAX: usize = 1_024;

/// Sockets that somebody else has bound: an earlier process, or systemd.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Where connections come from.
    pub(super) streams: HashMap<SocketAddr, Vec<TcpListener>>,
    /// Where datagrams come from, in the order of their group.
    pub(super) datagrams: HashMap<SocketAddr, Vec<quic_passage::Inherited>>,
}

/// Everything that is listened on, and what still is in use of earlier addresses.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// By place, also those that are gone: a name that comes back has its place again.
    names: Vec<String>,
    bound: Vec<Bound>,
    quic: Vec<BoundQuic>,
    quic_keys: OnceCell<quic::Keys>,
    leaving: Vec<(watch::Sender<Phase>, Course)>,
    /// Connections that wait to be accepted, for each socket.
    backlog: u32,
    /// Where each worker has a CPU of its own and connections go by that: the CPU of each.
    steered: Option<Vec<usize>>,
}

/// One listener's address.
#[derive(Debug)]
struct Bound {
    place: usize,
    address: SocketAddr,
    /// Held so that they can be given to others; workers accept from copies.
    sockets: Vec<TcpListener>,
    phase: watch::Sender<Phase>,
}

/// One listener's address for HTTP/3. Only the workers read its sockets: a datagram belongs to the
/// one endpoint that knows its connection.
#[derive(Debug)]
struct BoundQuic {
    place: usize,
    address: SocketAddr,
    held: Vec<quic::Held>,
    phase: watch::Sender<Phase>,
}

/// A change that can be made.
#[derive(Debug)]
pub(super) struct Prepared {
    names: Vec<String>,
    listeners: Vec<Next>,
    quic: Vec<NextQuic>,
}

/// One listener's HTTP/3 after a change.
#[derive(Debug)]
struct NextQuic {
    place: usize,
    address: SocketAddr,
    /// Bound or inherited now; `None`: they are there already.
    sockets: Option<(Vec<quic::Held>, Vec<quic::Bound>)>,
}

/// One listener after a change.
#[derive(Debug)]
struct Next {
    place: usize,
    address: SocketAddr,
    origin: Origin,
}

/// Where its sockets come from.
#[derive(Debug)]
enum Origin {
    /// It is there already, under this number.
    Stays(usize),
    /// They are bound, or were another listener's: those to hold, and as many copies for workers.
    New(Vec<TcpListener>, Vec<TcpListener>),
}

/// Why a change cannot be made.
#[derive(Debug)]
pub(super) enum ListenersError {
    /// An address is not to be had.
    Listen(ListenError),
    /// Too many names came and went.
    Places,
    /// HTTP/3 is served at this address under another name.
    Renamed(SocketAddr),
}

impl std::fmt::Display for ListenersError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenersError::Listen(error) => write!(formatter, "{error}"),
            ListenersError::Renamed(address) => write!(
                formatter,
                "the listener at {address} serves HTTP/3 and cannot be renamed while it runs; keep \
                 its name, or restart the daemon"
            ),
            ListenersError::Places => write!(
                formatter,
                "more than {PLACES_MAX} names of listeners came and went; keep their names, or \
                 restart the daemon (`portcullis run --take-over` loses nothing)"
            ),
        }
    }
}

impl From<ListenError> for ListenersError {
    fn from(error: ListenError) -> ListenersError {
        ListenersError::Listen(error)
    }
}

impl Prepared {
    /// The place of each listener, in the order of the configuration.
    pub(super) fn places(&self) -> Vec<usize> {
        self.listeners.iter().map(|next| next.place).collect()
    }

    /// Sockets that workers have to be told of.
    pub(super) fn new_sockets(&self) -> usize {
        let count = |next: &Next| match &next.origin {
            Origin::Stays(_) => 0,
            Origin::New(_, copies) => copies.len(),
        };
        let of_quic =
            self.quic.iter().filter_map(|next| next.sockets.as_ref()).map(|(_, new)| new.len());
        self.listeners.iter().map(count).chain(of_quic).sum()
    }
}

impl Listeners {
    /// Of sockets with that backlog, and steered to the workers on these CPUs; with the keys of the
    /// process before, if it gave any.
    pub(super) fn new(
        backlog: u32,
        steered: Option<Vec<usize>>,
        quic_keys: Option<quic::Keys>,
    ) -> Listeners {
        let quic_keys = quic_keys.map_or_else(OnceCell::new, OnceCell::from);
        Listeners { backlog, steered, quic_keys, ..Listeners::default() }
    }

    /// Binds what is not bound yet: one socket for each worker. Nothing of what runs is touched.
    ///
    /// # Errors
    /// The address and what the kernel said.
    pub(super) fn prepare(
        &self,
        listeners: &[config::Listener],
        workers: usize,
        inherited: &mut Inherited,
    ) -> Result<Prepared, ListenersError> {
        let mut names = self.names.clone();
        let mut next = Vec::new();
        let mut next_quic = Vec::new();
        for config::Listener { name, address, protocols, .. } in listeners {
            let place = names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            let wrap = |error| ListenError { address: *address, error };
            let origin = match self.bound.iter().position(|bound| bound.address == *address) {
                Some(index) if self.bound[index].place == place => Origin::Stays(index),
                Some(index) => {
                    let sockets = &self.bound[index].sockets;
                    Origin::New(copies(sockets).map_err(wrap)?, copies(sockets).map_err(wrap)?)
                }
                None => {
                    let sockets = self.sockets(*address, workers, inherited)?;
                    let given = copies(&sockets).map_err(wrap)?;
                    Origin::New(sockets, given)
                }
            };
            next.push(Next { place, address: *address, origin });
            if protocols.contains(&Protocol::Http3) {
                let given = inherited.datagrams.remove(address);
                next_quic.push(self.prepare_quic(place, *address, workers, given)?);
            }
        }
        if names.len() > PLACES_MAX {
            return Err(ListenersError::Places);
        }
        Ok(Prepared { names, listeners: next, quic: next_quic })
    }

    fn prepare_quic(
        &self,
        place: usize,
        address: SocketAddr,
        workers: usize,
        inherited: Option<Vec<quic_passage::Inherited>>,
    ) -> Result<NextQuic, ListenersError> {
        let new = || -> Result<_, ListenError> {
            let keys = self.quic_keys(address)?;
            let bound = match inherited {
                Some(inherited) => quic::group_of(address, inherited, workers, &keys)?,
                None => quic::group(address, workers, &keys)?,
            };
            let held = bound.iter().map(quic::Bound::held).collect::<io::Result<_>>();
            Ok((held.map_err(|error| ListenError { address, error })?, bound))
        };
        let sockets = match self.quic.iter().find(|bound| bound.address == address) {
            Some(bound) if bound.place == place => None,
            // Two endpoints at one port would take each other's datagrams.
            Some(_) => return Err(ListenersError::Renamed(address)),
            None => Some(new()?),
        };
        Ok(NextQuic { place, address, sockets })
    }

    /// One pair of keys for the whole run.
    fn quic_keys(&self, address: SocketAddr) -> Result<quic::Keys, ListenError> {
        if let Some(keys) = self.quic_keys.get() {
            return Ok(keys.clone());
        }
        let keys = quic::Keys::random().map_err(|error| ListenError { address, error })?;
        Ok(self.quic_keys.get_or_init(|| keys).clone())
    }

    fn sockets(
        &self,
        address: SocketAddr,
        workers: usize,
        inherited: &mut Inherited,
    ) -> Result<Vec<TcpListener>, ListenError> {
        let wrap = |error| ListenError { address, error };
        let given = inherited.streams.remove(&address);
        if let Some(mut sockets) = given.filter(|some| !some.is_empty()) {
            let missing = workers.saturating_sub(sockets.len());
            match listen::group_beside(address, missing, self.backlog) {
                Ok(more) => sockets.extend(more),
                // Bound by another user, or not to be shared: then workers accept from the same ones.
                Err(_) => {
                    for number in 0..missing {
                        sockets.push(sockets[number].try_clone().map_err(wrap)?);
                    }
                }
            }
            return Ok(sockets);
        }
        // Our own socket at `[::]` is no reason to refuse `0.0.0.0` in its place.
        let sockets = if self.bound.iter().any(|bound| config::overlap(&bound.address, &address)) {
            listen::group_beside(address, workers, self.backlog)?
        } else {
            listen::group(address, workers, self.backlog)?
        };
        if let Some(cpus) = &self.steered {
            listen::steer(&sockets, cpus).map_err(wrap)?;
        }
        Ok(sockets)
    }

    /// Makes the change; what is no longer listened on takes its course. Gives what is to be accepted
    /// from, for each listener in the order of its sockets.
    pub(super) fn make(&mut self, prepared: Prepared, course: Course) -> Vec<Vec<Listening>> {
        let mut before: Vec<Option<Bound>> =
            std::mem::take(&mut self.bound).into_iter().map(Some).collect();
        let mut news = Vec::new();
        for Next { place, address, origin } in prepared.listeners {
            match origin {
                // Two listeners never have the same address, so each is taken once.
                Origin::Stays(index) => self.bound.extend(before[index].take()),
                Origin::New(sockets, copies) => {
                    let (phase, heard) = watch::channel(Phase::Running);
                    let listening = |socket| {
                        let socket = worker::Socket::Streams(socket);
                        Listening { listener: place, socket, phase: heard.clone() }
                    };
                    news.push(copies.into_iter().map(listening).collect());
                    self.bound.push(Bound { place, address, sockets, phase });
                }
            }
        }
        self.names = prepared.names;
        for Bound { sockets, phase, .. } in before.into_iter().flatten() {
            // Ours first: the workers' copies are the last, and take what waits before they close.
            drop(sockets);
            self.leaving.push((phase, course));
        }
        news.extend(self.make_quic(prepared.quic, course));
        self.follow_courses(course.accepts_until);
        news
    }

    fn make_quic(&mut self, next: Vec<NextQuic>, course: Course) -> Vec<Vec<Listening>> {
        let mut before = std::mem::take(&mut self.quic);
        let mut news = Vec::new();
        for NextQuic { place, address, sockets } in next {
            let Some((held, sockets)) = sockets else {
                let stays = before.iter().position(|bound| bound.address == address);
                self.quic.extend(stays.map(|index| before.swap_remove(index)));
                continue;
            };
            let (phase, heard) = watch::channel(Phase::Running);
            let listening = |bound| {
                let socket = worker::Socket::Quic(bound);
                Listening { listener: place, socket, phase: heard.clone() }
            };
            news.push(sockets.into_iter().map(listening).collect());
            self.quic.push(BoundQuic { place, address, held, phase });
        }
        self.leaving.extend(before.into_iter().map(|bound| (bound.phase, course)));
        news
    }

    /// Tells connections of addresses that are given up how far that is.
    pub(super) fn follow_courses(&mut self, now: Instant) {
        self.leaving.retain(|(phase, course)| {
            tell(phase, course.phase(now));
            // With nobody left to hear of it, it is over.
            course.phase(now) != Phase::Stopping && phase.receiver_count() > 0
        });
    }

    /// Tells everybody what the process is doing.
    pub(super) fn tell(&self, phase: Phase) {
        let leaving = self.leaving.iter().map(|(leaving, _)| leaving);
        let quic = self.quic.iter().map(|bound| &bound.phase);
        for each in self.bound.iter().map(|bound| &bound.phase).chain(quic).chain(leaving) {
            tell(each, phase);
        }
    }

    /// Lets go of the sockets: whoever else has none of them keeps nobody waiting.
    pub(super) fn let_go(&mut self) {
        for bound in &mut self.bound {
            bound.sockets.clear();
        }
    }

    /// Names with their places: of those that are listened on, and of others that `is_open` says still
    /// have connections.
    pub(super) fn shown(&self, is_open: impl Fn(usize) -> bool) -> Vec<(usize, String)> {
        let is_bound = |place| self.bound.iter().any(|bound| bound.place == place);
        let names = self.names.iter().cloned().enumerate();
        names.filter(|(place, _)| is_bound(*place) || is_open(*place)).collect()
    }

    /// Every socket of HTTP/3, those of one address in the order of their group.
    pub(super) fn quic_held(&mut self) -> impl Iterator<Item = (SocketAddr, &mut quic::Held)> {
        self.quic.iter_mut().flat_map(|bound| {
            let address = bound.address;
            bound.held.iter_mut().map(move |held| (address, held))
        })
    }

    /// What retries and resets are signed with, where HTTP/3 is served.
    pub(super) fn quic_keys_in_use(&self) -> Option<quic::Keys> {
        self.quic_keys.get().cloned()
    }

    /// Every socket that is listened on.
    pub(super) fn sockets_held(&self) -> impl Iterator<Item = (SocketAddr, &TcpListener)> {
        self.bound.iter().flat_map(|bound| bound.sockets.iter().map(|one| (bound.address, one)))
    }
}

/// A phase is only ever followed by a later one.
fn tell(phase: &watch::Sender<Phase>, next: Phase) {
    phase.send_if_modified(|phase| {
        let is_later = *phase < next;
        *phase = next.max(*phase);
        is_later
    });
}

fn copies(sockets: &[TcpListener]) -> io::Result<Vec<TcpListener>> {
    sockets.iter().map(TcpListener::try_clone).collect()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;
    use crate::{config::ListenerTls, time};

    fn listener(name: &str, address: SocketAddr) -> config::Listener {
        let tls = ListenerTls { sites: Vec::new(), sessions: 0 };
        config::Listener {
            name: name.to_owned(),
            address,
            protocols: Vec::new(),
            proxies: None,
            tls,
        }
    }

    fn free() -> SocketAddr {
        // The kernel does not give the port to anybody else while it has others.
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn course() -> Course {
        Course::of_leave(time::monotonic(), Duration::from_secs(2))
    }

    fn change(
        listeners: &mut Listeners,
        next: &[config::Listener],
    ) -> Result<Vec<Vec<Listening>>, ListenersError> {
        let prepared = listeners.prepare(next, 2, &mut Inherited::default())?;
        Ok(listeners.make(prepared, course()))
    }

    #[test]
    fn what_stays_keeps_its_sockets_and_what_goes_is_told() {
        let (here, there) = (free(), free());
        let mut listeners = Listeners::default();
        let first = change(&mut listeners, &[listener("a", here)]).unwrap();
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
        assert!(change(&mut listeners, &[listener("a", here)]).unwrap().is_empty());
        let more = [listener("b", there), listener("a", here)];
        let second = change(&mut listeners, &more).unwrap();
        assert_eq!((second.len(), second[0][0].listener), (1, 1), "a new one has a new place");
        assert_eq!(*first[0][0].phase.borrow(), Phase::Running);
        assert!(change(&mut listeners, &[listener("b", there)]).unwrap().is_empty());
        assert_eq!(*first[0][0].phase.borrow(), Phase::Draining, "a is gone");
        assert_eq!(listeners.shown(|_| false), [(1, "b".to_owned())]);
        assert_eq!(listeners.shown(|_| true).len(), 2);
        listeners.follow_courses(time::monotonic() + Duration::from_secs(3));
        assert_eq!(*first[0][0].phase.borrow(), Phase::Stopping);
        drop(first);
        assert!(TcpStream::connect(here).is_err(), "nobody listens there any more");
        let third = change(&mut listeners, &[listener("a", there)]).unwrap();
        assert_eq!(third[0][0].listener, 0, "its old place");
        assert_eq!(*second[0][0].phase.borrow(), Phase::Draining, "b gave its sockets to a");
    }

    #[test]
    fn what_cannot_be_bound_changes_nothing() {
        let here = free();
        let mut listeners = Listeners::default();
        let first = change(&mut listeners, &[listener("a", here)]).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = change(&mut listeners, &[listener("b", taken.local_addr().unwrap())])
            .expect_err("somebody is there");
        assert!(error.to_string().contains("another process"), "{error}");
        assert_eq!(*first[0][0].phase.borrow(), Phase::Running);
        assert_eq!(listeners.shown(|_| false), [(0, "a".to_owned())]);
        assert!(TcpStream::connect(here).is_ok());
    }

    #[test]
    fn inherited_sockets_are_used_and_what_is_missing_is_added() {
        let address = free();
        let others = listen::group(address, 1, 16).unwrap();
        let inherits = |address, sockets| Inherited {
            streams: HashMap::from([(address, sockets)]),
            ..Inherited::default()
        };
        let mut inherited = inherits(address, others);
        let listeners = Listeners::default();
        let prepared = listeners.prepare(&[listener("a", address)], 3, &mut inherited).unwrap();
        assert_eq!(prepared.new_sockets(), 3);
        assert!(inherited.streams.is_empty());
        // One that cannot be shared by port is shared as it is.
        let alone = listen::single(free()).unwrap();
        let address = alone.local_addr().unwrap();
        let mut inherited = inherits(address, vec![alone]);
        let prepared = listeners.prepare(&[listener("a", address)], 3, &mut inherited).unwrap();
        assert_eq!(prepared.new_sockets(), 3);
    }
}
