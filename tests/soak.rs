//! A rehearsal of faults: good clients of all three protocols ask all the time, and beside them things
//! break, are attacked, renewed and mended, in an order that follows from a seed.
//!
//! What must hold throughout: the upstream sees nobody who was not proven, and of those who were what was
//! proven; a good client is refused or cut only where the plan says why, and the kernel drops
//! nothing of it; bans begin and end when they say;
//! the log tells of each refusal; and in the end everything that was taken is given back.
//!
//! `cargo xtask test --soak 30m` goes on for longer, and `--seed N` does the same once more.

mod clients;
mod drops;
mod judge;
mod plan;
mod world;

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow};

use self::{
    clients::{Client, Shared},
    plan::plan,
    world::{World, configure, mint_all},
};
use crate::{
    binary,
    harness::{clock, site::Site, tokens::Mint},
};

/// How many seconds of steps, and which; both are what `cargo xtask test --soak` was given.
const SECONDS: &str = "PORTCULLIS_SOAK_SECONDS";
const SEED: &str = "PORTCULLIS_SOAK_SEED";

/// Long enough for nearly every kind of step.
const SHORT: Duration = Duration::from_secs(16);
/// When nobody says how long.
const LONG: Duration = Duration::from_secs(600);

/// As good as any other; what breaks by it breaks again.
const USUAL: u64 = 20_260_301;

#[test]
fn a_rehearsal_that_is_always_the_same() -> Result<()> {
    privileged!();
    rehearse("soak-usual", USUAL, SHORT)
}

#[test]
fn a_rehearsal_that_is_never_the_same() -> Result<()> {
    privileged!();
    rehearse("soak-new", clock::unix_s(), SHORT)
}

#[test]
#[ignore = "goes on for as long as it is told to: cargo xtask test --soak 30m"]
fn a_rehearsal_as_long_as_it_is_told_to_be() -> Result<()> {
    privileged!();
    let read = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().context(name));
    let length = read(SECONDS).transpose()?.map_or(LONG, Duration::from_secs);
    rehearse("soak", read(SEED).transpose()?.unwrap_or_else(clock::unix_s), length)
}

fn rehearse(label: &str, seed: u64, length: Duration) -> Result<()> {
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
