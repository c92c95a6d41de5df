//! The actors of the whole-product tests and of the demonstration.
//!
//! Each is real: namespaces made by `ip`, the built `portcullis` binary, `curl` and `openssl`, an
//! upstream on sockets, packets made by the kernel itself. They know the product only from outside:
//! its command line, its files, its sockets. Each cleans up after itself when dropped.
//!
//! Two programs include this: the test binary of `gateway`, and `xtask` for `cargo xtask demo`.

pub mod bpf;
pub mod client;
pub mod clock;
pub mod fixture_clock;
pub mod flood;
pub mod gateway;
pub mod idp;
pub mod listening;
pub mod load;
pub mod netns;
pub mod origin;
pub mod peers;
pub mod pki;
pub mod process;
pub mod python;
pub mod site;
pub mod tokens;
pub mod unpacked;
pub mod upstream;
