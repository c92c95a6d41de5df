//! The shipped XDP program, loaded for measuring: the object that the daemon embeds, unchanged,
//! with maps of its own, attached to nothing.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use gateway_ebpf::{
    Outcome, Source,
    abi::{self, Ban, Count, FAMILY_BITS, PortWord, PrefixData, PrefixWord},
    bucket::{self, Limit},
    packet::Address,
};

use crate::harness::clock;

/// Any will do; the daemon draws one.
const SECRET: u64 = 0x9e37_79b9_7f4a_7c15;
/// The only slot that is used.
const SLOT: u32 = 0;
/// Bans that every instance holds besides its own, as a gateway under attack does: they fill the
/// filter in front of the map a little. They are of IPv6, so no IPv4 frame here meets one.
const OTHER_BANS: u64 = 1_000;
/// Longer than any measurement, shorter than what a signed difference can hold.
const LONG_NS: u64 = 1 << 60;
/// How long the tick is measured; tells 250 Hz from 300 Hz with certainty.
const TICK_MEASURE_MS: u64 = 200;

/// What an instance is told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The guarded port.
    pub port: u16,
    /// For each source.
    pub limit: Limit,
    /// Buckets for so many.
    pub sources: u32,
    /// Sources that are banned.
    pub banned: Vec<IpAddr>,
    /// A host that is never dropped.
    pub exempt: Option<IpAddr>,
}

/// One instance.
pub struct Guard {
    object: Ebpf,
    counters: PerCpuArray<MapData, Count>,
    /// Length of the kernel's tick.
    pub ns_per_jiffy: u64,
}

impl Guard {
    /// Loads one from the object in `path`.
    ///
    /// # Errors
    /// The kernel's, or when the object is not the one that this source makes.
    pub fn load(path: &Path, rules: &Rules) -> Result<Guard> {
        let mut object = EbpfLoader::new()
            .override_global(abi::SLOT_SYMBOL, &SLOT, true)
            .map_max_entries(abi::BUCKETS_MAP, abi::bucket_sets(rules.sources))
            .load_file(path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        for name in [abi::PROGRAM, abi::TICK_PROGRAM] {
            let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        let counters = take(&mut object, abi::COUNTERS_MAP)?;
        let mut guard = Guard { object, counters, ns_per_jiffy: 0 };
        guard.ns_per_jiffy = guard.measure_tick()?;
        guard.write(rules)?;
        Ok(guard)
    }

    /// The program that judges frames.
    ///
    /// # Errors
    /// None after a successful load.
    pub fn program(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.xdp(abi::PROGRAM)?.fd()?.as_fd())
    }

    /// Frames that came to this end so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count(&self, outcome: Outcome) -> Result<u64> {
        let counts = self.counters.get(&(SLOT * abi::CELLS + abi::cell(outcome, true)), 0)?;
        Ok(counts.iter().map(|count| count.packets).sum())
    }

