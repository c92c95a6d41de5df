//! One virtual machine, from its start to its end.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::harness::clock;

/// The emulator's program.
pub const EMULATOR: &str = "qemu-system-x86_64";
/// Without the processor's help everything takes long; several times what a busy machine needs.
const LIMIT: Duration = Duration::from_secs(1_500);
/// The kernel, up to 100 MB of initial file system twice while it is unpacked, and the maps.
const MEMORY_MB: u32 = 1024;
/// Two, because a program that is right on one processor may be wrong on two.
const PROCESSORS: u32 = 2;
/// The two processors take turns in one thread. In two threads (seen with QEMU 7.2), one that runs
/// code while the other rewrites it may keep to a breakpoint that is long gone, for ever; kernels
/// rewrite the call of an XDP program whenever one is attached or tested.
const ACCELERATOR: &str = "tcg,thread=single";
/// Kernel messages from notices on to the first serial port, and an end in place of waiting where
/// something is wrong. Mitigations only make an emulated processor slower.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=6 panic=-1 mitigations=off";
/// What a guest may write: its tests write some kilobytes.
const OUTPUT_BYTES: u64 = 4 << 20;

/// The process; it ends with this value.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.0.kill();
        let _buried = self.0.wait();
    }
}

/// Boots a kernel and gives what its guest wrote to the second serial port; what the kernel itself
/// says goes to the file `console`.
///
/// # Errors
/// When the emulator cannot be started or fails, the guest does not switch itself off in time, or
/// somebody interrupts.
pub fn boot(kernel: &Path, files: &Path, console: &Path) -> Result<String> {
    let mut command = Command::new(EMULATOR);
    command
        .args(["-accel", ACCELERATOR, "-cpu", "max"])
        .args(["-smp", &PROCESSORS.to_string(), "-m", &MEMORY_MB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(files)
        .args(["-append", COMMAND_LINE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut emulator =
        Emulator(command.spawn().with_context(|| format!("cannot start {EMULATOR}"))?);
    let stdout = emulator.0.stdout.take().context("piped above")?;
    let reader = thread::spawn(move || {
        let mut output = Vec::new();
        // What was read until an error came is what there is.
        let _rest_is_lost = stdout.take(OUTPUT_BYTES).read_to_end(&mut output);
        String::from_utf8_lossy(&output).into_owned()
    });
    let ended = clock::wait_for("the guest to switch itself off", LIMIT, || {
        emulator.0.try_wait().context(EMULATOR)
    });
    // The pipe ends with the process, and with it the reader.
    drop(emulator);
    let output = reader.join().unwrap_or_default();
    match ended {
        Ok(status) => checked(status).map(|()| output),
        Err(error) => bail!("{error:#}; it wrote:\n{output}{}", last_lines(console)),
    }
}

fn checked(status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{EMULATOR} failed: {status}");
    }
    Ok(())
}

/// The end of what a kernel said, for a message.
pub fn last_lines(console: &Path) -> String {
    const LINES: usize = 25;
    let Ok(mut text) = File::open(console).and_then(|_| fs::read(console)) else {
        return String::from("the kernel said nothing\n");
    };
    text.retain(|&octet| octet != b'\r');
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    format!("the kernel's last words:\n  {}\n", last.join("\n  "))
}
