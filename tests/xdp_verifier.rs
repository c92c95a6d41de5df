//! What the kernel's verifier makes of the programs: how much of its patience they use.

use aya::programs::Xdp;
use gateway::kernel::maps;
use gateway_ebpf::{abi, rehearsal};

use crate::{harness::clock, xdp_packets::may_load_programs};

/// The verifier gives up after walking a million instructions (`BPF_COMPLEXITY_LIMIT_INSNS`, since
/// 5.2). Kernels differ in what they walk twice; a quarter leaves room for those not tried.
const WALKED_MAX: u32 = 250_000;

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
