//! The filter on a real interface: a veth pair whose far end is in a network namespace of its own.
//!
//! What is promised: a banned source is dropped and told nothing; observing drops nothing; the
//! filter outlives its daemon, however that ends, and is taken over without a gap; a foreign
//! program is never replaced; nothing stays behind after a failed start or a detach.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use gateway::kernel::{
    Action, Allowance, AttachedMode, Ban, BanOutcome, Class, Inherited, Kernel, KernelError, Mode,
    Notice, PrefixBan, PrefixBanOutcome, Quota, Rate, Service, Settings, SourceState, Transport,
    attachment, detach, probe,
};
use gateway_ebpf::{
    Outcome, Source,
    abi::{BANS_MAX, LAYOUT_VERSION},
};
use ipnet::IpNet;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
};

use crate::{harness::clock::uninterrupted, xdp_packets::may_load_programs};

const PORT: u16 = 8443;
/// Set for the process that [`the_filter_outlives_a_daemon_that_is_killed`] starts and kills.
const CHILD: &str = "PORTCULLIS_TEST_XDP_LIVE";
/// How often a condition is looked at, and how many times, before a test gives up on it.
const POLL: Duration = Duration::from_millis(10);
const POLLS: usize = 3_000;
/// How many datagrams are sent, each waited for, before a test gives up on one of them.
const PASSES_MAX: usize = 150;

/// A veth pair; the near end is in this namespace, the far end in one of its own.
struct Pair {
    near: String,
    namespace: String,
    pin: PathBuf,
    address: Ipv4Addr,
    peer: Ipv4Addr,
}

