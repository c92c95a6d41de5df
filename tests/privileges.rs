//! Who may do what: the process that reads from the network has given up the rest, and the agent that
//! has it is there for it alone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use gateway::{
    confinement::{Reach, confine},
    kernel::attachment,
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    binary,
    harness::{
        clock,
        flood::Prober,
        gateway::{Gateway, Launch, SOON},
        process,
        site::{INTERFACE, SERVER, Site},
        tokens::Mint,
    },
};

/// `CAP_NET_ADMIN`, `CAP_SYS_PTRACE`, `CAP_SYS_ADMIN`, `CAP_PERFMON`, `CAP_BPF` (linux/capability.h).
const NEVER: u64 = 1 << 12 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;

/// A value of `/proc/PID/status`.
pub(crate) fn status_of(path: &str, name: &str) -> Result<String> {
    let status = fs::read_to_string(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{path} has no {name}"))?.trim().to_owned())
}

/// The processes that a process has started.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // One may end while they are listed.
        let Ok(found) = status_of(&format!("/proc/{pid}/status"), "PPid") else { continue };
        if found == parent.to_string() {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The guard of a daemon's agent, and the agent.
pub(crate) fn agent_of(gateway: &Gateway) -> Result<(u32, u32)> {
    clock::wait_for("the agent", SOON, || {
        let guards = children(gateway.process_id())?;
        let [guard] = guards[..] else { return Ok(None) };
        let agents = children(guard)?;
        Ok(if let [agent] = agents[..] { Some((guard, agent)) } else { None })
    })
}

fn is_alive(pid: u32) -> bool {
    // What is dead and not buried is dead.
    status_of(&format!("/proc/{pid}/status"), "State").is_ok_and(|state| !state.starts_with('Z'))
}

/// Sends until the program says that it has dropped something more as banned.
fn still_drops(gateway: &Gateway, prober: &Prober) -> Result<()> {
    let before = gateway.xdp_packets("drop", "banned")?;
    clock::wait_for("a packet to be dropped", SOON, || {
        prober.send(1)?;
        Ok((gateway.xdp_packets("drop", "banned")? > before).then_some(()))
    })
}

/// Bans a source as soon as there is an agent that takes it.
fn ban_when_possible(launch: &Launch, source: &str) -> Result<()> {
    clock::wait_for("a ban to be taken", SOON, || {
        let ended = launch.ended(&["bans", "add", source, "--for", "1h"])?;
        Ok((ended.status == Some(0)).then_some(()))
    })
}

#[test]
fn who_reads_from_the_network_cannot_change_the_kernel_and_bans_reach_it() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "confined")?;
    site.guard("");
    let gateway = site.start()?;
    let pid = gateway.process_id();
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("status").display().to_string();
        for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
            let mask = u64::from_str_radix(&status_of(&path, set)?, 16)?;
            ensure!(mask & NEVER == 0, "{path} {set} {mask:x}");
        }
        ensure!(status_of(&path, "NoNewPrivs")? == "1", "{path}");
        // SECCOMP_MODE_FILTER
        ensure!(status_of(&path, "Seccomp")? == "2", "{path}");
        threads += 1;
    }
    ensure!(threads > 2, "{threads} threads: no worker was looked at");
    let said = gateway.wait_log("what was given up", |line| line["event"] == "confined")?;
    ensure!(said["detail"].as_str().is_some_and(|text| text.contains("system calls: confined")));
    let (_, agent) = agent_of(&gateway)?;
    let has = u64::from_str_radix(&status_of(&format!("/proc/{agent}/status"), "CapEff")?, 16)?;
    ensure!(has & 1 << 39 != 0, "the agent has {has:x}");

    let impostor = Mint::new(binary(), site.directory.path(), "impostor", "ES256")?;
    let forged = site.mint.forged_by(&impostor, "mallory")?;
    let attacker = site.client_address(66)?;
    clock::wait_for("forged tokens to end in a ban", SOON, || {
        let limit = Duration::from_secs(2);
        let _refused =
            site.request("/orders/1").token(&forged).from(attacker).limit(limit).send()?;
        Ok((gateway.xdp_packets("drop", "banned")? > 0.0).then_some(()))
    })?;
    Ok(())
}

