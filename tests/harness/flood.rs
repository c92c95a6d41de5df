//! Hostile traffic: as many packets as one core can make, or a few exact ones.
//!
//! The generator is an XDP program that redirects one prepared frame to an interface, run in a loop
//! by the kernel itself (`BPF_PROG_TEST_RUN` with live frames), so no system call is paid for each
//! packet.
//!
//! Who receives is as important as who sends. A veth receives where its NAPI was last scheduled: on
//! the generator's core as a rule, but once an innocent packet from another core has woken it, under
//! a flood that never lets it rest it stays on that core, takes it away from the service there, and
//! the generator overruns the ring in which the innocent packets wait too. Measurements therefore
//! give the receiver a thread of its own on the generator's core that goes before it
//! ([`receive_first`]): the flood is then never faster than it is received, its whole cost stays on one
//! core, and nothing is lost but what the receiver drops. That is one receive queue of a network card,
//! with its core.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    bpf::{Instruction, Program, R0, R1, R2, R3, R4, R6, Width},
    clock,
    netns::{self, Namespace},
    process,
};

/// Helper numbers of `bpf.h`.
const BPF_FUNC_GET_PRANDOM_U32: i32 = 7;
const BPF_FUNC_REDIRECT: i32 = 23;

/// Frames of the first system call, and the least of any: enough to learn the rate from.
const FRAMES_MIN: u32 = 1 << 16;
/// The most of any, 200 ms at ten million a second.
const FRAMES_MAX: u32 = 1 << 21;
/// How long a call should last: the kernel needs tens of milliseconds to set one up (it allocates
/// pages), so short ones measure mostly that; and a stop is noticed only between two.
const CALL_LASTS: Duration = Duration::from_millis(250);
/// Frames handed to the receiver at once: its NAPI budget, and well below its ring of 256.
pub const BATCH: u32 = 64;
/// What a receiver's thread goes before: every ordinary thread, and a generator made real-time.
const RECEIVER_PRIORITY: &str = "2";

/// Offsets in an Ethernet II frame with an IPv4 header without options (RFC 791).
const IPV4: usize = 14;
const IPV4_CHECKSUM: usize = IPV4 + 10;
const IPV4_SOURCE_LOW: usize = IPV4 + 14;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection request (RFC 9293).
    TcpSyn,
    /// A datagram of 18 bytes, which makes the smallest Ethernet frame.
    Udp,
}

/// Between whom a frame goes on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Hardware address of the sender.
    pub source: [u8; 6],
    /// Hardware address of the receiver.
    pub destination: [u8; 6],
}

/// One's complement sum (RFC 1071) of big-endian words; an odd last byte is padded.
fn internet_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // The loop above ends at or below 0xffff.
    sum as u16
}

