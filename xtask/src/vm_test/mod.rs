//! `cargo xtask vm-test`: the XDP program in the kernels that people have.
//!
//! The verifier of an old kernel refuses what a new one takes, so nothing but an old kernel tells
//! whether the program loads there. Debian's kernels are booted in an emulator, with no help from
//! the processor, and the tests of the XDP program run in them: the very binary that runs them on
//! this machine, so loader and object are the product's own, and verdicts are compared with user
//! space's frame by frame. Times measured in an emulator mean nothing and are not looked at.

mod archive;
mod debian;
mod guest;
mod machine;
mod report;

use std::{env, fs, num::NonZero, path::Path, process::ExitCode, thread};

use anyhow::{Context as _, Result, anyhow, bail};

pub use self::debian::source;
use self::{
    debian::{Kernel, Kernels},
    guest::Program,
    report::Report,
};
use crate::{
    cargo::{build_tests, root},
    harness::clock,
    setup,
};

/// The kernels: the oldest the program is made for, and those of Debian 12.
const SERIES: [&str; 3] = ["5.10", "6.1", "6.12"];
/// The tests that ask nothing of a machine but a kernel: each one's name contains this.
const XDP_TESTS: [&str; 1] = ["xdp_"];
/// With `--product` also these: the daemon itself in an old kernel, from forged token to ban, and
/// killed and started again. An emulated processor needs half a minute for their keys and
/// handshakes.
const PRODUCT_TESTS: [&str; 2] = ["feedback::forged_tokens", "operator::the_kernel_half_outlives"];
/// What the tests run besides `ip`, when the product is among them.
const PRODUCT_TOOLS: [&str; 4] = ["curl", "nsenter", "openssl", "setpriv"];
/// Programs this needs beside what the tests need, and Debian's packages of them.
const PROGRAMS: [setup::Program; 4] = [
    (machine::EMULATOR, "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("xz", "xz-utils"),
];

/// What was asked for on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    /// Look for newer kernels than those that are here.
    refresh: bool,
    /// Run the whole product, too.
    product: bool,
    series: Vec<&'static str>,
}

impl Options {
    /// Parts of the names of the product's tests to run.
    fn product_tests(&self) -> &'static [&'static str] {
        if self.product { &PRODUCT_TESTS } else { &[] }
    }

    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { refresh: false, product: false, series: Vec::new() };
        for word in words {
            match SERIES.into_iter().find(|series| series == word) {
                Some(series) => options.series.push(series),
                None if word == "--refresh" => options.refresh = true,
                None if word == "--product" => options.product = true,
                None => bail!(
                    "vm-test takes --product, --refresh and any of {}; what is `{word}`?",
                    SERIES.join(", ")
                ),
            }
        }
        if options.series.is_empty() {
            options.series = SERIES.to_vec();
        }
        Ok(options)
    }
}