impl Pair {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Relaxed);
        let number = std::process::id();
        let near = format!("pcl{count}-{number}");
        let namespace = format!("portcullis-live-{number}-{count}");
        // Two addresses of the block for benchmarks (RFC 2544: 17 bits), other ones for each pair.
        assert!(count < 32, "more pairs than addresses were meant for");
        let network = 0xc612_0000 | (number % 0x400) << 7 | count << 2;
        let (address, peer) = (Ipv4Addr::from_bits(network | 1), Ipv4Addr::from_bits(network | 2));
        let pin = PathBuf::from(format!("/sys/fs/bpf/portcullis-live-{number}-{count}"));
        let pair = Self { near: near.clone(), namespace: namespace.clone(), pin, address, peer };
        for command in [
            format!("ip netns add {namespace}"),
            format!("ip link add {near} type veth peer name far netns {namespace}"),
            format!("ip address add {address}/30 dev {near}"),
            format!("ip link set {near} up"),
            format!("ip -n {namespace} address add {peer}/30 dev far"),
            format!("ip -n {namespace} link set far up"),
        ] {
            run(&command);
        }
        pair
    }

    fn settings(&self) -> Settings {
        Settings {
            interfaces: vec![self.near.clone()],
            mode: Mode::Auto,
            enforce: true,
            ports: vec![PORT],
            management: Vec::new(),
            exempt: vec!["127.0.0.0/8".parse().unwrap()],
            deny: Vec::new(),
            packets: Some(Rate { per_s: 1_000, burst: 1_000 }),
            connections: None,
            bytes: None,
            new_sources: None,
            max_sources: 1_000,
            pin: self.pin.clone(),
        }
    }

    fn peer(&self) -> Source {
        Source::from(IpAddr::V4(self.peer))
    }

    fn ban(&self, lasts: Duration) -> Ban {
        Ban { source: self.peer(), lasts, reason: 3, origin: 1, level: 2 }
    }

    /// A socket here, and one over there that sends to it.
    fn sockets(&self) -> Wire {
        let here = UdpSocket::bind((self.address, PORT)).unwrap();
        here.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let namespace = File::open(Path::new("/run/netns").join(&self.namespace)).unwrap();
        let to = SocketAddr::from((self.address, PORT));
        // A namespace is a thread's; a socket stays in the one it was made in.
        let there = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        Wire { here, there: there.join().unwrap() }
    }

    fn attachments(&self) -> attachment::Attachments {
        attachment::attachments(attachment::interface_index(&self.near).unwrap()).unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = detach(&self.pin);
        // The pair goes with either end, and the far end with its namespace.
        for arguments in [["link", "del", &self.near], ["netns", "del", &self.namespace]] {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

struct Wire {
    here: UdpSocket,
    there: UdpSocket,
}

impl Wire {
    /// Waits until a datagram arrives. The first ones may wait for an address to be resolved, and are
    /// sent again while the link comes up; a busy machine may put the receiver off for long.
    fn passes(&self) -> bool {
        (0..PASSES_MAX).any(|_| self.arrives())
    }

    /// Whether nothing arrives of what is sent five times, each waited for in vain.
    fn is_silent(&self) -> bool {
        !(0..5).any(|_| self.arrives())
    }

    /// Whether a datagram arrives in a fifth of a second. One that an earlier call did not wait for long
    /// enough is not taken for one of this call.
    fn arrives(&self) -> bool {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let knock = CALLS.fetch_add(1, Relaxed).to_ne_bytes();
        let mut buffer = [0; 64];
        let _ = self.there.send(&knock);
        // Ends when nothing more arrives in time.
        iter::from_fn(|| {
            let length = uninterrupted(|| self.here.recv(&mut buffer)).ok()?;
            Some(buffer[..length] == knock)
        })
        .any(|is_of_this_call| is_of_this_call)
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..POLLS {
        if holds() {
            return;
        }
        thread::sleep(POLL);
    }
    panic!("in vain: {what}");
}

fn packets(kernel: &Kernel, action: Action, reason: Outcome) -> u64 {
    let counts = kernel.counters().unwrap();
    let matching = counts.iter().filter(|count| (count.action, count.reason) == (action, reason));
    matching.map(|count| count.packets).sum()
}

#[test]
fn a_banned_source_is_dropped_until_the_ban_is_over() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let (mut kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    assert!(!notices.iter().any(|notice| matches!(notice, Notice::Adopted { .. })), "{notices:?}");
    let status = kernel.status();
    assert_eq!(status.interfaces[0].attached.unwrap().mode, AttachedMode::Native);
    let wire = pair.sockets();
    assert!(wire.passes());
    assert!(packets(&kernel, Action::Pass, Outcome::WithinLimit) > 0);

    let outcomes = kernel.ban(&[pair.ban(Duration::from_secs(3600))]);
    assert!(matches!(outcomes[..], [(source, BanOutcome::Set)] if source == pair.peer()));
    assert!(wire.is_silent());
    wait_until("all five are counted", || packets_dropped(&kernel, Outcome::Banned) >= 5);
    let [ban] = kernel.bans().unwrap()[..] else { panic!("one ban was set") };
    assert_eq!((ban.source, ban.reason, ban.origin, ban.level), (pair.peer(), 3, 1, 2));
    assert!(ban.remaining <= Duration::from_secs(3600));
    assert!(ban.remaining > Duration::from_secs(3500));

    // Observing counts what it would have dropped.
    kernel.set_enforce(false);
    assert!(wire.passes());
    assert!(packets(&kernel, Action::WouldDrop, Outcome::Banned) > 0);
    kernel.set_enforce(true);
    assert!(wire.is_silent());

    assert_eq!(kernel.unban(&[pair.peer()]).unwrap(), 1);
    assert_eq!(kernel.unban(&[pair.peer()]).unwrap(), 0);
    assert!(wire.passes());

    // A short ban ends by the kernel's own clock; sweeping only makes room. On a machine that stood
    // still for seconds it may be over before it was looked at.
    kernel.ban(&[pair.ban(Duration::from_secs(6))]);
    assert!(wire.is_silent() || kernel.bans().unwrap().is_empty());
    wait_until("the ban ends", || kernel.bans().unwrap().is_empty());
    assert!(wire.passes());
    assert_eq!(kernel.sweep().unwrap(), 1);
    assert_eq!(kernel.sweep().unwrap(), 0);
}

#[test]
fn a_full_table_refuses_until_bans_are_over() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let (mut kernel, _) = Kernel::start(&pair.settings()).unwrap();
    let bans = |first: u32, count: u32, lasts| -> Vec<Ban> {
        let source = |number| Source::ipv4(0x0a00_0000 | number);
        (first..first + count)
            .map(|number| Ban { source: source(number), ..pair.ban(lasts) })
            .collect()
    };
    let are_set = |outcomes: &[(Source, BanOutcome)]| {
        outcomes.iter().all(|(_, outcome)| matches!(outcome, BanOutcome::Set))
    };
    let (hour, nothing) = (Duration::from_secs(3600), Duration::ZERO);
    let over = 10;
    assert!(are_set(&kernel.ban(&bans(0, BANS_MAX - over, hour))));
    assert!(are_set(&kernel.ban(&bans(BANS_MAX, over, nothing))));
    assert_eq!(kernel.bans().unwrap().len(), (BANS_MAX - over) as usize);
    // Those that are over make room, for as many as they were.
    let outcomes = kernel.ban(&bans(2 * BANS_MAX, over + 1, hour));
    assert!(are_set(&outcomes[..over as usize]));
    assert!(matches!(outcomes[over as usize].1, BanOutcome::TableFull));
    let fill = kernel.status().fills[0];
    assert_eq!((fill.map, fill.used, fill.limit), ("bans", BANS_MAX as usize, BANS_MAX));
    // One that is banned already can be banned for longer even so.
    let again = kernel.ban(&bans(0, 1, 2 * hour));
    assert!(matches!(again[..], [(_, BanOutcome::Replaced)]));
}

#[test]
fn a_banned_prefix_is_dropped_until_it_is_over_and_outlives_the_daemon() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let net = |length| IpNet::new(pair.peer.into(), length).unwrap().trunc();
    let ban = |length, lasts| PrefixBan { net: net(length), lasts, reason: 4, origin: 1 };
    let (hour, nothing) = (Duration::from_secs(3600), Duration::ZERO);
    let (mut kernel, _) = Kernel::start(&pair.settings()).unwrap();
    let wire = pair.sockets();
    assert!(wire.passes());
    assert_eq!(kernel.ban_prefix(&ban(24, hour)).unwrap(), PrefixBanOutcome::Set);
    assert!(wire.is_silent());
    // A ban of a part of it that is over does not hide it.
    assert_eq!(kernel.ban_prefix(&ban(30, nothing)).unwrap(), PrefixBanOutcome::Set);
    assert!(wire.is_silent());
    assert_eq!(kernel.prefix_bans().unwrap().len(), 1);
    // A longer one of a part goes on when the whole is lifted.
    assert_eq!(kernel.ban_prefix(&ban(30, hour)).unwrap(), PrefixBanOutcome::Set);
    assert_eq!(kernel.ban_prefix(&ban(30, 2 * hour)).unwrap(), PrefixBanOutcome::Replaced);
    assert!(kernel.unban_prefix(net(24)).unwrap() && !kernel.unban_prefix(net(24)).unwrap());
    assert!(wire.is_silent());
    drop(kernel);

    let (mut kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    assert_eq!(notices, [Notice::Adopted { interfaces: 1, bans: 1 }]);
    let [entry] = kernel.prefix_bans().unwrap()[..] else { panic!("one prefix is banned") };
    assert_eq!((entry.net, entry.reason, entry.origin), (net(30), 4, 1));
    assert!(entry.remaining > hour && entry.remaining <= 2 * hour);
    assert!(wire.is_silent());
    // A reload keeps it, too.
    kernel.apply(&pair.settings()).unwrap();
    assert!(wire.is_silent());
    assert!(kernel.unban_prefix(net(30)).unwrap());
    assert!(wire.passes());

    // One that has an exempt address is refused, and says which.
    let by = IpNet::from(IpAddr::V4(pair.peer));
    let exempt = Settings { exempt: vec![by], ..pair.settings() };
    kernel.apply(&exempt).unwrap();
    assert_eq!(kernel.ban_prefix(&ban(16, hour)).unwrap(), PrefixBanOutcome::Exempt { by });
    assert!(wire.passes());
    kernel.apply(&pair.settings()).unwrap();
    kernel.ban_prefix(&ban(24, nothing)).unwrap();
    assert_eq!((kernel.sweep().unwrap(), kernel.sweep().unwrap()), (1, 0));
}

#[test]
fn everything_known_about_a_source_can_be_told() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let peer = IpNet::from(IpAddr::V4(pair.peer));
    // So slow that nothing comes back while the test runs.
    let packets = Some(Rate { per_s: 1, burst: 1_000_000 });
    let connections = Some(Rate { per_s: 100, burst: 200 });
    let settings = Settings { packets, connections, ..pair.settings() };
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    let nothing = SourceState {
        exempt: None,
        denied: None,
        ban: None,
        prefix_ban: None,
        class: Class::ORDINARY,
        allowances: vec![
            Allowance { quota: Quota::Packets, net: peer, left: 1_000_000, burst: 1_000_000 },
            Allowance { quota: Quota::Connections, net: peer, left: 200, burst: 200 },
        ],
    };
    assert_eq!(kernel.explain(pair.peer()).unwrap(), nothing);
    assert!(pair.sockets().passes());
    let state = kernel.explain(pair.peer()).unwrap();
    let left = state.allowances[0].left;
    assert!((999_000..1_000_000).contains(&left), "{left}");
    assert_eq!(state.allowances[1], nothing.allowances[1]);

    let quarter = Class::doubled(-2).unwrap();
    assert!(kernel.set_class(pair.peer(), quarter, Duration::from_secs(3600)).unwrap());
    let state = kernel.explain(pair.peer()).unwrap();
    assert_eq!((state.class, state.allowances[1].burst), (quarter, 50));
    drop(kernel);
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    assert_eq!(kernel.explain(pair.peer()).unwrap().class, quarter, "it outlives the daemon");
    assert!(kernel.set_class(pair.peer(), Class::ORDINARY, Duration::ZERO).unwrap());
    assert_eq!(kernel.explain(pair.peer()).unwrap().class, Class::ORDINARY);

    let wide = IpNet::new(pair.peer.into(), 16).unwrap().trunc();
    kernel.apply(&Settings { deny: vec![wide], ..settings.clone() }).unwrap();
    let hour = Duration::from_secs(3600);
    kernel.ban(&[pair.ban(hour)]);
    for (length, lasts) in [(24, hour), (20, 2 * hour)] {
        let net = IpNet::new(pair.peer.into(), length).unwrap();
        kernel.ban_prefix(&PrefixBan { net, lasts, reason: 4, origin: 1 }).unwrap();
    }
    let state = kernel.explain(pair.peer()).unwrap();
    assert_eq!((state.exempt, state.denied), (None, Some(wide)));
    assert_eq!(state.ban.unwrap().level, 2);
    assert_eq!(state.prefix_ban.unwrap().net.prefix_len(), 20);

    let exempt = Settings { exempt: vec![peer], ..settings };
    kernel.apply(&exempt).unwrap();
    assert_eq!(kernel.explain(pair.peer()).unwrap().exempt, Some(peer));
    // An IPv6 source shares with its /48.
    let source = Source::from("2001:db8:1:2::3".parse::<IpAddr>().unwrap());
    let nets: Vec<_> = kernel.explain(source).unwrap().allowances;
    let site = "2001:db8:1::/48".parse().unwrap();
    let burst = 16 * 1_000_000;
    assert_eq!(nets[2], Allowance { quota: Quota::Packets, net: site, left: burst, burst });
}

#[test]
fn an_exempt_source_is_never_banned() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let mut settings = pair.settings();
    settings.exempt.push(IpAddr::V4(pair.peer).into());
    settings.deny.push(IpAddr::V4(pair.peer).into());
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    assert!(kernel.is_exempt(pair.peer()));
    let outcomes = kernel.ban(&[pair.ban(Duration::from_secs(60))]);
    assert!(matches!(outcomes[..], [(_, BanOutcome::Exempt)]));
    assert!(pair.sockets().passes());
    assert!(packets(&kernel, Action::Pass, Outcome::Exempt) > 0);
}

