//! The shipped XDP program, loaded for measuring: the object that the daemon embeds, unchanged,
//! with maps of its own, attached to nothing.

use std::{
    mem::offset_of,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use gateway_ebpf::{
    Outcome, Source,
    abi::{self, BAN_WAYS, Ban, BanSet, Counters, FAMILY_BITS, PrefixData, Rules as InKernel},
    bucket::{self, Limit},
    packet::Address,
    verdict::NETWORK_DOUBLINGS,
};
use nix::time::{ClockId, clock_getres};

use crate::harness::bpf;

/// Any will do; the daemon draws one.
const SECRET: u64 = 0x9e37_79b9_7f4a_7c15;
/// The only slot that is used.
const SLOT: u32 = 0;
/// Bans that every instance holds besides its own, as a gateway under attack does: they fill the
/// filter in front of the map a little. They are of IPv6, so no IPv4 frame here meets one.
const OTHER_BANS: u64 = 1_000;
/// Longer than any measurement, shorter than what a signed difference can hold.
const LONG_NS: u64 = 1 << 60;

/// What an instance is told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The guarded port.
    pub port: u16,
    /// Packets of each source.
    pub packets: Limit,
    /// Connections of each source.
    pub connections: Limit,
    /// Octets of each source.
    pub bytes: Limit,
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
    counters: PerCpuArray<MapData, Counters>,
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
            .map_max_entries(abi::SOURCES_MAP, abi::bucket_sets(rules.sources))
            .map_max_entries(abi::OTHERS_MAP, abi::bucket_sets(rules.sources))
            .load_file(path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        for name in [abi::PROGRAM, abi::TICK_PROGRAM] {
            let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        let counters = take(&mut object, abi::COUNTERS_MAP)?;
        let mut guard = Guard { object, counters, ns_per_jiffy: ns_per_jiffy()? };
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
        let cell = abi::cell(outcome, true) as usize;
        let of_cpus = self.counters.get(&SLOT, 0)?;
        Ok(of_cpus.iter().map(|of_cpu| of_cpu.cells[cell].packets).sum())
    }

    fn xdp(&self, name: &str) -> Result<&Xdp> {
        let program = self.object.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn jiffies(&self) -> Result<u64> {
        let mut written = [0_u8; 64];
        self.xdp(abi::TICK_PROGRAM)?.test_run(TestRunOptions {
            data_in: Some(&[0; 64]),
            data_out: Some(&mut written),
            ..TestRunOptions::new()
        })?;
        let mut octets = [0; 8];
        octets.copy_from_slice(&written[..8]);
        Ok(u64::from_ne_bytes(octets))
    }

    fn write(&mut self, rules: &Rules) -> Result<()> {
        let now_ns = self.jiffies()?.wrapping_mul(self.ns_per_jiffy);
        let mut memory = Memory(vec![0; size_of::<InKernel>() / size_of::<u64>()]);
        memory.mark(offset_of!(InKernel, ports) + usize::from(rules.port), abi::PORT_GUARDED);
        self.write_bans(&rules.banned, now_ns.wrapping_add(LONG_NS), &mut memory)?;
        if let Some(exempt) = rules.exempt {
            self.write_exempt(exempt, &mut memory)?;
        }
        let Rules { packets, connections, bytes, .. } = rules;
        let settings = [
            *packets,
            *connections,
            *bytes,
            packets.doubled(NETWORK_DOUBLINGS),
            connections.doubled(NETWORK_DOUBLINGS),
            Limit::NONE,
        ];
        let settings = settings.iter().flat_map(|limit| [limit.cost_ns, limit.tolerance_ns]);
        let set_shift = abi::set_shift(abi::bucket_sets(rules.sources));
        let settings = settings.chain([self.ns_per_jiffy, SECRET, set_shift, 1]);
        for (word, value) in memory.0.iter_mut().zip(settings) {
            *word = value;
        }
        let Some(Map::Array(map)) = self.object.map(abi::RULES_MAP) else { bail!("no rules") };
        bpf::write_element(map.fd().as_fd(), 0, &memory.0)
    }

    fn write_bans(
        &mut self,
        banned: &[IpAddr],
        expires_ns: u64,
        memory: &mut Memory,
    ) -> Result<()> {
        let mut bans: HashMap<_, u64, Ban> = take(&mut self.object, abi::BANS_MAP)?;
        let others = (0..OTHER_BANS).map(|n| Source::ipv6(0x2001_0db8_0001_0000 | n));
        for source in banned.iter().map(|ip| address(*ip).source()).chain(others) {
            bans.insert(source.word(), Ban { expires_ns, ..Ban::default() }, 0)?;
            let bit = abi::ban_bit(bucket::hash(source, SECRET)) as usize;
            memory.0[offset_of!(InKernel, ban_filter) / 8 + bit / 64] |= 1 << (bit % 64);
            let set = (offset_of!(InKernel, ban_sets) + bit / 64 * size_of::<BanSet>()) / 8;
            let mut ways = memory.0[set..set + 2 * BAN_WAYS].chunks_exact_mut(2);
            if let Some(way) = ways.find(|way| way[1] == 0) {
                way.copy_from_slice(&[source.word(), expires_ns]);
            }
        }
        Ok(())
    }

    fn write_exempt(&mut self, exempt: IpAddr, memory: &mut Memory) -> Result<()> {
        let mut trie: LpmTrie<_, PrefixData, u32> = take(&mut self.object, abi::EXEMPT_MAP)?;
        let address_bits = if exempt.is_ipv4() { 32 } else { 128 };
        let data = abi::prefix_data(address(exempt));
        trie.insert(&Key::new(FAMILY_BITS + address_bits, data), 1, 0)?;
        let place = abi::prefix_place(address(exempt)) as usize;
        memory.mark(offset_of!(InKernel, prefixes) + place, abi::PREFIX_EXEMPT);
        Ok(())
    }
}

/// The program's rules as words, before they are written.
struct Memory(Vec<u64>);

impl Memory {
    /// Sets a mark in the octet at this offset.
    fn mark(&mut self, at: usize, mark: u8) {
        let mut octets = self.0[at / 8].to_ne_bytes();
        octets[at % 8] |= mark;
        self.0[at / 8] = u64::from_ne_bytes(octets);
    }
}

/// The length of a tick, as the daemon learns it too: the resolution of the coarse clock.
fn ns_per_jiffy() -> Result<u64> {
    let told = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
    Ok(u64::try_from(told.as_nanos())?)
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
