//! QUIC endpoints: one UDP socket a worker on the listener's port, and how each datagram finds the
//! worker that knows its connection.
//!
//! The kernel spreads datagrams over a SO_REUSEPORT group by addresses and ports, and a client may
//! change those at any time (RFC 9000 section 9). So every connection ID that is handed out carries
//! the number of its socket, hidden from observers, and a filter of a few instructions in the kernel
//! reads it. Before a client knows such an ID its address stays the same, and the kernel's own choice
//! stays the same with it. The filter needs no privilege.
//!
//! The sockets outlive the process: the one that takes over gets them, and what belongs to connections
//! of the one before it passes on (`quic_passage`). Their place in the group never changes, and each
//! connection ID carries the [`Tag`] of the process that made it.

use std::{fmt, io, net::SocketAddr, os::fd::AsRawFd, sync::Arc, time::Duration};

use aws_lc_rs::{hkdf, hmac, rand};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Runtime as _,
    ServerConfig, TokioRuntime, TransportConfig, VarInt, crypto,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    listen::ListenError,
    quic_passage::{Ancestor, Inherited, Passage, Steps},
};

/// Octets of our connection IDs: two of mask, two of the hidden slot, four that are random, four of the
/// hidden tag.
const CONNECTION_ID_BYTES: usize = 12;

/// HTTP/3 needs three streams towards the server (control, and two of QPACK); the rest is for those
/// that a client opens only to see that they are ignored (RFC 9114 section 6.2.3).
const UNIDIRECTIONAL_STREAMS_MAX: u32 = 8;

/// Octets of one request's body that may be on their way: 80 Mbit/s at 100 ms.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Octets of one connection that may be on their way, in each direction. It bounds what a client
/// that stops reading, or an upstream that does, can make us keep.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Octets of handshake messages out of order: a client's certificates, at most eight times over.
const HANDSHAKE_BUFFER_BYTES: usize = 64 * 1024;

/// A connection on which nothing was heard for this long is gone, as HTTP/2 finds out by PING. A client
/// that is there and asks nothing is the watch's to judge, by `[clients].idle`.
const GONE_AFTER_MS: u32 = 60_000;

/// On a silent connection a PING asks whether the client is still there, so that neither side takes a
/// request that is answered late, or the pause between two, for the end. Most clients announce that
/// they wait for 30 s.
const PING_EVERY: Duration = Duration::from_secs(20);

/// New connections that wait for their worker in one endpoint; it takes them at each turn.
const INCOMING_MAX: usize = 1_024;

/// Octets kept of one connection that waits, and of all: two datagrams of a large first message.
const INCOMING_BYTES: u64 = 8 * 1024;
const INCOMING_ALL_BYTES: u64 = 4 * 1024 * 1024;

/// A retry is answered within a round trip; longer means that the token was kept for later.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);

/// Octets that a socket's queue may hold: at 100,000 datagrams a second some 15 ms of a worker that
/// is busy. The kernel cuts it to `net.core.rmem_max`.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// Octets of the keys, as they go to the process that takes over.
pub const KEYS_BYTES: usize = 64;

/// The process that made a connection ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u32);

impl Tag {
    /// Whose connection a datagram is for; `None` when it bears none of our IDs. The first of a new
    /// client bears one of the client's own, which is like ours in one of four thousand million.
    pub(super) fn of(datagram: &[u8]) -> Option<Tag> {
        // RFC 8999 sections 5.1 and 5.2: where the destination's ID is, for any version.
        let id = match datagram.first()? & 0x80 {
            0 => datagram.get(1..1 + CONNECTION_ID_BYTES)?,
            _ if usize::from(*datagram.get(5)?) != CONNECTION_ID_BYTES => return None,
            _ => datagram.get(6..6 + CONNECTION_ID_BYTES)?,
        };
        let (random, hidden) = (id[4..8].try_into().ok()?, id[8..12].try_into().ok()?);
        Some(Tag(u32::from_be_bytes(random) ^ u32::from_be_bytes(hidden)))
    }
}

/// What all endpoints of a process have in common: a retry or a reset that one of them signed is good
/// at the others, and at those of the process that takes over.
#[derive(Clone)]
pub struct Keys {
    reset: [u8; 32],
    token: [u8; 32],
    tag: Tag,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// New ones, from the system's generator.
    ///
    /// # Errors
    /// The generator gives nothing.
    pub fn random() -> io::Result<Keys> {
        let mut bytes = [0; KEYS_BYTES];
        rand::fill(&mut bytes).map_err(|_| io::Error::other("no random numbers"))?;
        Keys::from_bytes(&bytes)
    }

