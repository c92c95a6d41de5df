//! Promises to users, one file each: the built binary and the real kernel, seen from outside.
//!
//! A step that fails ends its test, which is what unwrapping says.
#![expect(clippy::unwrap_used, reason = "a step that fails ends its test")]

mod xdp_live;
mod xdp_packets;
