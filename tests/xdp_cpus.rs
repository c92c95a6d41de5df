//! Two CPUs and one source, by the kernel's clock: together they get what the source may have.
//!
//! A single CPU can never show what goes wrong here. The time is told in the ticks that the program
//! judges by: an emulated machine makes up for late ticks all at once, so that the clock on the wall
//! tells of less time than the program saw. Only the upper bound is asserted: a machine that stalls
//! for longer than a burst lasts loses the source some of it.

use std::{sync::Barrier, thread, time::Duration};

use aya::programs::{TestRun as _, TestRunOptions};
use gateway::kernel::{
    maps,
    tick::{TickReader, ns_per_jiffy},
};
use gateway_ebpf::{Outcome, abi, bucket::Limit};

use crate::{
    harness::{clock, flood::pin_to_core},
    xdp_frames::{SYN, TCP, UDP, frame, ip, tcp, udp},
    xdp_packets::{Loaded, Rules, may_load_programs},
    xdp_table::unlimited,
};

const S: u64 = 1_000_000_000;
/// How long both send.
const SENDING: Duration = Duration::from_millis(1_500);
/// Frames of one call: some milliseconds, so that both end when they should.
const FRAMES_PER_CALL: u32 = 20_000;
/// Each CPU may take a token that the other took at that moment; it is charged, so only the last
/// ones count.
const TOGETHER_MAX: f64 = 1.02;

/// Sends a frame from two CPUs at once for a while, and tells how many frames passed, out of how
/// many, and how long it took by the kernel's tick: from before the first frame to after the last.
fn hammer(rules: &Rules, frame: &[u8]) -> (u64, u64, Duration) {
    let mut loaded = Loaded::new(rules);
    loaded.settings.ns_per_jiffy = ns_per_jiffy().unwrap();
    loaded.maps.write_settings(&loaded.settings);
    let program = loaded.program(abi::PROGRAM);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let together = Barrier::new(2);
    let ticks = TickReader::load(maps::load(None, 0, 1_000).unwrap()).unwrap();
    let first = ticks.read().unwrap();
    let started = clock::now();
    thread::scope(|scope| {
        for core in 0..2 {
            let together = &together;
            scope.spawn(move || {
                pin_to_core(core % cores).unwrap();
                together.wait();
                while started.elapsed() < SENDING {
                    let options = TestRunOptions {
                        data_in: Some(frame),
                        repeat: FRAMES_PER_CALL,
                        ..TestRunOptions::new()
                    };
                    program.test_run(options).unwrap();
                }
            });
        }
    });
    let last = ticks.read().unwrap();
    let elapsed_ns = (last.jiffies - first.jiffies) * loaded.settings.ns_per_jiffy;
    let counts = loaded.counts();
    let count = |outcome| counts[abi::cell(outcome, true) as usize].packets;
    let all = Outcome::ALL.map(count).iter().sum();
    (count(Outcome::WithinLimit), all, Duration::from_nanos(elapsed_ns))
}

#[test]
fn two_cpus_together_get_one_sources_rate_and_burst() {
    if !may_load_programs() {
        return;
    }
    let packet = frame(&ip("192.0.2.1", UDP, &udp(8443, &[0; 18])));
    let syn = frame(&ip("192.0.2.1", TCP, &tcp(8443, SYN)));
    let mut long = packet.clone();
    long.resize(1_000, 0);
    // A second's rate, and the burst, in frames.
    for (what, rules, frame, rate, burst) in [
        (
            "packets, 1,000/s",
            Rules { limit: Limit::new(1_000, S, 20), ..unlimited() },
            &packet,
            1_000.0,
            20.0,
        ),
        (
            "packets, 100,000/s",
            Rules { limit: Limit::new(100_000, S, 2_000), ..unlimited() },
            &packet,
            100_000.0,
            2_000.0,
        ),
        // A burst of which each CPU lets out some hundred packets on a tab.
        (
            "packets, 100,000/s and at once",
            Rules { limit: Limit::new(100_000, S, 100_000), ..unlimited() },
            &packet,
            100_000.0,
            100_000.0,
        ),
        (
            "connections, 10,000/s",
            Rules { connections: Limit::new(10_000, S, 2_000), ..unlimited() },
            &syn,
            10_000.0,
            2_000.0,
        ),
        (
            "octets, 20 MB/s",
            Rules { bytes: Limit::octets(20_000_000, 2_000_000), ..unlimited() },
            &long,
            20_000.0,
            2_000.0,
        ),
    ] {
        let (passed, all, elapsed) = hammer(&rules, frame);
        let allowed = elapsed.as_secs_f64() * rate;
        let share = (passed as f64 - burst) / allowed;
        println!("{what}: {passed} of {all} passed, {share:.3} of the rate besides the burst");
        assert!(passed as f64 <= TOGETHER_MAX * allowed + burst, "{what}: {share}");
        assert!(all > passed, "{what}: all of {all} frames passed, which shows nothing");
    }
}
