//! Sockets, workers, and who may open one more connection.

pub mod admission;
pub mod listen;
pub mod worker;
