//! QUIC endpoints: one UDP socket a worker on the listener's port, and how each datagram finds the
//! worker that knows its connection.
//!
//! The kernel spreads datagrams over a SO_REUSEPORT group by addresses and ports, and a client may
//! change those at any time (RFC 9000 section 9). So every connection ID that is handed out carries
//! the number of its socket, hidden from observers, and a filter of eight instructions in the kernel
//! reads it. Before a client knows such an ID its address stays the same, and the kernel's own choice
//! stays the same with it. The filter needs no privilege.

use std::{fmt, io, net::SocketAddr, os::fd::AsRawFd, sync::Arc, time::Duration};

use aws_lc_rs::{hkdf, hmac, rand};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TokioRuntime, TransportConfig, VarInt, crypto,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::listen::ListenError;

/// Octets of our connection IDs: two of mask, two of the hidden slot, four that are random.
const CONNECTION_ID_BYTES: usize = 8;

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

/// What all endpoints of a process have in common: a retry or a reset that one of them signed is good
/// at the others, and at those of the process that takes over.
#[derive(Clone)]
pub struct Keys {
    reset: [u8; 32],
    token: [u8; 32],
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
        let mut keys = Keys { reset: [0; 32], token: [0; 32] };
        for key in [&mut keys.reset, &mut keys.token] {
            rand::fill(key).map_err(|_| io::Error::other("no random numbers"))?;
        }
        Ok(keys)
    }

    /// From what [`to_bytes`](Self::to_bytes) gave, for the process that takes over.
    pub fn from_bytes(bytes: &[u8; 64]) -> Keys {
        let mut keys = Keys { reset: [0; 32], token: [0; 32] };
        keys.reset.copy_from_slice(&bytes[..32]);
        keys.token.copy_from_slice(&bytes[32..]);
        keys
    }

    /// The keys themselves: for the process that takes over, and nobody else.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.reset);
        bytes[32..].copy_from_slice(&self.token);
        bytes
    }

    fn endpoint(&self, slot: u16) -> EndpointConfig {
        let mut config =
            EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset)));
        config.cid_generator(move || Box::new(Steered { slot }));
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
}

impl Bound {
    /// Serves on it, inside a worker's runtime. `crypto` only opens first packets; each connection
    /// is accepted with settings of its own.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn serve(self, crypto: Arc<dyn crypto::ServerConfig>) -> io::Result<(Endpoint, Settings)> {
        let settings = Settings { token: self.keys.token() };
        let endpoint = Endpoint::new(
            self.keys.endpoint(self.slot),
            // Of no connection: each has as many streams as the configuration says when it comes.
            Some(settings.accepting(crypto, 0)),
            self.socket,
            Arc::new(TokioRuntime),
        )?;
        Ok((endpoint, settings))
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
        sockets.push(Bound { socket: socket.into(), slot, keys: keys.clone() });
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

/// Attaches the filter to the group of `socket`: the slot of a short header's connection ID, and
/// nothing for a long header, which makes the kernel choose by addresses and ports. A slot that no
/// socket has does the same.
fn steer(socket: &Socket) -> io::Result<()> {
    // What is loaded lies in the UDP payload; a load beyond its end ends the filter with 0.
    let instruction = |code: u32, jt: u8, k: u32| libc::sock_filter {
        code: code as u16, // The codes are 16 bits wide; libc declares them wider.
        jt,
        jf: 0,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_ABS;
    let mut filter = [
        instruction(load | libc::BPF_B, 0, 0),
        // RFC 8999 section 5.1: the first bit tells long headers, which go to the last instruction.
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 5, 0x80),
        // The connection ID begins at the second octet: mask, then masked slot.
        instruction(load | libc::BPF_H, 0, 1),
        instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0),
        instruction(load | libc::BPF_H, 0, 3),
        instruction(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_A, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies `program` and the instructions it points to during the call; both live
    // on this stack frame, and the length is that of the array.
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
}

impl Steered {
    fn id(&self, random: [u8; CONNECTION_ID_BYTES]) -> [u8; CONNECTION_ID_BYTES] {
        let mut id = random;
        let slot = self.slot.to_be_bytes();
        // The mask differs from ID to ID, so that those of one connection look unrelated
        // (RFC 9000 section 5.1).
        id[2] = id[0] ^ slot[0];
        id[3] = id[1] ^ slot[1];
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
            let mut generator = Steered { slot };
            let (first, second) = (generator.generate_cid(), generator.generate_cid());
            assert_ne!(first, second);
            assert_eq!([first[0] ^ first[2], first[1] ^ first[3]], slot.to_be_bytes());
        }
    }

    #[test]
    fn keys_survive_being_handed_over() {
        let keys = Keys::random().unwrap();
        assert_eq!(Keys::from_bytes(&keys.to_bytes()).to_bytes(), keys.to_bytes());
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
                let id = Steered { slot }.generate_cid();
                let mut datagram = vec![0x40];
                datagram.extend_from_slice(&id);
                datagram.extend_from_slice(&slot.to_be_bytes());
                // Loopback delivers before `send_to` returns.
                client.send_to(&datagram, address).unwrap();
            }
            for (slot, bound) in group.iter().enumerate() {
                let got = receive(bound);
                assert_eq!(got.len(), 1, "round {round}, slot {slot}: {got:?}");
                assert_eq!(got[0][9..], (slot as u16).to_be_bytes(), "round {round}");
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
