//! One server as all workers see it: where it is, how it is doing, how much it has to do. Atomics
//! only; nobody waits for another worker to read them.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::health::{Outcome, Record, Standing, Verdict};
use crate::config::Endpoint;

/// One address of a configured server.
pub struct Server {
    /// Differs from every other server's of the process.
    id: u64,
    endpoint: Endpoint,
    address: SocketAddr,
    /// Where its clock begins.
    since: Instant,
    /// A [`Record`].
    record: AtomicU64,
    /// A [`Verdict`].
    verdict: AtomicU8,
    capacity: usize,
    places: Desk,
    uploads: Desk,
}

/// A request's place at a server; given up when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// What a request needs beside its place while its client still owes some of its body: of all places
/// at most half are taken by such, so whoever sends half a body and stops keeps nobody out but others
/// that do. Given up when dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// So many at once, and others that wait for one of them to leave.
struct Desk {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Desk {
    fn new(capacity: usize) -> Desk {
        Desk { free: Arc::new(Semaphore::new(capacity)), waiting: AtomicUsize::new(0) }
    }

    fn now(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// In the order of asking; `None` after `patience`, or at once when `max_waiting` wait already.
    async fn soon(&self, max_waiting: usize, patience: Duration) -> Option<OwnedSemaphorePermit> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= max_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // Given up half way, it is not waiting any more.
        struct Waiting<'s>(&'s AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let _waiting = Waiting(&self.waiting);
        timeout(patience, self.free.clone().acquire_owned()).await.ok()?.ok()
    }
}

impl Server {
    /// A server nothing is known of, that takes `capacity` requests at once.
    pub fn new(endpoint: Endpoint, address: SocketAddr, capacity: usize, now: Instant) -> Server {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Server {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            endpoint,
            address,
            since: now,
            record: AtomicU64::new(Record::default().packed()),
            verdict: AtomicU8::new(Verdict::Unknown as u8),
            capacity,
            places: Desk::new(capacity),
            uploads: Desk::new(capacity.div_ceil(2)),
        }
    }

    /// What pools know it by.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// As configured.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where connections go.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that it takes at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Requests of all workers that it has now.
    pub fn busy(&self) -> usize {
        self.capacity - self.places.free.available_permits().min(self.capacity)
    }

    /// What the prober found last.
    pub fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::Relaxed) {
            up if up == Verdict::Up as u8 => Verdict::Up,
            down if down == Verdict::Down as u8 => Verdict::Down,
            _ => Verdict::Unknown,
        }
    }

    /// The prober's word.
    pub fn set_verdict(&self, verdict: Verdict) {
        self.verdict.store(verdict as u8, Ordering::Relaxed);
    }

    /// How it stands by its requests.
    pub fn standing(&self, now: Instant) -> Standing {
        Record::unpacked(self.record.load(Ordering::Relaxed)).standing(self.clock_ms(now))
    }

    /// Whether this request is the one that finds out whether the server is back.
    pub fn claim(&self, now: Instant) -> bool {
        let now_ms = self.clock_ms(now);
        let claim = |word| Record::unpacked(word).claim(now_ms).map(Record::packed);
        self.record.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).is_ok()
    }

    /// Takes note of what became of a request.
    pub fn observe(&self, outcome: Outcome, now: Instant) {
        // Nearly always the one before was answered too, and nothing is to be written.
        if outcome == Outcome::Answered && self.record.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now_ms = self.clock_ms(now);
        let next = |word| Some(Record::unpacked(word).observe(outcome, now_ms).packed());
        // It never fails, for there is always a next one.
        let _ = self.record.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// A place, if one is free.
    pub fn place(&self) -> Option<Place> {
        self.places.now().map(|permit| Place { _permit: permit })
    }

    /// A place as soon as one is free, in the order of asking; `None` after `patience`, or at once
    /// when `max_waiting` wait already.
    pub async fn wait_for_place(&self, max_waiting: usize, patience: Duration) -> Option<Place> {
        let permit = self.places.soon(max_waiting, patience).await?;
        Some(Place { _permit: permit })
    }

    /// A slot for a body that has not come whole, if one is free.
    pub fn slot(&self) -> Option<Slot> {
        self.uploads.now().map(|permit| Slot { _permit: permit })
    }

    /// As with places; who waits for a slot takes nobody's turn who waits for a place alone.
    pub async fn wait_for_slot(&self, max_waiting: usize, patience: Duration) -> Option<Slot> {
        let permit = self.uploads.soon(max_waiting, patience).await?;
        Some(Slot { _permit: permit })
    }

    fn clock_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_millis() as u64
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("endpoint", &self.endpoint)
            .field("address", &self.address)
            .field("verdict", &self.verdict())
            .field("busy", &self.busy())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    #[test]
    fn places_are_bounded_and_come_back() {
        let endpoint = Endpoint { host: "192.0.2.1".into(), port: 80, is_tls: false };
        let server = Server::new(endpoint, ([192, 0, 2, 1], 80).into(), 2, time::monotonic());
        let first = server.place();
        let second = server.place();
        assert!(first.is_some() && second.is_some());
        assert!(server.place().is_none());
        assert_eq!(server.busy(), 2);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let short = Duration::from_millis(5);
            assert!(server.wait_for_place(0, short).await.is_none(), "nobody may wait");
            assert!(server.wait_for_place(1, short).await.is_none(), "none comes free");
            drop(second);
            assert!(server.wait_for_place(1, short).await.is_some());
        });
        assert_eq!(server.places.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(server.busy(), 1);
    }

    #[test]
    fn half_of_the_places_are_for_bodies_that_have_not_come_whole() {
        for (capacity, slots) in [(1, 1), (2, 1), (5, 3), (256, 128)] {
            let endpoint = Endpoint { host: "192.0.2.1".into(), port: 80, is_tls: false };
            let address = ([192, 0, 2, 1], 80).into();
            let server = Server::new(endpoint, address, capacity, time::monotonic());
            let held: Vec<Slot> = std::iter::from_fn(|| server.slot()).collect();
            assert_eq!(held.len(), slots, "of {capacity}");
            assert_eq!(server.busy(), 0, "a slot is no place");
            drop(held);
            assert!(server.slot().is_some());
        }
    }
}
