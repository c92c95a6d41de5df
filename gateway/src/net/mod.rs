//! Sockets, workers, and who may open one more connection.

pub mod activation;
pub mod addresses;
pub mod admission;
pub mod descriptors;
pub mod executor;
pub mod handover;
pub mod listen;
pub mod proxy_protocol;
pub mod quic;
mod quic_accept;
pub mod quic_passage;
pub mod worker;
