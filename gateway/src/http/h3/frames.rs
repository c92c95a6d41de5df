//! Which octets of a client's stream are handed to the HTTP/3 library: frames of bounded length, whole.
//!
//! The library keeps every frame but DATA in memory until it is complete, takes an empty DATA frame
//! for the end of the body and a torn one for a whole. So the beginnings of frames are read here
//! (RFC 9114 section 7.1): unknown frames and empty DATA frames are left out (section 9), too long
//! and torn ones are faults.

use bytes::Bytes;

/// Octets of a HEADERS frame. Compression makes a field section shorter than what it is counted as,
/// except by a client that encodes badly on purpose; so this is beyond every section that is accepted.
const HEADERS_MAX_BYTES: u64 = 64 * 1024;

/// Octets of any other frame that has to be whole: SETTINGS, GOAWAY and their like are a few integers.
const OTHERS_MAX_BYTES: u64 = 4 * 1024;

/// Two integers of at most eight octets: type and length.
const HEAD_MAX_BYTES: usize = 16;

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;

/// Types that mean something: those of RFC 9114 section 7.2, and those of HTTP/2 that must not occur
/// (section 7.2.8), which the library refuses.
const KNOWN: [u64; 10] = [0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9];
const MAX_PUSH_ID: u64 = 0xd;

/// What is wrong with a stream's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A frame that is longer than any of its type has to be.
    TooLong,
    /// The stream ended within a frame.
    Torn,
}

/// Reads one stream.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_MAX_BYTES],
    head_bytes: usize,
    /// Octets of the present frame's payload that are still to come.
    left_bytes: u64,
    /// They are left out.
    skips: bool,
    /// They are the fields of a head, or of trailers.
    are_fields: bool,
}

impl Frames {
    /// Takes from the front of `chunk` what is to be handed on next, and says whether it belongs to a
    /// field section. `None`: `chunk` is used up.
    ///
    /// # Errors
    /// [`Fault::TooLong`].
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<(Bytes, bool)>, Fault> {
        while !chunk.is_empty() {
            if self.left_bytes > 0 {
                let here = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(chunk.len());
                let piece = chunk.split_to(here);
                self.left_bytes -= here as u64;
                if self.skips {
                    continue;
                }
                return Ok(Some((piece, self.are_fields)));
            }
            let octet = chunk.split_to(1);
            self.head[self.head_bytes] = octet[0];
            self.head_bytes += 1;
            let Some((kind, length)) = head(&self.head[..self.head_bytes]) else { continue };
            let head = Bytes::copy_from_slice(&self.head[..self.head_bytes]);
            self.head_bytes = 0;
            self.left_bytes = length;
            self.are_fields = kind == HEADERS;
            self.skips =
                !(KNOWN.contains(&kind) || kind == MAX_PUSH_ID) || (kind == DATA && length == 0);
            let max = match kind {
                DATA => u64::MAX,
                HEADERS => HEADERS_MAX_BYTES,
                _ if self.skips => u64::MAX,
                _ => OTHERS_MAX_BYTES,
            };
            if length > max {
                return Err(Fault::TooLong);
            }
            if !self.skips {
                return Ok(Some((head, false)));
            }
        }
        Ok(None)
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`Fault::Torn`].
    pub(super) fn end(&self) -> Result<(), Fault> {
        if self.left_bytes == 0 && self.head_bytes == 0 { Ok(()) } else { Err(Fault::Torn) }
    }
}

/// Type and length, once both are there.
fn head(octets: &[u8]) -> Option<(u64, u64)> {
    let (kind, rest) = integer(octets)?;
    let (length, _) = integer(rest)?;
    Some((kind, length))
}

/// A variable-length integer (RFC 9000 section 16), and what follows it.
pub(super) fn integer(octets: &[u8]) -> Option<(u64, &[u8])> {
    let first = *octets.first()?;
    let (own, rest) = octets.split_at_checked(1 << (first >> 6))?;
    let value = own[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |value, octet| (value << 8) | u64::from(*octet));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        assert!(kind < 0x40 && payload.len() < 0x40);
        [&[kind, payload.len() as u8], payload].concat()
    }

    /// What is handed on of a stream that arrives in chunks of that size.
    fn passed(stream: &[u8], chunk_bytes: usize) -> Result<Vec<u8>, Fault> {
        let mut frames = Frames::default();
        let mut passed = Vec::new();
        for chunk in stream.chunks(chunk_bytes) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some((piece, _)) = frames.next(&mut chunk)? {
                passed.extend_from_slice(&piece);
            }
        }
        frames.end().map(|()| passed)
    }

    #[test]
    fn integers_of_every_length() {
        // RFC 9000 appendix A.1.
        for (octets, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(integer(octets), Some((value, &[][..])), "{octets:?}");
            assert_eq!(integer(&octets[..octets.len() - 1]), None, "{octets:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let (headers, data) = (frame(1, b"fields"), frame(0, b"body"));
        let (empty, grease) = (frame(0, b""), frame(0x21, b"grease"));
        for (stream, expected) in [
            (vec![&headers, &data], Ok(vec![&headers, &data])),
            (vec![&grease, &headers, &grease, &empty, &data], Ok(vec![&headers, &data])),
            (vec![&empty], Ok(vec![])),
            (vec![], Ok(vec![])),
        ] {
            let stream: Vec<u8> = stream.into_iter().flatten().copied().collect();
            let expected =
                expected.map(|all: Vec<&Vec<u8>>| all.into_iter().flatten().copied().collect());
            for chunk_bytes in [1, 3, 1000] {
                assert_eq!(passed(&stream, chunk_bytes), expected, "{stream:?}");
            }
        }
    }

    #[test]
    fn long_and_torn_frames_are_faults() {
        let length = |bytes: u32| (bytes | 0x8000_0000).to_be_bytes().to_vec();
        for (stream, expected) in [
            ([vec![1], length(64 * 1024 + 1)].concat(), Err(Fault::TooLong)),
            ([vec![1], length(64 * 1024)].concat(), Err(Fault::Torn)),
            ([vec![4], length(4 * 1024 + 1)].concat(), Err(Fault::TooLong)),
            ([vec![0], length(1 << 29)].concat(), Err(Fault::Torn)),
            ([vec![0x21], length(1 << 29)].concat(), Err(Fault::Torn)),
            (vec![1], Err(Fault::Torn)),
            (vec![0x40], Err(Fault::Torn)),
            (frame(0, b"body")[..5].to_vec(), Err(Fault::Torn)),
        ] {
            assert_eq!(passed(&stream, 7), expected, "{stream:?}");
        }
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(stream in proptest::collection::vec(0..0x50_u8, 0..200), size in 1..50_usize) {
            prop_assert_eq!(passed(&stream, size), passed(&stream, 1000));
        }
    }
}
