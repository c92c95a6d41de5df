//! What the program tells of the frames that it drops, made readable.

use std::{net::IpAddr, time::Duration};

use gateway_ebpf::{
    Outcome,
    abi::Event,
    packet::{self, Parsed, Target},
};

use super::{Service, Transport, plan};

/// One of the frames that were dropped, or would have been. Only some are told of (about a hundred
/// in a second for each CPU and interface); the counters have all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// When, on `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// The interface it came in by.
    pub interface: String,
    /// Its sender's whole address, where it had one that could be read.
    pub source: Option<IpAddr>,
    /// What it was sent to, where its headers tell.
    pub service: Option<Service>,
    /// Why; its word is [`Outcome::word`].
    pub reason: Outcome,
    /// Its length from the Ethernet header on.
    pub frame_bytes: u64,
    /// Whether it was dropped, not only counted.
    pub enforced: bool,
}

/// Reads an event with the program's own parser; `None` for one that no program of ours writes.
pub(super) fn read(event: &Event, interface: &str) -> Option<DropEvent> {
    let reason = Outcome::ALL.into_iter().find(|outcome| *outcome as u32 == event.outcome)?;
    let head: Vec<u8> = event.head.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // The program copies whole words.
    let words = usize::try_from(event.frame_bytes).unwrap_or(usize::MAX) / size_of::<u64>();
    let head = &head[..head.len().min(words.saturating_mul(size_of::<u64>()))];
    let flow = match packet::parse(head) {
        Parsed::Flow(flow) => Some(flow),
        Parsed::NotIp | Parsed::Malformed => None,
    };
    let service = |port, transport| Some(Service { port, transport });
    Some(DropEvent {
        at: Duration::from_nanos(event.monotonic_ns),
        interface: interface.to_owned(),
        source: flow.map(|flow| plan::ip(flow.address)),
        service: flow.and_then(|flow| match flow.target {
            Target::Tcp(port) => service(port, Transport::Tcp),
            Target::Udp(port) => service(port, Transport::Udp),
            Target::Fragment | Target::Other | Target::Unreadable => None,
        }),
        reason,
        frame_bytes: event.frame_bytes,
        enforced: event.enforced != 0,
    })
}

#[cfg(test)]
mod tests {
    use gateway_ebpf::abi::EVENT_HEAD_WORDS;

    use super::*;

    fn event(frame: &[u8], outcome: u32) -> Event {
        let mut head = [0; EVENT_HEAD_WORDS];
        for (word, octets) in head.iter_mut().zip(frame.as_chunks().0) {
            *word = u64::from_ne_bytes(*octets);
        }
        Event {
            monotonic_ns: 7,
            outcome,
            frame_bytes: frame.len() as u64,
            enforced: 1,
            head,
            ..Event::default()
        }
    }

    fn udp(bytes: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x20, 0xfb, 0, 26, 0, 0]);
        frame.resize(bytes, 0);
        frame
    }

    #[test]
    fn tells_who_sent_what_where() {
        let banned = Outcome::Banned as u32;
        let source = Some(IpAddr::from([192, 0, 2, 7]));
        let service = Some(Service { port: 8443, transport: Transport::Udp });
        for (frame, outcome, told) in [
            (udp(60), banned, Some((source, service))),
            (udp(1_500), banned, Some((source, service))),
            // Cut in the middle of a word that holds the ports.
            (udp(39), banned, Some((None, None))),
            (vec![0; 60], banned, Some((None, None))),
            (Vec::new(), banned, Some((None, None))),
            (udp(60), 99, None),
        ] {
            let read = read(&event(&frame, outcome), "eth0");
            assert_eq!(read.as_ref().map(|read| (read.source, read.service)), told);
            if let Some(read) = read {
                assert_eq!((read.at.as_nanos(), read.enforced), (7, true));
                assert_eq!((read.reason, read.frame_bytes), (Outcome::Banned, frame.len() as u64));
            }
        }
    }
}
