//! What drops the flood, and for whom.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    process::{Child, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};

use super::super::xdp_filter;
use crate::{
    harness::{
        bpf::{Instruction, Link, Program, R0, XDP_DROP},
        flood::Sources,
        netns::Namespace,
        process::{self, words},
        site::{INTERFACE, SERVER},
    },
    setup,
};

/// Where the flood comes from: one address of the cable's network, or many of another.
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 200);
const FLOODERS: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
/// What each source may have, by every filter that has limits.
const LIMIT_PER_S: u32 = 1_000;
/// The same for each of 65,536 sources, so that nearly all is dropped there, too.
const LIMIT_OF_MANY_PER_S: u32 = 1;
const NFT: setup::Program = ("nft", "nftables");
const XDP_FILTER: setup::Program = ("xdp-filter", "xdp-tools");
/// What the others need; without it their rows say that they were not measured.
pub const PROGRAMS: [setup::Program; 2] = [NFT, XDP_FILTER];

/// What drops the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The product.
    Ours,
    /// An XDP program that does nothing but drop: what of the others' figures is the cable's.
    Empty,
    /// nftables before connection tracking, with a limit for each source.
    Nft,
    /// nftables at the card, with a limit for each source.
    NftIngress,
    /// xdp-filter, told of the source.
    Xdp,
    /// The stack itself: the datagram's port is closed.
    Nothing,
}

impl Filter {
    /// In the order in which they take turns.
    pub const ALL: [Filter; 6] = [
        Filter::Ours,
        Filter::Empty,
        Filter::Nft,
        Filter::NftIngress,
        Filter::Xdp,
        Filter::Nothing,
    ];

    /// In tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Filter::Ours => "portcullis",
            Filter::Empty => "empty-program",
            Filter::Nft => "nft-prerouting",
            Filter::NftIngress => "nft-ingress",
            Filter::Xdp => "xdp-filter",
            Filter::Nothing => "no-filter",
        }
    }

    /// The program it needs, and Debian's package of that.
    pub fn program(self) -> Option<setup::Program> {
        match self {
            Filter::Nft | Filter::NftIngress => Some(NFT),
            Filter::Xdp => Some(XDP_FILTER),
            Filter::Ours | Filter::Empty | Filter::Nothing => None,
        }
    }

    /// Whether it tells a client from the flood.
    pub fn lets_clients_through(self) -> bool {
        self != Filter::Empty
    }
}

/// Who sends the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Senders {
    /// One address, over and over.
    One,
    /// 65,536, at random.
    Many,
}

impl Senders {
    /// In tables and results.
    pub fn scenario(self) -> &'static str {
        match self {
            Senders::One => "flood-one-source",
            Senders::Many => "flood-64k-sources",
        }
    }

    /// What each of them may have.
    pub fn limit_per_s(self) -> u32 {
        match self {
            Senders::One => LIMIT_PER_S,
            Senders::Many => LIMIT_OF_MANY_PER_S,
        }
    }

    /// Address of the flood's frames, and how many around it.
    pub fn addresses(self) -> (Ipv4Addr, Sources) {
        match self {
            Senders::One => (FLOODER, Sources::One),
            Senders::Many => (FLOODERS, Sources::PowerOfTwo(16)),
        }
    }

    /// Those that can be told of these sources.
    pub fn filters(self) -> Vec<Filter> {
        let all = Filter::ALL.into_iter();
        match self {
            Senders::One => all.collect(),
            Senders::Many => all.filter(|filter| *filter != Filter::Xdp).collect(),
        }
    }
}

/// A filter in the receiver's namespace; taken away when dropped. The product's is its daemon's.
pub struct InPlace {
    filter: Filter,
    host: Arc<Namespace>,
    shell: Option<Child>,
    link: Option<Link>,
}

impl InPlace {
    /// Sets it up.
    ///
    /// # Errors
    /// When it will not have the interface.
    pub fn new(filter: Filter, senders: Senders, host: &Arc<Namespace>) -> Result<InPlace> {
        let mut in_place = InPlace { filter, host: Arc::clone(host), shell: None, link: None };
        match filter {
            Filter::Empty => {
                let empty = [Instruction::set(R0, XDP_DROP), Instruction::exit()];
                let program = Program::load(c"empty", &empty)?;
                let index = host.interface_index(INTERFACE)?;
                in_place.link = Some(host.within(|| program.attach(index))??);
            }
            Filter::Nft => {
                in_place.rules(&nft_rules("inet", "prerouting priority raw", senders))?
            }
            Filter::NftIngress => {
                let hook = format!("ingress device \"{INTERFACE}\" priority 0");
                in_place.rules(&nft_rules("netdev", &hook, senders))?;
            }
            Filter::Xdp => {
                let shell = xdp_filter::attach(host, INTERFACE, IpAddr::V4(FLOODER))?;
                in_place.shell = Some(shell);
            }
            Filter::Ours | Filter::Nothing => {}
        }
        Ok(in_place)
    }

    fn rules(&self, rules: &str) -> Result<()> {
        let mut command = self.host.command("nft");
        command.args(["--file", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().with_context(|| words(&command))?;
        child.stdin.take().context("piped above")?.write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        drop(self.link.take());
        if let Some(mut shell) = self.shell.take() {
            xdp_filter::end(&mut shell, None);
        }
        let mut command = match self.filter {
            Filter::Nft | Filter::NftIngress => {
                let mut command = self.host.command("nft");
                command.args(["flush", "ruleset"]);
                command
            }
            Filter::Xdp => {
                let mut command = self.host.command("ip");
                command.args(["link", "set", "dev", INTERFACE, "xdp", "off"]);
                command
            }
            Filter::Ours | Filter::Empty | Filter::Nothing => return,
        };
        // What is left goes with the namespace.
        let _left = process::run(&mut command);
    }
}

/// What an administrator would write: over so much, drop.
fn nft_rules(family: &str, hook: &str, senders: Senders) -> String {
    let rate = senders.limit_per_s();
    format!(
        "table {family} perf {{\n\
           set sources {{ type ipv4_addr; size 131072; flags dynamic,timeout; timeout 1m; }}\n\
           chain flood {{\n\
             type filter hook {hook}; policy accept;\n\
             udp dport {port} update @sources {{ ip saddr limit rate over {rate}/second }} drop\n\
           }}\n\
         }}\n",
        port = SERVER.port()
    )
}
