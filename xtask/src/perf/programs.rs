//! The programs that ours is measured against, written by hand.
//!
//! None of them is in what is shipped. They count nothing and read no more of a frame than they
//! need, so that the comparison errs to their favour.

use std::os::fd::BorrowedFd;

use anyhow::Result;

use crate::harness::bpf::{
    Instruction, Map, Program, R0, R1, R2, R3, R4, R6, R7, R10, Width, XDP_DROP, XDP_PASS,
};

/// Helper numbers of `bpf.h`.
const BPF_FUNC_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_FUNC_MAP_UPDATE_ELEM: i32 = 2;
const BPF_FUNC_KTIME_GET_NS: i32 = 5;
const BPF_FUNC_TAIL_CALL: i32 = 12;
const BPF_FUNC_JIFFIES64: i32 = 118;
/// What a program answers that could not do its work.
const XDP_ABORTED: i32 = 0;

/// Offsets in an Ethernet II frame with an IPv4 header without options (RFC 791).
const ETHER_TYPE: i16 = 12;
const IPV4_SOURCE: i16 = 14 + 12;
const IPV4_END: i32 = 14 + 20;
/// Where the generator keeps its state: in the payload of a UDP datagram, which nobody reads.
pub const SEED: usize = 14 + 20 + 8 + 2;
/// A frame must be as long for the generator to find its state.
const SEED_END: i32 = SEED as i32 + 4;

/// Multiplier and increment of a generator that goes through all 2^32 numbers (Numerical Recipes).
const MULTIPLIER: i32 = 1_664_525;
const INCREMENT: i32 = 1_013_904_223;

/// Places in a program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Pass,
    Drop,
    Found,
    Restart,
}

/// A program being written, with jumps that know their target but not yet their length.
#[derive(Default)]
struct Assembly {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembly {
    fn add<const N: usize>(&mut self, instructions: [Instruction; N]) {
        self.instructions.extend(instructions);
    }

    fn jump(&mut self, instruction: Instruction, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.instructions.push(instruction);
    }

    fn here(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// The program; a jump to a label that is nowhere stays one of no length, to the next
    /// instruction.
    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels.iter().find(|(known, _)| *known == label);
            let distance = target.map_or(0, |(_, place)| place - at - 1);
            let distance = i16::try_from(distance).unwrap_or(i16::MAX);
            self.instructions[at] = self.instructions[at].with_offset(distance);
        }
        self.instructions
    }
}

/// Which clock a bucket reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `bpf_ktime_get_ns`, as nearly every such program does.
    Nanoseconds,
    /// `bpf_jiffies64`, as ours does; a tick lasts so many nanoseconds.
    Ticks(i32),
}

/// A limit for each source: the state that a source's bucket has is one number, as ours.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Its clock.
    pub clock: Clock,
    /// Time that a packet costs.
    pub cost_ns: u64,
    /// How far ahead of the present a bucket may be and still admit.
    pub tolerance_ns: u64,
}

/// A limit for each IPv4 source, kept in an LRU hash: what is written first by whoever writes one.
///
/// # Errors
/// The kernel's.
pub fn lru_bucket(bucket: &Bucket, sources: u32) -> Result<Program> {
    let map = Map::lru_hash(4, 8, sources)?;
    Program::load(c"lru_bucket", &lru_instructions(bucket, &map))
}