#[test]
fn a_reload_changes_rules_and_interfaces_without_touching_the_rest() {
    if !may_load_programs() {
        return;
    }
    let (pair, second) = (Pair::new(), Pair::new());
    let mut settings = pair.settings();
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    let before = kernel.status().interfaces[0].attached;
    let wire = pair.sockets();
    assert!(wire.passes());

    settings.deny.push(IpAddr::V4(pair.peer).into());
    settings.interfaces.push(second.near.clone());
    kernel.apply(&settings).unwrap();
    assert!(wire.is_silent());
    let status = kernel.status();
    assert_eq!(status.interfaces[0].attached, before, "the first program was not replaced");
    assert!(status.interfaces[1].attached.is_some());
    let second_wire = second.sockets();
    assert!(second_wire.passes());
    let counts = kernel.counters().unwrap();
    let seen = |interface: &str, reason| {
        counts.iter().any(|count| {
            count.interface == interface && count.reason == reason && count.packets > 0
        })
    };
    assert!(seen(&pair.near, Outcome::Denied) && !seen(&second.near, Outcome::Denied));
    assert!(seen(&second.near, Outcome::WithinLimit));

    // What is refused changes nothing.
    for (setting, changed) in [
        ("max_sources", Settings { max_sources: 5_000_000, ..settings.clone() }),
        ("pin", Settings { pin: "/sys/fs/bpf/elsewhere".into(), ..settings.clone() }),
        ("mode", Settings { mode: Mode::Generic, ..settings.clone() }),
    ] {
        let error = kernel.apply(&changed).unwrap_err();
        assert!(
            matches!(error, KernelError::NeedsRestart { setting: named } if named == setting),
            "{error}"
        );
    }
    let missing =
        Settings { interfaces: vec!["pcl-none".into()], deny: vec![], ..settings.clone() };
    assert!(matches!(kernel.apply(&missing).unwrap_err(), KernelError::NoInterface { .. }));
    assert!(wire.is_silent());

    settings.interfaces.remove(0);
    let notices = kernel.apply(&settings).unwrap();
    assert_eq!(notices, [Notice::Released { interface: pair.near.clone() }]);
    assert_eq!(pair.attachments(), attachment::Attachments::default());
    assert!(wire.passes());
}