    /// From what [`to_bytes`](Self::to_bytes) gave, for the process that takes over; the tag is its own.
    ///
    /// # Errors
    /// The system's generator gives nothing.
    pub fn from_bytes(bytes: &[u8; KEYS_BYTES]) -> io::Result<Keys> {
        let mut tag = [0; 4];
        rand::fill(&mut tag).map_err(|_| io::Error::other("no random numbers"))?;
        let tag = Tag(u32::from_be_bytes(tag));
        let mut keys = Keys { reset: [0; 32], token: [0; 32], tag };
        keys.reset.copy_from_slice(&bytes[..32]);
        keys.token.copy_from_slice(&bytes[32..]);
        Ok(keys)
    }

    /// The process' tag.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The keys themselves: for the process that takes over, and nobody else.
    pub fn to_bytes(&self) -> [u8; KEYS_BYTES] {
        let mut bytes = [0; KEYS_BYTES];
        bytes[..32].copy_from_slice(&self.reset);
        bytes[32..].copy_from_slice(&self.token);
        bytes
    }

    fn endpoint(&self, slot: u16) -> EndpointConfig {
        let mut config =
            EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset)));
        let tag = self.tag;
        config.cid_generator(move || Box::new(Steered { slot, tag }));
        config
    }

    fn token(&self) -> Arc<hkdf::Prk> {
        Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&self.token))
    }
}

/// One worker's socket on a listener's UDP port.
#[derive(Debug)]
pub struct Bound {
    socket: std::net::UdpSocket,
    /// Its place in the group, in the order of binding.
    slot: u16,
    keys: Keys,
    steps: Steps,
    ancestors: Vec<Ancestor>,
}

impl Bound {
    /// Serves on it, inside a worker's runtime. `crypto` only opens first packets; each connection
    /// is accepted with settings of its own.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn serve(self, crypto: Arc<dyn crypto::ServerConfig>) -> io::Result<(Endpoint, Settings)> {
        let settings = Settings { token: self.keys.token() };
        let socket = TokioRuntime.wrap_udp_socket(self.socket)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            self.keys.endpoint(self.slot),
            // Of no connection: each has as many streams as the configuration says when it comes.
            Some(settings.accepting(crypto, 0)),
            Arc::new(Passage::new(socket, self.keys.tag, self.steps, self.ancestors)),
            Arc::new(TokioRuntime),
        )?;
        Ok((endpoint, settings))
    }

    /// The process' hold on it, from any thread.
    ///
    /// # Errors
    /// There is no descriptor to be had.
    pub fn held(&self) -> io::Result<Held> {
        Ok(Held {
            socket: self.socket.try_clone()?,
            tag: self.keys.tag,
            steps: self.steps.clone(),
            ancestors: self.ancestors.clone(),
        })
    }

    /// What tells whether it was given away.
    pub fn steps(&self) -> Steps {
        self.steps.clone()
    }
}

/// One socket as the process holds it, to give it to another.
#[derive(Debug)]
pub struct Held {
    socket: std::net::UdpSocket,
    tag: Tag,
    steps: Steps,
    ancestors: Vec<Ancestor>,
}

impl Held {
    /// The process before has let go of it: from now on its datagrams are read here.
    pub fn begin(&self) {
        self.steps.begin();
    }

    /// Copies for the next process: of the socket, and of the ways to those who still have connections
    /// on it, of which this process is the first.
    ///
    /// # Errors
    /// There are no descriptors to be had, or too many have connections on it.
    pub fn offered(&mut self) -> io::Result<Inherited> {
        self.ancestors.retain(Ancestor::is_there);
        let own = Ancestor { tag: self.tag, way: Arc::new(self.steps.offer()?) };
        let ancestors = std::iter::once(own).chain(self.ancestors.iter().cloned()).collect();
        Inherited::new(self.socket.try_clone()?, ancestors)
    }

    /// The other process reads from now on, and passes on what is for connections of this one.
    pub fn give(&self) {
        self.steps.give();
    }

    /// The other does not, after all.
    pub fn take_back(&self) {
        self.steps.take_back();
    }
}

/// What the connections of one endpoint have in common.
#[derive(Clone)]
pub struct Settings {
    token: Arc<hkdf::Prk>,
}

impl Settings {
    /// The settings of connections that are secured by `crypto` and carry up to `streams_max` requests
    /// at once.
    pub fn accepting(
        &self,
        crypto: Arc<dyn crypto::ServerConfig>,
        streams_max: u32,
    ) -> ServerConfig {
        let mut config = ServerConfig::new(crypto, self.token.clone());
        config
            .transport_config(Arc::new(transport(streams_max)))
            .retry_token_lifetime(RETRY_LIFETIME)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_ALL_BYTES);
        config
    }
}

