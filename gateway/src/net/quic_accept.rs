//! Takes new QUIC connections: who may have one, and who has to show first that it is where it says.

use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};

use quinn::{Endpoint, Incoming, VarInt};
use tokio::{sync::watch, time::timeout};

use super::{
    admission::Denied,
    quic::{Bound, Settings},
    quic_passage::Steps,
    worker::{Phase, Worker},
};
use crate::{
    http::h3,
    time,
    tls::{handshake::Strangers, quic::Handshake},
};

/// Unfinished handshakes of one worker beyond which a new client has to send its first packet again
/// with a token that was sent to its address (RFC 9000 section 8.1.2): a round trip, for which
/// handshakes cannot be begun from addresses that are not one's own.
const RETRY_ABOVE: usize = 64;

/// Unfinished handshakes of one worker; more are not begun. At some 50 KiB each that is 50 MiB.
const HANDSHAKES_MAX: usize = 1_024;

/// The last word of each connection leaves at once; this is for a busy machine.
const CLOSE_MAX: Duration = Duration::from_millis(100);

/// `H3_NO_ERROR` (RFC 9114 section 8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// A listener's endpoint on one worker.
pub(super) struct Served {
    pub(super) quinn: Endpoint,
    settings: Settings,
    steps: Steps,
}

/// Makes the endpoint of a listener's socket.
///
/// # Errors
/// The socket cannot be served.
pub(super) fn endpoint(worker: &Worker, listener: usize, bound: Bound) -> io::Result<Served> {
    let snapshot = worker.shared.published.load();
    // It opens first packets, whose keys follow from the packet (RFC 9001 section 5.2), and secures
    // no connection: each brings settings of its own.
    let crypto = Handshake::new(&snapshot.listeners[listener], Strangers::Served, time::unix())
        .crypto()
        .map_err(io::Error::other)?;
    let steps = bound.steps();
    let (quinn, settings) = bound.serve(Arc::new(crypto))?;
    Ok(Served { quinn, settings, steps })
}

/// Ends what is left, and tells the clients.
pub(super) async fn close(endpoints: &[Endpoint]) {
    for endpoint in endpoints {
        endpoint.close(NO_ERROR, b"");
    }
    for endpoint in endpoints {
        // What has not left by then is lost, and the client finds out by itself.
        let _ = timeout(CLOSE_MAX, endpoint.wait_idle()).await;
    }
}

/// Takes new connections until the listener is given up and the last of them has ended.
pub(super) async fn accept_all(
    worker: Rc<Worker>,
    listener: usize,
    endpoint: Served,
    phase: watch::Receiver<Phase>,
) {
    let Served { quinn, settings, steps } = endpoint;
    let mut news = phase.clone();
    let unfinished: Rc<Cell<usize>> = Rc::default();
    loop {
        tokio::select! {
            incoming = quinn.accept() => match incoming {
                Some(incoming) => {
                    let new = New { listener, incoming, phase: &phase };
                    accept(&worker, new, &settings, &unfinished);
                }
                None => break,
            },
            // An error is the control thread's end.
            _ = news.wait_for(|phase| *phase != Phase::Running) => break,
        }
    }
    loop {
        tokio::select! {
            // Who waits already comes before the end.
            biased;
            incoming = quinn.accept() => match incoming {
                // It came before another process began to read, or was sent here by a retry.
                Some(incoming) if steps.is_given() => {
                    let new = New { listener, incoming, phase: &phase };
                    accept(&worker, new, &settings, &unfinished);
                }
                // Told at once, a client goes elsewhere at once.
                Some(incoming) => incoming.refuse(),
                None => break,
            },
            () = quinn.wait_idle() => break,
            _ = news.wait_for(|phase| *phase == Phase::Stopping) => break,
        }
    }
    worker.forget(&quinn);
    close(&[quinn]).await;
}

/// A connection that asks to be let in.
struct New<'a> {
    listener: usize,
    incoming: Incoming,
    phase: &'a watch::Receiver<Phase>,
}

fn accept(worker: &Rc<Worker>, new: New<'_>, settings: &Settings, unfinished: &Rc<Cell<usize>>) {
    let New { listener, incoming, phase } = new;
    match welcome(unfinished.get(), incoming.remote_address_validated(), incoming.may_retry()) {
        Welcome::Handshake => {}
        Welcome::Retry => {
            worker.metrics.borrow_mut().quic_retries += 1;
            // It fails for one that may not retry, which was looked at.
            let _ = incoming.retry();
            return;
        }
        Welcome::Silence => {
            worker.metrics.borrow_mut().quic_ignored += 1;
            return incoming.ignore();
        }
    }
    let (arrival, entered) = match worker.enter(listener, incoming.remote_address(), phase) {
        Ok(entered) => entered,
        // As XDP would have it.
        Err(Denied::Banned) => return incoming.ignore(),
        Err(_) => return incoming.refuse(),
    };
    let unfinished = Unfinished::count(unfinished);
    let incoming = h3::Incoming { quinn: incoming, settings: settings.clone(), arrival };
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        h3::serve(worker, incoming, unfinished).await;
        drop(entered);
    });
}

/// What a first packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    Handshake,
    Retry,
    Silence,
}

fn welcome(unfinished: usize, validated: bool, may_retry: bool) -> Welcome {
    if unfinished >= HANDSHAKES_MAX {
        Welcome::Silence
    } else if unfinished >= RETRY_ABOVE && !validated && may_retry {
        Welcome::Retry
    } else {
        Welcome::Handshake
    }
}

/// One handshake that is not over.
struct Unfinished(Rc<Cell<usize>>);

impl Unfinished {
    fn count(all: &Rc<Cell<usize>>) -> Unfinished {
        all.set(all.get() + 1);
        Unfinished(all.clone())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_load_a_client_shows_its_address_first() {
        for (unfinished, validated, may_retry, expected) in [
            (0, false, true, Welcome::Handshake),
            (RETRY_ABOVE - 1, false, true, Welcome::Handshake),
            (RETRY_ABOVE, false, true, Welcome::Retry),
            (RETRY_ABOVE, true, true, Welcome::Handshake),
            (RETRY_ABOVE, true, false, Welcome::Handshake),
            (HANDSHAKES_MAX, true, false, Welcome::Silence),
            (HANDSHAKES_MAX, false, true, Welcome::Silence),
        ] {
            assert_eq!(welcome(unfinished, validated, may_retry), expected, "{unfinished}");
        }
        let all = Rc::default();
        let one = Unfinished::count(&all);
        assert_eq!(all.get(), 1);
        drop(one);
        assert_eq!(all.get(), 0);
    }
}