fn lru_instructions(bucket: &Bucket, map: &Map) -> Vec<Instruction> {
    let mut program = Assembly::default();
    program.add([
        Instruction::load(Width::Word, R2, R1, 0), // xdp_md.data
        Instruction::load(Width::Word, R3, R1, 4), // xdp_md.data_end
        Instruction::copy(R4, R2),
        Instruction::add(R4, IPV4_END),
    ]);
    program.jump(Instruction::skip_if_greater(R4, R3, 0), Label::Pass);
    program.add([Instruction::load(Width::Half, R0, R2, ETHER_TYPE)]);
    let ipv4 = i32::from(0x0800_u16.to_be());
    program.jump(Instruction::skip_unless_equal(R0, ipv4, 0), Label::Pass);
    program.add([
        Instruction::load(Width::Word, R0, R2, IPV4_SOURCE),
        Instruction::store(Width::Word, R10, -4, R0),
    ]);
    match bucket.clock {
        Clock::Nanoseconds => program.add([Instruction::call(BPF_FUNC_KTIME_GET_NS)]),
        Clock::Ticks(ns_per_tick) => program
            .add([Instruction::call(BPF_FUNC_JIFFIES64), Instruction::multiply(R0, ns_per_tick)]),
    }
    program.add([Instruction::copy(R7, R0)]); // now
    program.add(Instruction::set_map(R1, map));
    program.add([
        Instruction::copy(R2, R10),
        Instruction::add(R2, -4),
        Instruction::call(BPF_FUNC_MAP_LOOKUP_ELEM),
    ]);
    program.jump(Instruction::skip_unless_equal(R0, 0, 0), Label::Found);

    // A source not seen before, or forgotten.
    program.add(Instruction::set_wide(R0, bucket.cost_ns));
    program
        .add([Instruction::add_register(R7, R0), Instruction::store(Width::Double, R10, -16, R7)]);
    program.add(Instruction::set_map(R1, map));
    program.add([
        Instruction::copy(R2, R10),
        Instruction::add(R2, -4),
        Instruction::copy(R3, R10),
        Instruction::add(R3, -16),
        Instruction::set(R4, 0),
        Instruction::call(BPF_FUNC_MAP_UPDATE_ELEM),
    ]);
    program.here(Label::Pass);
    program.add([Instruction::set(R0, XDP_PASS), Instruction::exit()]);

    program.here(Label::Found);
    program.add(Instruction::set_wide(R3, bucket.cost_ns));
    program.add([
        Instruction::load(Width::Double, R1, R0, 0),
        Instruction::subtract_register(R1, R7), // how far ahead the bucket is
    ]);
    program.jump(Instruction::skip_if_signed_less(R1, 0, 0), Label::Restart);
    program.add(Instruction::set_wide(R2, bucket.tolerance_ns));
    program.jump(Instruction::skip_if_signed_greater(R1, R2, 0), Label::Drop);
    program.add([
        Instruction::add_atomically(R0, 0, R3),
        Instruction::set(R0, XDP_PASS),
        Instruction::exit(),
    ]);

    program.here(Label::Restart);
    program.add([
        Instruction::add_register(R7, R3),
        Instruction::store(Width::Double, R0, 0, R7),
        Instruction::set(R0, XDP_PASS),
        Instruction::exit(),
    ]);

    program.here(Label::Drop);
    program.add([Instruction::set(R0, XDP_DROP), Instruction::exit()]);
    program.finish()
}

/// Gives every frame a new source, then runs another program on it.
///
/// The other program is the one that is measured, as it was loaded; it is reached by a tail call
/// to a constant place, which the kernel compiles to a direct jump. The frame lives on from one run
/// to the next, so it carries the generator's state.
#[derive(Debug)]
pub struct Generator {
    program: Program,
    _slot: Map,
}

impl Generator {
    /// 2 to the power of `bits` sources (at most 31), each frame's picked as if at random.
    ///
    /// # Errors
    /// The kernel's, also when it refuses to chain the two.
    pub fn new(bits: u8, to: BorrowedFd<'_>) -> Result<Generator> {
        let slot = Map::program_slot()?;
        let program = Program::load(c"sources", &generator_instructions(bits, &slot))?;
        slot.put_program(to)?;
        Ok(Generator { program, _slot: slot })
    }

    /// The program to run.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

fn generator_instructions(bits: u8, slot: &Map) -> Vec<Instruction> {
    let mut program = Assembly::default();
    program.add([
        Instruction::copy(R6, R1),
        Instruction::load(Width::Word, R2, R1, 0), // xdp_md.data
        Instruction::load(Width::Word, R3, R1, 4), // xdp_md.data_end
        Instruction::copy(R4, R2),
        Instruction::add(R4, SEED_END),
    ]);
    program.jump(Instruction::skip_if_greater(R4, R3, 0), Label::Drop);
    program.add([
        Instruction::load(Width::Word, R0, R2, SEED as i16),
        Instruction::multiply_word(R0, MULTIPLIER),
        Instruction::add_word(R0, INCREMENT),
        Instruction::store(Width::Word, R2, SEED as i16, R0),
        // The low bits of such a generator repeat soon, the high ones do not.
        Instruction::shift_right(R0, 32 - i32::from(bits.clamp(1, 31))),
        Instruction::store(Width::Word, R2, IPV4_SOURCE, R0),
        Instruction::copy(R1, R6),
    ]);
    program.add(Instruction::set_map(R2, slot));
    program.add([Instruction::set(R3, 0), Instruction::call(BPF_FUNC_TAIL_CALL)]);
    // Only where there is nothing to call.
    program.here(Label::Drop);
    program.add([Instruction::set(R0, XDP_ABORTED), Instruction::exit()]);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_reach_their_labels() {
        let mut program = Assembly::default();
        program.jump(Instruction::skip_unless_equal(R0, 0, 0), Label::Found);
        program.add([Instruction::set(R0, 1), Instruction::exit()]);
        program.here(Label::Found);
        program.add([Instruction::exit()]);
        assert_eq!(program.finish()[0], Instruction::skip_unless_equal(R0, 0, 2));
    }
}
