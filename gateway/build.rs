//! Builds the XDP program and embeds it.
//!
//! BPF code needs a compiler, the `core` library of exactly that compiler (prebuilt for the BPF
//! target, or as source to build it from), and bpf-linker. This script looks for the three, runs a
//! cargo of its own for the BPF target, and leaves the object in `OUT_DIR`. What it cannot find it
//! reports with every place it looked at; `cargo xtask setup` installs it.
//!
//! Variables: `GATEWAY_BPF_OBJECT` names a finished object to embed (packagers, cross builds);
//! `GATEWAY_BPF_SKIP=1` embeds none, and the binary refuses XDP (editors, documentation);
//! `GATEWAY_BPF_RUSTC`, `GATEWAY_BPF_CARGO` and `GATEWAY_BPF_LINKER` name the tools.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const OBJECT: &str = "gateway-xdp";
const VARIABLES: [&str; 5] = [
    "GATEWAY_BPF_OBJECT",
    "GATEWAY_BPF_SKIP",
    "GATEWAY_BPF_RUSTC",
    "GATEWAY_BPF_CARGO",
    "GATEWAY_BPF_LINKER",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // Cargo shows one line for each directive.
            for line in text.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let gateway = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = gateway.parent().ok_or("the package lies in no workspace")?;
    for file in ["gateway-ebpf/src", "gateway-ebpf/Cargo.toml", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    for name in VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // A daemon that has given everything up cannot be looked into by a sanitizer of leaks.
    println!("cargo::rustc-check-cfg=cfg(portcullis_unconfined)");
    if env::var("CARGO_CFG_SANITIZE").is_ok_and(|sanitizers| sanitizers.contains("address")) {
        println!("cargo::rustc-cfg=portcullis_unconfined");
    }
    let embedded = out.join(OBJECT);

    if let Some(object) = env::var_os("GATEWAY_BPF_OBJECT") {
        println!("cargo::rerun-if-changed={}", Path::new(&object).display());
        return copy(Path::new(&object), &embedded);
    }
    if env::var_os("GATEWAY_BPF_SKIP").is_some_and(|value| !value.is_empty() && value != "0") {
        println!(
            "cargo::warning=GATEWAY_BPF_SKIP is set: this binary has no XDP program and will refuse [xdp]"
        );
        return fs::write(&embedded, []).map_err(|error| failed("write", &embedded, &error));
    }

    let mut looked = Looked::default();
    let toolchain = find_toolchain(&mut looked);
    let linker = find_linker(workspace, &mut looked);
    let (Some(toolchain), Some(linker)) = (toolchain, linker) else {
        return Err(looked.report());
    };
    let object = compile(workspace, &out, &toolchain, &linker)?;
    copy(&object, &embedded)
}

/// A compiler that can make BPF code, with the cargo that goes with it.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    /// `core` has to be compiled from the compiler's own source.
    builds_core: bool,
    /// The compiler takes unstable options by itself.
    is_nightly: bool,
}

/// Every place that was looked at, and why it would not do.
#[derive(Default)]
struct Looked {
    compilers: Vec<String>,
    linkers: Vec<String>,
    has_compiler: bool,
    has_linker: bool,
}

impl Looked {
    fn report(&self) -> String {
        let mut text = String::from(
            "the XDP program cannot be built: a tool is missing. `cargo xtask setup` installs it.\n",
        );
        if !self.has_compiler {
            text.push_str("No compiler with `core` for bpfel-unknown-none. Looked at:\n");
            for line in &self.compilers {
                let _ = writeln!(text, "  {line}");
            }
            text.push_str(
                "By hand, on Debian: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf\n\
                 By hand, with rustup: rustup toolchain install nightly --component rust-src\n",
            );
        }
        if !self.has_linker {
            text.push_str("No bpf-linker. Looked at:\n");
            for line in &self.linkers {
                let _ = writeln!(text, "  {line}");
            }
            text.push_str(
                "By hand: your distribution's package or a published binary of bpf-linker 0.13, \
                 or, with LLVM 22's development files, cargo install bpf-linker@0.13.0 \
                 --no-default-features --features llvm-22 --root .tools\n",
            );
        }
        text.push_str(
            "Without the program (it will refuse [xdp]): GATEWAY_BPF_SKIP=1. \
             With one built elsewhere: GATEWAY_BPF_OBJECT=FILE.",
        );
        text
    }
}

fn find_toolchain(looked: &mut Looked) -> Option<Toolchain> {
    let mut candidates = Vec::new();
    if let Some(rustc) = env::var_os("GATEWAY_BPF_RUSTC") {
        // Who names a compiler means that one and no other.
        candidates.push(("GATEWAY_BPF_RUSTC", PathBuf::from(rustc)));
    } else {
        match rustup_which("rustc") {
            Ok(rustc) => candidates.push(("rustup's nightly", rustc)),
            Err(why) => looked.compilers.push(format!("rustup's nightly: {why}")),
        }
        candidates.push(("the system's", PathBuf::from("/usr/bin/rustc")));
        candidates.extend(in_path("rustc").into_iter().map(|rustc| ("PATH", rustc)));
    }
    for (place, rustc) in candidates {
        match judge_toolchain(&rustc) {
            Ok(toolchain) => {
                looked.has_compiler = true;
                return Some(toolchain);
            }
            Err(why) => looked.compilers.push(format!("{place}: {}: {why}", rustc.display())),
        }
    }
    None
}

