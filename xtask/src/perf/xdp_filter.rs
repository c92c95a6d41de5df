//! `xdp-filter` of Debian's xdp-tools: the program that is used where nobody writes one.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use serde_json::Value;

use crate::harness::{bpf::Program, netns::Namespace, process};

/// It pins its maps at one fixed place and wants an interface, so it gets a bpffs and a network of
/// its own; both are gone with the shell. It lives until its standard input ends, because the
/// program may be a chain that only its pins hold together.
const WORLD: &str = "\
mount -t bpf bpf /sys/fs/bpf
ip link add filtered type veth peer name other
ip link set filtered up
xdp-filter load --mode native --policy allow --features ipv4,ipv6 filtered
for address in \"$@\"; do xdp-filter ip --mode src \"$address\"; done
ip -json link show dev filtered
read -r end
";

/// It, loaded, denying some sources.
pub struct XdpFilter {
    /// What runs for each packet.
    pub program: Program,
    shell: Child,
    input: Option<ChildStdin>,
}

impl XdpFilter {
    /// Installs it where it is missing and can be had, and loads it.
    ///
    /// # Errors
    /// When it is not there, or the kernel or the distribution will not have it.
    pub fn start(denied: &[IpAddr]) -> Result<XdpFilter> {
        install()?;
        let mut shell = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "sh", "-ec", WORLD, "sh"])
            .args(denied.iter().map(IpAddr::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux)")?;
        let input = shell.stdin.take();
        let output = shell.stdout.take().context("piped above")?;
        // From here on the shell is ended whatever happens.
        let mut started = Started { shell: Some(shell), input };
        let mut links = String::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            if line.starts_with("[{") {
                links = line;
                break;
            }
        }
        let id = program_id(&links).context("xdp-filter attached no program")?;
        let program = Program::by_id(id)?;
        let shell = started.shell.take().context("taken once")?;
        Ok(XdpFilter { program, shell, input: started.input.take() })
    }
}

/// What [`attach`] runs in its own view of the file system.
const ATTACHING: &str = "\
mount -t bpf bpf /sys/fs/bpf
nsenter --net=\"$1\" xdp-filter load --mode native --policy allow --features ipv4 \"$2\"
nsenter --net=\"$1\" xdp-filter ip --mode src \"$3\"
echo attached
read -r end
";

/// Attaches it to an interface of a namespace, denying one source; [`end`] the shell, then take the
/// program off the interface.
///
/// # Errors
/// When it does not attach.
pub fn attach(host: &Namespace, interface: &str, denied: IpAddr) -> Result<Child> {
    let mut shell = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", ATTACHING, "sh"])
        .arg(host.path())
        .args([interface, &denied.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("unshare (util-linux)")?;
    let output = shell.stdout.take().context("piped above")?;
    let is_attached =
        BufReader::new(output).lines().map_while(Result::ok).any(|line| line == "attached");
    if !is_attached {
        end(&mut shell, None);
        bail!("xdp-filter does not attach to {interface}");
    }
    Ok(shell)
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        end(&mut self.shell, self.input.take());
    }
}

/// A shell that is ended unless somebody takes it.
struct Started {
    shell: Option<Child>,
    input: Option<ChildStdin>,
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut shell) = self.shell.take() {
            end(&mut shell, self.input.take());
        }
    }
}

/// Ends a shell that waits for its standard input to end.
pub fn end(shell: &mut Child, input: Option<ChildStdin>) {
    if let Some(mut input) = input {
        // A shell that has ended already reads nothing, which is as good.
        let _gone = input.write_all(b"\n");
    }
    drop(shell.stdin.take());
    let _buried = shell.wait();
}

/// What `ip -json link` says of the XDP program on the only link.
fn program_id(links: &str) -> Option<u32> {
    let links: Value = serde_json::from_str(links).ok()?;
    u32::try_from(links[0]["xdp"]["prog"]["id"].as_u64()?).ok()
}

fn install() -> Result<()> {
    let is_there = || process::run(Command::new("xdp-filter").arg("--help")).is_ok();
    if is_there() {
        return Ok(());
    }
    if !geteuid().is_root() {
        bail!("xdp-filter is not installed (Debian package xdp-tools)");
    }
    eprintln!("→ apt-get install --no-install-recommends xdp-tools");
    process::succeed(
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends", "xdp-tools"])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .context("xdp-filter cannot be installed")?;
    if !is_there() {
        bail!("xdp-tools is installed, but there is no xdp-filter");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_what_ip_says() {
        for (links, id) in [
            (r#"[{"ifname":"filtered","xdp":{"mode":1,"prog":{"id":1483}}}]"#, Some(1483)),
            (r#"[{"ifname":"filtered"}]"#, None),
            ("", None),
        ] {
            assert_eq!(program_id(links), id, "{links}");
        }
    }
}
