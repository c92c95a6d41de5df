//! What the daemon asks of its agent, and what it is answered: closed lists, and how they are written.

use std::time::Duration;

use gateway_ebpf::{Outcome, Source};
use ipnet::IpNet;

use super::wire::{Reader, Wire, WireError, choices, record, words};
use crate::kernel::{
    Action, Allowance, Attached, AttachedMode, Ban, BanEntry, BanOutcome, ByteRate, Class, Count,
    Detached, DropEvent, Fill, InterfaceStatus, KernelError, Mode, PrefixBan, PrefixBanEntry,
    PrefixBanOutcome, Quota, Rate, Reattached, Service, Settings, SourceState, Status, TopSource,
    Transport,
};

/// What the agent is asked to do; each is a method of [`crate::kernel::Kernel`], but for the last two.
#[derive(Debug)]
pub enum Request {
    /// Attach the filter, or take over the one that is there.
    Start(Settings),
    /// Take over changed settings.
    Apply(Settings),
    /// Let go of the maps; the filter stays in force.
    Stop(()),
    /// Remove the filter and all pins.
    Detach(()),
    /// Drop, or only count.
    Enforce(bool),
    /// Set bans.
    Ban(Vec<Ban>),
    /// Lift bans.
    Unban(Vec<Source>),
    /// Give a source limits of its own.
    SetClass(ClassChange),
    /// Ban a prefix.
    BanPrefix(PrefixBan),
    /// Lift the ban of a prefix.
    UnbanPrefix(IpNet),
    /// Tell every banned prefix.
    PrefixBans(()),
    /// Tell every banned source.
    Bans(()),
    /// Remove what is over.
    Sweep(()),
    /// Tell all about a source.
    Explain(Source),
    /// Tell who used most, at most so many.
    Top(usize),
    /// Tell of dropped frames, at most so many.
    TakeEvents(usize),
    /// Tell the counters.
    Counters(()),
    /// Tell how things stand.
    Status(()),
    /// Guard interfaces again that were made anew.
    Reattach(()),
    /// Start the program that is installed now, to take over from the daemon.
    Upgrade(()),
    /// Tell what became of that program.
    Successor(()),
}

/// Limits of a source that differ from everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassChange {
    /// Whose.
    pub source: Source,
    /// How.
    pub class: Class,
    /// For how long.
    pub lasts: Duration,
}

/// What the agent answers.
#[derive(Debug)]
pub enum Answer {
    /// It could not be done.
    Failed(KernelError),
    /// It is done.
    Done(()),
    /// It is done, and this is worth telling.
    Notices(Vec<String>),
    /// What became of each ban.
    Banned(Vec<(Source, BanOutcome)>),
    /// So many.
    Number(usize),
    /// Whether there was something, or it has found room.
    Is(bool),
    /// What became of the ban on a prefix.
    PrefixBanned(PrefixBanOutcome),
    /// The banned prefixes.
    PrefixBans(Vec<PrefixBanEntry>),
    /// The banned sources.
    Bans(Vec<BanEntry>),
    /// About a source.
    Source(SourceState),
    /// Who used most.
    Top(Vec<TopSource>),
    /// Dropped frames.
    Events(Vec<DropEvent>),
    /// The counters.
    Counters(Vec<Count>),
    /// How things stand.
    Status(Status),
    /// What became of interfaces that were without the program.
    Reattached(Vec<Reattached>),
    /// What was removed.
    Detached(Detached),
    /// The process that was started.
    Process(u32),
    /// How a process ended; nothing while it runs, or was not started.
    Ended(Option<String>),
}

/// What nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The agent has ended.
    Ended(Ending),
    /// Another one is there, and knows of nothing yet.
    Ready(()),
}

/// How an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// In words.
    pub how: String,
    /// When another one is started.
    pub again_in: Duration,
}

