//! Portcullis: the daemon, as a library that its own binary and its tests share.
//!
//! Modules in the order in which a request meets them:
//!
//! | stage | decides | acts |
//! |---|---|---|
//! | [`kernel`] | `plan`: what to write | loads, attaches, pins the XDP program; its maps |
//! | [`net`] | `admission`: may it connect | sockets, workers |
//! | [`tls`] | | handshakes |
//! | [`identity`] | certificate and token: who is it | |
//! | [`policy`] | facts, route, permit; penalty: is it abuse | |
//! | [`http`] | headers, answer | connections, the exchange of one request |
//! | [`upstream`] | balance | pool, forward |
//! | [`host`] | temperature, clock, pressure: what to shed | reads sensors, asks chronyd |
//! | [`admin`] | | log lines, metrics, the operators' socket |
//!
//! [`gateway`] wires them up for the process, [`http::exchange`] for one request; nobody else names
//! everything. [`confinement`] is what the process gives up before it reads anything from outside.
//! [`config`] is what was written down, checked; [`snapshot`] what a request is judged by from its head
//! to its end; [`cli`] what a person types. Decisions take values and the time; [`time`] alone reads
//! clocks; [`watch`] tells when files have changed, and [`fetch`] gets what is published elsewhere.
//!
//! Words: a *source* is an IPv4 address or an IPv6 /64. A *peer* is a client whose certificate was
//! verified. *Claims* are those of a verified token. A *permit* is a request that may go to its
//! upstream. A *refusal* is one that may not, with its *reason* from a closed list. *Evidence* is a
//! refusal that tells against its source; enough of it is a *block*, which becomes a *ban* in the
//! kernel's map.

pub mod admin;
pub mod cli;
pub mod config;
pub mod confinement;
pub mod fetch;
pub mod gateway;
pub mod host;
pub mod http;
pub mod identity;
pub mod kernel;
pub mod net;
pub mod policy;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod time;
pub mod tls;
pub mod upstream;
pub mod watch;
