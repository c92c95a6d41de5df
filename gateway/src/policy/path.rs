//! A request's path → the one form that is matched with routes and sent to the upstream.
//!
//! A path that two programs read differently is how a request reaches what its rule was meant to guard.
//! So what is forwarded is written anew from what was judged (RFC 3986 section 6.2.2: `%6F` for `o` is
//! `o`, `%c3` is `%C3`, a raw octet beyond ASCII is encoded), and what has no single reading is refused:
//!
//! - empty segments (`//`) and dot segments, also encoded (`%2e`) or with parameters (`..;x`)
//! - slashes that are encoded (`%2F`), and `\`, which some take for one
//! - control characters, NUL among them, and broken percent-encoding
//! - what after one decoding still holds an encoded dot, slash, backslash, percent or control
//!   character (`%252e`): whoever decodes twice would see another path

use std::borrow::Cow;

/// A path with one reading.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a> {
    decoded: Cow<'a, [u8]>,
    written: Cow<'a, str>,
}

impl<'a> Path<'a> {
    /// Reads the path of a request's target.
    ///
    /// # Errors
    /// Why it has no single reading.
    pub fn read(path: &'a str) -> Result<Path<'a>, &'static str> {
        // `OPTIONS *` (RFC 9112 section 3.2.4).
        if path == "*" {
            return Ok(Path { decoded: Cow::Borrowed(b"*"), written: Cow::Borrowed(path) });
        }
        if is_simple(path.as_bytes()) {
            return Ok(Path {
                decoded: Cow::Borrowed(path.as_bytes()),
                written: Cow::Borrowed(path),
            });
        }
        let decoded = decode(path.as_bytes())?;
        check_segments(&decoded)?;
        let written = if is_written_so(path.as_bytes()) {
            Cow::Borrowed(path)
        } else {
            Cow::Owned(encode(&decoded))
        };
        Ok(Path { decoded, written })
    }

    /// With its percent-encoding undone; what routes are compared with.
    pub fn decoded(&self) -> &[u8] {
        &self.decoded
    }

    /// As it goes to the upstream; `None`: as it came.
    pub fn rewritten(&self) -> Option<&str> {
        match &self.written {
            Cow::Borrowed(_) => None,
            Cow::Owned(written) => Some(written),
        }
    }

    /// Without the parameters of its segments (`;x=1`), which some servers take off before they look
    /// what is meant; `None` when there are none.
    pub fn without_parameters(&self) -> Option<Vec<u8>> {
        if !self.decoded.contains(&b';') {
            return None;
        }
        let segments = self.decoded.split(|byte| *byte == b'/');
        let names = segments.map(name_of).collect::<Vec<_>>();
        Some(names.join(&b'/'))
    }
}

fn name_of(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or(segment)
}

/// The characters of a path that are never encoded here: RFC 3986 section 3.3 `pchar` without `%`, and
/// the slash.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let signs = b"/-._~!$&'()*+,;=:@";
    let mut index = 0;
    while index < signs.len() {
        plain[signs[index] as usize] = true;
        index += 1;
    }
    plain
};

fn is_plain(byte: u8) -> bool {
    PLAIN[usize::from(byte)]
}

/// Whether nothing is to be looked at twice: plain characters only, no parameters, and no segment but the
/// last is empty or begins with a dot. Nearly all paths are so.
fn is_simple(path: &[u8]) -> bool {
    let mut before = 0;
    path.first() == Some(&b'/')
        && path.iter().all(|byte| {
            let begins_badly = before == b'/' && matches!(byte, b'/' | b'.');
            before = *byte;
            is_plain(*byte) && *byte != b';' && !begins_badly
        })
}

/// Whether [`encode`] would write the same again.
fn is_written_so(path: &[u8]) -> bool {
    path.iter().all(|byte| is_plain(*byte))
}