/// Boots the kernels and runs the tests of the XDP program in each.
///
/// # Errors
/// When nothing could be tried: a tool is missing, the tests do not build, somebody interrupts.
pub fn vm_test(rest: &[String]) -> Result<ExitCode> {
    let options = Options::parse(rest)?;
    if env::consts::ARCH != "x86_64" {
        bail!("the guests are x86-64 machines and run this machine's binaries, which are not");
    }
    let started = clock::now();
    setup::setup_with(&PROGRAMS)?;
    let directory = root().join("target/vm");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let guests = Guests {
        common: guest::common(&programs(&options)?, &XDP_TESTS, options.product_tests())?,
        wanted: [&XDP_TESTS, options.product_tests()].concat(),
        directory: &directory,
    };
    let mut kernels = Kernels::new(&directory);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for &series in &options.series {
        match find(&mut kernels, series, options.refresh) {
            Ok(kernel) => found.push((series, kernel)),
            Err(error) => {
                println!("kernel {series}: NOT RUN, there is none: {error:#}");
                missing.push(series);
            }
        }
    }
    let (mut held, mut failed) = (Vec::new(), Vec::new());
    // A guest keeps one processor busy, and beside others on the same one misses its times.
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for some in found.chunks(at_once) {
        clock::go_on()?;
        for (series, told) in some.iter().map(|(series, _)| series).zip(guests.run_all(some)) {
            let told = told?;
            print!("{}", told.text);
            if told.holds { held.push(*series) } else { failed.push(*series) }
        }
    }
    println!(
        "vm-test: held: {}; failed: {}; not run: {}; {} s",
        listed(&held),
        listed(&failed),
        listed(&missing),
        started.elapsed().as_secs()
    );
    let is_ci = env::var_os("CI").is_some();
    Ok(if is_success(held.len(), failed.len(), missing.len(), is_ci) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A kernel that is not to be had fails where every test must run, and where it leaves nothing.
fn is_success(held: usize, failed: usize, missing: usize, is_ci: bool) -> bool {
    failed == 0 && held > 0 && (missing == 0 || !is_ci)
}

/// Builds the tests and finds what they need in a guest.
fn programs(options: &Options) -> Result<Vec<Program>> {
    let built = build_tests()?;
    let mut programs = vec![Program { place: "/bin/tests".into(), file: built.tests }];
    let mut tools = vec!["busybox", "ip"];
    if options.product {
        programs.push(Program { place: built.product.clone(), file: built.product });
        tools.extend(PRODUCT_TOOLS);
    }
    for name in tools {
        let file = setup::in_path(name).with_context(|| format!("there is no `{name}`"))?;
        programs.push(Program { place: Path::new("/bin").join(name), file });
    }
    Ok(programs)
}

/// The kernel that is here, or the newest there is.
fn find(kernels: &mut Kernels, series: &str, refresh: bool) -> Result<Kernel> {
    let present = kernels.present(series);
    if let Some(kernel) = present.clone().filter(|_| !refresh) {
        return Ok(kernel);
    }
    eprintln!("vm-test: looking for Debian's newest {series} kernel");
    match (kernels.fetch(series), present) {
        (Err(error), Some(kernel)) => {
            eprintln!("vm-test: {error:#}; {} is here and will do", kernel.release);
            Ok(kernel)
        }
        (fetched, _) => fetched,
    }
}

/// What all guests have in common.
struct Guests<'a> {
    /// The first part of their files.
    common: Vec<u8>,
    /// Parts of the names of the tests they run.
    wanted: Vec<&'a str>,
    /// Where their own files are put.
    directory: &'a Path,
}

/// How it went with one guest.
struct Told {
    holds: bool,
    text: String,
}

impl Guests<'_> {
    /// Boots these kernels beside each other; the results are in their order.
    fn run_all(&self, kernels: &[(&str, Kernel)]) -> Vec<Result<Told>> {
        thread::scope(|scope| {
            let running: Vec<_> =
                kernels.iter().map(|(_, kernel)| scope.spawn(|| self.run(kernel))).collect();
            let panicked = |_| Err(anyhow!("the thread that watched a guest panicked"));
            running.into_iter().map(|guest| guest.join().unwrap_or_else(panicked)).collect()
        })
    }

    /// Boots one kernel and runs the tests in it.
    fn run(&self, kernel: &Kernel) -> Result<Told> {
        let started = clock::now();
        let release = &kernel.release;
        let files = self.directory.join(format!("{release}.cpio"));
        let console = self.directory.join(format!("{release}.console.txt"));
        fs::write(&files, [&self.common[..], &guest::own(&kernel.veth)?].concat())
            .with_context(|| files.display().to_string())?;
        eprintln!("vm-test: booting {release}");
        let booted = machine::boot(&kernel.image, &files, &console);
        // Tens of megabytes that are made anew each time.
        fs::remove_file(&files).with_context(|| files.display().to_string())?;
        clock::go_on()?;
        let output = match booted {
            Ok(output) => output,
            Err(error) => {
                let text = format!("kernel {release}: FAILED: {error:#}\n");
                return Ok(Told { holds: false, text });
            }
        };
        let report = Report::read(&output);
        let holds = report.holds(&self.wanted);
        let mut text = format!("kernel {release}: {}", report.text(holds, started.elapsed()));
        if !holds {
            text += &format!("what the guest wrote:\n{output}\n{}", machine::last_lines(&console));
        }
        Ok(Told { holds, text })
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_series_and_refresh() {
        let parse = |words: &[&str]| {
            Options::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).ok()
        };
        let options = |refresh, product, series: &[&'static str]| {
            Some(Options { refresh, product, series: series.to_vec() })
        };
        for (words, parsed) in [
            (&[][..], options(false, false, &SERIES)),
            (&["--refresh"], options(true, false, &SERIES)),
            (&["6.1", "--product", "5.10"], options(false, true, &["6.1", "5.10"])),
            (&["4.19"], None),
            (&["--quick"], None),
        ] {
            assert_eq!(parse(words), parsed, "{words:?}");
        }
    }

    #[test]
    fn a_missing_kernel_is_a_failure_in_ci_and_where_nothing_ran() {
        for (held, failed, missing, is_ci, success) in [
            (3, 0, 0, true, true),
            (2, 0, 1, true, false),
            (2, 0, 1, false, true),
            (0, 0, 3, false, false),
            (2, 1, 0, false, false),
        ] {
            assert_eq!(
                is_success(held, failed, missing, is_ci),
                success,
                "{held} {failed} {missing}"
            );
        }
    }
}