#[test]
fn a_device_that_comes_back_is_guarded_again() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let settings = pair.settings();
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    run(&format!("ip link del {}", pair.near));
    assert_eq!(kernel.status().interfaces[0].attached, None);
    run(&format!("ip link add {} type veth peer name far netns {}", pair.near, pair.namespace));
    kernel.apply(&settings).unwrap();
    assert!(kernel.status().interfaces[0].attached.is_some());
}

#[test]
fn generic_mode_filters_too_and_a_mode_can_change_at_a_start() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let generic = Settings { mode: Mode::Generic, ..pair.settings() };
    let (mut kernel, _) = Kernel::start(&generic).unwrap();
    assert_eq!(kernel.status().interfaces[0].attached.unwrap().mode, AttachedMode::Generic);
    let wire = pair.sockets();
    assert!(wire.passes());
    kernel.ban(&[pair.ban(Duration::from_secs(3600))]);
    assert!(wire.is_silent());
    drop(kernel);
    let (kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    assert!(
        notices.contains(&Notice::StaysGeneric { interface: pair.near.clone() }),
        "{notices:?}"
    );
    drop(kernel);
    let native = Settings { mode: Mode::Native, ..pair.settings() };
    let (kernel, notices) = Kernel::start(&native).unwrap();
    let mode = AttachedMode::Native;
    assert!(notices.contains(&Notice::ChangedMode { interface: pair.near.clone(), mode }));
    assert_eq!(kernel.status().interfaces[0].attached.unwrap().mode, mode);
    assert!(wire.is_silent(), "the ban stays in force");
}

