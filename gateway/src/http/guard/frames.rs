//! What a client does with HTTP/2's frames, told from their nine-octet headers alone (RFC 9113
//! section 4.1): how many of them only make work, and whether a field block has begun and not ended.
//!
//! The library behind this one answers SETTINGS and PING for ever and accepts streams that are reset
//! at once; its bounds are those of memory. This one is about work.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Begins every connection (RFC 9113 section 3.4).
const PREFACE_BYTES: u32 = 24;
/// In front of every frame.
const HEADER_BYTES: usize = 9;

/// Frame types (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

const FLAG_END_STREAM: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;

/// A stream that is reset within this after it was opened was opened in order to be reset; a client
/// that gives up waiting has waited for longer.
const RAPID: Duration = Duration::from_millis(100);

/// Streams remembered as just opened. More than are open at once cannot all be answered before.
const OPENED_MAX: usize = 256;

/// Octets that were exchanged buy one frame of control: a client sends WINDOW_UPDATE for what it has
/// taken, and some measure the way with a PING while data flows.
const BYTES_A_FRAME: u64 = 512;

/// So many at once, and then so many each second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRate {
    /// Each second.
    pub per_s: u32,
    /// At once.
    pub burst: u32,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames that carry nothing.
    Control,
    /// Streams that are opened in order to be reset (CVE-2023-44487).
    Resets,
}

/// A bucket of frames. `now` never goes back in it.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: FrameRate, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = (self.left + passed * f64::from(rate.per_s)).min(f64::from(rate.burst));
        self.left -= 1.0;
        self.left >= 0.0
    }
}

#[derive(Clone, Copy, Debug)]
enum Next {
    /// So many octets that are looked over.
    Skip(u32),
    /// The header of a frame, as much of it as is there.
    Header([u8; HEADER_BYTES], usize),
}

/// One client's frames.
#[derive(Debug)]
pub struct Frames {
    next: Next,
    /// The frame that is being read ends its field block.
    ends_block: bool,
    block_since: Option<Instant>,
    opened: VecDeque<(u32, Instant)>,
    control: Bucket,
    control_rate: FrameRate,
    resets: Bucket,
    resets_rate: FrameRate,
    exchanged_bytes: u64,
}

impl Frames {
    /// Before the first octet, the preface.
    pub fn new(control: FrameRate, resets: FrameRate, now: Instant) -> Frames {
        let full = |rate: FrameRate| Bucket { left: f64::from(rate.burst), at: now };
        Frames {
            next: Next::Skip(PREFACE_BYTES),
            ends_block: false,
            block_since: None,
            opened: VecDeque::new(),
            control: full(control),
            control_rate: control,
            resets: full(resets),
            resets_rate: resets,
            exchanged_bytes: 0,
        }
    }

    /// Takes note of what was sent to the client.
    pub fn written(&mut self, bytes: usize) {
        self.exchanged_bytes = self.exchanged_bytes.saturating_add(bytes as u64);
    }

    /// Since when a field block is on its way and not whole.
    pub fn block_since(&self) -> Option<Instant> {
        self.block_since
    }

