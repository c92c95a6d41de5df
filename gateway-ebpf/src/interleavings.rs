//! Two CPUs on the same buckets, in every order of their accesses that changes hands three times or less:
//! before each access to a [`Word`](crate::bucket::Word) the other one may go on. What the orders do to
//! a source is asked as it would be noticed: by how many packets come through.
//!
//! Accesses take effect at once and in the order of the program, as on x86; orders that only weaker
//! machines have are not tried.

extern crate std;

use core::cell::RefCell;
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    vec::Vec,
};

/// How often the turn changes hands at the most.
const SWITCHES_MAX: usize = 3;

/// Whose turn it is, and when it changes hands.
#[derive(Debug)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    turn: usize,
    has_ended: [bool; 2],
    accesses: usize,
    /// The accesses before which the other goes on, in order.
    switches: Vec<usize>,
}

std::thread_local! {
    /// What this thread keeps to, and which of the two it is; nobody else waits for anything.
    static ORDER: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

/// What is about to touch a word calls this before.
pub(crate) fn before_access() {
    let order = ORDER.with(|order| order.borrow().clone());
    if let Some((turns, own)) = order {
        turns.before_access(own);
    }
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, own: usize) -> MutexGuard<'a, State> {
        while state.turn != own {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn before_access(&self, own: usize) {
        let mut state = self.wait(self.state(), own);
        let number = state.accesses;
        state.accesses += 1;
        if state.switches.contains(&number) && !state.has_ended[1 - own] {
            state.turn = 1 - own;
            self.changed.notify_all();
            drop(self.wait(state, own));
        }
    }

    fn end(&self, own: usize) {
        let mut state = self.wait(self.state(), own);
        state.has_ended[own] = true;
        state.turn = 1 - own;
        self.changed.notify_all();
    }
}

/// Does both at once, in that order; gives what they made, and how many accesses there were.
fn run<T: Send>(
    first: usize,
    switches: &[usize],
    both: [&(dyn Fn() -> T + Sync); 2],
) -> ([T; 2], usize) {
    let state =
        State { turn: first, has_ended: [false; 2], accesses: 0, switches: switches.into() };
    let turns = Arc::new(Turns { state: Mutex::new(state), changed: Condvar::new() });
    let made = thread::scope(|scope| {
        let lane = |own: usize| {
            let turns = turns.clone();
            scope.spawn(move || {
                ORDER.with(|order| *order.borrow_mut() = Some((turns.clone(), own)));
                let made = both[own]();
                turns.end(own);
                made
            })
        };
        [lane(0), lane(1)].map(|lane| lane.join().expect("a lane does not panic"))
    });
    let accesses = turns.state().accesses;
    (made, accesses)
}

/// Tries every order of what `both` do, each on words of its own, and gives how many there were.
fn every_order<S: Sync, T: Send>(
    fresh: impl Fn() -> S,
    both: [fn(&S) -> T; 2],
    look: impl Fn(&S, [T; 2]),
) -> usize {
    let mut tried = 0;
    for first in 0..2 {
        let mut waiting = std::vec![Vec::new()];
        while let Some(switches) = waiting.pop() {
            let shared = fresh();
            let lanes: [&(dyn Fn() -> T + Sync); 2] = [&|| both[0](&shared), &|| both[1](&shared)];
            let (made, accesses) = run(first, &switches, lanes);
            look(&shared, made);
            tried += 1;
            if switches.len() < SWITCHES_MAX {
                let next = switches.last().map_or(0, |last| last + 1);
                waiting.extend((next..accesses).map(|at| {
                    let mut longer = switches.clone();
                    longer.push(at);
                    longer
                }));
            }
        }
    }
    tried
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Source,
        abi::Budget,
        bucket::{Limit, Others, Place, Price, Set, Word},
    };

    const S: u64 = 1_000_000_000;
    const NOW: u64 = 1_000 * S;
    /// A packet a second, five at once.
    const BURST: u64 = 5;
    const PACKETS: Limit = Limit::new(1, S, BURST as u32);
    const PRICE: Price = Price { connections: Limit::NONE, packets: PACKETS, bytes: Limit::NONE };

    /// One nanosecond each.
    const ONE: Limit = Limit::new(1, 1, 9);

    #[derive(Default)]
    struct Table {
        set: Set,
        others: Others,
        newcomers: Budget,
    }

    impl Table {
        /// As the program does it for one packet; `verdict.rs` has the rest of what it asks.
        fn lets_in(&self, source: Source, now_ns: u64) -> bool {
            match self.set.find(source, now_ns, || Some(&self.others)) {
                Place::Known(way) => {
                    let refused = self.set.refuses(way, &PACKETS, now_ns);
                    if !refused {
                        self.set.charge(way, None, &PRICE, now_ns);
                    }
                    !refused
                }
                Place::Free(way) | Place::Taken(way) => {
                    self.newcomers.bucket.charge(&PACKETS, now_ns);
                    self.set.replace(way, source, None, &PRICE, now_ns);
                    true
                }
            }
        }

        /// Of so many packets.
        fn let_in(&self, source: Source, count: u64, now_ns: u64) -> u64 {
            (0..count).filter(|_| self.lets_in(source, now_ns)).count() as u64
        }

        /// All that it gets now.
        fn rest(&self, source: Source) -> u64 {
            self.let_in(source, 10 * BURST, NOW)
        }
    }

    fn source(last: u8) -> Source {
        Source::ipv4(u32::from_be_bytes([192, 0, 2, last]))
    }

    #[test]
    fn each_order_of_two_stores_and_an_addition_is_tried() {
        let seen = Mutex::new(std::collections::BTreeSet::new());
        // From full: one restarts, the other restarts too or adds.
        let both: [fn(&Word) -> (); 2] = [|word| word.charge(&ONE, 7); 2];
        let tried = every_order(Word::default, both, |word, _| {
            seen.lock().unwrap().insert(word.load());
        });
        // 8: one was forgotten; 9: both were charged.
        assert_eq!(seen.into_inner().unwrap().into_iter().collect::<Vec<_>>(), [8, 9]);
        assert!(tried > 10, "{tried}");
    }

    #[test]
    fn who_has_one_packet_left_gets_one_more_on_two_cpus_and_pays_for_it() {
        let fresh = || {
            let table = Table::default();
            assert_eq!(table.let_in(source(1), BURST - 1, NOW), BURST - 1);
            table
        };
        let sends: fn(&Table) -> u64 = |table| table.let_in(source(1), 2, NOW);
        let tried = every_order(fresh, [sends; 2], |table, let_in| {
            let let_in: u64 = let_in.iter().sum();
            assert!((1..=2).contains(&let_in), "{let_in}");
            assert_eq!(table.rest(source(1)), 0);
            // It is not let in sooner than the rate says, counted from what it got.
            let next_s = let_in - 1;
            assert!(!table.lets_in(source(1), NOW + next_s * S));
            assert!(table.lets_in(source(1), NOW + (next_s + 1) * S));
        });
        assert!(tried > 100, "{tried}");
    }

    #[test]
    fn who_begins_on_two_cpus_at_once_gets_no_more_than_one_of_them_sent_besides() {
        // Known since long and full, or not known.
        for is_known in [true, false] {
            let fresh = || {
                let table = Table::default();
                if is_known {
                    assert!(table.lets_in(source(1), NOW - 100 * S));
                }
                table
            };
            let sends: fn(&Table) -> u64 = |table| table.let_in(source(1), 2, NOW);
            every_order(fresh, [sends; 2], |table, let_in| {
                assert_eq!(let_in, [2, 2]);
                let all = 4 + table.rest(source(1));
                assert!((BURST..=BURST + 2).contains(&all), "{all}, known: {is_known}");
            });
        }
    }

    /// The set is full of sources that were here lately; a new one takes the place of the one that sends.
    #[test]
    fn who_loses_its_place_costs_the_next_one_no_more_than_it_sends_meanwhile() {
        let fresh = || {
            let table = Table::default();
            // The first has the least to lose.
            for (last, count) in [(1, 1), (2, 3), (3, 3), (4, 3)] {
                assert_eq!(table.let_in(source(last), count, NOW), count);
            }
            table
        };
        let old: fn(&Table) -> u64 = |table| table.let_in(source(1), 2, NOW);
        let new: fn(&Table) -> u64 = |table| table.let_in(source(9), 1, NOW);
        let tried = every_order(fresh, [old, new], |table, [old, new]| {
            assert_eq!((old, new), (2, 1), "both are within their limits");
            let of_new = new + table.rest(source(9));
            assert!((BURST - 2..=BURST + 2).contains(&of_new), "the new one: {of_new}");
            // Nobody else's buckets are touched but those whose place was taken.
            let of_third = 3 + table.rest(source(3));
            assert!((BURST..=BURST + 3).contains(&of_third), "a bystander: {of_third}");
        });
        assert!(tried > 100, "{tried}");
    }
}