/// The loopback device has no driver that could run the program.
#[test]
fn falls_back_aloud_or_not_at_all() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let name = pair.namespace.clone();
    let namespace = File::open(Path::new("/run/netns").join(&name)).unwrap();
    let settings = Settings { interfaces: vec!["lo".into()], ..pair.settings() };
    // A loopback of our own, in a thread that stays behind there.
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let native = Settings { mode: Mode::Native, ..settings.clone() };
        let error = Kernel::start(&native).unwrap_err();
        assert!(matches!(error, KernelError::Refused { mode: "native", .. }), "{error}");
        assert!(!settings.pin.exists(), "a failed start leaves nothing");
        let (kernel, notices) = Kernel::start(&settings).unwrap();
        assert!(matches!(notices[..], [Notice::FellBack { .. }]), "{notices:?}");
        assert_eq!(kernel.status().interfaces[0].attached.unwrap().mode, AttachedMode::Generic);
        detach(&settings.pin).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let elsewhere = Settings { pin: pair.pin.with_extension("other"), ..pair.settings() };
    // A dot is not allowed in a bpffs, which is a failed start of its own kind.
    assert!(matches!(Kernel::start(&elsewhere).unwrap_err(), KernelError::File { .. }));
    let elsewhere = Settings { pin: format!("{}-other", pair.pin.display()).into(), ..elsewhere };
    let (kernel, _) = Kernel::start(&elsewhere).unwrap();
    let running = pair.attachments();
    let error = Kernel::start(&pair.settings()).unwrap_err();
    let KernelError::Foreign { ref interface, program_id, ref program_name } = error else {
        panic!("{error}")
    };
    assert_eq!(*interface, pair.near);
    assert_eq!(Some(program_id), running.native);
    assert_eq!(program_name.as_deref(), Some("portcullis_xdp"));
    assert!(matches!(probe(&pair.settings()), Err(KernelError::Foreign { .. })));
    assert!(probe(&elsewhere).is_ok());
    assert_eq!(pair.attachments(), running);
    assert!(!pair.pin.exists(), "a failed start leaves nothing");
    drop(kernel);
    assert_eq!(detach(&elsewhere.pin).unwrap().interfaces, std::slice::from_ref(&pair.near));
}

