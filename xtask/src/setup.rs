//! Brings a machine to where the workspace builds, tests and demonstrates itself.
//!
//! Looks first and changes nothing when nothing is missing. What it installs it names before it
//! does; what it cannot install it explains. The same three things are looked for, in the same
//! places, as the daemon's build script looks for them: a compiler with `core` for the BPF target,
//! bpf-linker, and the programs that tests and demo run.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::unpacked;

/// Programs that the build, the tests and the demo run, and the Debian packages they are in.
const PROGRAMS: [Program; 7] = [
    ("cc", "gcc"),
    ("c++", "g++"), // the fuzzer's engine
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("h2load", "nghttp2-client"),
    ("faketime", "faketime"), // a daemon whose clocks are moved
];
/// Debian's compiler for BPF, with `core` prebuilt for the target.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// What bpf-linker is built from: the LLVM of that compiler, and of rustup's nightly.
const LINKER_PACKAGES: [&str; 2] = ["llvm-22-dev", "libzstd-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
const BPF_TARGET: &str = "bpfel-unknown-none";
const BPFFS: &str = "/sys/fs/bpf";

/// Other implementations that tests compare the daemon with, and what each must be able to load.
/// Versions are fixed, since what they accept is written down in the tests.
const PYTHON_PACKAGES: [&str; 8] = [
    "PyJWT[crypto]==2.15.1",
    "joserfc==1.8.0",
    "oidc-provider-mock==0.3.4",
    // NIST's suite of certificates and lists (PKITS).
    "cryptography-vectors==50.0.2",
    // Clients of HTTP/3, HTTP/2 frame by frame, WebSocket and gRPC.
    "aioquic==1.7.2",
    "h2==4.4.1",
    "websockets==17.4",
    "grpcio==1.85.1",
];
const PYTHON_MODULES: &str = "import jwt, cryptography, joserfc, oidc_provider_mock, cryptography_vectors, aioquic, h2, websockets, grpc";
/// What makes an environment of its own for them.
const PYTHON_PACKAGE: &str = "python3-venv";
const PYTHON_PLACE: &str = ".tools/python";

/// A program and the Debian package it is in.
pub type Program = (&'static str, &'static str);

/// Installs what is missing.
///
/// # Errors
///
/// When a command fails, or something has to be installed by hand; the text says how.
pub fn setup() -> anyhow::Result<()> {
    setup_with(&[])
}

/// Installs what is missing for every command, the tests' other implementations included.
///
/// # Errors
///
/// As [`setup`].
pub fn setup_all() -> anyhow::Result<()> {
    setup()?;
    let workspace = workspace();
    unpacked::unpack_missing(&workspace)?;
    if has_python(&workspace) {
        return Ok(());
    }
    eprintln!("setup: missing: {}", Need::Python);
    install(&[Need::Python], &[])?;
    ensure!(has_python(&workspace), "still missing after it was installed: {}", Need::Python);
    Ok(())
}

/// Installs what is missing, for a command that runs these programs besides.
///
/// # Errors
///
/// As [`setup`].
pub fn setup_with(more: &[Program]) -> anyhow::Result<()> {
    let workspace = workspace();
    let programs = [&PROGRAMS[..], more].concat();
    let missing = look(&workspace, &programs);
    if missing.is_empty() {
        eprintln!("setup: nothing is missing");
        return Ok(());
    }
    for need in &missing {
        eprintln!("setup: missing: {need}");
    }
    install(&missing, &programs)?;
    let missing = look(&workspace, &programs);
    ensure!(
        missing.is_empty(),
        "still missing after everything was installed: {}",
        missing.iter().map(Need::to_string).collect::<Vec<_>>().join(", ")
    );
    eprintln!("setup: done");
    Ok(())
}

fn install(missing: &[Need], programs: &[Program]) -> anyhow::Result<()> {
    let mut machine = Machine::look();
    if machine.has_apt {
        // Without fresh lists apt knows no packages at all on a new machine.
        if machine.may_install() {
            privileged_on(&machine, "apt-get", &["update"])?;
        }
        machine.offered = offered(programs);
    }
    let (steps, by_hand) = plan(missing, &machine);
    if !steps.is_empty() && steps.iter().any(Step::is_privileged) && !machine.may_install() {
        bail!(
            "to install packages this needs root or sudo, and there is neither; run as root: {}",
            steps.iter().map(|step| format!("\n  {step}")).collect::<String>()
        );
    }
    for (number, step) in (1..).zip(&steps) {
        eprintln!("setup: step {number} of {}: {step}", steps.len());
        step.run(&machine, &workspace())?;
    }
    if !by_hand.is_empty() {
        bail!("these have to be installed by hand:\n{}", by_hand.join("\n"));
    }
    Ok(())
}

/// Mounts a bpffs at its usual place, where there is none. Tests and demo pin the filter there.
///
/// # Errors
///
/// When mounting is not permitted.
pub fn mount_bpffs() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    if is_mounted(&mounts, BPFFS, "bpf") {
        return Ok(());
    }
    eprintln!("mounting a bpffs at {BPFFS}");
    privileged("mount", &["-t", "bpf", "bpf", BPFFS])
}