/// Reads a whole message.
///
/// # Errors
/// It is none.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, WireError> {
    let mut reader = Reader::new(bytes);
    let value = T::take(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Writes a whole message.
pub fn encode(message: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.put(&mut bytes);
    bytes
}

choices!(Request {
    0 Start, 1 Apply, 2 Stop, 3 Detach, 4 Enforce, 5 Ban, 6 Unban, 7 SetClass, 8 BanPrefix,
    9 UnbanPrefix, 10 PrefixBans, 11 Bans, 12 Sweep, 13 Explain, 14 Top, 15 TakeEvents, 16 Counters,
    17 Status, 18 Reattach, 19 Upgrade, 20 Successor,
});
choices!(Answer {
    0 Failed, 1 Done, 2 Notices, 3 Banned, 4 Number, 5 Is, 6 PrefixBanned, 7 PrefixBans, 8 Bans,
    9 Source, 10 Top, 11 Events, 12 Counters, 13 Status, 14 Reattached, 15 Detached, 16 Process,
    17 Ended,
});
choices!(News { 0 Ended, 1 Ready });
record!(Ending { how, again_in });
record!(ClassChange { source, class, lasts });
record!(Settings {
    interfaces,
    mode,
    enforce,
    ports,
    management,
    exempt,
    deny,
    packets,
    connections,
    bytes,
    new_sources,
    max_sources,
    pin,
});
words!(Mode { 0 Auto, 1 Native, 2 Generic });
record!(Service { port, transport });
words!(Transport { 0 Tcp, 1 Udp });
record!(Rate { per_s, burst });
record!(ByteRate { bytes_per_s, burst_bytes });
record!(Ban { source, lasts, reason, origin, level });
record!(PrefixBan { net, lasts, reason, origin });
record!(PrefixBanEntry { net, remaining, age, reason, origin });
record!(BanEntry { source, remaining, age, reason, origin, level });
record!(SourceState { exempt, denied, ban, prefix_ban, class, allowances });
record!(Allowance { quota, net, left, burst });
words!(Quota { 0 Packets, 1 Connections, 2 Bytes });
record!(TopSource { net, allowances });
record!(Count { interface, action, reason, packets, bytes });
words!(Action { 0 Pass, 1 Drop, 2 WouldDrop });
record!(Status { interfaces, enforce, fills, evictions, events_lost });
record!(InterfaceStatus { name, attached });
record!(Attached { mode, program_id });
words!(AttachedMode { 0 Native, 1 Generic });
record!(DropEvent { at, interface, source, service, reason, frame_bytes, enforced });
record!(Reattached { interface, result });
record!(Detached { interfaces, found });

impl Wire for Class {
    fn put(&self, out: &mut Vec<u8>) {
        self.doublings().put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        Class::doubled(i32::take(input)?).ok_or(WireError::Value { of: "Class" })
    }
}

impl Wire for Outcome {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u32).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let code = u32::take(input)?;
        let found = Outcome::ALL.into_iter().find(|outcome| *outcome as u32 == code);
        found.ok_or(WireError::Value { of: "Outcome" })
    }
}

impl Wire for Fill {
    fn put(&self, out: &mut Vec<u8>) {
        self.map.to_owned().put(out);
        self.used.put(out);
        self.limit.put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let name = String::take(input)?;
        let map = Fill::MAPS.into_iter().find(|map| *map == name);
        Ok(Fill {
            map: map.ok_or(WireError::Value { of: "Fill" })?,
            used: Wire::take(input)?,
            limit: Wire::take(input)?,
        })
    }
}

impl Wire for BanOutcome {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            BanOutcome::Set => 0,
            BanOutcome::Replaced => 1,
            BanOutcome::Exempt => 2,
            BanOutcome::TableFull => 3,
            BanOutcome::Failed(_) => 4,
        });
        if let BanOutcome::Failed(error) = self {
            error.put(out);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0 => Ok(BanOutcome::Set),
            1 => Ok(BanOutcome::Replaced),
            2 => Ok(BanOutcome::Exempt),
            3 => Ok(BanOutcome::TableFull),
            4 => Wire::take(input).map(BanOutcome::Failed),
            code => Err(WireError::Choice { of: "BanOutcome", code }),
        }
    }
}

impl Wire for PrefixBanOutcome {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            PrefixBanOutcome::Set => out.push(0),
            PrefixBanOutcome::Replaced => out.push(1),
            PrefixBanOutcome::Exempt { by } => {
                out.push(2);
                by.put(out);
            }
            PrefixBanOutcome::TableFull => out.push(3),
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0 => Ok(PrefixBanOutcome::Set),
            1 => Ok(PrefixBanOutcome::Replaced),
            2 => Ok(PrefixBanOutcome::Exempt { by: Wire::take(input)? }),
            3 => Ok(PrefixBanOutcome::TableFull),
            code => Err(WireError::Choice { of: "PrefixBanOutcome", code }),
        }
    }
}

