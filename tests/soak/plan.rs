//! What will happen: a list of steps that follows from a seed and a length, and from nothing else.

use std::{fmt, time::Duration};

use crate::xdp_fuzz::Numbers;

/// What stays broken until it is mended, while other steps are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The upstream is gone: its connections are cut and its port is closed.
    UpstreamGone,
    /// The issuer answers with nothing of use.
    IssuerGone,
    /// The CPU is so hot that what matters less is shed.
    Heat,
    /// The clock's keeper says that it is wrong by forty seconds.
    ClockOff,
    /// Nobody reads the log.
    LogStalled,
}

/// A file that is written in place, with a pause in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Configuration,
    RevocationList,
    ServerCertificate,
}

/// Which end of the cable is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Clients,
    Gateway,
}

/// A flood's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    /// UDP from 65,536 addresses, sixteen times what the table of sources has places for.
    Datagrams,
    /// SYNs from as many.
    Syns,
    /// UDP from one address.
    OneSource,
}

/// Who is banned by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// An address.
    Source,
    /// The four addresses around one.
    Prefix,
}

/// One thing that is done; the load goes on beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin(Fault),
    End(Fault),
    /// `kill -9` of the daemon, and another one is started.
    KillDaemon,
    /// `kill -9` of the process that owns the kernel's maps.
    KillAgent,
    /// Another file is installed, and `portcullis upgrade` has it take over.
    Upgrade,
    /// The daemon may have hardly more descriptors than it has, and connections come.
    Starve,
    CutCable(Side),
    Reload,
    /// A reload of a configuration that is refused.
    ReloadRefused,
    HalfWritten(File),
    /// A client is put on the revocation list while it is connected.
    Revoke,
    /// The server's certificate and key are replaced.
    RenewServer,
    /// The issuer signs with another key, and the old one goes.
    RotateKeys,
    /// An operator's ban, which is lifted or ends.
    Ban {
        whom: Whom,
        is_lifted: bool,
    },
    /// The kernel's table of bans is full: one more is refused, and those in it hold.
    FullTable,
    /// Forged tokens until their source is banned.
    Forge,
    /// One of each kind of bad request, and the word for it.
    Misdeeds,
    Flood(Frames),
    /// Nothing but the load.
    Rest,
}

/// What is dealt from: each once before any of them comes again.
const DECK: [fn(&mut Numbers) -> Step; 23] = [
    |_| Step::Begin(Fault::UpstreamGone),
    |_| Step::Begin(Fault::IssuerGone),
    |_| Step::Begin(Fault::Heat),
    |_| Step::Begin(Fault::ClockOff),
    |_| Step::Begin(Fault::LogStalled),
    |_| Step::KillDaemon,
    |_| Step::KillAgent,
    |_| Step::Upgrade,
    |_| Step::Starve,
    |numbers| Step::CutCable(numbers.one_of(&[Side::Clients, Side::Gateway])),
    |_| Step::Reload,
    |_| Step::ReloadRefused,
    |numbers| {
        let files = [File::Configuration, File::RevocationList, File::ServerCertificate];
        Step::HalfWritten(numbers.one_of(&files))
    },
    |_| Step::Revoke,
    |_| Step::RenewServer,
    |_| Step::RotateKeys,
    |numbers| Step::Ban { whom: Whom::Source, is_lifted: numbers.below(2) == 0 },
    |numbers| Step::Ban { whom: Whom::Prefix, is_lifted: numbers.below(2) == 0 },
    |_| Step::FullTable,
    |_| Step::Forge,
    |_| Step::Misdeeds,
    |numbers| Step::Flood(numbers.one_of(&[Frames::Datagrams, Frames::Syns, Frames::OneSource])),
    |_| Step::Rest,
];

/// For so many further steps a fault lasts at the most.
const FAULT_STEPS_MAX: usize = 4;

/// So long a step takes on a machine that does nothing else, about.
const STEP_TAKES: Duration = Duration::from_secs(1);

/// The steps for that length. A longer plan of the same seed begins with the same steps; what is broken
/// at the end is mended there.
pub(super) fn plan(seed: u64, length: Duration) -> Vec<Step> {
    let mut numbers = Numbers::seeded(seed);
    let mut steps = Vec::new();
    let mut deck = Vec::new();
    let mut open: Vec<(Fault, usize)> = Vec::new();
    while STEP_TAKES * u32::try_from(steps.len()).unwrap_or(u32::MAX) < length {
        if deck.is_empty() {
            deck = shuffled(&mut numbers);
        }
        let is_over = |(fault, steps_left): &(Fault, usize)| {
            *steps_left == 0
                || deck.last().is_some_and(|next| *next == Step::Begin(*fault))
                || deck.last().is_some_and(|next| excludes(*fault, *next))
        };
        let step = match open.iter().position(is_over) {
            Some(at) => Step::End(open.remove(at).0),
            None => deck.pop().unwrap_or(Step::Rest),
        };
        for (_, steps_left) in &mut open {
            *steps_left = steps_left.saturating_sub(1);
        }
        if let Step::Begin(fault) = step {
            open.push((fault, 1 + numbers.below(FAULT_STEPS_MAX)));
        }
        steps.push(step);
    }
    steps.extend(open.into_iter().map(|(fault, _)| Step::End(fault)));
    steps
}

fn shuffled(numbers: &mut Numbers) -> Vec<Step> {
    let mut deck: Vec<Step> = DECK.iter().map(|deal| deal(numbers)).collect();
    for last in (1..deck.len()).rev() {
        deck.swap(last, numbers.below(last + 1));
    }
    deck
}

/// What cannot be told apart from the fault, so that the fault ends first.
fn excludes(fault: Fault, step: Step) -> bool {
    matches!(
        (fault, step),
        // The keys that are new have to come from somewhere.
        (Fault::IssuerGone, Step::RotateKeys)
    )
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Begin(fault) => write!(out, "{fault:?} begins"),
            Step::End(fault) => write!(out, "{fault:?} ends"),
            other => write!(out, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_seed_is_a_plan_and_a_longer_one_begins_with_the_shorter() {
        for seed in [0, 1, 7, u64::MAX] {
            let whole = plan(seed, HOUR);
            assert_eq!(plan(seed, HOUR), whole);
            for seconds in [0, 1, 20, 100] {
                let part = plan(seed, Duration::from_secs(seconds));
                assert_eq!(part[..seconds as usize], whole[..seconds as usize], "seed {seed}");
            }
        }
        assert_ne!(plan(1, HOUR), plan(2, HOUR));
    }

    #[test]
    fn everything_comes_and_what_breaks_is_mended_once() {
        for seed in 0..50 {
            let steps = plan(seed, 3 * HOUR / 60);
            let mut open = Vec::new();
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Begin(fault) => {
                        assert!(!open.contains(fault), "seed {seed}, step {number}: {steps:?}");
                        open.push(*fault);
                    }
                    Step::End(fault) => {
                        assert!(open.contains(fault), "seed {seed}, step {number}: {steps:?}");
                        open.retain(|other| other != fault);
                    }
                    step => assert!(!open.iter().any(|fault| excludes(*fault, *step))),
                }
            }
            assert!(open.is_empty(), "seed {seed}: {open:?} in the end");
            let kinds: std::collections::BTreeSet<String> = steps
                .iter()
                .map(|step| format!("{step:?}").split([' ', '{']).next().unwrap().to_owned())
                .collect();
            assert!(kinds.len() >= DECK.len(), "seed {seed}: {kinds:?}");
        }
    }
}