fn transport(streams_max: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(UNIDIRECTIONAL_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .crypto_buffer_size(HANDSHAKE_BUFFER_BYTES)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(GONE_AFTER_MS))))
        .keep_alive_interval(Some(PING_EVERY))
        // Nothing here is made of datagrams (RFC 9221), so none are taken.
        .datagram_receive_buffer_size(None);
    transport
}

/// Binds `count` UDP sockets to one address, and sees to it that datagrams find their own.
///
/// As with TCP, a socket that does not share is bound first: it fails when anybody else is there.
///
/// # Errors
/// The address and what the kernel said.
pub fn group(address: SocketAddr, count: usize, keys: &Keys) -> Result<Vec<Bound>, ListenError> {
    let wrap = |error| ListenError { address, error };
    drop(bound(address, false).map_err(wrap)?);
    let mut sockets = Vec::new();
    for slot in 0..u16::try_from(count).unwrap_or(u16::MAX) {
        let socket = bound(address, true).map_err(wrap)?;
        if slot == 0 {
            steer(&socket).map_err(wrap)?;
        }
        sockets.push(new(socket.into(), slot, keys, Steps::reading()));
    }
    Ok(sockets)
}

fn new(socket: std::net::UdpSocket, slot: u16, keys: &Keys, steps: Steps) -> Bound {
    Bound { socket, slot, keys: keys.clone(), steps, ancestors: Vec::new() }
}

