//! Listening sockets: one SO_REUSEPORT socket for each worker on each address.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
};

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted at a socket that only one thread serves.
const BACKLOG: u32 = 128;

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What the kernel said.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match self.error.kind() {
            io::ErrorKind::AddrInUse => write!(
                formatter,
                "cannot listen on {address}: another process does; stop it (`ss -ltnp` names it) or configure another address"
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                formatter,
                "cannot listen on {address}: no interface has this address; add it, or configure one of this host's"
            ),
            io::ErrorKind::PermissionDenied => write!(
                formatter,
                "cannot listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE"
            ),
            _ => write!(formatter, "cannot listen on {address}: {}", self.error),
        }
    }
}

impl std::error::Error for ListenError {}

/// Binds `count` sockets to one address, each with room for `backlog` connections that wait to be
/// accepted. The kernel cuts that to `net.core.somaxconn`.
///
/// SO_REUSEPORT would silently share the port with another process of the same user, so a socket
/// without it is bound first: it fails when anybody else is there.
///
/// # Errors
/// The address and what the kernel said.
pub fn group(
    address: SocketAddr,
    count: usize,
    backlog: u32,
) -> Result<Vec<TcpListener>, ListenError> {
    drop(bound(address, false).map_err(|error| ListenError { address, error })?);
    group_beside(address, count, backlog)
}

/// [`group`] beside sockets of our own at that address, or at one that overlaps it: `[::]` has every
/// address.
///
/// # Errors
/// The address and what the kernel said.
pub fn group_beside(
    address: SocketAddr,
    count: usize,
    backlog: u32,
) -> Result<Vec<TcpListener>, ListenError> {
    let wrap = |error| ListenError { address, error };
    let sockets = (0..count)
        .map(|_| {
            let socket = bound(address, true)?;
            socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
            Ok(socket.into())
        })
        .collect::<io::Result<Vec<TcpListener>>>();
    sockets.map_err(wrap)
}

/// Binds the one socket of an address that only one thread serves.
///
/// # Errors
/// The address and what the kernel said.
pub fn single(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = bound(address, false)?;
        socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    listen().map_err(|error| ListenError { address, error })
}

/// Lets the kernel hand each connection to the socket whose worker runs on the CPU that its packets
/// come in on: `cpus` names the CPU of each socket, in the order in which they were bound.
///
/// Packets of one connection come in on one CPU as long as the network card spreads connections, so
/// its data stays in that CPU's cache. A connection from a CPU that is nobody's is spread by its hash.
///
/// # Errors
/// What the kernel said.
pub fn steer(sockets: &[TcpListener], cpus: &[usize]) -> io::Result<()> {
    let Some(first) = sockets.first() else { return Ok(()) };
    // The program is that of the whole group, whichever socket it is attached to.
    attach(first, &mut steering(&cpus[..cpus.len().min(sockets.len())]))
}

fn attach(socket: &TcpListener, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(socket, AttachReusePortCbpf, &program)?)
}

/// Classic BPF (the kernel's Documentation/networking/filter.rst): the CPU, compared with each, to the
/// number of its socket. A number that is no socket's lets the kernel choose by hash.
fn steering(cpus: &[usize]) -> Vec<libc::sock_filter> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// `SKF_AD_OFF + SKF_AD_CPU` (linux/filter.h): -0x1000 + 36.
    const CPU: u32 = 0xffff_f024;
    let step = |code, not, k| libc::sock_filter { code, jt: 0, jf: not, k };
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let mut program = vec![step(LOAD_WORD, 0, CPU)];
    for (socket, cpu) in cpus.iter().enumerate() {
        program.push(step(JUMP_IF_EQUAL, 1, number(*cpu)));
        program.push(step(RETURN, 0, number(socket)));
    }
    program.push(step(RETURN, 0, u32::MAX));
    program
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // `[::]` serves IPv4 too, whatever the system's default is.
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections in TIME_WAIT of an earlier run are no reason to refuse.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_shares_its_address_and_nobody_else_gets_it() {
        let first = group("127.0.0.1:0".parse().unwrap(), 1, 9).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = group(address, 1, 9).expect_err("the address is taken");
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another process"), "{error}");
        assert!(single(address).is_err());
        drop(first);
        assert_eq!(group(address, 3, 9).unwrap().len(), 3);
    }

    #[test]
    fn connections_are_steered_to_the_socket_of_a_cpu() {
        let free = group("127.0.0.1:0".parse().unwrap(), 1, 9).unwrap();
        let address = free[0].local_addr().unwrap();
        drop(free);
        let sockets = group(address, 3, 9).unwrap();
        // Whichever CPU a packet comes in on, it is that of the second socket.
        attach(&sockets[2], &mut [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 1 }]).unwrap();
        let clients: Vec<_> =
            (0..8).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!((0..clients.len()).filter(|_| sockets[1].accept().is_ok()).count(), 8);
        // The kernel takes the real one, also for more CPUs than there are sockets.
        steer(&sockets, &[4, 0, 2, 9]).unwrap();
        assert_eq!(steering(&[4, 0, 2]).len(), 8);
        let _another = std::net::TcpStream::connect(address).unwrap();
    }
}