fn is_mounted(mounts: &str, at: &str, kind: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(at) && fields.next() == Some(kind)
    })
}

/// Something that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Compiler,
    Linker,
    Python,
    Program { name: &'static str, package: &'static str },
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => {
                write!(formatter, "a Rust compiler with `core` (or its source) for {BPF_TARGET}")
            }
            Self::Linker => formatter.write_str(LINKER),
            Self::Python => write!(formatter, "{} in {PYTHON_PLACE}", PYTHON_PACKAGES.join(", ")),
            Self::Program { name, .. } => write!(formatter, "the program {name}"),
        }
    }
}

/// What this machine can do about it.
#[derive(Debug, Default)]
struct Machine {
    has_apt: bool,
    has_rustup: bool,
    has_sudo: bool,
    is_root: bool,
    /// Packages of ours that apt could install.
    offered: BTreeSet<String>,
}

impl Machine {
    fn look() -> Self {
        Self {
            has_apt: in_path("apt-get").is_some(),
            has_rustup: in_path("rustup").is_some(),
            has_sudo: in_path("sudo").is_some(),
            is_root: output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0"),
            offered: BTreeSet::new(),
        }
    }

    fn may_install(&self) -> bool {
        self.is_root || self.has_sudo
    }

    fn offers(&self, packages: &[&str]) -> bool {
        packages.iter().all(|&package| self.offered.contains(package))
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Packages(Vec<&'static str>),
    Nightly,
    Linker,
    Python,
}

impl Step {
    fn is_privileged(&self) -> bool {
        matches!(self, Self::Packages(_))
    }

    fn run(&self, machine: &Machine, workspace: &Path) -> anyhow::Result<()> {
        match self {
            Self::Packages(packages) => {
                let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
                arguments.extend(packages);
                privileged_on(machine, "apt-get", &arguments)
            }
            Self::Nightly => run(Command::new("rustup").args(NIGHTLY)),
            Self::Python => {
                let place = workspace.join(PYTHON_PLACE);
                run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
                run(Command::new(place.join("bin/python"))
                    .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                    .args(PYTHON_PACKAGES))
            }
            Self::Linker => {
                let mut path = OsString::from(format!("{LLVM_PREFIX}/bin:"));
                path.push(env::var_os("PATH").unwrap_or_default());
                run(Command::new("cargo")
                    .args(["install", &format!("{LINKER}@{LINKER_VERSION}"), "--locked"])
                    .args(["--no-default-features", "--features", "llvm-22", "--root"])
                    .arg(workspace.join(".tools"))
                    .env("LLVM_PREFIX", LLVM_PREFIX)
                    .env("PATH", path))
            }
        }
    }
}

const NIGHTLY: [&str; 7] =
    ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages(packages) => {
                write!(formatter, "apt-get install --no-install-recommends {}", packages.join(" "))
            }
            Self::Nightly => write!(formatter, "rustup {}", NIGHTLY.join(" ")),
            Self::Python => {
                write!(formatter, "install {} into {PYTHON_PLACE}", PYTHON_PACKAGES.join(", "))
            }
            Self::Linker => write!(
                formatter,
                "build {LINKER} {LINKER_VERSION} into .tools (a minute or two, once)"
            ),
        }
    }
}

