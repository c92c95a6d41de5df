//! The program judging at a test's own times; see the library's `rehearsal`.

use core::{mem::offset_of, ptr};

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use gateway_ebpf::{
    rehearsal::{SENDERS, Sender, Stage},
    verdict::judge,
};

use super::{Maps, RULES, Received, counters};

/// Where an IPv4 packet's source stands in a frame without tags.
const SOURCE: usize = 14 + 12;
/// The bits that tell where a sender begins.
const OFFSETS: u64 = 3 * size_of::<Sender>() as u64;
const _: () = assert!(SENDERS <= 4 && size_of::<Sender>().is_power_of_two());

/// Sends the next packet of the sender who is due, judges it, and writes down what became of it.
/// Nothing is counted but in the frame.
#[xdp]
#[inline(always)]
pub fn portcullis_rehearsal(context: XdpContext) -> u32 {
    let (data, end) = (context.data(), context.data_end());
    let start = data.wrapping_add(size_of::<Stage>());
    if start.wrapping_add(SOURCE + 4) > end {
        return XDP_ABORTED;
    }
    let Some(rules) = RULES.get(0) else { return XDP_ABORTED };
    let mut due = 0;
    let mut now_ns = u64::MAX;
    for sender in 0..SENDERS {
        let next_ns = load(data + sender * size_of::<Sender>() + offset_of!(Sender, next_ns));
        if next_ns < now_ns {
            now_ns = next_ns;
            due = sender;
        }
    }
    // Written down and read again: what comes out of a frame is any number to the verifier, which
    // would else walk through the whole verdict once for each sender.
    let remembered = data + offset_of!(Stage, due);
    store(remembered, (due * size_of::<Sender>()) as u64);
    let place = data + (load(remembered) & OFFSETS) as usize;
    if place.wrapping_add(size_of::<Sender>()) > end {
        return XDP_ABORTED;
    }
    // SAFETY: the line above made sure that a sender's octets lie in the frame; any are a value,
    // and BPF's loads from frames need not be aligned.
    let sender = unsafe { ptr::read_volatile(place as *const Sender) };
    if sender.sources != 0 {
        let address = sender.address();
        let source = start + SOURCE;
        // SAFETY: the first check made sure that the source's octets lie in the frame.
        unsafe {
            ptr::write_volatile(source as *mut u16, ((address >> 16) as u16).to_be());
            ptr::write_volatile((source + 2) as *mut u16, (address as u16).to_be());
        }
    }
    let frame = Received::new(start, end);
    let Some(counters) = counters() else { return XDP_ABORTED };
    // SAFETY: as in the program.
    let last = unsafe { &mut (*counters).last };
    let outcome = judge(&frame, &Maps { rules }, last, now_ns);
    // Read once more instead of kept: the verdict needs the stack, and what does not fit is swapped in
    // ways that Linux 5.10 refuses.
    // SAFETY: as where it was read first.
    let mut sender = unsafe { ptr::read_volatile(place as *const Sender) };
    sender.next_ns = now_ns.wrapping_add(sender.interval_ns);
    sender.sent += 1;
    sender.passed += u64::from(!outcome.drops());
    sender.outcome = outcome as u32;
    // SAFETY: as where it was read.
    unsafe { ptr::write_volatile(place as *mut Sender, sender) };
    if outcome.drops() && rules.settings.enforce != 0 { XDP_DROP } else { XDP_PASS }
}

/// Eight octets of the frame, which the caller knows to be there.
#[inline(always)]
fn load(place: usize) -> u64 {
    // SAFETY: the caller's check covers the whole stage; BPF's loads need not be aligned.
    unsafe { ptr::read_volatile(place as *const u64) }
}

/// Writes eight octets where [`load`] may read them.
#[inline(always)]
fn store(place: usize, value: u64) {
    // SAFETY: as in `load`.
    unsafe { ptr::write_volatile(place as *mut u64, value) }
}
