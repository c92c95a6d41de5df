//! Portcullis: the daemon, as a library that its own binary and its tests share.

pub mod cli;
pub mod config;
pub mod identity;
pub mod kernel;