fn judge_toolchain(rustc: &Path) -> Result<Toolchain, String> {
    let version = output(clean(rustc).arg("-vV"))?;
    let sysroot = PathBuf::from(output(clean(rustc).args(["--print", "sysroot"]))?.trim());
    let rustlib = sysroot.join("lib/rustlib");
    let prebuilt = rustlib.join(bpf_target()).join("lib");
    let has_prebuilt = fs::read_dir(&prebuilt).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
    });
    let source = rustlib.join("src/rust/library/core/src/lib.rs");
    if !has_prebuilt && !source.exists() {
        return Err(format!(
            "has neither {} nor {}",
            prebuilt.join("libcore-*").display(),
            source.display()
        ));
    }
    let cargo = match env::var_os("GATEWAY_BPF_CARGO") {
        Some(cargo) => PathBuf::from(cargo),
        None => rustc.with_file_name("cargo"),
    };
    if !cargo.exists() {
        return Err(format!("there is no {} beside it", cargo.display()));
    }
    let is_nightly =
        version.lines().any(|line| line.starts_with("release: ") && line.contains("-nightly"));
    Ok(Toolchain { rustc: rustc.into(), cargo, builds_core: !has_prebuilt, is_nightly })
}

/// The nightly's real compiler: the one in `PATH` is rustup's proxy, which follows the
/// workspace's pinned toolchain.
fn rustup_which(tool: &str) -> Result<PathBuf, String> {
    let path = output(clean("rustup").args(["which", "--toolchain", "nightly", tool]))?;
    Ok(PathBuf::from(path.trim()))
}

fn find_linker(workspace: &Path, looked: &mut Looked) -> Option<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(linker) = env::var_os("GATEWAY_BPF_LINKER") {
        candidates.push(("GATEWAY_BPF_LINKER", PathBuf::from(linker)));
    } else {
        candidates.push(("the workspace", workspace.join(".tools/bin/bpf-linker")));
        match in_path("bpf-linker") {
            Some(linker) => candidates.push(("PATH", linker)),
            None => looked.linkers.push("PATH: no bpf-linker in any of its directories".into()),
        }
        if let Some(home) = cargo_home() {
            candidates.push(("cargo's home", home.join("bin/bpf-linker")));
        }
    }
    for (place, linker) in candidates {
        match output(clean(&linker).arg("--version")) {
            Ok(_) => {
                looked.has_linker = true;
                println!("cargo::rerun-if-changed={}", linker.display());
                return Some(linker);
            }
            Err(why) => looked.linkers.push(format!("{place}: {}: {why}", linker.display())),
        }
    }
    None
}

fn compile(
    workspace: &Path,
    out: &Path,
    toolchain: &Toolchain,
    linker: &Path,
) -> Result<PathBuf, String> {
    // OUT_DIR is <target>/[<triple>/]<profile>/build/<package>-<hash>/out. A directory of its own
    // below <target> has its own lock, so the outer cargo is not waited for, and serves every
    // profile, so `core` is built once at most.
    let target = out
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .or_else(|| out.ancestors().nth(4))
        .ok_or("OUT_DIR lies in no target directory")?
        .join("bpf");
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", linker.display()),
        // Its debug information is in the binary, which is to be the same wherever it is built.
        format!("--remap-path-prefix={}=/portcullis", workspace.display()),
    ];
    flags.extend(cargo_home().map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    let mut cargo = clean(&toolchain.cargo);
    cargo
        .current_dir(workspace)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "gateway-ebpf", "--bin", OBJECT])
        .args(["--target", bpf_target(), "--target-dir"])
        .arg(&target);
    if !toolchain.is_nightly {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    if toolchain.builds_core {
        cargo.arg("-Zbuild-std=core");
    }
    let result = cargo
        .output()
        .map_err(|error| format!("cannot run {}: {error}", toolchain.cargo.display()))?;
    let said = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        return Err(format!(
            "the XDP program does not compile with {} and {}:\n{said}",
            toolchain.rustc.display(),
            linker.display()
        ));
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    Ok(target.join(bpf_target()).join("release").join(OBJECT))
}

/// BPF code has the byte order of the machine it runs on.
fn bpf_target() -> &'static str {
    if env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() == Ok("big") {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// A command without what the outer cargo and rustup put into the environment for the outer
/// toolchain; only where things are stored and how the network is reached stays.
fn clean(program: impl AsRef<OsStr>) -> Command {
    const KEPT: [&str; 4] = ["CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS"];
    const KEPT_PREFIXES: [&str; 4] =
        ["CARGO_HTTP_", "CARGO_SOURCE_", "CARGO_REGISTRIES_", "CARGO_NET_"];
    const REMOVED: [&str; 6] = ["OUT_DIR", "TARGET", "HOST", "PROFILE", "LD_LIBRARY_PATH", "DEBUG"];
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_kept =
            KEPT.contains(&&*text) || KEPT_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        if !is_kept
            && (text.starts_with("CARGO") || text.starts_with("RUST") || REMOVED.contains(&&*text))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// What a command printed; why not, in a few words, otherwise.
fn output(command: &mut Command) -> Result<String, String> {
    match command.output() {
        Err(error) => Err(format!("cannot run it: {error}")),
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(said.lines().next().unwrap_or("it failed without a word").to_owned())
        }
    }
}

fn in_path(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(tool)).find(|file| file.is_file())
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let object = fs::read(from).map_err(|error| failed("read", from, &error))?;
    if !object.starts_with(b"\x7fELF") {
        return Err(format!("{} is not an ELF object", from.display()));
    }
    fs::write(to, object).map_err(|error| failed("write", to, &error))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
