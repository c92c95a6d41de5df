//! HTTP: connections in, one exchange for each request, answers out.

pub mod answer;
pub mod body;
pub mod connection;
pub mod date;
pub mod exchange;
pub mod expect;
mod gather;
pub mod guard;
pub mod h3;
pub mod headers;
mod http1;
pub mod introduction;
pub mod quota;
pub mod upgrade;
