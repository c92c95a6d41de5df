//! The kernel's table of bans, filled to its limit with strangers who are nobody here, past the daemon and
//! its agent: as after sixty-five thousand bans, which would take minutes by the command line.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use gateway_ebpf::{Source, abi};
use ipnet::IpNet;

/// The first stranger: 198.18.0.0/15 is for measurements (RFC 2544), and has twice as many addresses.
const STRANGERS: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// The table, and the strangers in it.
pub(super) struct Table {
    bans: HashMap<MapData, u64, abi::Ban>,
    /// What each of them is banned by.
    row: abi::Ban,
    strangers: Vec<u64>,
}

impl Table {
    /// The daemon's; strangers will be banned for as long as that source is.
    pub(super) fn open(pins: &Path, banned: &str) -> Result<Table> {
        let place = pins.join(format!("v{}", abi::LAYOUT_VERSION)).join(abi::BANS_MAP);
        let map = MapData::from_pin(&place).with_context(|| place.display().to_string())?;
        let bans = HashMap::<_, u64, abi::Ban>::try_from(Map::HashMap(map))?;
        let IpNet::V4(net) = banned.parse()? else { bail!("{banned} is not IPv4") };
        let row = bans.get(&key(net.addr()), 0).context("the ban that is in the table")?;
        Ok(Table { bans, row, strangers: Vec::new() })
    }

    /// Bans strangers until nothing more fits.
    pub(super) fn fill(&mut self) -> Result<()> {
        for number in self.strangers.len()..=abi::BANS_MAX as usize {
            let stranger = key((STRANGERS + u32::try_from(number)?).into());
            if self.bans.insert(stranger, self.row, 0).is_err() {
                return Ok(());
            }
            self.strangers.push(stranger);
        }
        bail!("it takes more than its limit")
    }

    /// Forgets the strangers.
    pub(super) fn empty(mut self) -> Result<()> {
        for stranger in &self.strangers {
            self.bans.remove(stranger)?;
        }
        Ok(())
    }
}

fn key(address: Ipv4Addr) -> u64 {
    Source::ipv4(address.to_bits()).word()
}