#[test]
fn an_agent_that_ends_is_told_of_and_another_one_knows_everything() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "agent")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = gateway.launch().clone();
    let banned = site.client_address(71)?;
    launch.succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    let prober = Prober::new(&site.client_host, banned, SERVER)?;
    still_drops(&gateway, &prober)?;

    let (guard, agent) = agent_of(&gateway)?;
    kill(Pid::from_raw(agent.try_into()?), Signal::SIGKILL)?;
    gateway.wait_log("that the agent ended", |line| {
        line["level"] == "error"
            && line["event"].as_str().is_some_and(|text| text.contains("agent"))
    })?;
    gateway.wait_metric("gateway_agent_ended_total", &[], 1.0)?;
    gateway.wait_metric("gateway_agent_up", &[], 1.0)?;
    let (guard_now, agent_now) = agent_of(&gateway)?;
    ensure!(guard_now == guard && agent_now != agent, "{guard_now} {agent_now}");
    let other = "198.51.100.7";
    ban_when_possible(&launch, other)?;
    gateway.wait_metric("gateway_xdp_map_entries", &[("map", "bans")], 2.0)?;
    ensure!(launch.bans_of(&format!("{banned}/32"))?.len() == 1);
    ensure!(launch.bans_of(&format!("{other}/32"))?.len() == 1);
    still_drops(&gateway, &prober)
}

#[test]
fn an_agent_goes_with_its_daemon_and_the_filter_stays() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "orphan")?;
    site.guard("");
    let gateway = site.start()?;
    let banned = site.client_address(71)?;
    gateway.launch().succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    let prober = Prober::new(&site.client_host, banned, SERVER)?;
    still_drops(&gateway, &prober)?;
    let (guard, agent) = agent_of(&gateway)?;
    let launch = gateway.launch().clone();
    gateway.kill()?;
    clock::wait_for("the agent to go", SOON, || {
        Ok((!is_alive(guard) && !is_alive(agent)).then_some(()))
    })?;
    let index = site.gateway_host.interface_index(INTERFACE)?;
    let attached = site.gateway_host.within(|| attachment::attachments(index))??;
    ensure!(attached.native.is_some(), "{attached:?}");
    prober.send(10)?;
    let next = launch.run_until_ready()?;
    ensure!(next.xdp_packets("drop", "banned")? >= 10.0);
    still_drops(&next, &prober)
}

/// A process that was stopped; dropped, it goes on.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Result<Stopped> {
        let process = Pid::from_raw(process.try_into()?);
        kill(process, Signal::SIGSTOP)?;
        Ok(Stopped(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that was ended meanwhile needs no word.
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn an_agent_that_stands_still_holds_nobody_up_and_is_told_everything_when_it_goes_on() -> Result<()>
{
    privileged!();
    let mut site = Site::new(binary(), "still")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = gateway.launch().clone();
    let (_, agent) = agent_of(&gateway)?;
    let stopped = Stopped::new(agent)?;
    gateway.wait_log("that it does not answer", |line| {
        line["level"] == "error"
            && line["event"].as_str().is_some_and(|text| text.contains("does not answer"))
    })?;
    gateway.wait_metric("gateway_agent_up", &[], 0.0)?;
    // The first question was waited for; a hundred more would take minutes if each were.
    let began = clock::now();
    for _ in 0..100 {
        ensure!(gateway.get("/live")?.0 == 200);
    }
    ensure!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    ensure!(site.request("/public").send()?.status == 200);
    // Held at accept meanwhile.
    let banned = site.client_address(71)?;
    launch.succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    let limit = Duration::from_secs(2);
    let refused = site.request("/public").from(banned).limit(limit).send()?;
    ensure!(refused.status == 0, "{refused:?}");

    drop(stopped);
    gateway.wait_metric("gateway_agent_up", &[], 1.0)?;
    gateway.wait_metric("gateway_xdp_map_entries", &[("map", "bans")], 1.0)?;
    still_drops(&gateway, &Prober::new(&site.client_host, banned, SERVER)?)?;
    // It never ended.
    ensure!(gateway.metric("gateway_agent_ended_total", &[])? == 0.0);
    ensure!(agent_of(&gateway)?.1 == agent);
    Ok(())
}

#[test]
fn an_agent_that_stands_still_ends_with_its_daemon() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "stuck")?;
    site.guard("");
    let gateway = site.start()?;
    let (guard, agent) = agent_of(&gateway)?;
    let stopped = Stopped::new(agent)?;
    gateway.kill()?;
    clock::wait_for("both to go", SOON, || {
        Ok((!is_alive(guard) && !is_alive(agent)).then_some(()))
    })?;
    drop(stopped);
    // Nobody keeps the pins.
    site.start().map(drop)
}