    fn xdp(&self, name: &str) -> Result<&Xdp> {
        let program = self.object.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Jiffies and nanoseconds, read together.
    fn clocks(&self) -> Result<(u64, u64)> {
        let mut written = [0_u8; 64];
        self.xdp(abi::TICK_PROGRAM)?.test_run(TestRunOptions {
            data_in: Some(&[0; 64]),
            data_out: Some(&mut written),
            ..TestRunOptions::new()
        })?;
        let number = |at: usize| {
            let mut octets = [0; 8];
            octets.copy_from_slice(&written[at..at + 8]);
            u64::from_ne_bytes(octets)
        };
        Ok((number(0), number(8)))
    }

    fn measure_tick(&self) -> Result<u64> {
        let (jiffies, ns) = self.clocks()?;
        clock::pause(std::time::Duration::from_millis(TICK_MEASURE_MS))?;
        let (jiffies_later, ns_later) = self.clocks()?;
        nearest_tick(jiffies_later.saturating_sub(jiffies), ns_later.saturating_sub(ns))
            .context("the kernel's tick does not move")
    }

    fn write(&mut self, rules: &Rules) -> Result<()> {
        let (jiffies, _) = self.clocks()?;
        let now_ns = jiffies.wrapping_mul(self.ns_per_jiffy);
        let mut ports: Array<_, PortWord> = take(&mut self.object, abi::PORTS_MAP)?;
        let word = PortWord { guarded: 1 << (rules.port % 64), ..PortWord::default() };
        ports.set(u32::from(rules.port / 64), word, 0)?;
        self.write_bans(&rules.banned, now_ns.wrapping_add(LONG_NS))?;
        if let Some(exempt) = rules.exempt {
            self.write_exempt(exempt)?;
        }
        let mut settings: Array<_, abi::Settings> = take(&mut self.object, abi::SETTINGS_MAP)?;
        let values = abi::Settings {
            packets: rules.limit,
            ns_per_jiffy: self.ns_per_jiffy,
            secret: SECRET,
            set_mask: abi::bucket_sets(rules.sources) - 1,
            enforce: 1,
            ..abi::Settings::default()
        };
        settings.set(0, values, 0)?;
        Ok(())
    }

    fn write_bans(&mut self, banned: &[IpAddr], expires_ns: u64) -> Result<()> {
        let mut bans: HashMap<_, u64, Ban> = take(&mut self.object, abi::BANS_MAP)?;
        let mut filter: Array<_, u64> = take(&mut self.object, abi::BAN_FILTER_MAP)?;
        let others = (0..OTHER_BANS).map(|n| Source::ipv6(0x2001_0db8_0001_0000 | n));
        for source in banned.iter().map(|ip| address(*ip).source()).chain(others) {
            bans.insert(source.word(), Ban { expires_ns, ..Ban::default() }, 0)?;
            let bit = abi::ban_bit(bucket::hash(source, SECRET));
            let word = filter.get(&(bit / 64), 0)?;
            filter.set(bit / 64, word | 1 << (bit % 64), 0)?;
        }
        Ok(())
    }

    fn write_exempt(&mut self, exempt: IpAddr) -> Result<()> {
        let mut trie: LpmTrie<_, PrefixData, u32> = take(&mut self.object, abi::EXEMPT_MAP)?;
        let mut filter: Array<_, PrefixWord> = take(&mut self.object, abi::PREFIX_FILTER_MAP)?;
        let address_bits = if exempt.is_ipv4() { 32 } else { 128 };
        let data = abi::prefix_data(address(exempt));
        trie.insert(&Key::new(FAMILY_BITS + address_bits, data), 1, 0)?;
        let bit = abi::prefix_bit(address(exempt));
        let mut word = filter.get(&(bit / 64), 0)?;
        word.exempt |= 1 << (bit % 64);
        filter.set(bit / 64, word, 0)?;
        Ok(())
    }
}

fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::V4(ip.to_bits()),
        IpAddr::V6(ip) => Address::V6((ip.to_bits() >> 64) as u64, ip.to_bits() as u64),
    }
}

fn take<M: TryFrom<Map, Error: std::error::Error + Send + Sync + 'static>>(
    object: &mut Ebpf,
    name: &str,
) -> Result<M> {
    let map = object.take_map(name).with_context(|| format!("no map {name}"))?;
    Ok(M::try_from(map)?)
}

/// The length of a tick, among those that Linux is built with, that explains so many of them best.
fn nearest_tick(ticks: u64, elapsed_ns: u64) -> Result<u64> {
    ensure!(ticks > 0, "no tick in {elapsed_ns} ns");
    let seen = elapsed_ns / ticks;
    let lengths = [10_000_000, 4_000_000, 3_333_333, 1_000_000];
    lengths.into_iter().min_by_key(|length| seen.abs_diff(*length)).context("the list is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_one_of_those_that_exist() {
        for (ticks, elapsed_ms, length) in [
            (20, 200, 10_000_000),
            (50, 201, 4_000_000),
            (49, 201, 4_000_000),
            (60, 200, 3_333_333),
            (199, 201, 1_000_000),
        ] {
            assert_eq!(nearest_tick(ticks, elapsed_ms * 1_000_000).unwrap(), length, "{ticks}");
        }
        assert!(nearest_tick(0, 1).is_err());
    }
}