/// What to do, in order, and what is left for a person, in words.
fn plan(missing: &[Need], machine: &Machine) -> (Vec<Step>, Vec<String>) {
    let mut packages = Vec::new();
    let mut later = Vec::new();
    let mut by_hand = Vec::new();
    for need in missing {
        match need {
            Need::Compiler if machine.offers(&COMPILER_PACKAGES) => {
                packages.extend(COMPILER_PACKAGES);
            }
            Need::Compiler if machine.has_rustup => later.push(Step::Nightly),
            Need::Compiler => by_hand.push(format!(
                "  {need}: install rustup, then: rustup {}",
                NIGHTLY.join(" ")
            )),
            Need::Linker if machine.offers(&LINKER_PACKAGES) => {
                packages.extend(LINKER_PACKAGES);
                later.push(Step::Linker);
            }
            Need::Linker => by_hand.push(format!(
                "  {need}: put version {LINKER_VERSION} into PATH or .tools/bin: your distribution's \
                 package, a binary its project publishes, or, with the development files of LLVM 22 \
                 and LLVM_PREFIX naming their place: cargo install {LINKER}@{LINKER_VERSION} \
                 --no-default-features --features llvm-22 --root .tools"
            )),
            Need::Python => {
                // Where there is no such package, python3 may still bring what it takes.
                if machine.offers(&[PYTHON_PACKAGE]) {
                    packages.push(PYTHON_PACKAGE);
                }
                later.push(Step::Python);
            }
            Need::Program { package, .. } if machine.offers(&[package]) => packages.push(*package),
            Need::Program { name, package } => by_hand.push(format!(
                "  {name}: with your package manager; Debian's package is {package}"
            )),
        }
    }
    let mut steps = Vec::new();
    if !packages.is_empty() {
        steps.push(Step::Packages(packages));
    }
    steps.extend(later);
    (steps, by_hand)
}

fn look(workspace: &Path, programs: &[Program]) -> Vec<Need> {
    let mut missing = Vec::new();
    if !has_compiler() {
        missing.push(Need::Compiler);
    }
    if !has_linker(workspace) {
        missing.push(Need::Linker);
    }
    let absent = programs.iter().filter(|(name, _)| in_path(name).is_none());
    missing.extend(absent.map(|&(name, package)| Need::Program { name, package }));
    missing
}

fn has_compiler() -> bool {
    if let Some(rustc) = env::var_os("GATEWAY_BPF_RUSTC") {
        return compiles_bpf(Path::new(&rustc));
    }
    if compiles_bpf(Path::new("/usr/bin/rustc")) {
        return true;
    }
    let nightly = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .stdin(Stdio::null())
        .output();
    nightly.is_ok_and(|found| {
        let path = String::from_utf8_lossy(&found.stdout);
        found.status.success() && compiles_bpf(Path::new(path.trim()))
    })
}

fn compiles_bpf(rustc: &Path) -> bool {
    let mut command = Command::new(rustc);
    command.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN");
    let Some(sysroot) = output(&mut command) else { return false };
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let prebuilt = fs::read_dir(rustlib.join(BPF_TARGET).join("lib"));
    rustlib.join("src/rust/library/core/src/lib.rs").exists()
        || prebuilt.is_ok_and(|mut files| {
            files.any(|file| {
                file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
            })
        })
}

fn has_linker(workspace: &Path) -> bool {
    if let Some(linker) = env::var_os("GATEWAY_BPF_LINKER") {
        return runs(Path::new(&linker));
    }
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    [
        Some(workspace.join(".tools/bin").join(LINKER)),
        in_path(LINKER),
        cargo_home.map(|home| home.join("bin").join(LINKER)),
    ]
    .into_iter()
    .flatten()
    .any(|linker| runs(&linker))
}

fn has_python(workspace: &Path) -> bool {
    let python = workspace.join(PYTHON_PLACE).join("bin/python");
    output(Command::new(python).args(["-W", "ignore", "-c", PYTHON_MODULES])).is_some()
}

fn runs(program: &Path) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

