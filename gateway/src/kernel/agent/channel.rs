//! The socket between the daemon and its agent: messages of any length up to a bound, in parts.
//!
//! A socket of type `SOCK_SEQPACKET` keeps the parts apart (unix(7)). Each has a head: what it is, which
//! part it is, and the number of the question it belongs to; an answer to a question that nobody waits
//! for any more is known by that, and left alone.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair,
            sockopt::SendTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::wire::WireError;
use crate::time;

/// The longest message: a list of denied prefixes as long as its map is 5 MB, all bans are 3.
pub const MESSAGE_MAX_BYTES: usize = 16 << 20;

/// Of a message in one part: several of them fit the least buffer that a distribution gives a socket
/// (`net.core.wmem_default`, 212,992 octets).
const PART_BYTES: usize = 32 << 10;

/// Kind, flags, number.
const HEAD_BYTES: usize = 6;

/// A part is taken within this, or the other end is stuck.
const SEND_MAX: Duration = Duration::from_secs(10);

const FIRST: u8 = 1;
const LAST: u8 = 2;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the daemon.
    Request,
    /// From the agent, to a request.
    Answer,
    /// From the agent, unasked.
    News,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Request, Kind::Answer, Kind::News];

    fn code(self) -> u8 {
        match self {
            Kind::Request => 0,
            Kind::Answer => 1,
            Kind::News => 2,
        }
    }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Of the question.
    pub number: u32,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Why nothing comes, or goes.
#[derive(Debug)]
pub enum ChannelError {
    /// The other end is gone.
    Closed,
    /// The other end takes or says nothing.
    Silent,
    /// A message is longer than any that there is.
    TooLong,
    /// A part with a head that none has.
    Head,
    /// What came is no message.
    Wire(WireError),
    /// What the system said.
    System(io::Error),
}

impl fmt::Display for ChannelError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("the other process is gone"),
            Self::Silent => formatter.write_str("the other process does not answer"),
            Self::TooLong => {
                write!(formatter, "a message of more than {} MiB", MESSAGE_MAX_BYTES >> 20)
            }
            Self::Head => formatter.write_str("a message that does not begin as one"),
            Self::Wire(error) => write!(formatter, "a message that is none: {error}"),
            Self::System(error) => write!(formatter, "the socket between the processes: {error}"),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => Self::Closed,
            // SO_SNDTIMEO has passed.
            Errno::EAGAIN => Self::Silent,
            error => Self::System(error.into()),
        }
    }
}

/// Joins parts to messages.
#[derive(Debug, Default)]
pub struct Joiner {
    begun: Option<Message>,
}

impl Joiner {
    /// Takes a part; gives the message that it is the end of.
    ///
    /// Parts whose first one was never seen belonged to a process before this one.
    ///
    /// # Errors
    /// It is none, or one too many.
    pub fn add(&mut self, part: &[u8]) -> Result<Option<Message>, ChannelError> {
        let (head, bytes) = part.split_first_chunk::<HEAD_BYTES>().ok_or(ChannelError::Head)?;
        let [kind, flags, number @ ..] = *head;
        let kind = Kind::ALL.into_iter().find(|known| known.code() == kind);
        let kind = kind.filter(|_| flags & !(FIRST | LAST) == 0).ok_or(ChannelError::Head)?;
        let number = u32::from_le_bytes(number);
        if flags & FIRST != 0 {
            self.begun = Some(Message { kind, number, bytes: Vec::new() });
        }
        let Some(message) = &mut self.begun else { return Ok(None) };
        if (message.kind, message.number) != (kind, number) {
            self.begun = None;
            return Err(ChannelError::Head);
        }
        if message.bytes.len() + bytes.len() > MESSAGE_MAX_BYTES {
            self.begun = None;
            return Err(ChannelError::TooLong);
        }
        message.bytes.extend(bytes);
        Ok(if flags & LAST != 0 { self.begun.take() } else { None })
    }
}

