//! The process that holds what the daemon gives up.
//!
//! Whoever reads bytes from the network should not be able to change the kernel. So `run` starts an
//! agent, the same program with another task, before it gives up its capabilities: the agent owns the
//! program, its maps and its pins, starts the program that is to take over, and reads nothing but
//! typed, bounded messages on one socket. What it was started for (configuration, program, where the
//! filter is pinned) no message can change.
//!
//! If it ends, the filter goes on with all that it was told, and another agent is started by the guard
//! that watches over it; the daemon says so, keeps what is banned meanwhile at `accept`, and tells the
//! new one everything. If the daemon ends, so does the agent.
//!
//! [`wire`] and [`message`] are how requests are written, [`channel`] carries them, [`serve`] is the
//! agent, [`client`] the daemon's side.

pub mod channel;
pub mod client;
pub mod message;
pub mod serve;
pub mod wire;

use std::{error::Error, fmt, io};

pub use self::{
    client::{Agent, Filter},
    message::{Ending, News},
    serve::{Origin, run},
};

/// Why the agent does not do what it is asked.
#[derive(Debug)]
pub enum AgentError {
    /// It could not be started.
    NotStarted(io::Error),
    /// It has ended, and another one is started.
    Ended,
    /// It has ended, and so has who would start another.
    Gone,
    /// It does not answer.
    Silent,
    /// It answers what makes no sense.
    Strange,
    /// It is asked more than fits a message.
    TooLong,
    /// The socket to it does not work.
    System(io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(
                formatter,
                "cannot start the agent that keeps the kernel's maps (this program once more): {error}"
            ),
            Self::Ended => formatter.write_str(
                "the agent that keeps the kernel's maps has ended; the XDP program filters on, and \
                 another agent is being started",
            ),
            Self::Gone => formatter.write_str(
                "the agent that keeps the kernel's maps is gone, with the process that would start \
                 another; the XDP program filters on. Restart the daemon",
            ),
            Self::Silent => formatter.write_str(
                "the agent that keeps the kernel's maps does not answer; the XDP program filters on",
            ),
            Self::Strange => formatter.write_str(
                "the agent that keeps the kernel's maps answered something else than it was asked",
            ),
            Self::TooLong => formatter
                .write_str("the agent that keeps the kernel's maps is asked too much at once"),
            Self::System(error) => {
                write!(formatter, "the socket to the agent that keeps the kernel's maps: {error}")
            }
        }
    }
}

impl Error for AgentError {}
