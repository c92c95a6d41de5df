//! The XDP program. It exists for the BPF target only; on the host this is an empty program, so
//! that every ordinary cargo command works on the whole workspace.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod program;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