    /// Looks at what came from the client.
    ///
    /// # Errors
    /// What there is too much of.
    pub fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            match &mut self.next {
                Next::Skip(left) => {
                    let length = bytes.len().min(*left as usize);
                    bytes = &bytes[length..];
                    // `length` is at most `left`.
                    *left -= length as u32;
                    if *left == 0 {
                        self.end_of_frame();
                    }
                }
                Next::Header(header, have) => {
                    let length = bytes.len().min(HEADER_BYTES - *have);
                    header[*have..*have + length].copy_from_slice(&bytes[..length]);
                    bytes = &bytes[length..];
                    *have += length;
                    if *have == HEADER_BYTES {
                        let header = *header;
                        self.frame(header, now)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, header: [u8; HEADER_BYTES], now: Instant) -> Result<(), Flood> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = header;
        let length = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        self.ends_block = false;
        match kind {
            DATA if length > 0 || flags & FLAG_END_STREAM != 0 => {
                self.exchanged_bytes = self.exchanged_bytes.saturating_add(u64::from(length));
            }
            HEADERS | CONTINUATION => {
                self.block_since.get_or_insert(now);
                self.ends_block = flags & FLAG_END_HEADERS != 0;
                if kind == HEADERS {
                    self.open(stream, now);
                } else if length == 0 {
                    self.control(now)?;
                }
            }
            RST_STREAM => {
                self.control(now)?;
                if self.is_rapid(stream, now) && !self.resets.take(self.resets_rate, now) {
                    return Err(Flood::Resets);
                }
            }
            _ => self.control(now)?,
        }
        self.next = Next::Skip(length);
        if length == 0 {
            self.end_of_frame();
        }
        Ok(())
    }

    fn end_of_frame(&mut self) {
        self.next = Next::Header([0; HEADER_BYTES], 0);
        if self.ends_block {
            self.block_since = None;
        }
    }

    fn control(&mut self, now: Instant) -> Result<(), Flood> {
        if self.exchanged_bytes >= BYTES_A_FRAME {
            self.exchanged_bytes -= BYTES_A_FRAME;
            return Ok(());
        }
        if self.control.take(self.control_rate, now) { Ok(()) } else { Err(Flood::Control) }
    }

    fn open(&mut self, stream: u32, now: Instant) {
        while let Some((_, at)) = self.opened.front()
            && (self.opened.len() >= OPENED_MAX || now.saturating_duration_since(*at) > RAPID)
        {
            self.opened.pop_front();
        }
        self.opened.push_back((stream, now));
    }

    /// Whether a stream that is reset was only just opened. Each counts once: some clients reset a
    /// stream anew for every frame of it that was still under way.
    fn is_rapid(&mut self, stream: u32, now: Instant) -> bool {
        let is_it = |(opened, _): &(u32, Instant)| *opened == stream;
        let Some(index) = self.opened.iter().rposition(is_it) else { return false };
        let opened = self.opened.remove(index);
        opened.is_some_and(|(_, at)| now.saturating_duration_since(at) <= RAPID)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    const RATE: FrameRate = FrameRate { per_s: 10, burst: 20 };
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn begun(now: Instant) -> Frames {
        let mut frames = Frames::new(RATE, RATE, now);
        frames.read(PREFACE, now).unwrap();
        frames
    }

    #[test]
    fn a_stream_that_is_reset_over_and_over_is_one() {
        let now = time::monotonic();
        let mut frames = begun(now);
        // What is under way to a client that has given up.
        frames.written(100 * BYTES_A_FRAME as usize);
        frames.read(&frame(HEADERS, 5, 1, &[0x82; 9]), now).unwrap();
        for _ in 0..100 {
            frames.read(&frame(RST_STREAM, 0, 1, &[0; 4]), now).unwrap();
        }
    }

    #[test]
    fn frames_without_use_are_counted_and_those_with_are_not() {
        let now = time::monotonic();
        for (what, one, limited) in [
            ("SETTINGS", frame(4, 0, 0, &[]), true),
            ("SETTINGS with one in it", frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]), true),
            ("PING", frame(6, 0, 0, &[7; 8]), true),
            ("PRIORITY", frame(2, 0, 3, &[0; 5]), true),
            ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1]), true),
            ("of a type nobody knows", frame(0xee, 0, 0, &[1; 30]), true),
            ("empty DATA", frame(DATA, 0, 1, &[]), true),
            ("empty CONTINUATION", frame(CONTINUATION, 0, 1, &[]), true),
            ("RST_STREAM of a stream nobody opened", frame(RST_STREAM, 0, 9, &[0; 4]), true),
            ("DATA", frame(DATA, 0, 1, &[1]), false),
            ("the end of a body", frame(DATA, FLAG_END_STREAM, 1, &[]), false),
            ("HEADERS", frame(HEADERS, 5, 1, &[0x82; 9]), false),
        ] {
            let mut frames = begun(now);
            let taken = (0..100).take_while(|_| frames.read(&one, now).is_ok()).count();
            assert_eq!(taken, if limited { 20 } else { 100 }, "{what}");
        }
        let mut frames = begun(now);
        let ping = frame(6, 0, 0, &[0; 8]);
        for tenth in 0..1_000 {
            let now = now + Duration::from_millis(100 * tenth);
            assert_eq!(frames.read(&ping, now), Ok(()), "ten each second are allowed");
        }
    }

    #[test]
    fn who_takes_much_may_say_so_often() {
        let now = time::monotonic();
        let mut frames = begun(now);
        frames.written(1 << 20);
        let update = frame(8, 0, 0, &[0, 0, 8, 0]);
        let taken = (0..10_000).take_while(|_| frames.read(&update, now).is_ok()).count();
        assert_eq!(taken, (1 << 20) / 512 + 20);
    }

    #[test]
    fn only_streams_that_are_reset_at_once_are_rapid() {
        let start = time::monotonic();
        for (after_ms, expected) in
            [(0, Err(Flood::Resets)), (100, Err(Flood::Resets)), (101, Ok(()))]
        {
            let patient = FrameRate { per_s: 100_000, burst: 100_000 };
            let mut frames = Frames::new(patient, RATE, start);
            frames.read(PREFACE, start).unwrap();
            let outcome = (0..50).try_for_each(|number| {
                let stream = 2 * number + 1;
                frames.read(&frame(HEADERS, 5, stream, &[0x82]), start)?;
                frames.read(
                    &frame(RST_STREAM, 0, stream, &[0; 4]),
                    start + Duration::from_millis(after_ms),
                )
            });
            assert_eq!(outcome, expected, "{after_ms} ms");
            assert!(frames.opened.len() <= OPENED_MAX);
        }
    }

    #[test]
    fn a_field_block_is_on_its_way_until_its_last_octet() {
        let now = time::monotonic();
        let mut frames = begun(now);
        let whole = frame(HEADERS, FLAG_END_HEADERS, 1, &[0x82; 5]);
        frames.read(&whole[..8], now).unwrap();
        assert_eq!(frames.block_since(), None, "it might be another frame");
        frames.read(&whole[8..9], now).unwrap();
        assert_eq!(frames.block_since(), Some(now));
        let later = now + Duration::from_secs(1);
        frames.read(&whole[9..13], later).unwrap();
        assert_eq!(frames.block_since(), Some(now));
        frames.read(&whole[13..], later).unwrap();
        assert_eq!(frames.block_since(), None);

        frames.read(&frame(HEADERS, 0, 3, &[0x82]), now).unwrap();
        frames.read(&frame(CONTINUATION, 0, 3, &[0x84]), later).unwrap();
        assert_eq!(frames.block_since(), Some(now));
        frames.read(&frame(CONTINUATION, FLAG_END_HEADERS, 3, &[]), later).unwrap();
        assert_eq!(frames.block_since(), None);
    }

    proptest! {
        /// However the octets are cut into reads, the outcome is the same.
        #[test]
        fn cuts_change_nothing(
            kinds in proptest::collection::vec((0u8..11, 0u8..6, 0u32..9, 0usize..40), 0..60),
            cuts in proptest::collection::vec(1usize..50, 1..20),
        ) {
            let now = time::monotonic();
            let mut octets = PREFACE.to_vec();
            for (kind, flags, stream, length) in kinds {
                octets.extend(frame(kind, flags, stream, &vec![7; length]));
            }
            let mut whole = Frames::new(RATE, RATE, now);
            let outcome = whole.read(&octets, now);
            let mut cut = Frames::new(RATE, RATE, now);
            let mut rest = &octets[..];
            let mut seen = Ok(());
            for length in cuts.iter().cycle() {
                if rest.is_empty() || seen.is_err() {
                    break;
                }
                let (part, after) = rest.split_at((*length).min(rest.len()));
                seen = cut.read(part, now);
                rest = after;
            }
            prop_assert_eq!(seen, outcome);
            prop_assert_eq!(cut.block_since(), whole.block_since());
        }
    }
}
