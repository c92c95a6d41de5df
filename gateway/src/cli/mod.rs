//! The command line: one file a command.

mod file;
pub mod pki;
pub mod token;
