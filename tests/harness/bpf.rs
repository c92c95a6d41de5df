//! Small XDP programs written by hand, and the few bpf(2) calls they need.
//!
//! The product's program is built with a toolchain of its own; what stands against it in a test (a
//! packet generator, somebody else's program on the same interface) shares nothing with it, not even
//! a loader. Layouts are those of `union bpf_attr` in Linux's `include/uapi/linux/bpf.h`.

use std::{
    ffi::{CStr, c_char},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// bpf(2) commands.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
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

/// Widths of loads and stores (`BPF_W`, `BPF_H`).
#[derive(Clone, Copy, Debug)]
pub enum Width {
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
}

impl Width {
    fn bits(self) -> u8 {
        match self {
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
