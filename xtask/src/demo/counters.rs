//! The XDP program's counters, read from the pinned map itself.
//!
//! Quicker than any command of the daemon, and readable when there is no daemon: both are what the
//! demonstration has to show.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use gateway_ebpf::{
    Outcome,
    abi::{self, COUNTERS_MAP, INTERFACES_MAP, INTERFACES_MAX, Interface},
};

/// Packets of one interface.
pub struct Counters {
    map: PerCpuArray<MapData, abi::Counters>,
    slot: u32,
}

impl Counters {
    /// Opens the counters pinned somewhere below `pins`, for one interface.
    ///
    /// # Errors
    /// When nothing is pinned there, or the interface is not guarded.
    pub fn open(pins: &Path, interface: &str) -> Result<Counters> {
        let interfaces = MapData::from_pin(find(pins, INTERFACES_MAP)?)?;
        let interfaces: Array<_, Interface> = Map::Array(interfaces).try_into()?;
        let is_ours = |slot: &u32| {
            let Ok(Interface { name }) = interfaces.get(slot, 0) else { return false };
            name.split(|byte| *byte == 0).next() == Some(interface.as_bytes())
        };
        let slot = (0..INTERFACES_MAX).find(is_ours);
        let slot = slot.with_context(|| format!("no slot belongs to {interface}"))?;
        let map = MapData::from_pin(find(pins, COUNTERS_MAP)?)?;
        Ok(Counters { map: Map::PerCpuArray(map).try_into()?, slot })
    }

    /// Packets dropped for this reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn dropped(&self, outcome: Outcome) -> Result<u64> {
        self.cell(abi::cell(outcome, true))
    }

    /// Packets that would have been dropped for this reason, were the program enforcing.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn would_be_dropped(&self, outcome: Outcome) -> Result<u64> {
        self.cell(abi::cell(outcome, false))
    }

    /// Packets that came at all, whatever became of them.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn received(&self) -> Result<u64> {
        (0..abi::EVICTIONS_CELL).map(|cell| self.cell(cell)).sum()
    }

    fn cell(&self, cell: u32) -> Result<u64> {
        let of_cpus = self.map.get(&self.slot, 0)?;
        let counts = of_cpus.iter().filter_map(|of_cpu| of_cpu.cells.get(cell as usize));
        Ok(counts.map(|count| count.packets).sum())
    }
}

/// The pin of this name, in the directory or in one directly below.
fn find(pins: &Path, name: &str) -> Result<PathBuf> {
    let mut places = vec![pins.to_owned()];
    for entry in fs::read_dir(pins).with_context(|| pins.display().to_string())?.flatten() {
        places.push(entry.path());
    }
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.exists());
    found.with_context(|| format!("no map {name} is pinned below {}", pins.display()))
}
