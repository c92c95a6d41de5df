//! Listening sockets: one SO_REUSEPORT socket for each worker on each address.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted, for each socket. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

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

/// Binds `count` sockets to one address.
///
/// SO_REUSEPORT would silently share the port with another process of the same user, so a socket
/// without it is bound first: it fails when anybody else is there.
///
/// # Errors
/// The address and what the kernel said.
pub fn group(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    drop(bound(address, false).map_err(|error| ListenError { address, error })?);
    group_beside(address, count)
}

/// [`group`] beside sockets of our own at that address, or at one that overlaps it: `[::]` has every
/// address.
///
/// # Errors
/// The address and what the kernel said.
pub fn group_beside(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    let wrap = |error| ListenError { address, error };
    let sockets = (0..count)
        .map(|_| {
            let socket = bound(address, true)?;
            socket.listen(BACKLOG)?;
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
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error| ListenError { address, error })
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
        let first = group("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = group(address, 1).expect_err("the address is taken");
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another process"), "{error}");
        assert!(single(address).is_err());
        drop(first);
        assert_eq!(group(address, 3).unwrap().len(), 3);
    }
}
