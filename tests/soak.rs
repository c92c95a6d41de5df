//! A rehearsal of faults: good clients of all three protocols ask all the time, and beside them things
//! break, are attacked, renewed and mended, in an order that follows from a seed.
//!
//! What must hold throughout: the upstream sees nobody who was not proven, and of those who were what was
//! proven; a good client is refused or cut only where the plan says why, and the kernel drops
//! nothing of it; bans begin and end when they say;
//! the log tells of each refusal; and in the end everything that was taken is given back.
//!
//! `cargo xtask test --soak 30m` goes on for so long, in rounds that each have a seed and a site of their
//! own, and tells in the end what each came to; `--seed N` begins with that seed.

mod clients;
mod drops;
mod full;
mod judge;
mod plan;
mod world;

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};

use self::{
    clients::{Client, Shared},
    plan::plan,
    world::{Tally, World, configure, mint_all},
};
use crate::{
    binary,
    harness::{clock, site::Site, tokens::Mint},
};

/// How many seconds, and the first round's seed; both are what `cargo xtask test --soak` was given.
const SECONDS: &str = "PORTCULLIS_SOAK_SECONDS";
const SEED: &str = "PORTCULLIS_SOAK_SEED";

/// Long enough for nearly every kind of step.
const SHORT: Duration = Duration::from_secs(16);
/// When nobody says how long.
const LONG: Duration = Duration::from_secs(600);
/// The steps of one round: every kind twice.
const ROUND: Duration = Duration::from_secs(60);
/// What a round takes with its start and its end, on a machine that does little else.
const ROUND_TAKES: Duration = Duration::from_secs(85);

/// As good as any other; what breaks by it breaks again.
const USUAL: u64 = 20_260_301;

#[test]
fn a_rehearsal_that_is_always_the_same() -> Result<()> {
    privileged!();
    rehearse("soak-usual", USUAL, SHORT).map(drop)
}

#[test]
fn a_rehearsal_that_is_never_the_same() -> Result<()> {
    privileged!();
    rehearse("soak-new", clock::unix_s(), SHORT).map(drop)
}

#[test]
#[ignore = "goes on for as long as it is told to: cargo xtask test --soak 30m"]
fn a_rehearsal_as_long_as_it_is_told_to_be() -> Result<()> {
    privileged!();
    let read = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().context(name));
    let length = read(SECONDS).transpose()?.map_or(LONG, Duration::from_secs);
    rounds(read(SEED).transpose()?.unwrap_or_else(clock::unix_s), length)
}

/// Round after round, each with the next seed, until the time is over and as many have been as fit into it
/// on a machine that does little else. One that breaks does not keep the others.
fn rounds(first: u64, length: Duration) -> Result<()> {
    let started = clock::now();
    let (mut told, mut broken) = (vec![Round::HEAD.to_owned()], Vec::new());
    for number in 0..rounds_max(length) {
        let is_enough = number >= rounds_min(length) && started.elapsed() >= length;
        if is_enough || clock::interrupted() {
            break;
        }
        let seed = first.wrapping_add(number);
        let begun = clock::now();
        let held = rehearse("soak", seed, length.min(ROUND));
        let round = Round { seed, took: begun.elapsed(), tally: held.as_ref().ok() };
        told.push(round.row());
        println!("{}\n{}", Round::HEAD, round.row());
        if let Err(error) = held {
            println!("seed {seed} BROKE: {error:?}");
            broken.push(seed);
        }
    }
    println!(
        "\n{} rounds in {} s\n{}",
        told.len() - 1,
        started.elapsed().as_secs(),
        told.join("\n")
    );
    ensure!(broken.is_empty(), "these seeds broke, each above with its step: {broken:?}");
    clock::go_on()
}

/// As many as fit.
fn rounds_min(length: Duration) -> u64 {
    (length.as_secs() / ROUND_TAKES.as_secs()).max(1)
}

/// What is shorter than a round is one; none takes less than its steps.
fn rounds_max(length: Duration) -> u64 {
    length.as_secs().div_ceil(ROUND.as_secs()).max(1)
}

/// What one seed came to.
struct Round<'t> {
    seed: u64,
    took: Duration,
    /// `None`: it broke.
    tally: Option<&'t Tally>,
}

impl Round<'_> {
    const HEAD: &'static str = "      seed     s   served refused broken sent-on misdeeds bans  drops  \
                                lines slowest-ms   MiB-start-end";

    fn row(&self) -> String {
        let (seed, took_s) = (self.seed, self.took.as_secs());
        let Some(tally) = self.tally else { return format!("{seed:10} {took_s:5}   BROKE") };
        let [start, end] = tally.resident_kib.map(|kib| kib / 1024);
        format!(
            "{seed:10} {took_s:5} {:8} {:7} {:6} {:7} {:8} {:4} {:6} {:6} {:10} {start:7} {end:7}",
            tally.served,
            tally.refused,
            tally.broken,
            tally.sent_on,
            tally.misdeeds,
            tally.bans,
            tally.drops,
            tally.lines,
            tally.slowest.as_millis(),
        )
    }
}

fn rehearse(label: &str, seed: u64, length: Duration) -> Result<Tally> {
    println!("seed {seed}: cargo xtask test --soak {}s --seed {seed}", length.as_secs());
    let steps = plan(seed, length);
    let mut site = Site::new(binary(), label)?;
    let mint = Mint::new(binary(), site.directory.path(), "key-0", "ES256")?;
    configure(&mut site, &mint)?;
    let clients = Client::all(&site)?;
    let shared = Shared::new(mint_all(&mint, &clients)?);
    let (tell, seen) = mpsc::channel();
    let mut world = World::new(&site, &clients, &shared, mint, seen)?;
    let started = clock::now();
    thread::scope(|scope| {
        let living = scope.spawn(|| clients::live(&site, &clients, &shared, tell));
        let mut played = Ok(());
        for (number, step) in steps.iter().enumerate() {
            println!("{:7.2} s  step {number}: {step}", started.elapsed().as_secs_f64());
            played = world.take(*step).with_context(|| {
                format!(
                    "seed {seed}, step {number} of {}: {step}; once more: cargo xtask test --soak {}s \
                     --seed {seed}\nthe log's last lines:\n{}",
                    steps.len(),
                    length.as_secs(),
                    world.last_lines()
                )
            });
            if played.is_err() {
                break;
            }
        }
        shared.stop();
        let lived = living.join().map_err(|_panic| anyhow!("the clients panicked"))?;
        played.and(lived)
    })?;
    world.end_well().with_context(|| {
        let seconds = length.as_secs();
        format!("seed {seed}, in the end of {seconds} s; the log:\n{}", world.last_lines())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_divided_into_rounds() {
        for (seconds, least, most) in
            [(0, 1, 1), (16, 1, 1), (60, 1, 1), (120, 1, 2), (600, 7, 10), (1_800, 21, 30)]
        {
            let length = Duration::from_secs(seconds);
            assert_eq!((rounds_min(length), rounds_max(length)), (least, most), "{seconds} s");
        }
    }
}