#[test]
fn a_failed_start_says_why_and_leaves_nothing() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let settings = pair.settings();
    let burst = Rate { per_s: 1_000_000, burst: 10 };
    for (what, settings, part) in [
        (
            "no interface",
            Settings { interfaces: vec![pair.near.clone(), "pcl-none".into()], ..settings.clone() },
            "pcl-none",
        ),
        ("a tiny burst", Settings { packets: Some(burst), ..settings.clone() }, "packets: a burst"),
        (
            "of connections",
            Settings { connections: Some(burst), ..settings.clone() },
            "connections: a burst",
        ),
        ("no bpffs", Settings { pin: "/tmp/portcullis-live".into(), ..settings.clone() }, "bpffs"),
    ] {
        let error = Kernel::start(&settings).unwrap_err().to_string();
        assert!(error.contains(part), "{what}: {error}");
        assert!(!settings.pin.exists(), "{what}");
        assert_eq!(pair.attachments(), attachment::Attachments::default(), "{what}");
    }
    let (_kernel, _) = Kernel::start(&settings).unwrap();
    let error = Kernel::start(&settings).unwrap_err();
    assert!(matches!(error, KernelError::Busy { .. }), "{error}");
    assert!(pair.attachments().native.is_some());
}

#[test]
fn a_table_of_another_size_starts_anew_and_the_bans_stay() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let (mut kernel, _) = Kernel::start(&pair.settings()).unwrap();
    kernel.ban(&[pair.ban(Duration::from_secs(3600))]);
    drop(kernel);
    let larger = Settings { max_sources: 100_000, ..pair.settings() };
    let (kernel, notices) = Kernel::start(&larger).unwrap();
    assert_eq!(
        notices,
        [
            Notice::Wiped { map: "SOURCES" },
            Notice::Wiped { map: "OTHERS" },
            Notice::Adopted { interfaces: 1, bans: 1 }
        ]
    );
    assert_eq!(kernel.bans().unwrap().len(), 1);
    assert!(pair.sockets().is_silent());
}

