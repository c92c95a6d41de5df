//! Packets of many senders, judged at times that a test chooses: how a run of
//! [`PROGRAM`] is told what to send, and how it tells what became of it.
//!
//! The program is never attached. User space runs it by hand on a frame that begins with a
//! [`Stage`]; the kernel keeps the frame from one repetition to the next, so each repetition is the
//! next packet of whichever sender is due, at the very nanosecond that it is due, and one call
//! makes seconds of a flood that come out the same on any machine.

/// Name of the XDP program that plays a [`Stage`].
pub const PROGRAM: &str = "portcullis_rehearsal";
/// Senders on a stage: who is attacked, who attacks, and somebody else.
pub const SENDERS: usize = 3;

/// What stands in front of the frame: it begins behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stage {
    /// All zeroes but for [`Sender::next_ns`], which is far away: one that never sends.
    pub senders: [Sender; SENDERS],
    /// Where the one begins whose packet was the last, in octets. The program's own.
    pub due: u64,
}
const _: () = assert!(size_of::<Stage>() == SENDERS * 64 + 8);

/// Somebody with one address or many, who sends in equal distances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sender {
    /// When the next packet is sent, on the clock of bans and buckets. The earliest of all senders
    /// is next; of those at once, the first.
    pub next_ns: u64,
    /// From one packet to the next.
    pub interval_ns: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets of these that were not to be dropped.
    pub passed: u64,
    /// The first IPv4 address, as a number.
    pub first: u32,
    /// How many there are from there on; 0: the frame is sent as it is.
    pub sources: u32,
    /// Packets in a row from each address; at least 1.
    pub in_a_row: u32,
    /// 0: the addresses follow each other. Else in an order without a pattern.
    pub is_shuffled: u32,
    /// The last packet's [`crate::Outcome`].
    pub outcome: u32,
    /// To one cache line.
    pub _pad: [u32; 3],
}

impl Sender {
    /// One who never sends.
    pub const SILENT: Self = Self {
        next_ns: u64::MAX,
        interval_ns: 0,
        sent: 0,
        passed: 0,
        first: 0,
        sources: 0,
        in_a_row: 1,
        is_shuffled: 0,
        outcome: 0,
        _pad: [0; 3],
    };

    /// The address of the next packet.
    #[inline(always)]
    pub const fn address(&self) -> u32 {
        let turn = self.sent / if self.in_a_row == 0 { 1 } else { self.in_a_row as u64 };
        let place = if self.is_shuffled == 0 { turn } else { shuffle(turn) };
        let sources = if self.sources == 0 { 1 } else { self.sources as u64 };
        self.first.wrapping_add((place % sources) as u32)
    }
}

/// A number without a pattern for each number (the finalizer of SplitMix64).
#[inline(always)]
const fn shuffle(number: u64) -> u64 {
    let number = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, vec::Vec};

    use super::*;

    #[test]
    fn addresses_come_in_turn_or_shuffled_so_many_in_a_row() {
        let addresses = |sender: Sender, count| -> Vec<u32> {
            (0..count).map(|sent| Sender { sent, ..sender }.address()).collect()
        };
        let sender = Sender { first: 10, sources: 3, in_a_row: 2, ..Sender::SILENT };
        assert_eq!(addresses(sender, 8), [10, 10, 11, 11, 12, 12, 10, 10]);
        let sender = Sender { sources: 1 << 20, is_shuffled: 1, ..sender };
        let shuffled = addresses(sender, 2_000);
        assert!(shuffled.chunks(2).all(|pair| pair[0] == pair[1]));
        let distinct: BTreeSet<_> = shuffled.iter().collect();
        assert!(distinct.len() > 990, "{}", distinct.len());
        assert!(
            !shuffled.is_sorted() && shuffled.iter().all(|&at| (10..10 + (1 << 20)).contains(&at))
        );
    }
}
