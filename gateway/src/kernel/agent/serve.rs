//! The agent's own side: two small processes, neither of which reads a byte from the network.
//!
//! The outer one, the guard, does nothing but start the inner one, and start another when that ends
//! otherwise than it should: the daemon could not, for by then it has given up what that takes. The
//! inner one carries out what the daemon asks; if the guard is killed, it becomes the guard of a copy of
//! itself, so that again there are two. Both end when the daemon does. Signals to end are the daemon's
//! business, which may need its agent for a long drain still.

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
        socket::{SockType, getsockopt, sockopt},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid, getppid},
};

use super::{
    channel::{Channel, ChannelError, Kind, Message},
    message::{Answer, ClassChange, Ending, News, Request, decode, encode},
};
use crate::{
    kernel::{Detached, Kernel, KernelError, Settings, detach},
    time,
};

/// Before another agent is started, the first time; each further time twice as long, for one that
/// cannot live should not be all that the machine does.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// One that lived so long had no trouble from its beginning on.
const LIVED_WELL: Duration = Duration::from_secs(60);

/// An agent whose daemon has ended may finish what it is at.
const END_MAX: Duration = Duration::from_secs(10);

/// The pins of a daemon that was just killed are its agent's for a moment still, and for as long as
/// that takes to finish what it is at. Tried so often, with so long between.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What the agent was told when it was started, by a daemon that had not read anything from outside
/// yet: nothing that comes later can change it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The configuration's file.
    pub config: PathBuf,
    /// Where the program was started from; another may be there by now.
    pub program: PathBuf,
    /// Where the filter is pinned; `None`: the configuration has none.
    pub pin: Option<PathBuf>,
}

/// The guard: serves the daemon at the other end of standard input until that is gone.
///
/// # Errors
/// Standard input is no socket of a daemon.
pub fn run(origin: &Origin) -> io::Result<ExitCode> {
    // SAFETY: whoever starts a program hands it descriptor 0, and nothing here uses it but this.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    if getsockopt(&socket, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return Err(io::Error::other("this is started by `portcullis run`, with a socket to it"));
    }
    leave_signals()?;
    // Whoever runs under the same user may not look into it, nor change it.
    prctl::set_dumpable(false)?;
    guard(&socket, origin)
}

/// Has an agent serve, for as long as the daemon is there.
fn guard(socket: &OwnedFd, origin: &Origin) -> io::Result<ExitCode> {
    let mut again_in = AGAIN_FIRST;
    let mut there_is = None;
    loop {
        let began = time::monotonic();
        let guard = getpid();
        let agent = match there_is.take() {
            Some(agent) => agent,
            // SAFETY: this process has one thread, so the new one finds nothing half done.
            None => match unsafe { fork() }? {
                ForkResult::Parent { child } => child,
                ForkResult::Child => match serve(socket.try_clone()?, origin, guard) {
                    Served::ToTheEnd => return Ok(ExitCode::SUCCESS),
                    Served::Badly => return Ok(ExitCode::FAILURE),
                    Served::GoesOnIn(agent) => {
                        there_is = Some(agent);
                        continue;
                    }
                },
            },
        };
        let ending = end_of(agent, socket)?;
        if matches!(ending, WaitStatus::Exited(_, 0)) {
            return Ok(ExitCode::SUCCESS);
        }
        let lived = time::monotonic().saturating_duration_since(began);
        again_in = if lived < LIVED_WELL { again_in } else { AGAIN_FIRST };
        let news = News::Ended(Ending { how: ending_in_words(ending), again_in });
        let daemon = Channel::new(socket.try_clone()?)?;
        if tell(&daemon, &news).is_err() || is_gone_within(socket, again_in)? {
            return Ok(ExitCode::SUCCESS);
        }
        again_in = (again_in * 2).min(AGAIN_MAX);
    }
}

/// Waits until the agent ends. When the daemon does, it has to soon; one that is stopped would keep the
/// pins from the next daemon.
fn end_of(agent: Pid, socket: &OwnedFd) -> io::Result<WaitStatus> {
    // Where a filter of system calls does not know of them, a stopped one is waited for.
    if let Ok(handle) = handle_of(agent) {
        let has_ended = || PollFd::new(handle.as_fd(), PollFlags::POLLIN);
        let is_alone = PollFd::new(socket.as_fd(), PollFlags::empty());
        await_any(&mut [has_ended(), is_alone], PollTimeout::NONE)?;
        let limit = PollTimeout::try_from(END_MAX).unwrap_or(PollTimeout::MAX);
        if !await_any(&mut [has_ended()], limit)? {
            kill(agent, Signal::SIGKILL)?;
        }
    }
    loop {
        match waitpid(agent, None) {
            Err(Errno::EINTR) => {}
            ended => return Ok(ended?),
        }
    }
}

