//! What servers of the harness have in common: they accept until they are dropped, one thread a
//! connection, and leave none open.

use std::{
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::poll::{PollFd, PollFlags, poll};

/// The accepting thread looks that often whether it is over; it holds nothing but the port.
const LOOK_EVERY_MS: u16 = 100;

/// Connections of one server.
#[derive(Debug, Default)]
pub struct Connections {
    stop: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Connections {
    /// Accepts in the calling thread until [`Connections::end`]; each connection is served in a thread
    /// of its own, and closed after that.
    pub fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        serve: impl Fn(&TcpStream) + Clone + Send + 'static,
    ) {
        if listener.set_nonblocking(true).is_err() {
            return;
        }
        while !self.stop.load(Ordering::SeqCst) {
            let Ok((stream, _peer)) = listener.accept() else {
                let wanted = PollFd::new(listener.as_fd(), PollFlags::POLLIN);
                // An error here is met again by accept.
                let _ready = poll(&mut [wanted], LOOK_EVERY_MS);
                continue;
            };
            if stream.set_nonblocking(false).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            if let Ok(copy) = stream.try_clone() {
                self.open.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
            }
            let serve = serve.clone();
            thread::spawn(move || {
                serve(&stream);
                let _closed = stream.shutdown(Shutdown::Both);
            });
        }
    }

    /// Accepts no more, and closes what is open.
    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.iter() {
            // Closed already is as good.
            let _closed = stream.shutdown(Shutdown::Both);
        }
    }
}