/// A whole frame with right lengths and checksums.
pub fn frame(wire: Wire, from: SocketAddrV4, to: SocketAddrV4, transport: Transport) -> Vec<u8> {
    let protocol = match transport {
        Transport::TcpSyn => 6,
        Transport::Udp => 17,
    };
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    let checksum_at = match transport {
        Transport::TcpSyn => {
            segment.extend([0x10, 0x20, 0x30, 0x40, 0, 0, 0, 0]); // sequence, acknowledgement
            segment.extend([5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]); // length, SYN, window, checksum
            16
        }
        Transport::Udp => {
            segment.extend([0, 26, 0, 0]); // length, checksum
            segment.extend([0x55; 18]);
            6
        }
    };
    let mut pseudo = Vec::new();
    pseudo.extend(from.ip().octets());
    pseudo.extend(to.ip().octets());
    pseudo.extend([0, protocol]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(&segment);
    let checksum = !internet_sum(&pseudo);
    segment[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());

    let mut packet = vec![0x45, 0];
    packet.extend((20 + segment.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]); // identification, DF, TTL, checksum
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let checksum = !internet_sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(segment);

    let mut frame = Vec::new();
    frame.extend(wire.destination);
    frame.extend(wire.source);
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame.resize(frame.len().max(60), 0); // the shortest frame, without its check sequence
    frame
}

/// Where the checksum of a frame's TCP or UDP segment stands.
fn segment_checksum(frame: &[u8]) -> usize {
    IPV4 + 20 + if frame[IPV4 + 9] == 6 { 16 } else { 6 }
}

/// The generator's program: sends every frame to `interface_index`, after giving it a random source
/// among the `sources` that share the frame's upper address bits.
fn generator(interface_index: u32, frame: &[u8], sources: Sources) -> Vec<Instruction> {
    let mut program = Vec::new();
    let mask = sources.mask();
    if mask != 0 {
        // Words are read and written in the machine's order throughout: a one's complement sum
        // does not care (RFC 1071 section 2B), as long as the orders are not mixed.
        let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        let base = word(IPV4_SOURCE_LOW);
        program.extend([
            Instruction::copy(R6, R1),
            Instruction::call(BPF_FUNC_GET_PRANDOM_U32),
            Instruction::load(Width::Word, R1, R6, 0), // xdp_md.data
            Instruction::load(Width::Word, R2, R6, 4), // xdp_md.data_end
            Instruction::copy(R3, R1),
            Instruction::add(R3, 54), // what is written below ends before this
            Instruction::skip_if_greater(R3, R2, 20),
            Instruction::and(R0, i32::from(u16::from_ne_bytes(mask.to_be_bytes()))),
            Instruction::xor(R0, i32::from(base)),
            Instruction::store(Width::Half, R1, IPV4_SOURCE_LOW as i16, R0),
            Instruction::copy(R4, R0),
        ]);
        for at in [IPV4_CHECKSUM, segment_checksum(frame)] {
            // What the checksum covers besides the word that changes.
            let rest = u32::from(!word(at)) + u32::from(!base);
            let rest = (rest >> 16) + (rest & 0xffff);
            program.extend([
                Instruction::copy(R0, R4),
                Instruction::add(R0, rest as i32),
                Instruction::copy(R3, R0),
                Instruction::shift_right(R3, 16),
                Instruction::and(R0, 0xffff),
                // Twice 0xffff folds to 0xffff at most, so folding once is enough.
                Instruction::add_register(R0, R3),
                Instruction::xor(R0, 0xffff),
                Instruction::store(Width::Half, R1, at as i16, R0),
            ]);
        }
    }
    program.extend([
        // Interface indexes are small and positive.
        Instruction::set(R1, interface_index as i32),
        Instruction::set(R2, 0),
        Instruction::call(BPF_FUNC_REDIRECT),
        Instruction::exit(),
    ]);
    program
}

/// How many source addresses a flood uses: a power of two, around the frame's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Only the frame's own.
    One,
    /// 2 to the power of this many, at most 16: the low bits of the address are random.
    PowerOfTwo(u8),
}

impl Sources {
    /// The bits of the address's low half that vary.
    fn mask(self) -> u16 {
        match self {
            Sources::One => 0,
            Sources::PowerOfTwo(bits) => ((1_u32 << bits.min(16)) - 1) as u16,
        }
    }
}

/// A flood to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A frame from [`frame`].
    pub frame: Vec<u8>,
    /// Addresses it comes from.
    pub sources: Sources,
    /// Interface of the sender's namespace; the frames appear at its other end.
    pub interface: String,
    /// The core that generates, and no other.
    pub core: usize,
    /// Frames handed to the receiver at once; [`BATCH`] where nothing speaks for another number.
    pub batch: u32,
    /// Ends at the latest after this.
    pub lasts: Duration,
    /// And after this many.
    pub packets_max: u64,
}

/// What a flood did.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Frames given to the interface. What its other end received is for its counters to say.
    pub packets: u64,
    /// Time it took.
    pub elapsed: Duration,
    /// Of that on a processor.
    pub processor_time: Duration,
}

/// A flood under way; dropped, it is stopped and waited for.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Made>>>,
    /// When it began.
    pub started: Instant,
}

impl Flood {
    /// Starts one from a namespace.
    ///
    /// # Errors
    /// When the interface or the core does not exist, or the kernel refuses the program.
    pub fn start(namespace: &Namespace, plan: Plan) -> Result<Flood> {
        let interface_index = namespace.interface_index(&plan.interface)?;
        let instructions = generator(interface_index, &plan.frame, plan.sources);
        let program = Program::load(c"generator", &instructions)?;
        let stop = Arc::new(AtomicBool::new(false));
        let path = namespace.path();
        let thread = thread::Builder::new().name("flood".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                netns::enter(&path)?;
                pin_to_core(plan.core)?;
                generate(&program, &plan, &stop)
            }
        })?;
        Ok(Flood { stop, thread: Some(thread), started: clock::now() })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it before its time, and says what it did.
    ///
    /// # Errors
    /// When it could not send.
    pub fn stop(mut self) -> Result<Made> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a flood is stopped once")?;
        thread.join().map_err(|_panic| anyhow!("the generator panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Only on the way out of a failure, which is what is reported.
            let _ended = thread.join();
        }
    }
}