fn encode(decoded: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut written = String::with_capacity(decoded.len() + 16);
    for byte in decoded {
        if is_plain(*byte) {
            written.push(char::from(*byte));
        } else {
            written.push('%');
            written.push(char::from(DIGITS[usize::from(byte >> 4)]));
            written.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    written
}

/// The octet that `%` and these two digits stand for.
fn escaped(rest: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (high, low) = (digit(*rest.first()?)?, digit(*rest.get(1)?)?);
    u8::try_from(high * 16 + low).ok()
}

fn decode(path: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    if path.iter().any(u8::is_ascii_control) {
        return Err("a control character in the path");
    }
    if !path.contains(&b'%') {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            decoded.push(*byte);
            rest = after;
            continue;
        }
        let octet = escaped(after).ok_or("broken percent-encoding in the path")?;
        match octet {
            b'/' => return Err("an encoded slash in the path"),
            octet if octet.is_ascii_control() => return Err("a control character in the path"),
            octet => decoded.push(octet),
        }
        rest = &after[2..];
    }
    let twice = |from: usize| {
        decoded[from] == b'%'
            && escaped(&decoded[from + 1..])
                .is_some_and(|octet| b"./\\%".contains(&octet) || octet.is_ascii_control())
    };
    if (0..decoded.len()).any(twice) {
        return Err("the path is percent-encoded twice");
    }
    Ok(Cow::Owned(decoded))
}

fn check_segments(decoded: &[u8]) -> Result<(), &'static str> {
    let Some(inner) = decoded.strip_prefix(b"/") else {
        return Err("the path does not start with a slash");
    };
    if inner.contains(&b'\\') {
        return Err("a backslash in the path");
    }
    let mut segments = inner.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let name = name_of(segment);
        if matches!(name, b"." | b"..") {
            return Err("dot segment in the path");
        }
        // Only the last may be empty: `/orders/`. One of parameters alone (`/;x/`) is as good as empty.
        if name.is_empty() && (segments.peek().is_some() || !segment.is_empty()) {
            return Err("empty segment in the path");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_has_one_reading_or_none() {
        for (path, read) in [
            ("/", Some(("/", "/"))),
            ("*", Some(("*", "*"))),
            ("/orders", Some(("/orders", "/orders"))),
            ("/orders/", Some(("/orders/", "/orders/"))),
            ("/%6frders/7", Some(("/orders/7", "/orders/7"))),
            ("/%7Euser", Some(("/~user", "/~user"))),
            ("/a%20b", Some(("/a b", "/a%20b"))),
            ("/a%c3%a9", Some(("/a\u{e9}", "/a%C3%A9"))),
            ("/a\u{e9}", Some(("/a\u{e9}", "/a%C3%A9"))),
            ("/100%25", Some(("/100%", "/100%25"))),
            ("/100%25zz", Some(("/100%zz", "/100%25zz"))),
            ("/a%3Fb%23c", Some(("/a?b#c", "/a%3Fb%23c"))),
            ("/a%3bx", Some(("/a;x", "/a;x"))),
            ("/a;v=1/b", Some(("/a;v=1/b", "/a;v=1/b"))),
            ("/{id}", Some(("/{id}", "/%7Bid%7D"))),
            ("/...", Some(("/...", "/..."))),
            ("", None),
            ("a", None),
            ("/..", None),
            ("/a/../b", None),
            ("/a/%2e%2e/b", None),
            ("/a/.%2E/b", None),
            ("/a/..;x/b", None),
            ("/a/..%3bx/b", None),
            ("/./a", None),
            ("//admin", None),
            ("/a//b", None),
            ("/;x/b", None),
            ("/a/;x", None),
            ("/a%2Fb", None),
            ("/a%2f..%2fb", None),
            ("/a\\..\\b", None),
            ("/a%5c%2e%2e", None),
            ("/a%00b", None),
            ("/a%0d%0aX:%20y", None),
            ("/a\u{7f}b", None),
            ("/a%", None),
            ("/a%4", None),
            ("/a%zz", None),
            ("/%252e%252e/b", None),
            ("/a%252fb", None),
            ("/a%255cb", None),
            ("/a%2500", None),
            ("/a%25252e", None),
        ] {
            let path = Path::read(path);
            let seen = path.as_ref().ok().map(|path| (path.decoded(), &*path.written));
            let read = read.map(|(decoded, written)| (decoded.as_bytes(), written));
            assert_eq!(seen, read, "{path:?}");
        }
    }

    #[test]
    fn parameters_are_taken_off_each_segment() {
        for (path, expected) in [
            ("/a/b", None),
            ("/a;x=1/b", Some("/a/b")),
            ("/a;x/b;y;z", Some("/a/b")),
            ("/a%3bx", Some("/a")),
        ] {
            let bare = Path::read(path).unwrap().without_parameters();
            assert_eq!(bare.as_deref(), expected.map(str::as_bytes), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// What is taken at a glance is what a longer look takes too.
        #[test]
        fn a_simple_path_reads_as_it_is_written(path in "/{0,2}[a.;%~/]{0,6}") {
            if is_simple(path.as_bytes()) {
                let decoded = decode(path.as_bytes()).expect("nothing is encoded");
                prop_assert_eq!(&*decoded, path.as_bytes());
                prop_assert_eq!(check_segments(&decoded), Ok(()));
                prop_assert!(is_written_so(path.as_bytes()));
            }
        }

        /// What is forwarded is what was judged, for whoever reads it once or again; and it is stable.
        #[test]
        fn what_is_forwarded_is_what_was_judged(path in "/[a./%2eEfF5cC0\\\\; \u{e9}]{0,40}") {
            let Ok(read) = Path::read(&path) else { return Ok(()) };
            let again = Path::read(&read.written).expect("what was written has one reading");
            prop_assert_eq!(again.decoded(), read.decoded());
            prop_assert_eq!(&again.written, &read.written);
            prop_assert!(read.written.bytes().all(|byte| byte == b'%' || is_plain(byte)));
            // A second decoding, lenient as careless programs are, finds no way up and no slash.
            let mut twice = Vec::new();
            let mut rest = read.decoded();
            while let Some((byte, after)) = rest.split_first() {
                match escaped(after) {
                    Some(octet) if *byte == b'%' => {
                        twice.push(octet);
                        rest = &after[2..];
                    }
                    _ => {
                        twice.push(*byte);
                        rest = after;
                    }
                }
            }
            let slashes = |bytes: &[u8]| bytes.iter().filter(|byte| b"/\\".contains(byte)).count();
            prop_assert_eq!(slashes(&twice), slashes(read.decoded()));
            for segment in twice.split(|byte| *byte == b'/') {
                prop_assert!(!matches!(name_of(segment), b"." | b".."));
            }
        }
    }
}
