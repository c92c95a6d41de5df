//! Whether the head of an HTTP/1 request says twice where its body ends.
//!
//! The parser behind this one goes by Transfer-Encoding then, forgets the length and ends the
//! connection, which RFC 9112 section 6.1 allows. Who wrote both meant two readers to differ, so here it
//! is seen before it is forgotten, and refused.

/// The names that are looked for.
const NAMES: [&[u8]; 2] = [b"content-length:", b"transfer-encoding:"];

/// Looked over at once for the end of a line: a register of the processors that all distributions take
/// for granted.
const LOOK_BYTES: usize = 16;

/// The lines of one head as they pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Octets of this line so far, as far as they matter.
    column: usize,
    /// Which of the names this line may still begin with.
    may_be: [bool; 2],
    seen: [bool; 2],
    has_begun: bool,
    is_over: bool,
}

impl Head {
    /// Looks at what came. What follows the head is not looked at.
    pub fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let [byte, after @ ..] = rest
            && !self.is_over
        {
            // Nearly all of a head: the rest of a line that begins with neither name.
            let skipped = if self.column > 0 && self.may_be == [false, false] {
                line_length(rest)
            } else {
                0
            };
            if skipped > 0 {
                self.column = self.column.saturating_add(skipped);
                rest = &rest[skipped..];
            } else {
                self.octet(*byte);
                rest = after;
            }
        }
    }

    /// Whether both names were there.
    pub fn is_framed_twice(&self) -> bool {
        self.seen == [true, true]
    }

    fn octet(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                // Empty lines before a request are no head (RFC 9112 section 2.2).
                self.is_over = self.column == 0 && self.has_begun;
                self.has_begun |= self.column > 0;
                self.column = 0;
            }
            b'\r' => {}
            _ => {
                if self.column == 0 {
                    self.may_be = [true, true];
                }
                for (name, (may_be, seen)) in
                    NAMES.iter().zip(self.may_be.iter_mut().zip(&mut self.seen))
                {
                    *may_be &= name.get(self.column) == Some(&byte.to_ascii_lowercase());
                    *seen |= *may_be && self.column + 1 == name.len();
                }
                self.column = self.column.saturating_add(1);
            }
        }
    }
}

/// Octets before the end of the line, or all. Many at a time, without a branch for each: compilers make
/// a few wide instructions of it.
fn line_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    for part in bytes.chunks_exact(LOOK_BYTES) {
        if part.iter().fold(false, |found, byte| found | (*byte == b'\n')) {
            break;
        }
        length += LOOK_BYTES;
    }
    let rest = &bytes[length..];
    length + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_framings_are_seen_however_they_are_cut() {
        for (head, expected) in [
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nA: b\r\ncontent-LENGTH:1\r\n\r\n",
                true,
            ),
            ("\r\n\r\nPOST / HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: x\n\n", true),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nContent-Length: 1\r\n", false),
            (
                "POST / HTTP/1.1\r\nX: Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            ("POST / HTTP/1.1\r\nX-Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            (
                "POST /a-path-that-is-longer HTTP/1.1\r\nAuthorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n\
                 Content-Length: 1\r\nX-Something: of-a-certain-length\r\nTransfer-Encoding: chunked\r\n\r\n",
                true,
            ),
            ("Content-Length: / HTTP/1.1\r\nTransfer-Encodin: chunked\r\n\r\n", false),
        ] {
            for size in [1, 2, 3, 7, 40, head.len()] {
                let mut seen = Head::default();
                head.as_bytes().chunks(size).for_each(|part| seen.read(part));
                assert_eq!(seen.is_framed_twice(), expected, "{head:?} by {size}");
                assert!(seen.is_over, "{head:?}");
            }
        }
    }
}