fn generate(program: &Program, plan: &Plan, stop: &AtomicBool) -> Result<Made> {
    let (started, used) = (clock::now(), clock::processor_time()?);
    let mut packets = 0;
    let mut frames = FRAMES_MIN;
    while packets < plan.packets_max
        && started.elapsed() < plan.lasts
        && !stop.load(Ordering::Relaxed)
        && !clock::interrupted()
    {
        let left = u32::try_from(plan.packets_max - packets).unwrap_or(u32::MAX);
        let now = frames.min(left);
        let call_started = clock::now();
        program
            .send(&plan.frame, now, plan.batch)
            .context("the kernel would not send live frames (it can since Linux 5.18)")?;
        packets += u64::from(now);
        frames = frames_for_next_call(now, call_started.elapsed());
    }
    let processor_time = clock::processor_time()?.saturating_sub(used);
    Ok(Made { packets, elapsed: started.elapsed(), processor_time })
}

/// As many as would have filled [`CALL_LASTS`] at the rate just seen.
fn frames_for_next_call(frames: u32, took: Duration) -> u32 {
    let share = CALL_LASTS.as_secs_f64() / took.as_secs_f64().max(1e-6);
    // The conversion saturates.
    ((f64::from(frames) * share) as u32).clamp(FRAMES_MIN, FRAMES_MAX)
}

/// Moves a kernel thread that receives (see [`netns::receive_threads`]) to one core, before the
/// generator and every ordinary thread there.
///
/// # Errors
/// When the thread is gone, the core does not exist, or `chrt` (util-linux) fails.
pub fn receive_first(thread: i32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core}"))?;
    sched_setaffinity(Pid::from_raw(thread), &set).with_context(|| format!("thread {thread}"))?;
    let mut command = Command::new("chrt");
    process::succeed(command.args(["--fifo", "--pid", RECEIVER_PRIORITY, &thread.to_string()]))?;
    Ok(())
}

/// Keeps the calling thread on one core.
///
/// # Errors
/// When there is no such core.
pub fn pin_to_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("core {core}"))
}

/// Probes sent without a pause: half of what a veth holds while its receiver is put off.
const PROBES_IN_A_ROW: u32 = 128;
/// Long enough for a receiver that was put off to be given its turn.
const PROBES_PAUSE: Duration = Duration::from_millis(1);

/// Sends datagrams from one address, exactly as many as asked. A veth mostly receives in the sender's
/// call; on a busy machine the kernel puts that off, so what a probe does is waited for.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
}

impl Prober {
    /// Opens the socket in a namespace.
    ///
    /// # Errors
    /// When the address is not one of the namespace.
    pub fn new(namespace: &Namespace, from: IpAddr, to: SocketAddr) -> Result<Prober> {
        let socket = namespace
            .within(|| {
                let socket = UdpSocket::bind((from, 0))?;
                socket.connect(to)?;
                std::io::Result::Ok(socket)
            })?
            .with_context(|| format!("UDP from {from} to {to}"))?;
        Ok(Prober { socket })
    }

    /// Sends `count` datagrams.
    ///
    /// # Errors
    /// When one cannot be sent; that an earlier one was refused by the receiver's stack is none.
    pub fn send(&self, count: u32) -> Result<()> {
        for number in 1..=count {
            if number % PROBES_IN_A_ROW == 0 {
                clock::pause(PROBES_PAUSE)?;
            }
            match self.socket.send(b"probe") {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    // The error of an earlier one was told instead of sending this one.
                    self.socket.send(b"probe")?;
                }
                other => ensure!(other? == 5, "a datagram was cut"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn calls_are_made_as_long_as_wanted() {
        for (frames, took_ms, next) in [
            (1 << 16, 10, 1 << 20 | 1 << 19 | 1 << 16), // 25 times as many
            (1 << 20, 250, 1 << 20),
            (1 << 20, 1, FRAMES_MAX),
            (1 << 20, 100_000, FRAMES_MIN),
            (1 << 20, 0, FRAMES_MAX),
        ] {
            let took = Duration::from_millis(took_ms);
            assert_eq!(frames_for_next_call(frames, took), next, "{frames} in {took_ms} ms");
        }
    }

    const WIRE: Wire = Wire { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn frames_have_right_checksums() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1000);
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 8443);
        for (transport, protocol, length) in [(Transport::TcpSyn, 6, 20), (Transport::Udp, 17, 26)]
        {
            let frame = frame(WIRE, from, to, transport);
            assert_eq!(frame.len(), 60);
            assert_eq!(internet_sum(&frame[14..34]), 0xffff, "{transport:?}: IPv4 header");
            let mut pseudo = frame[26..34].to_vec();
            pseudo.extend([0, protocol, 0, length]);
            pseudo.extend(&frame[34..34 + usize::from(length)]);
            assert_eq!(internet_sum(&pseudo), 0xffff, "{transport:?}: segment");
        }
    }
}