/// The parts of a message.
fn parts(message: &Message) -> impl Iterator<Item = Vec<u8>> {
    let count = message.bytes.len().div_ceil(PART_BYTES).max(1);
    (0..count).map(move |index| {
        let start = index * PART_BYTES;
        let bytes = &message.bytes[start..message.bytes.len().min(start + PART_BYTES)];
        let first = if index == 0 { FIRST } else { 0 };
        let last = if index + 1 == count { LAST } else { 0 };
        let mut part = Vec::with_capacity(HEAD_BYTES + bytes.len());
        part.extend([message.kind.code(), first | last]);
        part.extend(message.number.to_le_bytes());
        part.extend(bytes);
        part
    })
}

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    joiner: Joiner,
    buffer: Vec<u8>,
}

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    /// What the system said.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
    }

    /// Talks by this socket.
    ///
    /// # Errors
    /// It is no socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        setsockopt(&socket, SendTimeout, &TimeVal::seconds(SEND_MAX.as_secs().cast_signed()))?;
        Ok(Self { socket, joiner: Joiner::default(), buffer: vec![0; HEAD_BYTES + PART_BYTES] })
    }

    /// Says something.
    ///
    /// # Errors
    /// Nobody hears it.
    pub fn send(&self, message: &Message) -> Result<(), ChannelError> {
        if message.bytes.len() > MESSAGE_MAX_BYTES {
            return Err(ChannelError::TooLong);
        }
        for part in parts(message) {
            loop {
                match send(self.socket.as_raw_fd(), &part, MsgFlags::MSG_NOSIGNAL) {
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                    Ok(_) => break,
                }
            }
        }
        Ok(())
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// None will come, or what came is none.
    pub fn receive(&mut self) -> Result<Message, ChannelError> {
        loop {
            if let Some(message) = self.receive_part(MsgFlags::empty())? {
                return Ok(message);
            }
        }
    }

    /// Waits for a message, and no longer than until then; `None` when it is not whole yet.
    ///
    /// # Errors
    /// None will come, or what came is none.
    pub fn receive_until(&mut self, end: Instant) -> Result<Option<Message>, ChannelError> {
        loop {
            let left = end.saturating_duration_since(time::monotonic());
            // Rounded up, or the last millisecond would be spent in a busy loop.
            let timeout = PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000))
                .unwrap_or(PollTimeout::MAX);
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, timeout) {
                Ok(0) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => match self.receive_part(MsgFlags::MSG_DONTWAIT) {
                    Ok(Some(message)) => return Ok(Some(message)),
                    Ok(None) | Err(ChannelError::Silent) => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }

    fn receive_part(&mut self, flags: MsgFlags) -> Result<Option<Message>, ChannelError> {
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        if length == 0 {
            return Err(ChannelError::Closed);
        }
        self.joiner.add(&self.buffer[..length])
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn message(number: u32, length: usize) -> Message {
        let bytes = (0..length).map(|index| index as u8).collect();
        Message { kind: Kind::Answer, number, bytes }
    }

    #[test]
    fn messages_of_any_length_arrive_whole() {
        let (here, there) = Channel::pair().unwrap();
        let (here, mut there) = (Channel::new(here).unwrap(), Channel::new(there).unwrap());
        let lengths = [0, 1, PART_BYTES, PART_BYTES + 1, 40 * PART_BYTES];
        thread::scope(|scope| {
            scope.spawn(|| {
                for (number, length) in (0..).zip(lengths) {
                    here.send(&message(number, length)).unwrap();
                }
            });
            for (number, length) in (0..).zip(lengths) {
                assert_eq!(there.receive().unwrap(), message(number, length), "{length}");
            }
        });
        assert!(there.receive_until(time::monotonic()).unwrap().is_none());
        drop(here);
        assert!(matches!(there.receive(), Err(ChannelError::Closed)));
        assert!(matches!(there.send(&message(9, 1)), Err(ChannelError::Closed)));
    }

    #[test]
    fn what_is_too_long_or_does_not_belong_together_is_refused() {
        let mut joiner = Joiner::default();
        let part = |flags, number: u32, bytes: usize| {
            let mut part = vec![Kind::Request.code(), flags];
            part.extend(number.to_le_bytes());
            part.resize(part.len() + bytes, 7);
            part
        };
        // Of a message that began before this process did.
        assert!(joiner.add(&part(0, 1, 5)).unwrap().is_none());
        assert!(joiner.add(&part(LAST, 1, 5)).unwrap().is_none());
        assert!(joiner.add(&part(FIRST, 2, 5)).unwrap().is_none());
        assert!(matches!(joiner.add(&part(LAST, 3, 5)), Err(ChannelError::Head)));
        assert!(joiner.add(&part(FIRST, 4, MESSAGE_MAX_BYTES)).unwrap().is_none());
        assert!(matches!(joiner.add(&part(LAST, 4, 1)), Err(ChannelError::TooLong)));
        assert_eq!(joiner.add(&part(FIRST | LAST, 5, 3)).unwrap().unwrap().bytes, [7; 3]);
        for head in [vec![], vec![0; 5], part(4, 1, 1), vec![3, FIRST, 0, 0, 0, 0]] {
            assert!(matches!(joiner.add(&head), Err(ChannelError::Head)), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn any_parts_are_joined_or_refused(
            parts in prop::collection::vec(prop::collection::vec(0u8..4, 0..12), 0..20)
        ) {
            let mut joiner = Joiner::default();
            for part in parts {
                let _ = joiner.add(&part);
            }
        }
    }
}
