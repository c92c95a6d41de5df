//! A UDP socket of QUIC on its way from process to process: the same socket, read by one process at a
//! time.
//!
//! A process that takes over reads the datagrams from then on. What is for a connection of a process
//! before it, as the tag in the connection ID tells, it passes on to that one, which has no more than its
//! open connections to finish and answers from its own copy of the socket. A datagram that cannot be
//! passed on at once is lost, as any datagram may be.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use socket2::SockRef;

use super::quic::Tag;

/// Processes that may still have connections on one socket. Each drains for `drain_timeout` at most, so
/// more come of upgrades that follow each other faster than anybody does them.
pub const ANCESTORS_MAX: usize = 8;

/// Octets that may wait to be read by the process that they are for: some hundred datagrams. The kernel
/// cuts it to `net.core.wmem_max`.
const WAITING_BYTES: usize = 1024 * 1024;

/// Octets in front of a datagram that is passed on: where it came from and where it went.
const HEADER_BYTES: usize = 39;

/// Longest datagram that is passed on. quinn takes none above 1,472 octets (Ethernet's, without headers).
const DATAGRAM_MAX_BYTES: usize = 2_048;

/// In the first octet of that header: which addresses there are, and ECN's two bits.
const SOURCE_IS_IPV4: u8 = 1;
const HAS_DESTINATION: u8 = 2;
const DESTINATION_IS_IPV4: u8 = 4;
const ECN_SHIFT: u8 = 4;

/// What a process does with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Another still reads it.
    Waiting,
    /// Reads it.
    Reading,
    /// Another reads it, and passes on what is for this one.
    Given,
}

const STEPS: [Step; 3] = [Step::Waiting, Step::Reading, Step::Given];

/// The steps of one socket, shared by the worker that reads it and the thread that hands it over.
#[derive(Clone, Debug)]
pub struct Steps(Arc<State>);

#[derive(Debug)]
struct State {
    step: AtomicU8,
    /// From where the next process passes on, until the worker takes it.
    arriving: Mutex<Option<UnixDatagram>>,
    reader: AtomicWaker,
}

impl Steps {
    /// Of a socket that only this process has.
    pub fn reading() -> Steps {
        Steps::at(Step::Reading)
    }

    /// Of a socket that another process reads, until it is begun.
    pub fn waiting() -> Steps {
        Steps::at(Step::Waiting)
    }

    fn at(step: Step) -> Steps {
        let step = AtomicU8::new(step as u8);
        Steps(Arc::new(State { step, arriving: Mutex::default(), reader: AtomicWaker::new() }))
    }

    fn step(&self) -> Step {
        let number = self.0.step.load(Ordering::Acquire);
        STEPS.into_iter().find(|step| *step as u8 == number).unwrap_or(Step::Reading)
    }

    fn go(&self, step: Step) {
        self.0.step.store(step as u8, Ordering::Release);
        self.0.reader.wake();
    }

    pub(super) fn begin(&self) {
        self.go(Step::Reading);
    }

    /// The way for what is passed on to this process; its other end stays here.
    pub(super) fn offer(&self) -> io::Result<UnixDatagram> {
        // Of messages, as datagrams are, but bounded by octets and not by `net.unix.max_dgram_qlen`.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (here, there) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // A smaller one only loses more.
        let _ = SockRef::from(&there).set_send_buffer_size(WAITING_BYTES);
        *lock(&self.0.arriving) = Some(UnixDatagram::from(here));
        Ok(UnixDatagram::from(there))
    }

    pub(super) fn give(&self) {
        self.go(Step::Given);
    }

    pub(super) fn take_back(&self) {
        lock(&self.0.arriving).take();
        self.go(Step::Reading);
    }

    /// Whether another process reads the socket, so that nothing comes here but what is for
    /// connections of this one.
    pub fn is_given(&self) -> bool {
        self.step() == Step::Given
    }
}

/// A process that may have connections on a socket, and the way there.
#[derive(Clone, Debug)]
pub struct Ancestor {
    pub(super) tag: Tag,
    pub(super) way: Arc<UnixDatagram>,
}

impl Ancestor {
    /// Whether that process still reads what is passed on to it.
    pub(super) fn is_there(&self) -> bool {
        let mut asked = [PollFd::new(self.way.as_fd(), PollFlags::empty())];
        let hung_up = |flags: PollFlags| flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        poll(&mut asked, PollTimeout::ZERO).is_err() || !asked[0].revents().is_some_and(hung_up)
    }