/// Packages of ours that apt knows a candidate of.
fn offered(programs: &[Program]) -> BTreeSet<String> {
    let mut command = Command::new("apt-cache");
    command.arg("policy").args(COMPILER_PACKAGES).args(LINKER_PACKAGES);
    command.arg(PYTHON_PACKAGE);
    command.args(programs.iter().map(|(_, package)| package)).env("LC_ALL", "C");
    parse_policy(&output(&mut command).unwrap_or_default())
}

fn parse_policy(text: &str) -> BTreeSet<String> {
    let mut offered = BTreeSet::new();
    let mut package = "";
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        } else if let Some(candidate) = line.trim().strip_prefix("Candidate: ")
            && candidate != "(none)"
        {
            offered.insert(package.to_owned());
        }
    }
    offered
}

/// Runs a command as root, by sudo where the user is somebody else, and says so.
///
/// # Errors
/// When it fails, or there is no way to become root.
pub fn privileged(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    privileged_on(&Machine::look(), program, arguments)
}

fn privileged_on(machine: &Machine, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = if machine.is_root {
        Command::new(program)
    } else if machine.has_sudo {
        eprintln!("setup: by sudo, because this needs root: {program} {}", arguments.join(" "));
        let mut command = Command::new("sudo");
        command.arg("--preserve-env=DEBIAN_FRONTEND").arg(program);
        command
    } else {
        bail!("this needs root, and there is no sudo: {program} {}", arguments.join(" "));
    };
    run(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Runs a command and lets it show its own progress.
///
/// # Errors
/// When it cannot be started, or fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

/// What a command printed; `None` when it is not there or failed.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// In `PATH`, and where administrators' programs are though users do not look there.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURL: Need = Need::Program { name: "curl", package: "curl" };

    fn machine(offered: &[&str], has_rustup: bool) -> Machine {
        Machine {
            has_apt: true,
            has_rustup,
            offered: offered.iter().map(|&package| package.to_owned()).collect(),
            ..Machine::default()
        }
    }

    #[test]
    fn installs_by_packages_first_then_by_rustup_and_explains_the_rest() {
        let debian: Vec<&str> =
            COMPILER_PACKAGES.into_iter().chain(LINKER_PACKAGES).chain(["curl"]).collect();
        let all = [Need::Compiler, Need::Linker, CURL];
        let packages = |names: &[&'static str]| Step::Packages(names.to_vec());
        for (what, missing, machine, steps, by_hand) in [
            ("nothing missing", &all[..0], machine(&debian, true), vec![], 0),
            (
                "Debian",
                &all[..],
                machine(&debian, true),
                vec![
                    packages(&[
                        "rustc-web",
                        "cargo-web",
                        "libstd-rust-web-dev-bpf",
                        "llvm-22-dev",
                        "libzstd-dev",
                        "curl",
                    ]),
                    Step::Linker,
                ],
                0,
            ),
            (
                "apt without those compilers",
                &all[..],
                machine(&["curl"], true),
                vec![packages(&["curl"]), Step::Nightly],
                1,
            ),
            ("neither apt nor rustup", &all[..], machine(&[], false), vec![], 3),
            ("only curl", &all[2..], machine(&debian, false), vec![packages(&["curl"])], 0),
        ] {
            let (planned, left) = plan(missing, &machine);
            assert_eq!(planned, steps, "{what}");
            assert_eq!(left.len(), by_hand, "{what}: {left:?}");
        }
    }

    #[test]
    fn reads_what_apt_offers() {
        let text = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n  Version table:\n\
                    llvm-22-dev:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(parse_policy(text), BTreeSet::from(["rustc-web".to_owned()]));
        assert_eq!(parse_policy(""), BTreeSet::new());
    }

    #[test]
    fn knows_a_mount_by_place_and_kind() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert!(is_mounted(mounts, "/sys/fs/bpf", "bpf"));
        assert!(!is_mounted(mounts, "/sys/fs", "bpf"));
        assert!(!is_mounted(mounts, "/sys/fs/bpf", "tmpfs"));
        assert!(!is_mounted("", "/sys/fs/bpf", "bpf"));
    }
}
