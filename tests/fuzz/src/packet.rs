//! Frames, read a second time by a reader that shares nothing with the library's.

use gateway_ebpf::packet::{Address, Flow, Parsed, Target, parse};

/// The library's reading and this one's are the same.
pub(crate) fn packet(frame: &[u8]) {
    assert_eq!(parse(frame), read(frame), "{frame:02x?}");
}

/// `[start..start + N]` of a frame that is long enough.
fn at<const N: usize>(frame: &[u8], start: usize) -> Option<[u8; N]> {
    frame.get(start..)?.first_chunk::<N>().copied()
}

fn read(frame: &[u8]) -> Parsed {
    let Some(mut start) = (frame.len() >= 14).then_some(12) else { return Parsed::Malformed };
    let mut tags = 0;
    loop {
        let Some(kind) = at::<2>(frame, start) else { return Parsed::Malformed };
        match kind {
            [0x81, 0x00] | [0x88, 0xa8] if tags < 2 => {
                tags += 1;
                start += 4;
                if frame.len() < start + 2 {
                    return Parsed::Malformed;
                }
            }
            [0x08, 0x00] => {
                return ipv4(&frame[start + 2..]).map_or(Parsed::Malformed, Parsed::Flow);
            }
            [0x86, 0xdd] => {
                return ipv6(&frame[start + 2..]).map_or(Parsed::Malformed, Parsed::Flow);
            }
            _ => return Parsed::NotIp,
        }
    }
}

fn ipv4(packet: &[u8]) -> Option<Flow> {
    let header: [u8; 20] = at(packet, 0)?;
    let words = usize::from(header[0] % 16);
    if header[0] / 16 != 4 || words < 5 {
        return None;
    }
    let address = Address::V4(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
    let is_first = header[6] & 0x1f == 0 && header[7] == 0;
    let (target, opens) = match header[9] {
        6 | 17 if !is_first => (Target::Fragment, false),
        protocol @ (6 | 17) => transport(protocol, packet.get(words * 4..).unwrap_or_default()),
        _ => (Target::Other, false),
    };
    Some(Flow { address, target, opens })
}

fn ipv6(packet: &[u8]) -> Option<Flow> {
    let header: [u8; 40] = at(packet, 0)?;
    if header[0] / 16 != 6 || header[8..20] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        return None;
    }
    let half = |start: usize| at::<8>(&header, start).map(u64::from_be_bytes);
    let address = Address::V6(half(8)?, half(16)?);
    let (target, opens) = behind(header[6], &packet[40..], 0);
    Some(Flow { address, target, opens })
}

fn is_extension(header: u8) -> bool {
    [0, 43, 44, 51, 60, 135, 139, 140].contains(&header)
}

/// What a header of this number begins, after so many extension headers.
fn behind(number: u8, rest: &[u8], seen: u32) -> (Target, bool) {
    if number == 6 || number == 17 {
        return transport(number, rest);
    }
    if !is_extension(number) {
        return (Target::Other, false);
    }
    let Some(header) = at::<4>(rest, 0).filter(|_| seen < 6) else {
        return (Target::Unreadable, false);
    };
    let units = usize::from(header[1]);
    let bytes = match number {
        44 => 8,
        51 => units * 4 + 8,
        _ => units * 8 + 8,
    };
    if number == 44 && u16::from_be_bytes([header[2], header[3]]) >= 8 {
        let may_have_port = header[0] == 6 || header[0] == 17 || is_extension(header[0]);
        return (if may_have_port { Target::Fragment } else { Target::Other }, false);
    }
    behind(header[0], rest.get(bytes..).unwrap_or_default(), seen + 1)
}

fn transport(protocol: u8, segment: &[u8]) -> (Target, bool) {
    let Some([_, _, high, low]) = at::<4>(segment, 0) else { return (Target::Unreadable, false) };
    let port = u16::from_be_bytes([high, low]);
    if protocol == 6 {
        // Cut before its flags: taken for one that asks.
        let asks = at::<14>(segment, 0).is_none_or(|header| header[13] & 0x12 == 0x02);
        return (Target::Tcp(port), asks);
    }
    let Some(header) = at::<14>(segment, 0) else {
        let claims_more = at::<6>(segment, 0)
            .is_none_or(|header| u16::from_be_bytes([header[4], header[5]]) >= 14);
        return (Target::Udp(port), claims_more);
    };
    let is_long = header[8] & 0x80 == 0x80;
    let kind = header[8] & 0x30;
    let asks = match [header[9], header[10], header[11], header[12]] {
        [0, 0, 0, 0] => false,
        [0, 0, 0, 1] => kind == 0x00,
        [0x6b, 0x33, 0x43, 0xcf] => kind == 0x10,
        _ => true,
    };
    (Target::Udp(port), is_long && asks)
}
