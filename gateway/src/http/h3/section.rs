//! The names in the field section of a request, as far as the HTTP/3 library does not look: it lets the
//! last of two pseudo-fields win, and takes them in any place. RFC 9114 section 4.3: each stands once,
//! before every other field; a request that is otherwise is malformed.
//!
//! Only names are read, and only static ones (RFC 9204 section 4.5), since no dynamic table was
//! offered; what else there is the library refuses.

/// The pseudo-fields, with what Huffman's code makes of them (RFC 7541 appendix B), which
/// is one and the same for everybody.
const PSEUDO: [(&[u8], &[u8]); 6] = [
    (b":authority", b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f"),
    (b":method", b"\xb9\x49\x53\x39\xe4"),
    (b":path", b"\xb9\x58\xd3\x3f"),
    (b":protocol", b"\xb9\x5d\x87\x49\xc8\x7a\x3f"),
    (b":scheme", b"\xb8\x82\x4e\x5a\x4b"),
    (b":status", b"\xb8\x84\x8d\x36\xa3"),
];
const AUTHORITY: usize = 0;
const METHOD: usize = 1;
const PATH: usize = 2;
const SCHEME: usize = 4;
/// Of answers only.
const STATUS: usize = 5;

/// The longest of those names; of a longer one only the beginning is kept.
const NAME_MAX_BYTES: usize = 10;

/// An integer's further octets: enough for any length that a frame can have.
const INTEGER_MAX_BITS: u32 = 28;

/// What is wrong with the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misuse {
    /// A pseudo-field that was there before.
    Repeated,
    /// A pseudo-field behind another field.
    Late,
    /// A pseudo-field of answers.
    Foreign,
}

impl Misuse {
    /// For the operator's log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Misuse::Repeated => "a pseudo-field twice",
            Misuse::Late => "a pseudo-field behind a field",
            Misuse::Foreign => "a pseudo-field of answers",
        }
    }
}

/// Reads one field section as it comes.
#[derive(Debug)]
pub(super) struct Section {
    step: Step,
    seen: [bool; PSEUDO.len()],
    has_fields: bool,
    misuse: Option<Misuse>,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The prefix of the section: so many integers, of 8 and 7 bits.
    Prefix(u8),
    Line,
    /// The further octets of an integer, and what it is.
    More(u64, u32, Meaning),
    Name {
        name: [u8; NAME_MAX_BYTES],
        length: u64,
        have: u64,
        is_coded: bool,
    },
    ValueLength,
    Value(u64),
}

/// What an integer says.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// Of the section's prefix; so many more follow.
    Prefix(u8),
    /// Of a dynamic table, which there is not; a value follows, or none.
    Dynamic {
        has_value: bool,
    },
    /// A line of the static table.
    Static {
        has_value: bool,
    },
    NameLength {
        is_coded: bool,
    },
    ValueLength,
}

impl Default for Section {
    fn default() -> Section {
        Section {
            step: Step::Prefix(2),
            seen: [false; PSEUDO.len()],
            has_fields: false,
            misuse: None,
        }
    }
}

impl Section {
    /// What is wrong so far.
    pub(super) fn misuse(&self) -> Option<Misuse> {
        self.misuse
    }