/// The capabilities that an error may name.
const CAPABILITIES: [&str; 4] = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"];

/// An error goes as what it says: its parts are of use only where it happened, but for the missing
/// capability, which is an exit status.
impl Wire for KernelError {
    fn put(&self, out: &mut Vec<u8>) {
        self.to_string().put(out);
        self.not_permitted().map(str::to_owned).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let (text, capability): (String, Option<String>) = Wire::take(input)?;
        let known = |name: String| CAPABILITIES.into_iter().find(|known| *known == name);
        let capability = match capability.map(known) {
            None => None,
            Some(None) => return Err(WireError::Value { of: "capability" }),
            Some(known) => known,
        };
        Ok(KernelError::Told { text, capability })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        Settings {
            interfaces: vec!["eth0".to_owned(), "eth1".to_owned()],
            mode: Mode::Native,
            enforce: true,
            ports: vec![443, 8443],
            management: vec![Service { port: 22, transport: Transport::Tcp }],
            exempt: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            deny: vec!["203.0.113.0/24".parse().unwrap()],
            packets: Some(Rate { per_s: 20_000, burst: 40_000 }),
            connections: None,
            bytes: Some(ByteRate { bytes_per_s: 1 << 40, burst_bytes: 1 << 20 }),
            new_sources: None,
            max_sources: 1_000_000,
            pin: PathBuf::from("/sys/fs/bpf/portcullis"),
        }
    }

    fn requests() -> Vec<Request> {
        let source = Source::ipv4(0xc000_0207);
        let lasts = Duration::from_millis(60_500);
        vec![
            Request::Start(settings()),
            Request::Stop(()),
            Request::Enforce(true),
            Request::Ban(vec![Ban { source, lasts, reason: 3, origin: 1, level: 2 }; 3]),
            Request::Unban(vec![source]),
            Request::SetClass(ClassChange { source, class: Class::doubled(-2).unwrap(), lasts }),
            Request::BanPrefix(PrefixBan {
                net: "2001:db8::/32".parse().unwrap(),
                lasts,
                reason: 1,
                origin: 1,
            }),
            Request::Top(50),
            Request::Successor(()),
        ]
    }

    #[test]
    fn requests_are_read_as_they_were_written() {
        for request in requests() {
            let bytes = encode(&request);
            let read: Request = decode(&bytes).unwrap();
            assert_eq!(format!("{read:?}"), format!("{request:?}"));
            for shorter in 0..bytes.len() {
                assert!(decode::<Request>(&bytes[..shorter]).is_err(), "{request:?} at {shorter}");
            }
            let longer = [bytes, vec![0]].concat();
            assert_eq!(decode::<Request>(&longer).map(drop), Err(WireError::Long { bytes: 1 }));
        }
    }

    #[test]
    fn an_error_arrives_as_what_it_says() {
        let missing =
            KernelError::NotPermitted { capability: "CAP_NET_ADMIN", purpose: "attaching" };
        for (error, capability) in [(missing, Some("CAP_NET_ADMIN")), (KernelError::NotBuilt, None)]
        {
            let text = error.to_string();
            let Answer::Failed(read) = decode(&encode(&Answer::Failed(error))).unwrap() else {
                panic!("another answer")
            };
            assert_eq!((read.to_string(), read.not_permitted()), (text, capability));
        }
    }

    #[test]
    fn a_status_arrives_with_the_names_of_its_maps() {
        let fills = Fill::MAPS.map(|map| Fill { map, used: 1, limit: 2 }).to_vec();
        let attached = Attached { mode: AttachedMode::Generic, program_id: 9 };
        let interfaces = vec![InterfaceStatus { name: "eth0".into(), attached: Some(attached) }];
        let status = Status { interfaces, enforce: true, fills, evictions: 3, events_lost: 4 };
        let Answer::Status(read) = decode(&encode(&Answer::Status(status.clone()))).unwrap() else {
            panic!("another answer")
        };
        assert_eq!(read, status);
    }

    proptest! {
        #[test]
        fn any_octets_are_refused_or_are_the_one_form_of_a_message(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            code in 0u8..24,
        ) {
            let bytes = [vec![code], bytes].concat();
            if let Ok(request) = decode::<Request>(&bytes) {
                prop_assert_eq!(encode(&request), bytes.clone());
            }
            if let Ok(answer) = decode::<Answer>(&bytes) {
                prop_assert_eq!(encode(&answer), bytes);
            }
        }
    }
}
