//! Promises to users, kept by the built binary with real sockets, real clients and a real kernel.
//!
//! One binary, so that it links once. Tests run beside each other: each has its own namespaces, files
//! and pins.

#![expect(clippy::unwrap_used, reason = "a step that fails ends its test")]

#[allow(dead_code, reason = "the demonstration uses what no test here does")]
mod harness;

/// Ends a test that needs privileges where there are none: aloud, and as a failure where every test
/// is expected to run.
macro_rules! privileged {
    () => {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").is_none(),
                "needs root for network namespaces and BPF; `cargo xtask test` asks for it"
            );
            eprintln!("NOT RUN: needs root for network namespaces and BPF (cargo xtask test)");
            return Ok(());
        }
    };
}
/// The binary under test.
fn binary() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_portcullis"))
}

mod actors;
mod alerts;
mod audit;
mod certificates;
mod cli_errors;
mod crowd;
mod doctor;
mod drain;
mod enforce;
mod exchanges;
mod feedback;
mod follow;
mod handover;
mod host;
mod hostile;
mod http2;
mod http3;
mod identity;
mod interfaces;
mod issuer;
mod limits;
mod listeners;
mod live;
mod lockout;
mod log_disk;
mod metrics;
mod mtls;
mod names;
mod operator;
mod pkits;
mod privileges;
mod proxy;
mod proxy_protocol;
mod rehearsal;
mod reload;
mod revocation;
mod samples;
mod smuggling;
mod soak;
mod status_page;
mod survival;
mod token;
mod token_corpus;
mod upgrades;
mod upstreams;
mod xdp_cpus;
mod xdp_frames;
mod xdp_fuzz;
mod xdp_live;
mod xdp_model;
mod xdp_packets;
mod xdp_table;
mod xdp_tick;
mod xdp_verifier;
