//! How values stand in a message: numbers as little-endian octets of their own width, lists and texts
//! behind their length, choices behind one octet.
//!
//! Every value has exactly one form, and everything that has another is refused.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    time::Duration,
};

use gateway_ebpf::Source;
use ipnet::IpNet;

/// A value that can stand in a message.
pub trait Wire: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads it from where the reader is.
    ///
    /// # Errors
    /// What is there is no such value.
    fn take(input: &mut Reader<'_>) -> Result<Self, WireError>;
}

/// Why octets are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// They end in the middle of a value.
    Short,
    /// More of them come behind the value.
    Long {
        /// So many.
        bytes: usize,
    },
    /// No choice has this number.
    Choice {
        /// Of which type.
        of: &'static str,
        /// The number.
        code: u8,
    },
    /// A value that its type does not have.
    Value {
        /// Of which type.
        of: &'static str,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => formatter.write_str("it ends in the middle of a value"),
            Self::Long { bytes } => write!(formatter, "{bytes} octets are left at its end"),
            Self::Choice { of, code } => write!(formatter, "{of} has no choice {code}"),
            Self::Value { of } => write!(formatter, "what stands there is no {of}"),
        }
    }
}

impl std::error::Error for WireError {}

/// What is left of a message.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// At the beginning of these octets.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// Something does.
    pub fn end(self) -> Result<(), WireError> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(WireError::Long { bytes }),
        }
    }
}

macro_rules! numbers {
    ($($type:ty),*) => { $(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
                input.array().map(<$type>::from_le_bytes)
            }
        }
    )* };
}

numbers!(u8, u16, u32, u64, i32);

impl Wire for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(())
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            code => Err(WireError::Choice { of: "bool", code }),
        }
    }
}

impl Wire for usize {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u64).put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        usize::try_from(u64::take(input)?).map_err(|_| WireError::Value { of: "usize" })
    }
}

/// Lengths have 32 bits: no message is longer ([`super::channel::MESSAGE_MAX_BYTES`]).
fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u32).put(out);
    out.extend(bytes);
}

fn take_bytes<'a>(input: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let count = u32::take(input)?;
    input.bytes(count as usize)
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let text = str::from_utf8(take_bytes(input)?);
        text.map(str::to_owned).map_err(|_| WireError::Value { of: "text" })
    }
}

impl Wire for PathBuf {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_os_str().as_bytes(), out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let bytes = take_bytes(input)?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec())))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        // Nothing is set aside for what only the length promises.
        let count = u32::take(input)?;
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(T::take(input)?);
        }
        Ok(values)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        bool::take(input)?.then(|| T::take(input)).transpose()
    }
}

impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(error) => error.put(out),
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        if bool::take(input)? { T::take(input).map(Ok) } else { E::take(input).map(Err) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok((A::take(input)?, B::take(input)?))
    }
}

impl Wire for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_secs().put(out);
        self.subsec_nanos().put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let (seconds, nanoseconds) = (u64::take(input)?, u32::take(input)?);
        if nanoseconds >= 1_000_000_000 {
            return Err(WireError::Value { of: "Duration" });
        }
        Ok(Duration::new(seconds, nanoseconds))
    }
}

impl Wire for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            IpAddr::V4(address) => {
                out.push(4);
                out.extend(address.octets());
            }
            IpAddr::V6(address) => {
                out.push(6);
                out.extend(address.octets());
            }
        }
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            4 => Ok(Ipv4Addr::from(input.array::<4>()?).into()),
            6 => Ok(Ipv6Addr::from(input.array::<16>()?).into()),
            code => Err(WireError::Choice { of: "IpAddr", code }),
        }
    }
}

impl Wire for IpNet {
    fn put(&self, out: &mut Vec<u8>) {
        self.addr().put(out);
        out.push(self.prefix_len());
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let (address, bits) = (IpAddr::take(input)?, u8::take(input)?);
        IpNet::new(address, bits).map_err(|_| WireError::Value { of: "IpNet" })
    }
}

impl Wire for Source {
    fn put(&self, out: &mut Vec<u8>) {
        self.word().put(out);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
        u64::take(input).map(Source::from_word)
    }
}

/// A struct is its fields, one after the other.
macro_rules! record {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $( self.$field.put(out); )*
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok($type { $( $field: Wire::take(input)? ),* })
            }
        }
    };
}

/// A choice without values is one octet.
macro_rules! words {
    ($type:ident { $($code:literal $word:ident),* $(,)? }) => {
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(match self { $( $type::$word => $code ),* });
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
                match u8::take(input)? {
                    $( $code => Ok($type::$word), )*
                    code => Err(WireError::Choice { of: stringify!($type), code }),
                }
            }
        }
    };
}

/// A choice with a value each is one octet and the value.
macro_rules! choices {
    ($type:ident { $($code:literal $choice:ident),* $(,)? }) => {
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $( $type::$choice(value) => { out.push($code); value.put(out); } )*
                }
            }

            fn take(input: &mut Reader<'_>) -> Result<Self, WireError> {
                match u8::take(input)? {
                    $( $code => Wire::take(input).map($type::$choice), )*
                    code => Err(WireError::Choice { of: stringify!($type), code }),
                }
            }
        }
    };
}

pub(super) use {choices, record, words};

#[cfg(test)]
mod tests {
    use super::*;

    fn round<T: Wire + PartialEq + fmt::Debug>(value: T) {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        for shorter in 0..bytes.len() {
            assert_eq!(T::take(&mut Reader::new(&bytes[..shorter])), Err(WireError::Short));
        }
        let mut reader = Reader::new(&bytes);
        assert_eq!(T::take(&mut reader).as_ref(), Ok(&value));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn what_is_written_is_read() {
        round((u64::MAX, -7));
        round(vec!["".to_owned(), "eth0".to_owned()]);
        round(Some(Duration::new(3, 999_999_999)));
        round(None::<u8>);
        round(Ok::<bool, u16>(true));
        round(Err::<bool, u16>(9));
        round(PathBuf::from("/sys/fs/bpf/portcullis"));
        round("192.0.2.0/24".parse::<IpNet>().unwrap());
        round("2001:db8::/48".parse::<IpNet>().unwrap());
        round(Source::from("192.0.2.7".parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn other_forms_are_refused() {
        let value = |of| Err(WireError::Value { of });
        let choice = |of, code| Err(WireError::Choice { of, code });
        let read = |bytes: &[u8]| bool::take(&mut Reader::new(bytes)).map(drop);
        assert_eq!(read(&[2]), choice("bool", 2));
        let net = |bytes: &[u8]| IpNet::take(&mut Reader::new(bytes)).map(drop);
        assert_eq!(net(&[4, 192, 0, 2, 0, 33]), value("IpNet"));
        assert_eq!(net(&[5, 192, 0, 2, 0, 24]), choice("IpAddr", 5));
        let text = |bytes: &[u8]| String::take(&mut Reader::new(bytes)).map(drop);
        assert_eq!(text(&[1, 0, 0, 0, 0xff]), value("text"));
        let mut late = Vec::new();
        (0u64, 1_000_000_000u32).put(&mut late);
        assert_eq!(Duration::take(&mut Reader::new(&late)).map(drop), value("Duration"));
        // A length alone sets nothing aside.
        let list = |bytes: &[u8]| Vec::<u64>::take(&mut Reader::new(bytes)).map(drop);
        assert_eq!(list(&[0xff, 0xff, 0xff, 0xff]), Err(WireError::Short));
        assert_eq!(Reader::new(&[1, 2]).end(), Err(WireError::Long { bytes: 2 }));
    }
}
