//! Which XDP programs an interface runs, as the kernel says (rtnetlink(7), `IFLA_XDP`).

use std::{fs, io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// The programs an interface runs, by the kernel's numbers for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// In the driver.
    pub native: Option<u32>,
    /// Behind the driver.
    pub generic: Option<u32>,
    /// On the card itself.
    pub offloaded: Option<u32>,
}

impl Attachments {
    /// All of them.
    pub fn program_ids(&self) -> impl Iterator<Item = u32> {
        [self.native, self.generic, self.offloaded].into_iter().flatten()
    }
}

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const NLA_F_NESTED: u16 = 1 << 15;
/// The two upper bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`, `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
const LINK_HEADER_BYTES: usize = 16;
/// A link's description is a few kilobytes; the kernel cuts none shorter than this.
const REPLY_BYTES: usize = 64 * 1024;

/// Asks the kernel.
pub fn attachments(interface_index: u32) -> io::Result<Attachments> {
    parse(&exchange(&request(RTM_GETLINK, NLM_F_REQUEST, interface_index, &[]))?)
}

/// Takes away a program that was attached without a link.
pub fn clear(interface_index: u32) -> io::Result<()> {
    let descriptor = attribute(IFLA_XDP_FD, &(-1i32).to_ne_bytes());
    let xdp = attribute(IFLA_XDP | NLA_F_NESTED, &descriptor);
    let reply = exchange(&request(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, interface_index, &xdp))?;
    acknowledged(&reply)
}

fn exchange(message: &[u8]) -> io::Result<Vec<u8>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), message, MsgFlags::empty())?;
    let mut reply = vec![0; REPLY_BYTES];
    let length = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    reply.truncate(length);
    Ok(reply)
}

fn request(kind: u16, flags: u16, interface_index: u32, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER_BYTES + LINK_HEADER_BYTES + attributes.len()) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, type
    message.extend(interface_index.to_ne_bytes());
    message.extend([0; 8]); // flags, change mask
    message.extend(attributes);
    message
}

/// Length, type, value, and zeroes to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::new();
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn parse(reply: &[u8]) -> io::Result<Attachments> {
    if kind(reply) != Some(RTM_NEWLINK) {
        acknowledged(reply)?;
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut found = Attachments::default();
    let links = reply.get(HEADER_BYTES + LINK_HEADER_BYTES..).unwrap_or_default();
    for (_, xdp) in attributes(links).filter(|&(kind, _)| kind == IFLA_XDP) {
        for (kind, value) in attributes(xdp) {
            let id = value.first_chunk().map(|id| u32::from_ne_bytes(*id)).filter(|&id| id != 0);
            match kind {
                IFLA_XDP_DRV_PROG_ID => found.native = id,
                IFLA_XDP_SKB_PROG_ID => found.generic = id,
                IFLA_XDP_HW_PROG_ID => found.offloaded = id,
                _ => {}
            }
        }
    }
    Ok(found)
}

fn kind(message: &[u8]) -> Option<u16> {
    message.get(4..6)?.first_chunk().map(|kind| u16::from_ne_bytes(*kind))
}

/// An error message carries a negative number, or 0 when nothing was wrong.
fn acknowledged(reply: &[u8]) -> io::Result<()> {
    let code = reply.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk());
    match (kind(reply), code) {
        (Some(NLMSG_ERROR), Some(code)) => match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The attributes of a list, up to the first that does not fit.
fn attributes(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = list.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = list.get(4..length)?;
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value))
    })
}

/// The kernel's number for an interface; `None` when there is none of that name.
pub fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// The name that a program was loaded with; `None` where the kernel does not tell.
pub fn program_name(program_id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == program_id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
}

/// The effective capabilities of this process, as a bit mask.
pub fn effective_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(attributes: &[u8]) -> Vec<u8> {
        request(RTM_NEWLINK, 0, 3, attributes)
    }

    #[test]
    fn finds_the_programs_among_the_attributes() {
        let id = |kind, id: u32| attribute(kind, &id.to_ne_bytes());
        let name = attribute(3, b"eth0\0");
        let xdp = |parts: &[Vec<u8>]| attribute(IFLA_XDP | NLA_F_NESTED, &parts.concat());
        for (attributes, found) in [
            (vec![], Attachments::default()),
            (name.clone(), Attachments::default()),
            (
                [name.clone(), xdp(&[attribute(2, &[1]), id(4, 9), id(IFLA_XDP_DRV_PROG_ID, 9)])]
                    .concat(),
                Attachments { native: Some(9), ..Attachments::default() },
            ),
            (
                xdp(&[
                    attribute(2, &[4]),
                    id(IFLA_XDP_DRV_PROG_ID, 9),
                    id(IFLA_XDP_SKB_PROG_ID, 8),
                ]),
                Attachments { native: Some(9), generic: Some(8), offloaded: None },
            ),
            (xdp(&[attribute(2, &[0]), id(IFLA_XDP_DRV_PROG_ID, 0)]), Attachments::default()),
        ] {
            assert_eq!(parse(&link(&attributes)).unwrap(), found);
        }
    }

    #[test]
    fn an_error_is_the_kernels_own() {
        let error = |code: i32| {
            let mut message = request(NLMSG_ERROR, 0, 0, &[]);
            message[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&code.to_ne_bytes());
            message
        };
        assert_eq!(parse(&error(-19)).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(acknowledged(&error(0)).is_ok());
        assert!(parse(&error(0)).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn asks_this_kernel() {
        let loopback = interface_index("lo").expect("there is a loopback interface");
        assert!(attachments(loopback).is_ok());
        assert_eq!(attachments(u32::MAX / 2).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(interface_index("no such name"), None);
        assert!(effective_capabilities().is_ok());
    }

    proptest! {
        #[test]
        fn reads_any_reply_without_panic(reply in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&reply);
            let _ = parse(&link(&reply));
        }
    }
}
