//! libFuzzer's way into the targets: one binary for all, told by `FUZZ_TARGET` which is meant.
//!
//! `cargo xtask fuzz` builds it so that the engine sees which branches an input takes.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| {
        eprintln!("FUZZ_TARGET is none of {:?}", fuzz::TARGETS.map(|target| target.name));
        std::process::exit(2)
    })
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
