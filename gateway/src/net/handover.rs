//! Listening sockets on their way from one process to the next: the same sockets, not the same
//! addresses bound anew, so that no connection that waits in them is lost.
//!
//! The new process asks over the operators' socket, gets the offer and the sockets, serves, says so,
//! and gets the last of the old one's state; only then the old one ends. Whatever goes wrong before
//! leaves the old one serving.

use std::{
    fmt,
    io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::quic_passage::Inherited;

/// The language of this file. Two processes that do not speak the same one do not hand over.
pub const PROTOCOL: u32 = 1;

/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const SENT_AT_ONCE: usize = 200;

/// Sockets that are taken: a thousand workers with a few listeners.
pub const SOCKETS_MAX: usize = 16_384;

/// Longest line: the state of a full table of bans is about 10 MiB.
const LINE_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// A side that says nothing for so long is gone. Loading the XDP program takes longest, a second or
/// two on a busy machine.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What the new process says when it serves.
const SERVING: &[u8] = b"serving\n";

/// What the old process has to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// As [`PROTOCOL`].
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The sockets that follow, in this order.
    pub sockets: Vec<Offered>,
    /// What signs retries and resets of QUIC, where that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_keys: Option<Secret>,
    /// Keys of issuers that publish them, so that the new process need not wait for its own first answer
    /// while clients ask it already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuer_keys: Vec<KeptKeys>,
}

/// Keys that an issuer has published, and that are believed still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptKeys {
    /// Who the issuer says it is.
    pub identifier: String,
    /// Its document, as it came.
    pub document: Secret,
    /// How long ago that was.
    pub age: Duration,
}

/// Documents of issuers that are told, in bytes: hundreds of usual ones, and four times as much when it is
/// written out, which leaves room in a line. What does not fit is asked for anew.
pub const DOCUMENTS_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Octets that are nobody else's to see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").finish_non_exhaustive()
    }
}

/// What one socket, or several, are for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offered {
    /// Clients connect there.
    Listener {
        /// Where that is.
        address: SocketAddr,
        /// So many sockets of it.
        count: usize,
    },
    /// Clients send datagrams there: one socket, and a way to each process that has connections on it.
    Datagrams {
        /// Where that is.
        address: SocketAddr,
        /// Those processes, by the tags in their connection IDs.
        tags: Vec<u32>,
    },
    /// Metrics are asked for there.
    Monitors {
        /// Where that is.
        address: SocketAddr,
    },
    /// The socket that this conversation goes over.
    Operators,
}

impl Offered {
    fn count(&self) -> usize {
        match self {
            Offered::Listener { count, .. } => *count,
            Offered::Datagrams { tags, .. } => tags.len() + 1,
            Offered::Monitors { .. } | Offered::Operators => 1,
        }
    }
}

/// What only the old process knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Bans that no kernel map keeps.
    pub bans: Vec<KeptBan>,
    /// What is held against sources.
    #[serde(default)]
    pub accounts: Vec<KeptAccount>,
    /// Good clients, by the source that they speak for.
    #[serde(default)]
    pub good_clients: Vec<(String, Vec<(u64, Duration)>)>,
    /// What was used of limits.
    #[serde(default)]
    pub limits: Vec<KeptLimit>,
}

/// Sources whose accounts, and as many whose good clients, are told: together some 10 MiB.
pub const SOURCES_MAX: usize = 20_000;

/// Consumers whose use of limits is told: some 6 MiB.
pub const CONSUMERS_MAX: usize = 100_000;

/// What is held against one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptAccount {
    /// Whose it is.
    pub source: String,
    /// Points now.
    pub points: f64,
    /// Step of the ladder.
    pub level: u32,
    /// It is banned for so long.
    pub banned_for: Option<Duration>,
    /// Its step is remembered for so long.
    pub remembered_for: Option<Duration>,
    /// Numbers of the last refusals' reasons, and how long ago they were.
    pub lately: Vec<(u32, Duration)>,
}

/// What was used of one limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptLimit {
    /// Its name.
    pub name: String,
    /// What the hashes begin with.
    pub secret: [u64; 2],
    /// One that the other can compute.
    pub proof: u64,
    /// A consumer's hash, and nanoseconds until its buckets are full.
    pub rows: Vec<(u64, [u64; 3])>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptBan {
    /// Whose, as a prefix.
    pub source: String,
    /// Time left.
    pub remaining: Duration,
    /// The reason's number.
    pub reason: u32,
    /// The origin's number.
    pub origin: u32,
    /// Step of the ladder.
    pub level: u32,
}

