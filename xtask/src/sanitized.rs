//! `cargo xtask test --sanitized`: tests of a build that watches its own memory.
//!
//! AddressSanitizer ends a process that touches memory which is not its own (any more), and LeakSanitizer
//! looks at the end of each for memory that nothing leads to: rings of counted references, in Rust. Both
//! come with the stable compiler; its switch for them asks to be let. The standard library is taken as it
//! was built, and the cryptography's C too.
//!
//! The leak sanitizer stops a process' threads with ptrace(2), which a confined daemon may not, so what is
//! built here gives nothing up when it starts (gateway/build.rs), and says so in its log.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::cargo::{cargo, root, run_and_read};

/// Everything of it: instrumented, it can be mixed with nothing.
const TARGET: &str = "target/sanitized";

/// What the compiler is told; the package's build script sees it and leaves the confinement out.
const FLAGS: &str = "-Zsanitizer=address";

/// Of the whole-product tests, those of which the processes and what they do to memory are the point, and
/// no figure of time or memory. Without those of the kernel's half alone, which is no Rust that runs here.
const PRODUCT: [&str; 25] = [
    "audit::",
    "certificates::",
    "cli_errors::",
    "drain::",
    "exchanges::",
    "feedback::",
    "follow::",
    "handover::",
    "hostile::",
    "http2::",
    "http3::",
    "identity::",
    "issuer::",
    "limits::",
    "listeners::",
    "mtls::",
    "names::",
    "operator::",
    "proxy::",
    "proxy_protocol::",
    "reload::",
    "revocation::",
    "status_page::",
    "upgrades::",
    "upstreams::",
];

/// What asks the system's allocator, which a sanitizer replaces; what takes its time from libfaketime, which
/// is asked for it before a sanitizer is there; and what copies a gibibyte within a limit of time.
const SKIPPED: [&str; 3] = [
    "heap::tests::what_is_in_use_is_counted",
    "issuer::a_strict_issuer_that_is_away_for_five_minutes_is_believed_no_more",
    "exchanges::a_gibibyte_passes_through_http",
];

/// Runs the unit tests and [`PRODUCT`], or only tests with these names; `variables` is how they get their
/// privileges.
///
/// # Errors
/// When a test fails, or any process of theirs had something reported.
pub fn test(names: &[String], variables: &[(String, String)], host: &str) -> Result<()> {
    let reports = root().join(TARGET).join("reports");
    if reports.exists() {
        fs::remove_dir_all(&reports).context("cannot remove the reports of before")?;
    }
    fs::create_dir_all(&reports)?;
    // Some of the processes belong to other users.
    fs::set_permissions(&reports, fs::Permissions::from_mode(0o1777))?;
    let product = PRODUCT.map(str::to_owned);
    let mut failed = Vec::new();
    for (what, filters) in [
        (&["--package", "gateway", "--package", "gateway-ebpf", "--lib"][..], names),
        (
            &["--package", "gateway", "--test", "gateway"],
            if names.is_empty() { &product } else { names },
        ),
    ] {
        let mut command = sanitized(host, &reports);
        command.envs(variables.iter().cloned()).args(what).arg("--").args(filters);
        command.args(SKIPPED.iter().flat_map(|skipped| ["--skip", skipped]));
        let (held, tests) = run_and_read(&mut command, super::test::failure)?;
        if !held {
            failed.push(format!("{}: {}", what.join(" "), tests.join(", ")));
        }
    }
    let found = show(&reports)?;
    if found > 0 {
        failed.push(format!("{found} reports, in {}", reports.display()));
    }
    if !failed.is_empty() {
        bail!("sanitized: {}", failed.join("; "));
    }
    eprintln!("sanitized: all passed, and nothing was reported; {TARGET} can be removed");
    Ok(())
}

/// `cargo test`, instrumented.
fn sanitized(host: &str, reports: &Path) -> Command {
    let mut command = cargo();
    // With a target named, build scripts and macros are built without the flags. Those of whoever calls
    // would take their place.
    command
        .args(["test", "--no-fail-fast", "--target", host, "--target-dir", TARGET])
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(super::test::variable_of(host, "RUSTFLAGS"), FLAGS)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_INCREMENTAL", "0")
        .env("ASAN_OPTIONS", options(reports));
    command
}

/// Where the sanitizer writes, which is not where the processes do: their output belongs to the tests; and
/// what whoever calls wants of it besides.
fn options(reports: &Path) -> String {
    let path = reports.join("of");
    let more = env::var("ASAN_OPTIONS").unwrap_or_default();
    format!(
        "detect_leaks=1:allow_addr2line=1:exitcode=99:log_exe_name=1:log_path={}:{more}",
        path.display()
    )
}

/// Prints what was reported, and gives how many processes it was about.
fn show(reports: &Path) -> Result<usize> {
    let mut count = 0;
    for file in fs::read_dir(reports)? {
        let path = file?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        eprintln!("{}:\n{text}", path.display());
        count += 1;
    }
    Ok(count)
}
