//! Which server next. A plain function of how each is doing.

use std::time::Duration;

use super::health::{Standing, Verdict};
use crate::config::Balance;

/// Servers that one request tries: with more, a client would wait for the sum of their connect
/// timeouts.
pub const TRIES_MAX: usize = 3;

/// What is known of a server at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The prober's word; unknown without one.
    pub verdict: Verdict,
    /// By its requests.
    pub standing: Standing,
    /// Requests it has now.
    pub busy: usize,
}

/// Why there is no server to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoneWell {
    /// No name has an address.
    Unresolved,
    /// None of them is to be used before this.
    Out(Duration),
    /// The prober found none up.
    Down,
}

/// Indices of the servers to try, in order; each once.
pub type Order = [Option<usize>; TRIES_MAX];

/// The servers that a request should try.
///
/// A server whose time out is over comes first, so that a request finds out whether it is back; who
/// takes it up must claim it. Out of two or more servers, those out are left alone. The only one is
/// tried whatever became of the last requests: there is nothing better, and it may be back.
///
/// # Errors
/// When none of them is to be tried.
pub fn order(balance: Balance, turn: usize, servers: &[Candidate]) -> Result<Order, NoneWell> {
    let is_up = |server: &Candidate| server.verdict != Verdict::Down;
    if servers.is_empty() {
        return Err(NoneWell::Unresolved);
    }
    if !servers.iter().any(is_up) {
        return Err(NoneWell::Down);
    }
    if let [_] = servers {
        return Ok([Some(0), None, None]);
    }
    let first = turn % servers.len();
    let turned = || (0..servers.len()).map(|step| (first + step) % servers.len());
    let stands = |index: &usize| is_up(&servers[*index]).then(|| servers[*index].standing);
    let due = turned().filter(|index| stands(index) == Some(Standing::Due)).take(1);
    let mut order: Order = [None; TRIES_MAX];
    let mut places = order.iter_mut();
    for (index, place) in due.zip(&mut places) {
        *place = Some(index);
    }
    match balance {
        Balance::RoundRobin => {
            let well = turned().filter(|index| stands(index) == Some(Standing::In));
            for (index, place) in well.zip(places) {
                *place = Some(index);
            }
        }
        Balance::LeastConnections => {
            let mut well: Vec<usize> =
                turned().filter(|index| stands(index) == Some(Standing::In)).collect();
            // Stable: those with as many requests take turns.
            well.sort_by_key(|index| servers[*index].busy);
            for (index, place) in well.into_iter().zip(places) {
                *place = Some(index);
            }
        }
    }
    if order[0].is_some() {
        return Ok(order);
    }
    let out = servers.iter().filter(|server| is_up(server)).map(|server| match server.standing {
        Standing::Out(left) => left,
        Standing::In | Standing::Due => Duration::ZERO,
    });
    Err(NoneWell::Out(out.min().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IN: Standing = Standing::In;
    const DUE: Standing = Standing::Due;
    const OUT: Standing = Standing::Out(Duration::from_secs(2));

    fn with(standing: Standing, busy: usize) -> Candidate {
        Candidate { verdict: Verdict::Unknown, standing, busy }
    }

    fn down() -> Candidate {
        Candidate { verdict: Verdict::Down, standing: IN, busy: 0 }
    }

    fn tried(order: Result<Order, NoneWell>) -> Vec<usize> {
        order.unwrap().into_iter().flatten().collect()
    }

    #[test]
    fn servers_take_turns_and_ill_ones_are_left_alone() {
        use Balance::{LeastConnections, RoundRobin};
        for (balance, turn, servers, expected) in [
            (RoundRobin, 0, vec![with(IN, 0); 3], vec![0, 1, 2]),
            (RoundRobin, 1, vec![with(IN, 9), with(IN, 9), with(IN, 0)], vec![1, 2, 0]),
            (RoundRobin, 5, vec![with(IN, 0); 5], vec![0, 1, 2]),
            (RoundRobin, 0, vec![with(OUT, 0), with(IN, 0), with(IN, 0)], vec![1, 2]),
            (RoundRobin, 0, vec![with(IN, 0), with(DUE, 0), with(IN, 0)], vec![1, 0, 2]),
            (RoundRobin, 0, vec![with(DUE, 0), with(DUE, 0), with(IN, 0)], vec![0, 2]),
            (RoundRobin, 0, vec![down(), with(IN, 0), down()], vec![1]),
            (RoundRobin, 7, vec![with(OUT, 0)], vec![0]),
            (LeastConnections, 0, vec![with(IN, 3), with(IN, 1), with(IN, 2)], vec![1, 2, 0]),
            (LeastConnections, 2, vec![with(IN, 1), with(IN, 1), with(IN, 1)], vec![2, 0, 1]),
            (LeastConnections, 0, vec![with(IN, 3), with(OUT, 0), with(DUE, 9)], vec![2, 0]),
        ] {
            assert_eq!(tried(order(balance, turn, &servers)), expected, "{servers:?}");
        }
    }

    #[test]
    fn that_none_is_well_is_said() {
        let soon = Standing::Out(Duration::from_secs(1));
        for (servers, expected) in [
            (vec![], NoneWell::Unresolved),
            (vec![down()], NoneWell::Down),
            (vec![down(), down()], NoneWell::Down),
            (vec![with(OUT, 0), with(soon, 0)], NoneWell::Out(Duration::from_secs(1))),
            (vec![with(OUT, 0), down()], NoneWell::Out(Duration::from_secs(2))),
        ] {
            assert_eq!(order(Balance::RoundRobin, 3, &servers), Err(expected));
        }
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let verdicts = prop_oneof![Just(Verdict::Unknown), Just(Verdict::Up), Just(Verdict::Down)];
        (verdicts, prop_oneof![Just(IN), Just(DUE), Just(OUT)], 0usize..9)
            .prop_map(|(verdict, standing, busy)| Candidate { verdict, standing, busy })
    }

    proptest! {
        #[test]
        fn nobody_is_tried_twice_and_nobody_who_is_down(
            servers in prop::collection::vec(any_candidate(), 0..7),
            turn: usize,
            least: bool,
        ) {
            let balance = if least { Balance::LeastConnections } else { Balance::RoundRobin };
            if let Ok(order) = order(balance, turn, &servers) {
                let mut tried: Vec<usize> = order.into_iter().flatten().collect();
                prop_assert!(!tried.is_empty());
                prop_assert!(tried.iter().all(|index| servers[*index].verdict != Verdict::Down));
                tried.sort_unstable();
                tried.dedup();
                prop_assert_eq!(tried.len(), order.into_iter().flatten().count());
            }
        }
    }
}