#[test]
fn another_versions_filter_is_replaced_without_a_gap() {
    if !may_load_programs() {
        return;
    }
    let (pair, gone) = (Pair::new(), Pair::new());
    let both = vec![pair.near.clone(), gone.near.clone()];
    let (kernel, _) = Kernel::start(&Settings { interfaces: both, ..pair.settings() }).unwrap();
    drop(kernel);
    // As if a version with another layout had made it; one of its interfaces is not wanted now.
    let old = pair.pin.join("v0");
    fs::rename(pair.pin.join(format!("v{LAYOUT_VERSION}")), &old).unwrap();
    let (kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    let adopted = Notice::Adopted { interfaces: 1, bans: 0 };
    assert_eq!(notices, [adopted, Notice::OldLayout { directory: old.clone(), inherited: None }]);
    assert!(kernel.status().interfaces[0].attached.is_some());
    assert!(!fs::exists(&old).unwrap());
    wait_until("the other interface is free", || {
        gone.attachments() == attachment::Attachments::default()
    });
    drop(kernel);
    assert_eq!(detach(&pair.pin).unwrap().interfaces, std::slice::from_ref(&pair.near));
    assert_eq!(pair.attachments(), attachment::Attachments::default());
}

#[test]
fn an_earlier_layouts_bans_stay_in_force_without_a_gap() {
    if !may_load_programs() {
        return;
    }
    for layout in [2, 3] {
        bans_stay_in_force_from(layout);
    }
}

/// The bans and classes of an earlier layout, which a new version finds in force.
fn bans_stay_in_force_from(layout: u32) {
    let pair = Pair::new();
    let (mut kernel, _) = Kernel::start(&pair.settings()).unwrap();
    let hour = Duration::from_secs(3600);
    assert!(matches!(kernel.ban(&[pair.ban(hour)])[..], [(_, BanOutcome::Set)]));
    let net = "203.0.113.0/24".parse().unwrap();
    let prefix_ban = PrefixBan { net, lasts: hour, reason: 1, origin: 1 };
    assert_eq!(kernel.ban_prefix(&prefix_ban).unwrap(), PrefixBanOutcome::Set);
    let other = Source::from(IpAddr::from([192, 0, 2, 50]));
    assert!(kernel.set_class(other, Class::doubled(2).unwrap(), hour).unwrap());
    drop(kernel);
    // As the version before made it: these maps were the same then, the others were not there.
    let old = pair.pin.join(format!("v{layout}"));
    fs::rename(pair.pin.join(format!("v{LAYOUT_VERSION}")), &old).unwrap();
    for name in ["RULES", "SOURCES", "OTHERS", "COUNTERS", "EVENTS", "INTERFACES"] {
        fs::remove_file(old.join(name)).unwrap();
    }
    let wire = pair.sockets();
    assert!(wire.is_silent());
    let sender = wire.there.try_clone().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let sending = thread::spawn({
        let is_over = is_over.clone();
        move || {
            while !is_over.load(Relaxed) {
                // Nobody answers, so nothing is refused.
                let _sent = sender.send(b"during");
            }
        }
    });
    let (kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    is_over.store(true, Relaxed);
    sending.join().unwrap();
    let inherited = Some(Inherited { bans: 1, prefixes: 1, classes: 1 });
    let adopted = Notice::Adopted { interfaces: 1, bans: 2 };
    assert_eq!(notices, [adopted, Notice::OldLayout { directory: old.clone(), inherited }]);
    assert!(notices[1].to_string().contains("stay in force"), "{}", notices[1]);
    assert!(!fs::exists(&old).unwrap());
    let late = uninterrupted(|| wire.here.recv(&mut [0; 16]));
    assert!(late.is_err(), "a datagram of a banned source came through");
    assert!(wire.is_silent());
    let bans = kernel.bans().unwrap();
    assert_eq!((bans[0].source, bans[0].reason, bans[0].level), (pair.peer(), 3, 2));
    assert_eq!(kernel.prefix_bans().unwrap()[0].net, net);
    assert_eq!(kernel.explain(other).unwrap().class.doublings(), 2);
}

#[test]
fn tells_who_sends_most_and_what_was_dropped() {
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    // Slow, so that a machine that stands still for a second does not lend it much.
    let packets = Some(Rate { per_s: 10, burst: 100 });
    let (mut kernel, _) = Kernel::start(&Settings { packets, ..pair.settings() }).unwrap();
    assert!(kernel.top(10).unwrap().is_empty());
    let wire = pair.sockets();
    for _ in 0..300 {
        wire.there.send(b"much").unwrap();
    }
    wait_until("the flood has arrived", || packets_dropped(&kernel, Outcome::OverLimit) >= 100);
    let top = kernel.top(10).unwrap();
    let net = IpNet::from(IpAddr::V4(pair.peer));
    assert_eq!((top.len(), top[0].net), (1, net));
    let allowance = top[0].allowances[0];
    assert_eq!((allowance.quota, allowance.burst), (Quota::Packets, 100));
    assert!(allowance.left < 100);
    let sources = kernel.status().fills.into_iter().find(|fill| fill.map == "sources").unwrap();
    assert_eq!((sources.used, sources.limit), (1, 1_024));

    let mut ready = [PollFd::new(kernel.events_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ready, PollTimeout::ZERO).unwrap(), 1);
    let events = kernel.take_events(5);
    assert_eq!(events.len(), 5);
    let service = Some(Service { port: PORT, transport: Transport::Udp });
    for event in events {
        let told = (event.source, event.service, event.reason, event.enforced);
        assert_eq!(told, (Some(pair.peer.into()), service, Outcome::OverLimit, true));
        assert_eq!((event.interface.as_str(), event.frame_bytes), (&*pair.near, 14 + 20 + 8 + 4));
    }
    assert!(kernel.take_events(1_000).len() < 1_000);
    assert!(kernel.take_events(1_000).is_empty());
}

fn packets_dropped(kernel: &Kernel, reason: Outcome) -> u64 {
    packets(kernel, Action::Drop, reason)
}

/// What the test below is in a process of its own: a daemon that bans and then hangs.
fn daemon_to_be_killed(text: &str) {
    let words: Vec<&str> = text.split(' ').collect();
    let [interface, pin, peer] = words[..] else { panic!("{text}") };
    let settings = Settings {
        interfaces: vec![interface.into()],
        mode: Mode::Auto,
        enforce: true,
        ports: vec![PORT],
        management: Vec::new(),
        exempt: Vec::new(),
        deny: Vec::new(),
        packets: None,
        connections: None,
        bytes: None,
        new_sources: None,
        max_sources: 1_000,
        pin: pin.into(),
    };
    let (mut kernel, _) = Kernel::start(&settings).unwrap();
    let source = Source::from(peer.parse::<IpAddr>().unwrap());
    kernel.ban(&[Ban { source, lasts: Duration::from_secs(3600), reason: 0, origin: 0, level: 0 }]);
    println!("banned {peer}");
    // Until it is killed; should the test be killed instead, this ends with it.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_filter_outlives_a_daemon_that_is_killed() {
    if let Ok(text) = std::env::var(CHILD) {
        return daemon_to_be_killed(&text);
    }
    if !may_load_programs() {
        return;
    }
    let pair = Pair::new();
    let wire = pair.sockets();
    assert!(wire.passes());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "xdp_live::the_filter_outlives_a_daemon_that_is_killed", "--nocapture"])
        .env(CHILD, format!("{} {} {}", pair.near, pair.pin.display(), pair.peer))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Killed(child.unwrap());
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let banned = output.lines().map_while(Result::ok).any(|line| line.contains("banned"));
    assert!(banned, "the daemon came up and set its ban");
    assert!(wire.is_silent());
    let running = pair.attachments();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(wire.is_silent(), "filters on after kill -9");
    assert_eq!(pair.attachments(), running);

    // The next one takes over, with the ban, in the same link.
    let (mut kernel, notices) = Kernel::start(&pair.settings()).unwrap();
    assert!(notices.contains(&Notice::Adopted { interfaces: 1, bans: 1 }), "{notices:?}");
    assert_ne!(pair.attachments(), running, "a program of its own");
    assert!(wire.is_silent());
    assert_eq!(kernel.unban(&[pair.peer()]).unwrap(), 1);
    assert!(wire.passes());

    // Detaching works under a running daemon, and leaves nothing.
    let detached = detach(&pair.pin).unwrap();
    assert_eq!(detached.interfaces, std::slice::from_ref(&pair.near));
    assert_eq!(pair.attachments(), attachment::Attachments::default());
    assert!(!fs::exists(&pair.pin).unwrap());
    assert_eq!(kernel.status().interfaces[0].attached, None);
    drop(kernel);
    assert!(!detach(&pair.pin).unwrap().found);
}