    /// Whether anything of it has come.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.step, Step::Prefix(2))
    }

    /// Looks at what came.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some((octet, rest)) = bytes.split_first() {
            // Values are most of it.
            if let Step::Value(left) = self.step {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[here..];
                self.value(left - here as u64);
            } else {
                bytes = rest;
                self.octet(*octet);
            }
        }
    }

    fn octet(&mut self, octet: u8) {
        match self.step {
            Step::Prefix(left) => {
                let bits = if left == 2 { 8 } else { 7 };
                self.integer(octet, bits, Meaning::Prefix(left - 1));
            }
            Step::Line => self.line(octet),
            Step::More(value, shift, meaning) => {
                // A longer one is beyond every frame, and the library refuses it.
                let value = match shift {
                    0..INTEGER_MAX_BITS => value.saturating_add(u64::from(octet & 0x7f) << shift),
                    _ => value,
                };
                if octet & 0x80 == 0 {
                    self.know(value, meaning);
                } else {
                    self.step = Step::More(value, shift.saturating_add(7), meaning);
                }
            }
            Step::Name { mut name, length, have, is_coded } => {
                if let Some(place) = usize::try_from(have).ok().and_then(|have| name.get_mut(have))
                {
                    *place = octet;
                }
                self.step = Step::Name { name, length, have: have + 1, is_coded };
                self.end_name();
            }
            Step::ValueLength => self.integer(octet, 7, Meaning::ValueLength),
            // Read by its caller.
            Step::Value(_) => {}
        }
    }

    /// The first octet of a line (RFC 9204 section 4.5).
    fn line(&mut self, octet: u8) {
        match octet {
            0xc0.. => self.integer(octet, 6, Meaning::Static { has_value: false }),
            0x80..0xc0 => self.integer(octet, 6, Meaning::Dynamic { has_value: false }),
            0x40..0x80 if octet & 0x10 != 0 => {
                self.integer(octet, 4, Meaning::Static { has_value: true });
            }
            0x40..0x80 => self.integer(octet, 4, Meaning::Dynamic { has_value: true }),
            0x20..0x40 => {
                self.integer(octet, 3, Meaning::NameLength { is_coded: octet & 0x08 != 0 });
            }
            0x10..0x20 => self.integer(octet, 4, Meaning::Dynamic { has_value: false }),
            0..0x10 => self.integer(octet, 3, Meaning::Dynamic { has_value: true }),
        }
    }

    /// An integer begins in the last bits of this octet (RFC 7541 section 5.1).
    fn integer(&mut self, octet: u8, bits: u32, meaning: Meaning) {
        let all = 0xff_u8 >> (8 - bits);
        match octet & all {
            value if value == all => self.step = Step::More(u64::from(value), 0, meaning),
            value => self.know(u64::from(value), meaning),
        }
    }

    fn know(&mut self, value: u64, meaning: Meaning) {
        let after = |has_value| if has_value { Step::ValueLength } else { Step::Line };
        self.step = match meaning {
            Meaning::Prefix(0) => Step::Line,
            Meaning::Prefix(left) => Step::Prefix(left),
            Meaning::Dynamic { has_value } => after(has_value),
            Meaning::Static { has_value } => {
                self.note(static_pseudo(value));
                after(has_value)
            }
            Meaning::NameLength { is_coded } => {
                let name = [0; NAME_MAX_BYTES];
                Step::Name { name, length: value, have: 0, is_coded }
            }
            Meaning::ValueLength => return self.value(value),
        };
        self.end_name();
    }

    fn end_name(&mut self) {
        let Step::Name { name, length, have, is_coded } = self.step else { return };
        if have < length {
            return;
        }
        let name = usize::try_from(length).ok().and_then(|length| name.get(..length));
        let is_it =
            |(plain, coded): &(&[u8], &[u8])| name == Some(if is_coded { *coded } else { *plain });
        self.note(PSEUDO.iter().position(is_it));
        self.step = Step::ValueLength;
    }

    fn value(&mut self, left: u64) {
        self.step = if left == 0 { Step::Line } else { Step::Value(left) };
    }

    fn note(&mut self, pseudo: Option<usize>) {
        let Some(index) = pseudo else {
            self.has_fields = true;
            return;
        };
        if index == STATUS {
            self.misuse.get_or_insert(Misuse::Foreign);
        } else if std::mem::replace(&mut self.seen[index], true) {
            self.misuse.get_or_insert(Misuse::Repeated);
        } else if self.has_fields {
            self.misuse.get_or_insert(Misuse::Late);
        }
    }
}