/// Why nothing was handed over.
#[derive(Debug)]
pub enum HandoverError {
    /// The conversation broke.
    Broken(io::Error),
    /// The other side says no; its words.
    Refused(String),
    /// What came is not what was announced.
    Strange(&'static str),
}

impl fmt::Display for HandoverError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverError::Broken(error) => write!(formatter, "the other process is gone: {error}"),
            HandoverError::Refused(why) => formatter.write_str(why),
            HandoverError::Strange(what) => write!(
                formatter,
                "{what}: the running daemon is of another kind; stop it and start this one"
            ),
        }
    }
}

impl std::error::Error for HandoverError {}

impl From<io::Error> for HandoverError {
    fn from(error: io::Error) -> HandoverError {
        HandoverError::Broken(error)
    }
}

/// What the new process was given.
#[derive(Debug)]
pub struct Taken {
    /// By whom.
    pub offer: Offer,
    /// Listeners' sockets.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
    /// Listeners' sockets for HTTP/3, those of one address in the order of their group.
    pub datagrams: Vec<(SocketAddr, Inherited)>,
    /// The monitors' socket.
    pub monitors: Option<(SocketAddr, OwnedFd)>,
    /// The operators' socket.
    pub operators: Option<OwnedFd>,
    stream: UnixStream,
}

/// How the daemon answers on its socket.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told<T> {
    Ok(T),
    Error(String),
}

/// The new side: asks for the sockets. `None`: nobody is there.
///
/// # Errors
/// Somebody is there and does not hand over.
pub fn take(path: &Path) -> Result<Option<Taken>, HandoverError> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    patient(&stream)?;
    let version = env!("CARGO_PKG_VERSION");
    let question = format!(
        "{{\"command\":\"take_over\",\"protocol\":{PROTOCOL},\"version\":\"{version}\"}}\n"
    );
    (&stream).write_all(question.as_bytes())?;
    // One octet after the other: the descriptors come with the octets behind the line.
    let offer: Offer = read_line(BufReader::with_capacity(1, &stream))?;
    if offer.protocol != PROTOCOL {
        return Err(HandoverError::Strange("it hands over otherwise"));
    }
    let count: usize = offer.sockets.iter().map(Offered::count).sum();
    if count > SOCKETS_MAX {
        return Err(HandoverError::Strange("it has too many sockets"));
    }
    let mut sockets = receive(&stream, count)?.into_iter();
    let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
    let (mut monitors, mut operators) = (None, None);
    for offered in &offer.sockets {
        let mut given = sockets.by_ref().take(offered.count());
        match offered {
            Offered::Listener { address, .. } => {
                listeners.extend(given.map(|socket| (*address, socket)));
            }
            Offered::Datagrams { address, tags } => {
                let inherited = Inherited::from_parts(tags, given.collect());
                let strange = HandoverError::Strange("it has too many processes before it");
                datagrams.push((*address, inherited.ok_or(strange)?));
            }
            Offered::Monitors { address } => {
                monitors = given.next().map(|socket| (*address, socket));
            }
            Offered::Operators => operators = given.next(),
        }
    }
    Ok(Some(Taken { offer, listeners, datagrams, monitors, operators, stream }))
}

impl Taken {
    /// Says that the new process serves, and gets what only the old one knew. From then on the old one
    /// ends.
    ///
    /// # Errors
    /// The old one went on by itself: this one has to end.
    pub fn serving(self) -> Result<State, HandoverError> {
        (&self.stream).write_all(SERVING)?;
        read_line(BufReader::new(&self.stream))
    }
}

/// The old side: gives the sockets and waits until the new process serves.
///
/// # Errors
/// It does not; then this one goes on.
pub fn give(stream: &UnixStream, offer: &Offer, sockets: &[OwnedFd]) -> Result<(), HandoverError> {
    patient(stream)?;
    write_line(stream, offer)?;
    send(stream, sockets)?;
    let mut said = Vec::new();
    let mut reader = BufReader::new(stream.take(SERVING.len() as u64));
    reader.read_until(b'\n', &mut said)?;
    if said != SERVING {
        return Err(HandoverError::Strange("it ended before it served"));
    }
    Ok(())
}

/// The old side's last words.
///
/// # Errors
/// Nobody hears them.
pub fn finish(stream: &UnixStream, state: &State) -> Result<(), HandoverError> {
    write_line(stream, state)
}

fn patient(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))
}