/// What can be polled for a process' end (pidfd_open(2), since Linux 5.3).
fn handle_of(process: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and gives a descriptor, or an error.
    let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    let handle = RawFd::try_from(Errno::result(handle)?).map_err(io::Error::other)?;
    // SAFETY: the call above made it, and for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

/// Whether anything of it happens in time.
fn await_any(what: &mut [PollFd<'_>], limit: PollTimeout) -> io::Result<bool> {
    loop {
        match poll(what, limit) {
            Err(Errno::EINTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Whether the daemon ends within this time.
fn is_gone_within(socket: &OwnedFd, wait: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    match poll(&mut polled, timeout) {
        Err(Errno::EINTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}

fn ending_in_words(ending: WaitStatus) -> String {
    match ending {
        WaitStatus::Exited(_, status) => format!("it ended with status {status}"),
        WaitStatus::Signaled(_, signal, _) => format!("it was ended by {signal}"),
        other => format!("{other:?}"),
    }
}

/// A terminal's and a service manager's signals go to all processes of a service. A handler, not
/// `SIG_IGN`, which programs that are started would inherit.
fn leave_signals() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        // SAFETY: the handler does nothing, so it may interrupt anything.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

fn tell(daemon: &Channel, news: &News) -> Result<(), ChannelError> {
    daemon.send(&Message { kind: Kind::News, number: 0, bytes: encode(news) })
}

/// How the inner process came to its end.
enum Served {
    /// The daemon is gone.
    ToTheEnd,
    /// What came is no request; it was said.
    Badly,
    /// Its guard is gone, and it is the guard of this one.
    GoesOnIn(Pid),
}

/// The inner process: answers until the daemon is gone.
fn serve(socket: OwnedFd, origin: &Origin, guard: Pid) -> Served {
    match answer(socket, origin, guard) {
        Ok(agent) => Served::GoesOnIn(agent),
        Err(ChannelError::Closed) => Served::ToTheEnd,
        Err(error) => {
            // The daemon tells that this process ended; this line tells why.
            eprintln!("portcullis agent: {error}");
            Served::Badly
        }
    }
}

/// Gives who answers from then on, when this process has to become its guard.
fn answer(socket: OwnedFd, origin: &Origin, mut guard: Pid) -> Result<Pid, ChannelError> {
    let mut daemon = Channel::new(socket).map_err(ChannelError::System)?;
    tell(&daemon, &News::Ready(()))?;
    let mut agent = Carrier { origin, kernel: None, successor: None };
    loop {
        // Something is asked each second.
        let message = daemon.receive()?;
        if getppid() != guard {
            // SAFETY: this process has one thread, so the new one finds nothing half done.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => guard = getppid(),
                Ok(ForkResult::Parent { child }) => {
                    eprintln!("portcullis agent: its guard ended, and there is another");
                    drop(daemon);
                    // The maps are the other's now: nothing is to be done to them here.
                    std::mem::forget(agent);
                    close_all_but_the_first();
                    return Ok(child);
                }
                // It answers without a guard, and tries again.
                Err(_) => {}
            }
        }
        let request = decode(&message.bytes).map_err(ChannelError::Wire)?;
        let answer = encode(&agent.carry_out(request));
        daemon.send(&Message { kind: Kind::Answer, number: message.number, bytes: answer })?;
    }
}

/// Closes every descriptor but the three that a program begins with; the socket is the first of them.
fn close_all_but_the_first() {
    // What a kernel before 5.9, or a filter of system calls, leaves open here is closed with the daemon.
    // SAFETY: whatever had a descriptor here is forgotten and uses it no more.
    let _left = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Carries out requests.
struct Carrier<'a> {
    origin: &'a Origin,
    kernel: Option<Kernel>,
    successor: Option<Child>,
}

impl Carrier<'_> {
    fn carry_out(&mut self, request: Request) -> Answer {
        self.try_to(request).unwrap_or_else(Answer::Failed)
    }

    fn try_to(&mut self, request: Request) -> Result<Answer, KernelError> {
        match request {
            Request::Start(settings) => return self.start(&settings).map(Answer::Notices),
            Request::Stop(()) => {
                self.kernel = None;
                return Ok(Answer::Done(()));
            }
            Request::Detach(()) => return self.detach().map(Answer::Detached),
            Request::Upgrade(()) => return Ok(Answer::Process(self.upgrade()?)),
            Request::Successor(()) => return Ok(Answer::Ended(self.successor_ended())),
            _ => {}
        }
        let kernel = self.kernel.as_mut().ok_or(KernelError::NotStarted)?;
        Ok(match request {
            Request::Apply(settings) => Answer::Notices(in_words(kernel.apply(&settings)?)),
            Request::Enforce(enforce) => {
                kernel.set_enforce(enforce);
                Answer::Done(())
            }
            Request::Ban(bans) => Answer::Banned(kernel.ban(&bans)),
            Request::Unban(sources) => Answer::Number(kernel.unban(&sources)?),
            Request::SetClass(ClassChange { source, class, lasts }) => {
                Answer::Is(kernel.set_class(source, class, lasts)?)
            }
            Request::BanPrefix(ban) => Answer::PrefixBanned(kernel.ban_prefix(&ban)?),
            Request::UnbanPrefix(net) => Answer::Is(kernel.unban_prefix(net)?),
            Request::PrefixBans(()) => Answer::PrefixBans(kernel.prefix_bans()?),
            Request::Bans(()) => Answer::Bans(kernel.bans()?),
            Request::Sweep(()) => Answer::Number(kernel.sweep()?),
            Request::Explain(source) => Answer::Source(kernel.explain(source)?),
            Request::Top(max) => Answer::Top(kernel.top(max)?),
            Request::TakeEvents(max) => Answer::Events(kernel.take_events(max)),
            Request::Counters(()) => Answer::Counters(kernel.counters()?),
            Request::Status(()) => Answer::Status(kernel.status()),
            Request::Reattach(()) => Answer::Reattached(kernel.reattach()),
            // Those that need no filter were answered above.
            Request::Start(_)
            | Request::Stop(())
            | Request::Detach(())
            | Request::Upgrade(())
            | Request::Successor(()) => Answer::Failed(KernelError::NotStarted),
        })
    }

    fn start(&mut self, settings: &Settings) -> Result<Vec<String>, KernelError> {
        if self.origin.pin.as_ref() != Some(&settings.pin) {
            return Err(KernelError::NeedsRestart { setting: "pin" });
        }
        self.kernel = None;
        let mut tries = 1;
        let (kernel, notices) = loop {
            match Kernel::start(settings) {
                Err(KernelError::Busy { .. }) if tries < BUSY_TRIES => {
                    tries += 1;
                    thread::sleep(BUSY_PAUSE);
                }
                started => break started?,
            }
        };
        self.kernel = Some(kernel);
        Ok(in_words(notices))
    }

    fn detach(&mut self) -> Result<Detached, KernelError> {
        // What this process holds open would keep the program attached.
        self.kernel = None;
        detach(self.origin.pin.as_deref().ok_or(KernelError::NotStarted)?)
    }

    fn upgrade(&mut self) -> Result<u32, KernelError> {
        let Origin { config, program, .. } = self.origin;
        let child = start_successor(program, config).map_err(|error| KernelError::File {
            what: "start",
            path: program.clone(),
            error,
        })?;
        let pid = child.id();
        self.successor = Some(child);
        Ok(pid)
    }

    fn successor_ended(&mut self) -> Option<String> {
        let ended = self.successor.as_mut()?.try_wait().ok().flatten()?;
        self.successor = None;
        Some(ended.to_string())
    }
}

fn in_words(notices: Vec<crate::kernel::Notice>) -> Vec<String> {
    notices.iter().map(ToString::to_string).collect()
}

/// Starts the program that is at this path now, to take over from the daemon.
fn start_successor(program: &Path, config: &Path) -> io::Result<Child> {
    Command::new(program)
        .arg("--config")
        .arg(config)
        .args(["run", "--take-over"])
        // Those were for the daemon; NOTIFY_SOCKET and WATCHDOG_USEC are for whoever serves.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Mode;

    fn settings(pin: &str) -> Settings {
        Settings {
            interfaces: Vec::new(),
            mode: Mode::Auto,
            enforce: true,
            ports: vec![8443],
            management: Vec::new(),
            exempt: Vec::new(),
            deny: Vec::new(),
            packets: None,
            connections: None,
            bytes: None,
            new_sources: None,
            max_sources: 1,
            pin: pin.into(),
        }
    }

    #[test]
    fn no_message_names_another_place_for_the_filter() {
        for (pin, asked) in [(Some("/sys/fs/bpf/a"), "/sys/fs/bpf/b"), (None, "/sys/fs/bpf/a")] {
            let origin = Origin {
                config: "/nowhere".into(),
                program: "/nowhere".into(),
                pin: pin.map(PathBuf::from),
            };
            let mut agent = Carrier { origin: &origin, kernel: None, successor: None };
            let answer = agent.carry_out(Request::Start(settings(asked)));
            let refused =
                matches!(answer, Answer::Failed(KernelError::NeedsRestart { setting: "pin" }));
            assert!(refused, "{pin:?}: {answer:?}");
        }
    }
}
