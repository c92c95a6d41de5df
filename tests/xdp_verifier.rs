//! What the kernel's verifier makes of the programs: how much of its patience they use.

use std::{fs, os::fd::AsFd as _};

use aya::programs::Xdp;
use gateway::kernel::maps;
use gateway_ebpf::{abi, rehearsal};

use crate::{
    harness::{bpf, clock},
    xdp_packets::may_load_programs,
};

/// The verifier gives up after walking a million instructions (`BPF_COMPLEXITY_LIMIT_INSNS`, since
/// 5.2). Kernels differ in what they walk twice: 6.1 walks twice as much as 6.12 does; a third leaves
/// room for those not tried.
const WALKED_MAX: u32 = 333_000;

#[test]
fn the_verifier_needs_a_fraction_of_its_patience() {
    if !may_load_programs() {
        return;
    }
    let mut object = maps::load(None, 0, 1_000_000).unwrap();
    for name in [abi::PROGRAM, abi::TICK_PROGRAM, rehearsal::PROGRAM] {
        let program: &mut Xdp = object.program_mut(name).unwrap().try_into().unwrap();
        let started = clock::now();
        program.load().unwrap();
        let load = started.elapsed();
        let info = program.info().unwrap();
        // Told since 5.16.
        let walked = info.verified_instruction_count().map_or_else(
            || "an untold number of instructions".to_owned(),
            |walked| {
                assert!(walked < WALKED_MAX, "{name}: {walked} instructions walked");
                format!("{walked} instructions")
            },
        );
        let octets = |size: Option<u32>| size.map_or("untold".into(), |size| size.to_string());
        println!(
            "verifier: {name}: walked {walked}, {} octets translated, {} octets of machine code, \
             loaded in {} ms",
            octets(info.size_translated()),
            info.size_jitted(),
            load.as_millis()
        );
    }
}

/// The first kernel that looks into an array of each CPU without a call, on x86-64 and arm64.
const NO_CALL_FOR_COUNTERS: (u32, u32) = (6, 10);

#[test]
fn no_packet_calls_the_kernel_but_for_hashes_tries_and_events() {
    if !may_load_programs() {
        return;
    }
    let mut object = maps::load(None, 0, 1_000_000).unwrap();
    let program: &mut Xdp = object.program_mut(abi::PROGRAM).unwrap().try_into().unwrap();
    program.load().unwrap();
    let called = bpf::called(program.fd().unwrap().as_fd()).unwrap();
    println!("verifier: {} of the kernel's functions are called", called.len());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap(), numbers.next().unwrap());
    // A lookup in a hash, one in a trie, and for an event the clock and the ring buffer; the tables,
    // the counters and the tick are read without a call. The filters keep ordinary packets from the
    // hash and the tries.
    let most = if kernel >= NO_CALL_FOR_COUNTERS { 4 } else { 5 };
    assert!((1..=most).contains(&called.len()), "{called:?} on {release}");
}
