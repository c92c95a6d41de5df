//! The head of an answer as a frame (RFC 9114 section 7.2.2, RFC 9204 section 4.5), where the HTTP/3
//! library makes one for anybody: by way of a copy of each name and value, and of Huffman's code bit by
//! bit, which together cost more than all the rest of an answer.
//!
//! Only lines of the static table are referred to, and values go as they are: the code would spare a
//! client a few dozen octets.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Octets of a field section as clients count it, with 32 for each field (RFC 9114 section 4.2.2). Of
/// more the library makes the frame, which knows how much the client takes; no client takes less.
const SECTION_MAX_BYTES: usize = 4 * 1024;

/// Types of frames (RFC 9114 section 7.2).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;

/// The line of the static table whose name is ":status", with another value (RFC 9204 appendix A).
const STATUS: u8 = 24;

/// Names that answers have, with the first line of the static table that bears them, and a value that
/// stands in the line with it, where answers often have it.
const LINES: [(&str, u8, Option<&str>); 21] = [
    ("age", 2, None),
    ("content-disposition", 3, None),
    ("content-length", 4, Some("0")),
    ("date", 6, None),
    ("etag", 7, None),
    ("last-modified", 10, None),
    ("link", 11, None),
    ("location", 12, None),
    ("set-cookie", 14, None),
    ("accept-ranges", 32, Some("bytes")),
    ("access-control-allow-origin", 35, Some("*")),
    ("cache-control", 36, Some("max-age=0")),
    ("content-encoding", 42, Some("br")),
    ("content-type", 44, None),
    ("strict-transport-security", 56, Some("max-age=31536000")),
    ("vary", 59, Some("accept-encoding")),
    ("x-content-type-options", 61, Some("nosniff")),
    ("alt-svc", 83, None),
    ("content-security-policy", 85, None),
    ("server", 92, None),
    ("x-frame-options", 97, Some("deny")),
];

/// Room for a frame's type and length in front of what has been written, in two octets more than most
/// need: an integer of two octets says up to 16,383.
const FRAME_HEAD_BYTES: usize = 3;

/// The frame of an answer's head. `None`: it is so large that the client has to be asked whether it takes
/// it.
pub(super) fn head(status: StatusCode, fields: &HeaderMap) -> Option<Vec<u8>> {
    let counted = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let section_bytes: usize = counted.sum();
    if section_bytes > SECTION_MAX_BYTES {
        return None;
    }
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + section_bytes);
    // No line of a dynamic table is referred to: both integers of the prefix are 0 (section 4.5.1).
    frame.extend([HEADERS, 0, 0, 0, 0]);
    write_status(status, &mut frame);
    for (name, value) in fields {
        write_field(name, value, &mut frame);
    }
    // Below the bound above, so it fits an integer of two octets (RFC 9000 section 16).
    let length = (frame.len() - FRAME_HEAD_BYTES) as u16 | 0x4000;
    frame[1..FRAME_HEAD_BYTES].copy_from_slice(&length.to_be_bytes());
    Some(frame)
}

