//! A Debian system that boots with systemd as its first process, in a container (systemd-nspawn) with a
//! network of the scene. Nothing that happens in it stays: its root is laid over the base in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    clock,
    netns::Namespace,
    process::{Ended, run, succeed},
};

/// Debian's release that is booted, the one that packages are made for first.
const RELEASE: &str = "bookworm";
/// What a server has besides the smallest system.
const PACKAGES: &str =
    "systemd,systemd-sysv,dbus,iproute2,ca-certificates,init-system-helpers,procps";
/// Where the machine sees the directory that it shares with the scene.
pub(super) const SHARED: &str = "/mnt/shared";
/// From the first process to a system that runs; a second on an idle machine.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// From the wish to the end; systemd kills what does not end after 90 s.
const POWEROFF_MAX: Duration = Duration::from_secs(30);

/// A machine that runs; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Machine {
    container: Child,
    /// Its first process, as this system numbers it.
    leader: Pid,
}

/// Has debootstrap make the base, once.
///
/// # Errors
/// When the mirror cannot be asked, or this machine does not let it.
pub(super) fn base(place: &Path) -> Result<PathBuf> {
    let base = place.join(RELEASE);
    if base.join("etc/debian_version").exists() {
        return Ok(base);
    }
    let unfinished = place.join(format!("{RELEASE}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("what an earlier run left")?;
    }
    fs::create_dir_all(place)?;
    eprintln!("package: a Debian system to boot, into {} (a minute or two, once)", base.display());
    succeed(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE])
            .arg(&unfinished),
    )?;
    fs::rename(&unfinished, &base)?;
    Ok(base)
}

impl Machine {
    /// Boots one in this network; its console goes to `log`.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn boot(
        base: &Path,
        network: &Namespace,
        shared: &Path,
        log: &Path,
    ) -> Result<Machine> {
        let console = fs::File::create(log)?;
        let container = Command::new("systemd-nspawn")
            // The XDP program needs a /sys with bpffs in it.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .args(["--quiet", "--boot", "--volatile=overlay", "--register=no", "--keep-unit"])
            .args(["--console=passive", "--system-call-filter=bpf"])
            .arg("--capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN,CAP_SYS_RESOURCE")
            .arg(format!("--machine=portcullis-boot-{}", std::process::id()))
            .arg(format!("--directory={}", base.display()))
            .arg(format!("--network-namespace-path={}", network.path().display()))
            .arg(format!("--bind={}:{SHARED}", shared.display()))
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("systemd-nspawn")?;
        // Until it is known, the container is all there is to end.
        let mut machine = Machine { leader: Pid::from_raw(0), container };
        machine.leader = clock::wait_for("the container's first process", BOOT_MAX, || {
            if let Some(status) = machine.container.try_wait()? {
                bail!("systemd-nspawn ended ({status}): {}", fs::read_to_string(log)?);
            }
            first_process(machine.container.id())
        })?;
        clock::wait_for("the system to be up", BOOT_MAX, || {
            let state = machine.run("systemctl is-system-running")?.stdout;
            Ok(matches!(state.trim(), "running" | "degraded").then_some(()))
        })?;
        // On a machine of its own systemd has mounted it; in a container it leaves that to others.
        machine
            .succeed("mountpoint -q /sys/fs/bpf || mount -t bpf -o mode=0700 bpf /sys/fs/bpf")?;
        Ok(machine)
    }

    /// A shell command in the machine, as root.
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.leader))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"])
            .args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c"])
            // The directory that this command is called in is of another system.
            .arg(format!("cd /\n{words}"));
        command
    }

    /// Runs it, whatever becomes of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn run(&self, words: &str) -> Result<Ended> {
        run(&mut self.command(words))
    }

    /// Runs what must succeed; gives what it printed.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn succeed(&self, words: &str) -> Result<String> {
        succeed(&mut self.command(words)).map(|text| text.trim_end().to_owned())
    }

    /// One property of the unit.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(super) fn property(&self, name: &str) -> Result<String> {
        self.succeed(&format!("systemctl show --property={name} --value portcullis.service"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.leader.as_raw() > 0 {
            let _gone = run(&mut self.command("systemctl --no-block poweroff"));
            let is_over = |child: &mut Child| Ok(child.try_wait()?.map(|_| ()));
            if clock::wait_for("the machine's end", POWEROFF_MAX, || is_over(&mut self.container))
                .is_ok()
            {
                return;
            }
            // The first process takes everything of the machine with it.
            let _gone = kill(self.leader, Signal::SIGKILL);
        }
        let _gone = self.container.kill();
        let _buried = self.container.wait();
    }
}

/// The child of nspawn that is the first process of a system; there is another one before it, which
/// makes the namespaces and goes.
fn first_process(container: u32) -> Result<Option<Pid>> {
    let file = format!("/proc/{container}/task/{container}/children");
    let Ok(text) = fs::read_to_string(file) else { return Ok(None) };
    let is_first = |process: &&str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        // As this system numbers it, and as its own.
        numbers.is_some_and(|line| line.split_whitespace().skip(1).eq(["1"]))
    };
    let first = text.split_whitespace().find(is_first);
    Ok(first.and_then(|word| word.parse().ok()).map(Pid::from_raw))
}