    /// Passes a datagram on; false when nobody is there any more.
    fn pass_on(&self, datagram: &[u8], meta: &RecvMeta) -> bool {
        let mut message = header(meta).to_vec();
        message.extend_from_slice(datagram);
        match self.way.send(&message) {
            Ok(_) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotConnected
            ),
        }
    }
}

/// A socket as one process gives it to the next.
#[derive(Debug)]
pub struct Inherited {
    pub(super) socket: UdpSocket,
    pub(super) ancestors: Vec<Ancestor>,
}

impl Inherited {
    /// With those who have connections on it.
    ///
    /// # Errors
    /// They are too many.
    pub(super) fn new(socket: UdpSocket, ancestors: Vec<Ancestor>) -> io::Result<Inherited> {
        if ancestors.len() > ANCESTORS_MAX {
            return Err(io::Error::other(format!(
                "{ANCESTORS_MAX} processes before this one still have connections of HTTP/3; wait \
                 until one of them has drained"
            )));
        }
        Ok(Inherited { socket, ancestors })
    }

    /// As descriptors: the socket, and the way to each process; and those processes' tags.
    ///
    /// # Errors
    /// There are no descriptors to be had.
    pub fn into_parts(self) -> io::Result<(Vec<u32>, Vec<OwnedFd>)> {
        let tags = self.ancestors.iter().map(|ancestor| ancestor.tag.0).collect();
        let mut descriptors = vec![OwnedFd::from(self.socket)];
        for ancestor in self.ancestors {
            descriptors.push(OwnedFd::from(ancestor.way.try_clone()?));
        }
        Ok((tags, descriptors))
    }

    /// From those. `None` when they are not as many as the tags say, or too many.
    pub fn from_parts(tags: &[u32], descriptors: Vec<OwnedFd>) -> Option<Inherited> {
        if descriptors.len() != tags.len() + 1 {
            return None;
        }
        let mut descriptors = descriptors.into_iter();
        let socket = UdpSocket::from(descriptors.next()?);
        let ancestors = tags
            .iter()
            .zip(descriptors)
            .map(|(tag, way)| Ancestor { tag: Tag(*tag), way: Arc::new(UnixDatagram::from(way)) });
        Inherited::new(socket, ancestors.collect()).ok()
    }
}

/// A socket as quinn sees it: only what is for connections of this process comes out of it, from
/// wherever it comes.
pub(super) struct Passage {
    socket: Arc<dyn AsyncUdpSocket>,
    tag: Tag,
    steps: Steps,
    ancestors: Mutex<Vec<Ancestor>>,
    arriving: Mutex<Option<tokio::net::UnixDatagram>>,
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Passage {
    pub(super) fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        tag: Tag,
        steps: Steps,
        ancestors: Vec<Ancestor>,
    ) -> Passage {
        let ancestors = Mutex::new(ancestors);
        Passage { socket, tag, steps, ancestors, arriving: Mutex::default() }
    }