/// What goes before the octets of a body.
pub(super) fn data_head(length: usize, into: &mut Vec<u8>) {
    into.push(DATA);
    let length = length as u64;
    // RFC 9000 section 16.
    match length {
        0..0x40 => into.push(length as u8),
        0x40..0x4000 => into.extend((length as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => into.extend((length as u32 | 0x8000_0000).to_be_bytes()),
        _ => into.extend((length | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// A line of the static table where there is one, else its name with the value.
fn write_status(status: StatusCode, into: &mut Vec<u8>) {
    let line = match status.as_u16() {
        200 => 25,
        304 => 26,
        404 => 27,
        503 => 28,
        204 => 64,
        206 => 65,
        302 => 66,
        400 => 67,
        403 => 68,
        421 => 69,
        500 => 71,
        _ => {
            prefixed(0x50, 4, usize::from(STATUS), into);
            return write_text(status.as_str().as_bytes(), into);
        }
    };
    prefixed(0xc0, 6, line, into);
}

fn write_field(name: &HeaderName, value: &HeaderValue, into: &mut Vec<u8>) {
    let name = name.as_str();
    match LINES.iter().find(|(known, ..)| *known == name) {
        Some((_, line, Some(known))) if value == known => {
            prefixed(0xc0, 6, usize::from(*line), into);
        }
        Some((_, line, _)) => {
            prefixed(0x50, 4, usize::from(*line), into);
            write_text(value.as_bytes(), into);
        }
        None => {
            prefixed(0x20, 3, name.len(), into);
            into.extend_from_slice(name.as_bytes());
            write_text(value.as_bytes(), into);
        }
    }
}

/// Length and octets, without Huffman's code.
fn write_text(text: &[u8], into: &mut Vec<u8>) {
    prefixed(0, 7, text.len(), into);
    into.extend_from_slice(text);
}

/// An integer in the last bits of an octet and those behind it (RFC 7541 section 5.1).
fn prefixed(first: u8, bits: u32, value: usize, into: &mut Vec<u8>) {
    let all = (1_usize << bits) - 1;
    if value < all {
        // Below 2^7.
        into.push(first | value as u8);
        return;
    }
    into.push(first | all as u8);
    let mut left = value - all;
    while left >= 0x80 {
        into.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::h3::frames::integer;

    /// RFC 7541 section 5.1.
    fn read_prefixed(bits: u32, from: &mut &[u8]) -> usize {
        let all = (1_usize << bits) - 1;
        let mut value = usize::from(*from.split_off_first().unwrap()) & all;
        if value == all {
            for shift in (0..).step_by(7) {
                let octet = *from.split_off_first().unwrap();
                value += usize::from(octet & 0x7f) << shift;
                if octet & 0x80 == 0 {
                    break;
                }
            }
        }
        value
    }

    fn read_text(bits: u32, from: &mut &[u8]) -> String {
        let length = read_prefixed(bits, from);
        String::from_utf8(from.split_off(..length).unwrap().to_vec()).unwrap()
    }

    /// Names and values of a frame, by the lines that stand above.
    fn read(frame: &[u8]) -> Vec<(String, String)> {
        let (kind, rest) = integer(frame).unwrap();
        let (length, rest) = integer(rest).unwrap();
        assert_eq!((kind, length as usize), (u64::from(HEADERS), rest.len()));
        assert_eq!(rest[..2], [0, 0]);
        let mut rest = &rest[2..];
        let mut fields = Vec::new();
        while let Some(first) = rest.first() {
            let found = match first {
                0xc0.. => {
                    let line = read_prefixed(6, &mut rest);
                    let mut known =
                        LINES.iter().filter(|(_, known, _)| usize::from(*known) == line);
                    let status = [(25, "200"), (27, "404"), (64, "204"), (69, "421")];
                    match status.iter().find(|(known, _)| *known == line) {
                        Some((_, status)) => (":status".to_owned(), (*status).to_owned()),
                        None => {
                            let (name, _, value) = known.next().unwrap();
                            ((*name).to_owned(), value.unwrap().to_owned())
                        }
                    }
                }
                0x50..0x60 => {
                    let line = read_prefixed(4, &mut rest);
                    let known = LINES.iter().find(|(_, known, _)| usize::from(*known) == line);
                    let name = known.map_or(":status", |(name, ..)| name).to_owned();
                    (name, read_text(7, &mut rest))
                }
                0x20..0x28 => (read_text(3, &mut rest), read_text(7, &mut rest)),
                other => panic!("{other:#x}"),
            };
            fields.push(found);
        }
        fields
    }

    #[test]
    fn a_head_is_made_of_the_lines_of_the_standard() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("content-length", "0"),
            ("strict-transport-security", "max-age=31536000"),
            ("x-frame-options", "sameorigin"),
            ("x-a", "b"),
        ] {
            let name = HeaderName::from_static(name);
            fields.append(name, HeaderValue::from_static(value));
        }
        let expected = [
            &b"\x01\x40\x18\0\0\xd9\xc4\xf8"[..],
            // 97 is 15 and 82 more (RFC 9204 section 4.5.4).
            b"\x5f\x52\x0asameorigin",
            b"\x23x-a\x01b",
        ]
        .concat();
        assert_eq!(head(StatusCode::OK, &fields), Some(expected));
        let teapot = head(StatusCode::IM_A_TEAPOT, &HeaderMap::new()).unwrap();
        assert_eq!(teapot, b"\x01\x40\x08\0\0\x5f\x09\x03418");
    }

    #[test]
    fn what_is_large_is_left_to_the_library() {
        for (bytes, expected) in [(4_000, true), (4_096, false)] {
            let mut fields = HeaderMap::new();
            let value = HeaderValue::try_from("v".repeat(bytes)).unwrap();
            fields.insert(HeaderName::from_static("x"), value);
            assert_eq!(head(StatusCode::OK, &fields).is_some(), expected);
        }
    }

    #[test]
    fn the_length_of_data_is_an_integer_of_quic() {
        for length in [0, 1, 0x3f, 0x40, 0x3fff, 0x4000, 0x3fff_ffff, 0x4000_0000, 1 << 40] {
            let mut head = Vec::new();
            data_head(length, &mut head);
            let (kind, rest) = integer(&head).unwrap();
            assert_eq!((kind, integer(rest)), (0, Some((length as u64, &[][..]))));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            status in 0usize..5,
            fields in proptest::collection::vec((0usize..24, "[ -~]{0,150}"), 0..12),
        ) {
            let status = [200, 204, 404, 421, 599][status];
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                let long = "x-".repeat(100);
                let more = ["x-other", "trace-id", &long];
                let name = LINES.get(name).map_or_else(|| more[name - LINES.len()], |line| line.0);
                let name = HeaderName::try_from(name).unwrap();
                map.append(name, HeaderValue::try_from(value).unwrap());
            }
            let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
            let own = map.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
            let mut expected = vec![(":status".to_owned(), status.to_string())];
            expected.extend(own);
            let frame = head(StatusCode::from_u16(status).unwrap(), &map);
            match frame {
                Some(frame) => prop_assert_eq!(read(&frame), expected),
                None => {
                    let counted = expected[1..].iter().map(|(name, value)| name.len() + value.len() + 32);
                    prop_assert!(counted.sum::<usize>() > SECTION_MAX_BYTES);
                }
            }
        }
    }
}
