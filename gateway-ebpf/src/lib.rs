//! What the two halves of Portcullis agree on, and the decisions they share.
//!
//! The XDP program and the daemon both compile this library, so a map's layout, a token bucket's
//! arithmetic and the reading of a frame exist once. Everything here is plain computation: values
//! and the time in, a value out; no clock, no map, no allocation.
//!
//! Reading order: [`source`] (who sent it), [`packet`] (a frame becomes a flow), [`bucket`] (a
//! source's rate), [`verdict`] (flow, tables and time become an outcome), [`last`] (what spares the
//! next packet of a flood most of that), [`abi`] (how all of it lies in kernel memory), [`rehearsal`]
//! (how a test plays seconds of a flood in one call).
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod bucket;
#[cfg(test)]
mod interleavings;
pub mod last;
pub mod packet;
pub mod rehearsal;
pub mod source;
pub mod verdict;

pub use source::Source;
pub use verdict::Outcome;