    /// What came in on the socket itself, without what is for others.
    fn poll_socket(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(context, buffers, metas))?;
        // Looked at behind the reading: what was read after the step may be for the next process, which
        // begins only then. A connection of its own does not know a datagram of somebody else's, and
        // would have it reset.
        let is_given = self.steps.is_given();
        let mut ancestors = lock(&self.ancestors);
        if !is_given && ancestors.is_empty() {
            return Poll::Ready(Ok(count));
        }
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
            keep(buffer, meta, |datagram, meta| {
                let tag = Tag::of(datagram);
                if tag == Some(self.tag) {
                    return true;
                }
                let place = ancestors.iter().position(|ancestor| Some(ancestor.tag) == tag);
                if let Some(place) = place {
                    if !ancestors[place].pass_on(datagram, meta) {
                        ancestors.remove(place);
                    }
                    return false;
                }
                // A long header may be a new client's first, whom nobody else will answer.
                let is_long = datagram.first().is_some_and(|first| first & 0x80 != 0);
                !is_given || is_long
            });
        }
        Poll::Ready(Ok(count))
    }

    /// What the process that reads the socket now passes on.
    fn poll_arriving(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arriving = lock(&self.arriving);
        if let Some(way) = lock(&self.steps.0.arriving).take() {
            *arriving = Some(tokio::net::UnixDatagram::from_std(way)?);
        }
        let Some(way) = arriving.as_ref() else { return Poll::Pending };
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), metas.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let mut message = [0; HEADER_BYTES + DATAGRAM_MAX_BYTES];
        loop {
            ready!(way.poll_recv_ready(context))?;
            match way.try_recv(&mut message) {
                Ok(length) if length > 0 => {
                    if let Some((told, datagram)) = read(&message[..length])
                        && let Some(room) = buffer.get_mut(..datagram.len())
                    {
                        room.copy_from_slice(datagram);
                        *meta = told;
                        return Poll::Ready(Ok(1));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Nobody reads the socket for us: it is ours again, for as long as this process lasts.
                Ok(_) | Err(_) => {
                    *arriving = None;
                    self.steps.take_back();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl AsyncUdpSocket for Passage {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let step = self.steps.step();
            let polled = match step {
                Step::Waiting => Poll::Pending,
                Step::Reading => self.poll_socket(context, buffers, metas),
                Step::Given => self.poll_arriving(context, buffers, metas),
            };
            if polled.is_ready() {
                return polled;
            }
            self.steps.0.reader.register(context.waker());
            // It may have been taken before anybody could be woken.
            if self.steps.step() == step {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// Keeps of the datagrams in a buffer (the kernel joins those of one sender) the ones that are to be kept.
fn keep(buffer: &mut [u8], meta: &mut RecvMeta, mut is_kept: impl FnMut(&[u8], &RecvMeta) -> bool) {
    let (mut at, mut kept) = (0, 0);
    while at < meta.len {
        let end = meta.len.min(at + meta.stride.max(1));
        if is_kept(&buffer[at..end], meta) {
            // All but the last are `stride` long, and the last stays the last.
            buffer.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    meta.len = kept;
}

/// What goes in front of a datagram that is passed on.
fn header(meta: &RecvMeta) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let flag = |is_so: bool, flag: u8| if is_so { flag } else { 0 };
    header[0] = flag(meta.addr.is_ipv4(), SOURCE_IS_IPV4)
        | flag(meta.dst_ip.is_some(), HAS_DESTINATION)
        | flag(meta.dst_ip.is_some_and(|address| address.is_ipv4()), DESTINATION_IS_IPV4)
        | (meta.ecn.map_or(0, |ecn| ecn as u8) << ECN_SHIFT);
    header[1..3].copy_from_slice(&meta.addr.port().to_be_bytes());
    header[3..19].copy_from_slice(&wide(meta.addr.ip()));
    if let SocketAddr::V6(source) = meta.addr {
        header[19..23].copy_from_slice(&source.scope_id().to_be_bytes());
    }
    if let Some(destination) = meta.dst_ip {
        header[23..39].copy_from_slice(&wide(destination));
    }
    header
}

/// The datagram in a message, and what is told of it.
fn read(message: &[u8]) -> Option<(RecvMeta, &[u8])> {
    let (header, datagram) = message.split_at_checked(HEADER_BYTES)?;
    let flags = header[0];
    let port = u16::from_be_bytes(header[1..3].try_into().ok()?);
    let source = address(header[3..19].try_into().ok()?, flags & SOURCE_IS_IPV4 != 0)?;
    let scope_id = u32::from_be_bytes(header[19..23].try_into().ok()?);
    let addr = match source {
        IpAddr::V4(_) => SocketAddr::new(source, port),
        IpAddr::V6(source) => SocketAddr::V6(SocketAddrV6::new(source, port, 0, scope_id)),
    };
    let dst_ip = match flags & HAS_DESTINATION {
        0 => None,
        _ => Some(address(header[23..39].try_into().ok()?, flags & DESTINATION_IS_IPV4 != 0)?),
    };
    let ecn = EcnCodepoint::from_bits(flags >> ECN_SHIFT);
    let len = datagram.len();
    Some((RecvMeta { addr, len, stride: len, ecn, dst_ip }, datagram))
}

fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(wide: [u8; 16], is_ipv4: bool) -> Option<IpAddr> {
    let address = Ipv6Addr::from(wide);
    if is_ipv4 { address.to_ipv4_mapped().map(IpAddr::V4) } else { Some(address.into()) }
}

/// What is behind these locks is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use quinn::{Runtime as _, TokioRuntime};
    use tokio::time::timeout;

    use super::*;

    fn meta(addr: &str, dst_ip: Option<&str>, ecn: Option<EcnCodepoint>) -> RecvMeta {
        let dst_ip = dst_ip.map(|address| address.parse().unwrap());
        RecvMeta { addr: addr.parse().unwrap(), len: 3, stride: 3, ecn, dst_ip }
    }

    #[test]
    fn what_is_told_of_a_datagram_arrives_with_it() {
        for told in [
            meta("192.0.2.1:443", Some("192.0.2.2"), Some(EcnCodepoint::Ce)),
            meta("[::ffff:192.0.2.1]:1", Some("192.0.2.2"), None),
            meta("[fe80::1%7]:65535", Some("fe80::2"), Some(EcnCodepoint::Ect0)),
            meta("[2001:db8::1]:1", None, Some(EcnCodepoint::Ect1)),
        ] {
            let message = [&header(&told)[..], b"abc"].concat();
            let (read, datagram) = read(&message).unwrap();
            assert_eq!((format!("{read:?}"), datagram), (format!("{told:?}"), &b"abc"[..]));
        }
        assert!(read(&[0; HEADER_BYTES - 1]).is_none());
        assert!(read(&[SOURCE_IS_IPV4; HEADER_BYTES]).is_none(), "it is none");
    }

    #[test]
    fn of_joined_datagrams_those_of_others_are_taken_out() {
        for (all, kept) in [
            ("aaabbbaaac", "aaaaaac"),
            ("bbbbbb", ""),
            ("aaaaaaaa", "aaaaaaaa"),
            ("bbbaab", "aab"),
            ("", ""),
        ] {
            let mut buffer = all.as_bytes().to_vec();
            let mut meta = RecvMeta { len: buffer.len(), stride: 3, ..RecvMeta::default() };
            keep(&mut buffer, &mut meta, |datagram, _| datagram[0] != b'b');
            assert_eq!(&buffer[..meta.len], kept.as_bytes(), "{all}");
        }
    }

    fn datagram(tag: Tag, word: &str) -> Vec<u8> {
        let mut datagram = vec![0x40, 1, 2, 1, 2, 0, 0, 0, 0];
        datagram.extend_from_slice(&tag.0.to_be_bytes());
        datagram.extend_from_slice(word.as_bytes());
        datagram
    }

    /// All words that come within a moment.
    async fn words(passage: &Passage) -> String {
        let mut words = String::new();
        let mut octets = vec![0; 4096 * 64];
        loop {
            let mut metas = [RecvMeta::default()];
            let mut buffers = [IoSliceMut::new(&mut octets)];
            let received = poll_fn(|context| passage.poll_recv(context, &mut buffers, &mut metas));
            if timeout(Duration::from_millis(100), received).await.is_err() {
                return words;
            }
            let RecvMeta { len, stride, .. } = metas[0];
            for datagram in octets[..len].chunks(stride.max(1)) {
                words.push_str(&String::from_utf8_lossy(&datagram[13..]));
            }
        }
    }

    #[tokio::test]
    async fn datagrams_find_the_process_of_their_connection() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let at = socket.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tags = [Tag(7), Tag(8), Tag(9)];
        let wrap = |socket: &UdpSocket, number: usize, steps: &Steps, ancestors| {
            let socket = TokioRuntime.wrap_udp_socket(socket.try_clone().unwrap()).unwrap();
            Passage::new(socket, tags[number], steps.clone(), ancestors)
        };
        let tell = |word: &str| {
            for tag in tags {
                let word = format!("{word}{} ", tag.0);
                client.send_to(&datagram(tag, &word), at).unwrap();
            }
        };
        let steps = [Steps::reading(), Steps::waiting(), Steps::waiting()];
        let first = wrap(&socket, 0, &steps[0], Vec::new());
        tell("alone");
        assert_eq!(words(&first).await, "alone7 alone8 alone9 ", "one process knows no others");

        let offered = |steps: &Steps, tag| Ancestor { tag, way: Arc::new(steps.offer().unwrap()) };
        let way = offered(&steps[0], tags[0]);
        let second = wrap(&socket, 1, &steps[1], vec![way.clone()]);
        assert_eq!(words(&second).await, "", "it waits");
        tell("still");
        assert_eq!(words(&first).await, "still7 still8 still9 ");
        steps[0].give();
        steps[1].begin();
        tell("now");
        assert_eq!(words(&second).await, "now8 now9 ");
        assert_eq!(words(&first).await, "now7 ");

        let third = wrap(&socket, 2, &steps[2], vec![offered(&steps[1], tags[1]), way.clone()]);
        steps[1].give();
        steps[2].begin();
        tell("then");
        assert_eq!(words(&third).await, "then9 ");
        assert_eq!((words(&second).await, words(&first).await), ("then8 ".into(), "then7 ".into()));

        assert!(way.is_there());
        drop((first, steps));
        assert!(!way.is_there());
        tell("late");
        assert_eq!(words(&third).await, "late9 ", "the others' are nobody's");
        assert_eq!(words(&second).await, "late8 ");
        // When it is gone too, the one before it has the socket again, and what is not its own is none
        // of its business.
        drop(third);
        tell("last");
        assert!(words(&second).await.contains("last8 "));
    }
}
