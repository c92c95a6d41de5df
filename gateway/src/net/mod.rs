//! Sockets, workers, and who may open one more connection.

pub mod addresses;
pub mod admission;
pub mod executor;
pub mod listen;
pub mod proxy_protocol;
pub mod worker;