fn write_line<T: Serialize>(mut stream: &UnixStream, value: &T) -> Result<(), HandoverError> {
    let mut line = serde_json::to_vec(&serde_json::json!({ "ok": value }))
        .map_err(|error| HandoverError::Broken(error.into()))?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn read_line<T: DeserializeOwned>(reader: impl BufRead) -> Result<T, HandoverError> {
    let mut line = Vec::new();
    reader.take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
    match serde_json::from_slice(&line) {
        Ok(Told::Ok(value)) => Ok(value),
        Ok(Told::Error(why)) => Err(HandoverError::Refused(why)),
        Err(_) => Err(HandoverError::Strange("it says what cannot be read")),
    }
}

/// Sends descriptors, each message with one octet to carry them.
fn send(stream: &UnixStream, sockets: &[OwnedFd]) -> io::Result<()> {
    for sockets in sockets.chunks(SENT_AT_ONCE) {
        let raw: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let octet = [IoSlice::new(b"+")];
        sendmsg::<()>(stream.as_raw_fd(), &octet, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    Ok(())
}

/// Receives exactly so many.
fn receive(stream: &UnixStream, count: usize) -> Result<Vec<OwnedFd>, HandoverError> {
    let mut received: Vec<OwnedFd> = Vec::new();
    while received.len() < count {
        let mut octet = [0; 1];
        let mut slices = [IoSliceMut::new(&mut octet)];
        let mut space = nix::cmsg_space!([RawFd; SENT_AT_ONCE]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)
            .map_err(io::Error::from)?;
        for control in message.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody
                // else in it knows them.
                received.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        if message.bytes == 0 {
            return Err(HandoverError::Strange("it ended before it gave its sockets"));
        }
    }
    if received.len() > count {
        return Err(HandoverError::Strange("it gave more sockets than it announced"));
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    fn offer(sockets: Vec<Offered>) -> Offer {
        Offer {
            protocol: PROTOCOL,
            version: "1".to_owned(),
            pid: 7,
            sockets,
            quic_keys: None,
            issuer_keys: Vec::new(),
        }
    }

    /// Runs `old` as the process that is asked.
    fn asked(old: impl FnOnce(&UnixStream) + Send) -> Result<Option<Taken>, HandoverError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut question = String::new();
                BufReader::with_capacity(1, &stream).read_line(&mut question).unwrap();
                assert!(question.contains("take_over"), "{question}");
                old(&stream);
            });
            take(&path)
        })
    }

    #[test]
    fn the_same_socket_arrives_with_what_waits_in_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"hello").unwrap();
        // More than go into one message.
        let count = SENT_AT_ONCE + 3;
        let sockets: Vec<OwnedFd> =
            (0..count).map(|_| listener.try_clone().unwrap().into()).collect();
        drop(listener);
        let (done, wait) = std::sync::mpsc::channel();
        let taken = asked(move |stream| {
            let stream = stream.try_clone().unwrap();
            thread::spawn(move || {
                let offered = offer(vec![Offered::Listener { address, count }]);
                let given = give(&stream, &offered, &sockets);
                drop(sockets);
                finish(&stream, &State::default()).unwrap();
                done.send(given.is_ok()).unwrap();
            });
        });
        let mut taken = taken.unwrap().expect("somebody is there");
        assert_eq!((taken.listeners.len(), taken.offer.pid), (count, 7));
        let (at, socket) = taken.listeners.pop().unwrap();
        assert_eq!(at, address);
        assert_eq!(taken.serving().unwrap(), State::default());
        assert!(wait.recv().unwrap());
        let (mut stream, _) = TcpListener::from(socket).accept().unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello", "it was accepted by the kernel before");
    }

    #[test]
    fn whoever_does_not_hand_over_is_told_apart() {
        assert!(take(Path::new("/nowhere/at/all")).unwrap().is_none(), "nobody is there");
        for (what, answer, expected) in [
            ("an older daemon", "{\"error\":\"not a command\"}\n", "not a command"),
            ("no daemon at all", "hello\n", "of another kind"),
            ("silence", "", "of another kind"),
            (
                "another language",
                "{\"ok\":{\"protocol\":99,\"version\":\"9\",\"pid\":1,\"sockets\":[]}}\n",
                "hands over otherwise",
            ),
            (
                "no sockets behind the offer",
                "{\"ok\":{\"protocol\":1,\"version\":\"9\",\"pid\":1,\"sockets\":[\"operators\"]}}\n",
                "before it gave its sockets",
            ),
        ] {
            let taken = asked(|mut stream| stream.write_all(answer.as_bytes()).unwrap());
            let error = taken.expect_err(what).to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
    }

    #[test]
    fn the_old_side_goes_on_when_the_new_one_does_not_serve() {
        for said in ["", "serv", "nothing\n"] {
            let (old, mut new) = UnixStream::pair().unwrap();
            new.write_all(said.as_bytes()).unwrap();
            new.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(give(&old, &offer(Vec::new()), &[]).is_err(), "{said}");
        }
    }
}
