//! One question to chronyd: its `tracking` report, by its own command protocol, version 6.
//!
//! The layout is that of chrony's `candm.h` since 1.27, as observed on the wire of chrony 4.3: a request
//! is padded to the length of its answer, so that nobody can use the daemon to multiply packets. Numbers
//! are in network order; a float has a seven-bit exponent and a coefficient of 25 bits, both signed.
//! From this host chronyd answers on UDP port 323 without being asked twice.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// Version of the command protocol; chrony speaks it since 1.27 (2012).
const VERSION: u8 = 6;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const REQUEST_TRACKING: u16 = 33;
const REPLY_TRACKING: u16 = 5;
/// Head of an answer, and the whole answer with the report.
const HEAD_BYTES: usize = 28;
const REPLY_BYTES: usize = 104;

/// chronyd is on this host, and answers within a millisecond or not at all.
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// What chronyd says of the clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracking {
    /// Identifier of what it follows; 0: nothing.
    pub reference_id: u32,
    /// Distance to a reference clock; 0: not synchronised.
    pub stratum: u16,
    /// 3: not synchronised (RFC 5905 section 7.3).
    pub leap: u16,
    /// How far this host's clock is ahead of true time, as chronyd estimates, in seconds.
    pub offset_s: f64,
    /// Round trip to the reference clock, in seconds.
    pub root_delay_s: f64,
    /// Bound of the errors that have accumulated, in seconds; it grows while nothing is heard.
    pub root_dispersion_s: f64,
}

impl Tracking {
    /// Whether the clock follows something.
    pub fn is_synchronized(&self) -> bool {
        self.leap != 3 && self.stratum != 0 && self.reference_id != 0
    }

    /// The clock is at most this far from true time, in seconds (chronyc(1), `tracking`).
    pub fn max_error_s(&self) -> f64 {
        self.offset_s.abs() + self.root_dispersion_s + self.root_delay_s / 2.0
    }
}

/// The request for the report. `sequence` tells its answer from a late one.
pub fn question(sequence: u32) -> [u8; REPLY_BYTES] {
    let mut octets = [0; REPLY_BYTES];
    (octets[0], octets[1]) = (VERSION, REQUEST);
    octets[4..6].copy_from_slice(&REQUEST_TRACKING.to_be_bytes());
    octets[8..12].copy_from_slice(&sequence.to_be_bytes());
    octets
}

/// Reads an answer; `None` when it is not one to this question, or says no.
pub fn answer(octets: &[u8], sequence: u32) -> Option<Tracking> {
    let octets: &[u8; REPLY_BYTES] = octets.get(..REPLY_BYTES)?.try_into().ok()?;
    let short = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
    let long = |at: usize| {
        u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    };
    let is_ours = (octets[0], octets[1]) == (VERSION, REPLY)
        && (short(4), short(6)) == (REQUEST_TRACKING, REPLY_TRACKING)
        // Status 0: success.
        && short(8) == 0
        && long(16) == sequence;
    if !is_ours {
        return None;
    }
    // Reference id 4, its address 20, stratum 2, leap 2, time 12, then nine floats.
    const STRATUM: usize = HEAD_BYTES + 24;
    const FLOATS: usize = STRATUM + 4 + 12;
    let float = |number: usize| float(long(FLOATS + 4 * number));
    let tracking = Tracking {
        reference_id: long(HEAD_BYTES),
        stratum: short(STRATUM),
        leap: short(STRATUM + 2),
        // Positive there means that the clock is slow.
        offset_s: -float(0),
        root_delay_s: float(6),
        root_dispersion_s: float(7),
    };
    let sane = tracking.root_delay_s >= 0.0 && tracking.root_dispersion_s >= 0.0;
    sane.then_some(tracking)
}

/// chrony's 32-bit float.
fn float(bits: u32) -> f64 {
    // Shifting an i32 right keeps the sign.
    let exponent = bits.cast_signed() >> 25;
    let coefficient = (bits << 7).cast_signed() >> 7;
    f64::from(coefficient) * f64::from(exponent - 25).exp2()
}

/// Asks the chronyd at this address.
///
/// # Errors
/// When nobody answers in time, or not as chronyd does.
pub fn ask(address: SocketAddr, sequence: u32) -> io::Result<Tracking> {
    let own: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own)?;
    // Only this address may answer.
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    socket.send(&question(sequence))?;
    let mut octets = [0; 2 * REPLY_BYTES];
    let length = socket.recv(&mut octets)?;
    answer(&octets[..length], sequence)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not chronyd's tracking report"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn floats_are_read_as_chrony_writes_them() {
        for (bits, expected) in [
            (0, 0.0),
            // Coefficient 2^23, exponent 2: 2^23 * 2^(2-25) = 1.
            (2 << 25 | 1 << 23, 1.0),
            (2 << 25 | (0x1ff_ffff & (-(1_i32 << 23)).cast_unsigned()), -1.0),
            // Exponent -8 in seven bits.
            (0x78 << 25 | 1 << 23, 1.0 / 1024.0),
        ] {
            assert_eq!(float(bits), expected, "{bits:#x}");
        }
    }

    fn reply() -> [u8; REPLY_BYTES] {
        let mut octets = [0; REPLY_BYTES];
        octets[..12].copy_from_slice(&[6, 2, 0, 0, 0, 33, 0, 5, 0, 0, 0, 0]);
        octets[16..20].copy_from_slice(&7_u32.to_be_bytes());
        octets[28..32].copy_from_slice(&0x7f7f_0101_u32.to_be_bytes());
        octets[52..54].copy_from_slice(&10_u16.to_be_bytes());
        octets[68..72].copy_from_slice(&(2_u32 << 25 | 1 << 23).to_be_bytes()); // a second slow
        octets[92..96].copy_from_slice(&(3_u32 << 25 | 1 << 23).to_be_bytes()); // two of delay
        octets[96..100].copy_from_slice(&(2_u32 << 25 | 1 << 23).to_be_bytes());
        octets
    }

    #[test]
    fn a_report_is_read_and_everything_else_is_none() {
        let tracking = answer(&reply(), 7).unwrap();
        assert_eq!((tracking.stratum, tracking.leap, tracking.offset_s), (10, 0, -1.0));
        assert_eq!(tracking.max_error_s(), 1.0 + 1.0 + 1.0);
        assert!(tracking.is_synchronized());
        for (leap, stratum, is_synchronized) in [(0, 1, true), (3, 1, false), (0, 0, false)] {
            let tracking = Tracking { leap, stratum, ..tracking.clone() };
            assert_eq!(tracking.is_synchronized(), is_synchronized, "{leap} {stratum}");
        }
        assert_eq!(answer(&reply(), 8), None, "the answer to another question");
        assert_eq!(answer(&reply()[..103], 7), None, "cut");
        for (at, octet) in [(0, 5), (1, 1), (5, 34), (7, 6), (9, 2)] {
            let mut octets = reply();
            octets[at] = octet;
            assert_eq!(answer(&octets, 7), None, "octet {at}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_not(octets in prop::collection::vec(any::<u8>(), 0..300), sequence: u32) {
            if let Some(tracking) = answer(&octets, sequence) {
                prop_assert!(tracking.max_error_s().is_finite());
            }
        }
    }
}
