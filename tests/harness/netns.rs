//! Network namespaces, links and addresses, made with `ip` and removed when dropped.
//!
//! Names carry the process id, so that tests of several processes do not meet, and so that a later
//! run finds what a killed one left ([`remove_leftovers`]).
//! A namespace is entered by `nsenter --net` or by `setns` on a thread of its own, never by
//! `ip netns exec`: that mounts a new `/sys`, and the bpffs with the pins is gone from view.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::process as commands;

/// Where `ip netns` keeps its handles.
const NAMESPACES: &str = "/run/netns";
/// Where the BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Start of every name made here; the process id follows.
const PREFIX: &str = "portcullis-test";

/// `ip netns add` prepares a shared mount on its first use, and two at once trip over each other.
static ADDING: Mutex<()> = Mutex::new(());

/// A name no other process and no other call of this process uses.
fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}-{label}", process::id())
}

/// The process id in a name made by [`unique`].
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// One network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one; `label` is for people who look at `ip netns`.
    ///
    /// # Errors
    /// Without the privilege, or without `ip`.
    pub fn new(label: &str) -> Result<Arc<Namespace>> {
        let name = unique(label);
        {
            let _one_at_a_time = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
            commands::succeed(Command::new("ip").args(["netns", "add", &name]))
                .context("network namespaces need root and iproute2")?;
        }
        let namespace = Namespace { name };
        namespace.ip("link set lo up")?;
        // Frames for a sibling host must not wait for duplicate address detection.
        for file in ["all/accept_dad", "default/accept_dad"] {
            namespace.sysctl(&format!("net/ipv6/conf/{file}"), "0")?;
        }
        Ok(Arc::new(namespace))
    }

    /// The handle that `setns` and `nsenter` take.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// A command that will run in this namespace, everything else as outside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Runs `ip` with these words in this namespace, and gives what it printed.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn ip(&self, words: &str) -> Result<String> {
        commands::succeed(self.command("ip").args(words.split_whitespace()))
    }

    /// Sets a kernel setting of this namespace: `path` is below `/proc/sys`.
    fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{path}");
        // A kernel without IPv6 has no such file and needs none.
        self.within(|| match fs::write(&file, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })?
        .with_context(|| format!("cannot set {file}"))
    }

    /// Runs a closure on a thread inside this namespace: sockets it opens belong here for good.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(&path)?;
                    Ok(closure())
                })
                .join()
                .map_err(|_panic| anyhow!("the thread in namespace {} panicked", self.name))?
        })
    }

    /// Adds an address to one of this namespace's interfaces.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_address(&self, interface: &str, address: IpAddr, prefix: u8) -> Result<()> {
        // IPv6: usable at once, nobody else is on these links.
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        self.ip(&format!("address add {address}/{prefix} dev {interface}{nodad}")).map(drop)
    }

    /// The hardware address of one of this namespace's interfaces.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn hardware_address(&self, interface: &str) -> Result<[u8; 6]> {
        let text = self.link_field(interface, "address")?;
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().with_context(|| format!("{text} is not a MAC address"))?;
            *byte = u8::from_str_radix(part, 16).with_context(|| text.clone())?;
        }
        Ok(bytes)
    }

    /// The index of one of this namespace's interfaces.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.link_field(interface, "ifindex")?.parse().context("ifindex")
    }

    /// Whether an XDP program is attached to an interface, in any mode.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn has_xdp(&self, interface: &str) -> Result<bool> {
        Ok(self.link(interface)?.get("xdp").is_some())
    }

    /// Has an interface's receive work done by kernel threads of its own ([`receive_threads`])
    /// instead of by whichever core the sender happens to use. Since Linux 5.12, for an interface that receives
    /// by NAPI: a veth does while it has an XDP program.
    ///
    /// # Errors
    /// When the kernel does not know how, or the interface does not receive by NAPI.
    pub fn receive_by_threads(&self, interface: &str) -> Result<()> {
        // The one place for `ip netns exec`: it shows the namespace's own /sys.
        let file = format!("/sys/class/net/{interface}/threaded");
        let write = format!("echo 1 > {file}");
        let mut command = Command::new("ip");
        commands::succeed(command.args(["netns", "exec", &self.name, "sh", "-c", &write]))?;
        Ok(())
    }

    /// Packets that an interface received and how many of them were dropped.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn received_packets(&self, interface: &str) -> Result<(u64, u64)> {
        let link = self.link(interface)?;
        let field = |name: &str| {
            link["stats64"]["rx"][name].as_u64().with_context(|| format!("no rx {name}: {link}"))
        };
        Ok((field("packets")?, field("dropped")?))
    }

    fn link_field(&self, interface: &str, field: &str) -> Result<String> {
        let link = self.link(interface)?;
        match &link[field] {
            serde_json::Value::String(text) => Ok(text.clone()),
            serde_json::Value::Number(number) => Ok(number.to_string()),
            _ => Err(anyhow!("{interface} has no {field}: {link}")),
        }
    }

    fn link(&self, interface: &str) -> Result<serde_json::Value> {
        let text = self.ip(&format!("-json -statistics link show dev {interface}"))?;
        let mut list: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        list.pop().with_context(|| format!("no interface {interface} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its interfaces go with it. A failure leaves the namespace to the next run.
        let _left = commands::run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// Moves the calling thread into a namespace.
///
/// # Errors
/// When there is no such namespace, or without the privilege.
pub fn enter(path: &Path) -> Result<()> {
    let handle = File::open(path).with_context(|| path.display().to_string())?;
    setns(handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {}", path.display()))
}

/// The kernel threads that receive for interfaces of this name, in any namespace.
pub fn receive_threads(interface: &str) -> BTreeSet<i32> {
    let start = format!("napi/{interface}-");
    let is_ours = |process: &i32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm"));
        name.is_ok_and(|name| name.starts_with(&start))
    };
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(is_ours).collect()
}

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it will be.
    pub namespace: &'a Namespace,
    /// At most 15 bytes (the kernel's IFNAMSIZ).
    pub interface: &'a str,
}

/// Joins two namespaces with a virtual Ethernet cable with one queue, both ends up.
///
/// # Errors
/// When `ip` refuses.
pub fn cable(one: End<'_>, other: End<'_>) -> Result<()> {
    commands::succeed(
        Command::new("ip")
            .args(["link", "add", one.interface, "numrxqueues", "1", "numtxqueues", "1"])
            .args(["netns", &one.namespace.name, "type", "veth", "peer", "name"])
            .args([other.interface, "numrxqueues", "1", "numtxqueues", "1"])
            .args(["netns", &other.namespace.name]),
    )?;
    one.namespace.ip(&format!("link set {} up", one.interface))?;
    other.namespace.ip(&format!("link set {} up", other.interface))?;
    Ok(())
}

/// A directory of its own on the BPF file system, not made yet; removed with all pins when dropped.
#[derive(Debug)]
pub struct PinDirectory {
    path: PathBuf,
}

impl PinDirectory {
    /// Chooses a name. The daemon under test makes the directory.
    pub fn new() -> PinDirectory {
        PinDirectory { path: Path::new(BPFFS).join(unique("pins")) }
    }

    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything is there.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        // Absent is what we want; any other failure is met again by the next run.
        let _absent = fs::remove_dir_all(&self.path);
    }
}

/// A directory for the files of one test, in a place where other users can reach it when the test
/// lets them; removed when dropped.
///
/// # Errors
/// When the temporary directory cannot be written.
pub fn directory(label: &str) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("{}-", unique(label))).tempdir()?)
}

/// Removes namespaces, pins and files of runs that were killed: those whose process is gone.
/// Gives the names of what it removed.
pub fn remove_leftovers() -> Vec<String> {
    let mut removed = Vec::new();
    for (place, is_namespace) in [
        (PathBuf::from(NAMESPACES), true),
        (PathBuf::from(BPFFS), false),
        (std::env::temp_dir(), false),
    ] {
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(process_id) = owner(&name) else { continue };
            if Path::new("/proc").join(process_id.to_string()).exists() {
                continue;
            }
            let gone = if is_namespace {
                commands::succeed(Command::new("ip").args(["netns", "delete", &name])).is_ok()
            } else {
                fs::remove_dir_all(entry.path()).is_ok()
            };
            if gone {
                removed.push(entry.path().display().to_string());
            }
        }
    }
    removed
}
