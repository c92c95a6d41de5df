//! Small XDP programs written by hand, and the few bpf(2) calls they need.
//!
//! The product's program is built with a toolchain of its own; what stands against it in a test (a
//! packet generator, somebody else's program on the same interface) shares nothing with it, not even
//! a loader. Layouts are those of `union bpf_attr` in Linux's `include/uapi/linux/bpf.h`.

use std::{
    collections::BTreeSet,
    ffi::{CStr, c_char},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// bpf(2) commands.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Frames are really sent where the program says; since Linux 5.18.
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What an XDP program answers.
pub const XDP_DROP: i32 = 1;
/// The frame goes on into the stack.
pub const XDP_PASS: i32 = 2;

/// A register of the BPF machine.
#[derive(Clone, Copy, Debug)]
pub struct Register(u8);

/// Return value, and a helper's result.
pub const R0: Register = Register(0);
/// First argument; the context at the start.
pub const R1: Register = Register(1);
/// Second argument.
pub const R2: Register = Register(2);
/// Third argument.
pub const R3: Register = Register(3);
/// Fourth argument.
pub const R4: Register = Register(4);
/// Kept over calls.
pub const R6: Register = Register(6);
/// Kept over calls.
pub const R7: Register = Register(7);
/// The end of the stack, which grows downwards; read only.
pub const R10: Register = Register(10);

/// Widths of loads and stores (`BPF_DW`, `BPF_W`, `BPF_H`).
#[derive(Clone, Copy, Debug)]
pub enum Width {
    /// Eight bytes.
    Double,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
}

impl Width {
    fn bits(self) -> u8 {
        match self {
            Width::Double => 0x18,
            Width::Word => 0x00,
            Width::Half => 0x08,
        }
    }
}

/// One instruction, as the kernel reads it: opcode, registers, offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The instructions the programs here use (RFC 9669).
impl Instruction {
    fn new(opcode: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Instruction {
        Instruction { opcode, registers: to.0 | (from.0 << 4), offset, immediate }
    }

    /// `to = value`
    pub fn set(to: Register, value: i32) -> Instruction {
        Instruction::new(0xb7, to, R0, 0, value)
    }

    /// `to = from`
    pub fn copy(to: Register, from: Register) -> Instruction {
        Instruction::new(0xbf, to, from, 0, 0)
    }

    /// `to += value`
    pub fn add(to: Register, value: i32) -> Instruction {
        Instruction::new(0x07, to, R0, 0, value)
    }

    /// `to += from`
    pub fn add_register(to: Register, from: Register) -> Instruction {
        Instruction::new(0x0f, to, from, 0, 0)
    }

    /// `to &= value`
    pub fn and(to: Register, value: i32) -> Instruction {
        Instruction::new(0x57, to, R0, 0, value)
    }

    /// `to ^= value`
    pub fn xor(to: Register, value: i32) -> Instruction {
        Instruction::new(0xa7, to, R0, 0, value)
    }

    /// `to >>= value`, logical
    pub fn shift_right(to: Register, value: i32) -> Instruction {
        Instruction::new(0x77, to, R0, 0, value)
    }

    /// `to = *(from + offset)`
    pub fn load(width: Width, to: Register, from: Register, offset: i16) -> Instruction {
        Instruction::new(0x61 | width.bits(), to, from, offset, 0)
    }

    /// `*(to + offset) = from`
    pub fn store(width: Width, to: Register, offset: i16, from: Register) -> Instruction {
        Instruction::new(0x63 | width.bits(), to, from, offset, 0)
    }

    /// `if left > right skip over the next instructions`
    pub fn skip_if_greater(left: Register, right: Register, skip: i16) -> Instruction {
        Instruction::new(0x2d, left, right, skip, 0)
    }

    /// `to -= from`
    pub fn subtract_register(to: Register, from: Register) -> Instruction {
        Instruction::new(0x1f, to, from, 0, 0)
    }

    /// `to *= value`
    pub fn multiply(to: Register, value: i32) -> Instruction {
        Instruction::new(0x27, to, R0, 0, value)
    }

    /// `to = (to * value) modulo 2^32`
    pub fn multiply_word(to: Register, value: i32) -> Instruction {
        Instruction::new(0x24, to, R0, 0, value)
    }

    /// `to = (to + value) modulo 2^32`
    pub fn add_word(to: Register, value: i32) -> Instruction {
        Instruction::new(0x04, to, R0, 0, value)
    }

    /// `*(to + offset) += from`, atomically, eight bytes
    pub fn add_atomically(to: Register, offset: i16, from: Register) -> Instruction {
        Instruction::new(0xdb, to, from, offset, 0)
    }

    /// `if left != value skip over the next instructions`
    pub fn skip_unless_equal(left: Register, value: i32, skip: i16) -> Instruction {
        Instruction::new(0x55, left, R0, skip, value)
    }

    /// `if left > right skip over the next instructions`, signed
    pub fn skip_if_signed_greater(left: Register, right: Register, skip: i16) -> Instruction {
        Instruction::new(0x6d, left, right, skip, 0)
    }

    /// `if left < value skip over the next instructions`, signed
    pub fn skip_if_signed_less(left: Register, value: i32, skip: i16) -> Instruction {
        Instruction::new(0xc5, left, R0, skip, value)
    }

    /// `to = map`; takes the room of two instructions
    pub fn set_map(to: Register, map: &Map) -> [Instruction; 2] {
        // The source register says that the number is a map's descriptor (BPF_PSEUDO_MAP_FD).
        let first = Instruction::new(0x18, to, R1, 0, map.descriptor.as_raw_fd());
        [first, Instruction::new(0, R0, R0, 0, 0)]
    }

    /// `to = value`, all 64 bits; takes the room of two instructions
    pub fn set_wide(to: Register, value: u64) -> [Instruction; 2] {
        // The halves are stored as they are; truncation is what splits them.
        let (low, high) = (value as i32, (value >> 32) as i32);
        [Instruction::new(0x18, to, R0, 0, low), Instruction::new(0, R0, R0, 0, high)]
    }

    /// The same instruction with another offset: for a jump, with another distance.
    pub fn with_offset(self, offset: i16) -> Instruction {
        Instruction { offset, ..self }
    }

    /// Calls a helper by its number in `bpf.h`.
    pub fn call(helper: i32) -> Instruction {
        Instruction::new(0x85, R0, R0, 0, helper)
    }

    /// Returns R0.
    pub fn exit() -> Instruction {
        Instruction::new(0x95, R0, R0, 0, 0)
    }
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[derive(Default)]
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[derive(Default)]
#[repr(C)]
struct ElementAttributes {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[derive(Default)]
#[repr(C)]
struct IdAttributes {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[derive(Default)]
#[repr(C)]
struct TestRunAttributes {
    program: u32,
    returned: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    _pad: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Default)]
#[repr(C)]
struct InfoAttributes {
    program: u32,
    info_bytes: u32,
    info: u64,
}

/// The first fields of `struct bpf_prog_info`.
#[derive(Default)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: u64,
    machine_code_bytes: u32,
    translated_bytes: u32,
    machine_code: u64,
    translated: u64,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[derive(Default)]
#[repr(C)]
struct LinkAttributes {
    program: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

/// Calls bpf(2).
fn bpf<Attributes>(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a live, exclusively borrowed, fully initialised `repr(C)` prefix of
    // `union bpf_attr` without implicit padding, and its size is passed along. Every pointer in it
    // was made from a slice that the caller keeps borrowed until this returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes possession of a descriptor that bpf(2) has just made.
fn own(descriptor: libc::c_long) -> Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).context("bpf(2) gave no descriptor")?;
    // SAFETY: the kernel returned this descriptor a moment ago for us alone; nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A number for a field of `union bpf_attr` that holds a pointer.
fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().addr() as u64
}

fn raw(descriptor: &OwnedFd) -> u32 {
    // A descriptor is never negative while it is owned.
    descriptor.as_raw_fd().unsigned_abs()
}

/// A loaded XDP program; unloaded when dropped, unless a link holds it.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
}

impl Program {
    /// Loads one.
    ///
    /// # Errors
    /// The kernel's, with what its verifier said.
    pub fn load(name: &CStr, instructions: &[Instruction]) -> Result<Program> {
        const LICENSE: &CStr = c"GPL";
        let mut log = vec![0_u8; 1 << 16];
        let mut attributes = LoadAttributes {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: u32::try_from(instructions.len())?,
            instructions: address(instructions),
            license: address::<c_char>(as_characters(LICENSE)),
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log: log.as_mut_ptr().addr() as u64,
            // As other loaders do: programs that call each other must agree in it.
            expected_attach_type: BPF_XDP,
            ..LoadAttributes::default()
        };
        // One byte stays zero: the kernel wants the name terminated.
        for (to, from) in attributes.name.iter_mut().take(15).zip(name.to_bytes()) {
            *to = *from;
        }
        let loaded = bpf(BPF_PROG_LOAD, &mut attributes).with_context(|| {
            let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
            format!("the kernel refused an XDP program:\n{}", String::from_utf8_lossy(said))
        })?;
        Ok(Program { descriptor: own(loaded)? })
    }

    /// A program that gives every frame the same verdict.
    ///
    /// # Errors
    /// The kernel's.
    pub fn verdict(name: &CStr, verdict: i32) -> Result<Program> {
        Program::load(name, &[Instruction::set(R0, verdict), Instruction::exit()])
    }

    /// A program that somebody else loaded, by the kernel's number for it.
    ///
    /// # Errors
    /// The kernel's, when there is none.
    pub fn by_id(id: u32) -> Result<Program> {
        let mut attributes = IdAttributes { id, ..IdAttributes::default() };
        let descriptor = bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)
            .with_context(|| format!("there is no program {id}"))?;
        Ok(Program { descriptor: own(descriptor)? })
    }

    /// Runs the program on `frame` `repeat` times, and sends each frame where it says (`XDP_REDIRECT`).
    /// The frames' interface is the loopback of the calling thread's namespace. Ends early on a signal.
    ///
    /// # Errors
    /// The kernel's; before Linux 5.18 it does not know how.
    pub fn send(&self, frame: &[u8], repeat: u32, batch: u32) -> io::Result<()> {
        let mut attributes = TestRunAttributes {
            program: raw(&self.descriptor),
            data_in_bytes: u32::try_from(frame.len()).map_err(io::Error::other)?,
            data_in: address(frame),
            repeat,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch,
            ..TestRunAttributes::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attributes).map(drop)
    }

    /// Attaches the program to an interface of the calling thread's namespace, in the driver.
    /// It stays until the link is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(&self, interface_index: u32) -> Result<Link> {
        let mut attributes = LinkAttributes {
            program: raw(&self.descriptor),
            interface_index,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        let link = bpf(BPF_LINK_CREATE, &mut attributes)
            .with_context(|| format!("cannot attach to interface {interface_index}"))?;
        Ok(Link { _descriptor: own(link)? })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What [`run`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's answer to the last frame.
    pub action: u32,
    /// Time for one frame as the kernel measured it, rounded down.
    pub ns_per_frame: u32,
}

/// Runs an XDP program `repeat` times on one frame, of which the kernel makes one copy: what a run
/// writes to it the next one reads.
///
/// # Errors
/// The kernel's; `EINTR` when a signal came.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut attributes = TestRunAttributes {
        program: program.as_raw_fd().unsigned_abs(),
        data_in_bytes: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: address(frame),
        repeat,
        ..TestRunAttributes::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(Ran { action: attributes.returned, ns_per_frame: attributes.duration })
}

/// The functions of the kernel that a loaded program calls, by the kernel's numbers for them: what it
/// did not put into the program itself instead of a call.
///
/// # Errors
/// The kernel's.
pub fn called(program: BorrowedFd<'_>) -> io::Result<BTreeSet<i32>> {
    /// `BPF_JMP | BPF_CALL` (RFC 9669 section 4.3).
    const CALL: u8 = 0x85;
    let ask = |info: &mut ProgramInfo| {
        let mut attributes = InfoAttributes {
            program: program.as_raw_fd().unsigned_abs(),
            info_bytes: u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?,
            info: std::ptr::from_mut(info).addr() as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)
    };
    let mut info = ProgramInfo::default();
    ask(&mut info)?;
    let count = info.translated_bytes as usize / size_of::<Instruction>();
    let mut translated = vec![Instruction::new(0, R0, R0, 0, 0); count];
    let mut info = ProgramInfo {
        translated_bytes: info.translated_bytes,
        translated: translated.as_mut_ptr().addr() as u64,
        ..ProgramInfo::default()
    };
    ask(&mut info)?;
    // The upper half of the registers says what kind of function: 0 is one of the kernel's.
    let calls = translated.iter().filter(|at| at.opcode == CALL && at.registers >> 4 == 0);
    Ok(calls.map(|call| call.immediate).collect())
}

/// A map; gone when dropped, unless a program holds it.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
}

impl Map {
    /// A hash that forgets what was used longest ago, with keys and values of these sizes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lru_hash(key_bytes: u32, value_bytes: u32, entries: u32) -> Result<Map> {
        Map::new(MapAttributes {
            kind: BPF_MAP_TYPE_LRU_HASH,
            key_bytes,
            value_bytes,
            entries,
            flags: 0,
        })
    }

    /// A place for one program that another calls.
    ///
    /// # Errors
    /// The kernel's.
    pub fn program_slot() -> Result<Map> {
        Map::new(MapAttributes {
            kind: BPF_MAP_TYPE_PROG_ARRAY,
            key_bytes: 4,
            value_bytes: 4,
            entries: 1,
            flags: 0,
        })
    }

    fn new(mut attributes: MapAttributes) -> Result<Map> {
        let descriptor = bpf(BPF_MAP_CREATE, &mut attributes).context("cannot make a map")?;
        Ok(Map { descriptor: own(descriptor)? })
    }

    /// Puts a program into a [`Map::program_slot`] that a loaded program already uses.
    ///
    /// # Errors
    /// The kernel's, also when the two programs cannot call each other.
    pub fn put_program(&self, program: BorrowedFd<'_>) -> Result<()> {
        let (key, value) = ([0_u32], [program.as_raw_fd()]);
        let mut attributes = ElementAttributes {
            map: raw(&self.descriptor),
            key: address(&key),
            value: address(&value),
            ..ElementAttributes::default()
        };
        bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).context("cannot chain two programs")?;
        Ok(())
    }
}

/// Replaces one value of an array, which is as long as `value`.
///
/// # Errors
/// The kernel's.
pub fn write_element(map: BorrowedFd<'_>, index: u32, value: &[u64]) -> Result<()> {
    let key = [index];
    let mut attributes = ElementAttributes {
        map: map.as_raw_fd().unsigned_abs(),
        key: address(&key),
        value: address(value),
        ..ElementAttributes::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).context("cannot write to a map")?;
    Ok(())
}

/// Holds a program on an interface.
#[derive(Debug)]
pub struct Link {
    _descriptor: OwnedFd,
}

/// The bytes of a C string with its end, as the slice type that [`address`] takes.
fn as_characters(text: &CStr) -> &[c_char] {
    let bytes = text.to_bytes_with_nul();
    // SAFETY: `c_char` is one byte wide and any byte is a valid one; length and lifetime stay.
    unsafe { std::slice::from_raw_parts(text.as_ptr(), bytes.len()) }
}