#[test]
fn an_agent_whose_guard_is_killed_gets_another() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "guard")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = gateway.launch().clone();
    let (guard, agent) = agent_of(&gateway)?;
    kill(Pid::from_raw(guard.try_into()?), Signal::SIGKILL)?;
    let next = clock::wait_for("the agent to watch over another", SOON, || {
        Ok(if let [next] = children(agent)?[..] { Some(next) } else { None })
    })?;
    let banned = site.client_address(71)?;
    launch.succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    let prober = Prober::new(&site.client_host, banned, SERVER)?;
    still_drops(&gateway, &prober)?;
    ensure!(gateway.metric("gateway_agent_ended_total", &[])? == 0.0);

    // And that one is guarded as the first was.
    kill(Pid::from_raw(next.try_into()?), Signal::SIGKILL)?;
    gateway.wait_metric("gateway_agent_ended_total", &[], 1.0)?;
    gateway.wait_metric("gateway_agent_up", &[], 1.0)?;
    ban_when_possible(&launch, "198.51.100.7")?;
    gateway.wait_metric("gateway_xdp_map_entries", &[("map", "bans")], 2.0)?;
    still_drops(&gateway, &prober)?;
    gateway.kill()?;
    clock::wait_for("all to go", SOON, || Ok((!is_alive(agent)).then_some(())))
}

/// By which the test knows that it is its own child.
const CONFINED: &str = "PORTCULLIS_TEST_CONFINED";

#[test]
fn what_is_given_up_is_gone() -> Result<()> {
    privileged!();
    if std::env::var_os(CONFINED).is_some() {
        return confined();
    }
    // What it does to a process is for that process' life.
    let mut again = Command::new(std::env::current_exe()?);
    again.args(["--exact", "privileges::what_is_given_up_is_gone", "--nocapture"]);
    let said = process::succeed(again.env(CONFINED, "1"))?;
    ensure!(said.contains("1 passed"), "{said}");
    Ok(())
}

/// The number of an error.
fn error_of<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn bpf() -> io::Result<()> {
    // SAFETY: there is no command of this number, so nothing is read or written.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 9_999, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn confined() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    for file in ["named/key", "other/key"] {
        fs::create_dir_all(at(file).parent().context("it has one")?)?;
        fs::write(at(file), "key")?;
    }
    let reach = Reach {
        files: BTreeSet::from([at("named/key")]),
        sockets: BTreeSet::from([at("run/admin.sock")]),
        ..Reach::default()
    };
    // What is refused below is not refused by itself.
    ensure!(error_of(bpf()) == Some(libc::EINVAL));
    for path in ["/etc/shadow".into(), at("other/key")] {
        File::open(path)?;
    }

    let confinement = confine(&reach);
    eprintln!("{}", confinement.in_words());
    ensure!(confinement.lacking.is_empty(), "{:?}", confinement.lacking);
    ensure!(error_of(bpf()) == Some(libc::EPERM));
    ensure!(unshare(CloneFlags::CLONE_NEWNS) == Err(nix::errno::Errno::EPERM));
    ensure!(unshare(CloneFlags::CLONE_NEWUSER) == Err(nix::errno::Errno::EPERM));
    ensure!(Command::new("/bin/true").spawn().is_err(), "another program was run");
    for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        let mask = u64::from_str_radix(&status_of("/proc/thread-self/status", set)?, 16)?;
        ensure!(mask & NEVER == 0, "{set} {mask:x}");
    }
    for path in ["/etc/shadow".into(), at("other/key")] {
        ensure!(error_of(File::open(&path)) == Some(libc::EACCES), "{}", path.display());
    }
    ensure!(error_of(fs::write(at("named/new"), "x")) == Some(libc::EACCES));
    ensure!(error_of(fs::write("/usr/bin/portcullis-not", "x")) == Some(libc::EACCES));

    // And what serving takes.
    ensure!(fs::read(at("named/key"))? == b"key");
    drop(UnixListener::bind(at("run/admin.sock"))?);
    fs::remove_file(at("run/admin.sock"))?;
    fs::read_to_string("/proc/stat")?;
    let low = TcpListener::bind("127.0.0.1:0")?;
    let address = low.local_addr()?;
    let thread = std::thread::spawn(move || TcpStream::connect(address).map(drop));
    low.accept()?;
    thread.join().ok().context("a thread ran")??;
    Ok(())
}
