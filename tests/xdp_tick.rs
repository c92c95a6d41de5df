//! The program's clock: the kernel's tick, of the length that the kernel tells.

use std::{thread, time::Duration};

use gateway::kernel::{
    maps,
    tick::{TickReader, ns_per_jiffy},
};

use crate::xdp_packets::may_load_programs;

/// Many ticks of any kernel.
const LOOK: Duration = Duration::from_millis(400);

#[test]
fn as_much_time_passes_in_ticks_as_on_the_kernels_other_clock() {
    if !may_load_programs() {
        return;
    }
    let reader = TickReader::load(maps::load(None, 0, 1_000).unwrap()).unwrap();
    let first = reader.read().unwrap();
    thread::sleep(LOOK);
    let last = reader.read().unwrap();
    let told_ns = (last.jiffies - first.jiffies) * ns_per_jiffy().unwrap();
    let passed_ns = last.monotonic_ns - first.monotonic_ns;
    // The next length that there is differs by a factor; a busy machine makes up for ticks late.
    assert!(told_ns.abs_diff(passed_ns) < passed_ns / 2, "{told_ns} ns in {passed_ns} ns");
}
