//! The machine under the daemon: is it too hot, is its clock right, is it short of something.
//!
//! [`sample`] reads files and asks the clock's keeper, once a second, beside everything else.
//! [`assess`] makes a [`Stage`] of what was read, with hysteresis, and [`clock`] a leeway; the
//! [`View`] of both is what handshakes, routes and tokens look at. What cannot be read counts in a
//! metric and refuses nobody.

pub mod assess;
pub mod chrony;
pub mod clock;
pub mod pressure;
pub mod sample;
pub mod temperature;

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use self::clock::ClockReading;

/// How much of its work the host can still do; each stage sheds what the ones before it do, and more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// All is well.
    #[default]
    Normal = 0,
    /// An operator should look; nothing is shed.
    Strained = 1,
    /// No new handshakes of clients without a certificate; new connections get half their allowance in
    /// the kernel.
    NoStrangers = 2,
    /// No routes of low priority; new connections get a quarter.
    Essential = 3,
    /// `/ready` says 503, so that a balancer takes the node out before the hardware does.
    Critical = 4,
}

impl Stage {
    /// All, from the first.
    pub const ALL: [Stage; 5] =
        [Stage::Normal, Stage::Strained, Stage::NoStrangers, Stage::Essential, Stage::Critical];

    /// The word for logs and `portcullis status`.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Normal => "normal",
            Stage::Strained => "strained",
            Stage::NoStrangers => "no_strangers",
            Stage::Essential => "essential",
            Stage::Critical => "critical",
        }
    }

    /// The stage below; the first is its own.
    #[must_use]
    pub fn below(self) -> Stage {
        Stage::ALL[usize::from(self as u8).saturating_sub(1)]
    }

    /// By how much the kernel's allowances for new connections are divided.
    pub fn divisor(self) -> u32 {
        match self {
            Stage::Normal | Stage::Strained => 1,
            Stage::NoStrangers => 2,
            Stage::Essential | Stage::Critical => 4,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

/// What a stage of the gateway may know of the host.
#[derive(Clone, Debug)]
pub struct View {
    /// What is to be shed.
    pub stage: Stage,
    /// Why, when it is not [`Stage::Normal`].
    pub why: Option<String>,
    /// Caps the leeway of every issuer.
    pub leeway_max: Duration,
    /// The clock, as far as it is known.
    pub clock: ClockReading,
}

impl Default for View {
    /// Before the first look: nothing is known, so nothing is shed and every leeway is granted in full.
    fn default() -> Self {
        View {
            stage: Stage::Normal,
            why: None,
            leeway_max: Duration::MAX,
            clock: ClockReading::default(),
        }
    }
}

/// The place that workers read and the control thread writes.
pub type Published = Arc<ArcSwap<View>>;