/// The group that another process had, in its order, and as many more as make `count`: nothing is read
/// before [`Held::begin`]. Where there are more of them than `count`, all of them are served, for each
/// may have connections.
///
/// # Errors
/// The address and what the kernel said.
pub fn group_of(
    address: SocketAddr,
    inherited: Vec<Inherited>,
    count: usize,
    keys: &Keys,
) -> Result<Vec<Bound>, ListenError> {
    let wrap = |error| ListenError { address, error };
    let there = inherited.len();
    let mut sockets = Vec::new();
    for (slot, Inherited { socket, ancestors }) in (0..u16::MAX).zip(inherited) {
        sockets.push(Bound { ancestors, ..new(socket, slot, keys, Steps::waiting()) });
    }
    for slot in there..count.min(usize::from(u16::MAX)) {
        // What comes there first waits; the others' places stay as they are.
        let socket = bound(address, true).map_err(wrap)?;
        sockets.push(new(socket.into(), slot as u16, keys, Steps::waiting()));
    }
    Ok(sockets)
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Smaller buffers than asked for only cost retransmissions.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Attaches the filter to the group of `socket`: the slot of a connection ID that is as long as ours,
/// and else nothing, which makes the kernel choose by addresses and ports. A slot that no socket has does
/// the same; that is what becomes of most IDs that a new client has made up.
fn steer(socket: &Socket) -> io::Result<()> {
    // What is loaded lies in the UDP payload; a load beyond its end ends the filter with 0.
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16, // The codes are 16 bits wide; libc declares them wider.
        jt,
        jf,
        k,
    };
    let load = |bytes: u32, at: u32| instruction(libc::BPF_LD | libc::BPF_ABS | bytes, 0, 0, at);
    // The mask, and then the masked slot.
    let slot = |at: u32| {
        [
            load(libc::BPF_H, at),
            instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
            load(libc::BPF_H, at + 2),
            instruction(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0, 0, 0),
            instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        ]
    };
    let jump = |condition: u32, jt: u8, jf: u8, k: u32| {
        instruction(libc::BPF_JMP | condition | libc::BPF_K, jt, jf, k)
    };
    let mut filter = vec![
        load(libc::BPF_B, 0),
        // RFC 8999 section 5.1: the first bit tells long headers.
        jump(libc::BPF_JSET, 5, 0, 0x80),
    ];
    // In a short header the connection ID begins at the second octet.
    filter.extend(slot(1));
    // In a long one the sixth octet is its length, and it begins at the seventh.
    filter.push(load(libc::BPF_B, 5));
    filter.push(jump(libc::BPF_JEQ, 0, 5, CONNECTION_ID_BYTES as u32));
    filter.extend(slot(6));
    filter.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies `program` and the instructions it points to during the call; both live
    // until this function returns, and the length is that of the list.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if attached == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes connection IDs that lead back to one socket.
struct Steered {
    slot: u16,
    tag: Tag,
}

impl Steered {
    fn id(&self, random: [u8; CONNECTION_ID_BYTES]) -> [u8; CONNECTION_ID_BYTES] {
        let mut id = random;
        let slot = self.slot.to_be_bytes();
        // The mask differs from ID to ID, so that those of one connection look unrelated
        // (RFC 9000 section 5.1).
        id[2] = id[0] ^ slot[0];
        id[3] = id[1] ^ slot[1];
        for (at, octet) in self.tag.0.to_be_bytes().into_iter().enumerate() {
            id[8 + at] = id[4 + at] ^ octet;
        }
        id
    }
}

impl ConnectionIdGenerator for Steered {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; CONNECTION_ID_BYTES];
        // The generator was asked for the keys before and gave them; were it to fail now, the IDs of
        // a worker would repeat, and quinn asks again for one that is in use.
        let _ = rand::fill(&mut random);
        ConnectionId::new(&self.id(random))
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn ids_differ_and_tell_their_slot() {
        for slot in [0, 1, 255, 256, u16::MAX] {
            let tag = Tag(0xdead_beef);
            let mut generator = Steered { slot, tag };
            let (first, second) = (generator.generate_cid(), generator.generate_cid());
            assert_ne!(first, second);
            assert_eq!([first[0] ^ first[2], first[1] ^ first[3]], slot.to_be_bytes());
            assert_ne!(first[8..], second[8..], "the tag is hidden too");
            let short = [&[0x40][..], &first, &[7; 9]].concat();
            assert_eq!(Tag::of(&short), Some(tag));
            let long = [&[0xc0, 0, 0, 0, 1, 12][..], &second, &[7; 9]].concat();
            assert_eq!(Tag::of(&long), Some(tag));
            let of_another_length = [&[0xc0, 0, 0, 0, 1, 8][..], &second, &[7; 9]].concat();
            for nobodys in [&[][..], &[0x40; 12], &[0xc0; 5], &long[..17], &of_another_length] {
                assert_eq!(Tag::of(nobodys), None, "{nobodys:?}");
            }
        }
    }

    #[test]
    fn keys_survive_being_handed_over() {
        let keys = Keys::random().unwrap();
        let heir = Keys::from_bytes(&keys.to_bytes()).unwrap();
        assert_eq!(heir.to_bytes(), keys.to_bytes());
        assert_ne!(heir.tag(), keys.tag(), "each process has its own");
        assert_ne!(Keys::random().unwrap().to_bytes(), keys.to_bytes());
        assert!(!format!("{keys:?}").contains("reset"), "{keys:?}");
    }

    /// What the kernel does with the filter: every short header arrives at the socket of its slot,
    /// whatever port it comes from, and those of one port with a long header stay together.
    #[test]
    fn datagrams_arrive_at_the_socket_of_their_connection() {
        let keys = Keys::random().unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let group = group(address, 4, &keys).unwrap();
        let receive = |bound: &Bound| {
            let mut got = Vec::new();
            let mut datagram = [0; 64];
            while let Ok((length, _)) = bound.socket.recv_from(&mut datagram) {
                got.push(datagram[..length].to_vec());
            }
            got
        };
        for round in 0..8 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            for slot in 0..4_u16 {
                let id = Steered { slot, tag: keys.tag() }.generate_cid();
                for header in [&[0x40][..], &[0xe0, 0, 0, 0, 1, 12]] {
                    let datagram = [header, &id, &slot.to_be_bytes()].concat();
                    // Loopback delivers before `send_to` returns.
                    client.send_to(&datagram, address).unwrap();
                }
            }
            for (slot, bound) in group.iter().enumerate() {
                let got = receive(bound);
                assert_eq!(got.len(), 2, "round {round}, slot {slot}: {got:?}");
                for got in got {
                    assert!(got.ends_with(&(slot as u16).to_be_bytes()), "round {round}");
                }
            }
            for _ in 0..3 {
                client.send_to(&[0xc0, 1, 2, 3, 4, 5], address).unwrap();
            }
            let together = group.iter().map(receive).filter(|got| !got.is_empty());
            assert_eq!(together.map(|got| got.len()).collect::<Vec<_>>(), [3], "round {round}");
        }
    }

    #[test]
    fn nobody_else_gets_the_port() {
        let keys = Keys::random().unwrap();
        let first = group("127.0.0.1:0".parse().unwrap(), 1, &keys).unwrap();
        let address = first[0].socket.local_addr().unwrap();
        let error = group(address, 1, &keys).expect_err("the address is taken");
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
    }
}