/// Which of the pseudo-fields a line of the static table is (RFC 9204 appendix A).
fn static_pseudo(line: u64) -> Option<usize> {
    match line {
        0 => Some(AUTHORITY),
        1 => Some(PATH),
        15..=21 => Some(METHOD),
        22 | 23 => Some(SCHEME),
        24..=28 | 63..=71 => Some(STATUS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literal(name: &[u8], is_coded: bool, value: &[u8]) -> Vec<u8> {
        let mut line = match u8::try_from(name.len()).unwrap() {
            length @ 0..7 => vec![0x20 | length],
            length => vec![0x27, length - 7],
        };
        line[0] |= if is_coded { 0x08 } else { 0 };
        line.extend_from_slice(name);
        line.extend(string(value));
        line
    }

    fn string(value: &[u8]) -> Vec<u8> {
        let mut string = match value.len() {
            length @ 0..127 => vec![length as u8],
            length => vec![0x7f, ((length - 127) & 0x7f) as u8 | 0x80, ((length - 127) >> 7) as u8],
        };
        string.extend_from_slice(value);
        string
    }

    fn misuse(lines: &[Vec<u8>]) -> Option<Misuse> {
        let section = [vec![0, 0], lines.concat()].concat();
        let mut outcomes = [1, 2, 5, 1000].map(|size| {
            let mut read = Section::default();
            section.chunks(size).for_each(|part| read.read(part));
            assert!(matches!(read.step, Step::Line), "{section:?} by {size}");
            read.misuse()
        });
        outcomes.sort_by_key(Option::is_some);
        assert_eq!(outcomes[0], outcomes[3], "{section:?}");
        outcomes[0]
    }

    #[test]
    fn each_pseudo_field_stands_once_and_first() {
        let get = || vec![0xc0 | 17];
        let https = || vec![0xc0 | 23];
        let authority = || [vec![0x50], string(b"a.test")].concat();
        let path = || [vec![0x51], string(&[b'p'; 300])].concat();
        let field = || literal(b"x-a", false, b":path");
        let accept = || vec![0xc0 | 29];
        let by = |plain: &[u8]| PSEUDO.iter().find(|(name, _)| *name == plain).unwrap().1;
        for (what, lines, expected) in [
            ("a request", vec![get(), https(), authority(), path(), accept(), field()], None),
            ("by names", vec![literal(b":method", false, b"GET"), authority(), path()], None),
            ("a method twice", vec![get(), get()], Some(Misuse::Repeated)),
            (
                "two ways to say a path",
                vec![path(), literal(by(b":path"), true, b"/")],
                Some(Misuse::Repeated),
            ),
            (
                "a path by its name, twice",
                vec![literal(b":path", false, b"/"), field(), literal(b":path", false, b"/")],
                Some(Misuse::Repeated),
            ),
            (
                "two hosts",
                vec![authority(), literal(b":authority", false, b"b.test")],
                Some(Misuse::Repeated),
            ),
            ("a status", vec![get(), vec![0xc0 | 25]], Some(Misuse::Foreign)),
            ("a status from afar", vec![get(), vec![0xff, 8]], Some(Misuse::Foreign)),
            ("a scheme behind a field", vec![get(), field(), https()], Some(Misuse::Late)),
            ("a scheme behind a line", vec![get(), accept(), https()], Some(Misuse::Late)),
            (
                "names that only begin like one",
                vec![
                    get(),
                    literal(b":methods", false, b"x"),
                    literal(b":method-and-more", false, b"x"),
                    literal(b"", false, b"x"),
                ],
                None,
            ),
        ] {
            assert_eq!(misuse(&lines), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_can_be_read(octets in proptest::collection::vec(any::<u8>(), 0..300), size in 1..40_usize) {
            let mut whole = Section::default();
            whole.read(&octets);
            let mut cut = Section::default();
            octets.chunks(size).for_each(|part| cut.read(part));
            prop_assert_eq!(whole.misuse(), cut.misuse());
        }
    }
}
