//! The guest's one interface to the world, set up from what the host says.
//!
//! Nothing is asked of the link: addresses are not probed for, there is no link-local address of
//! the kernel's own, and the gateway is a neighbour that is known for good. So the guest's first
//! packet is one that a program sends, but for the reports of its IPv6 address' multicast group.
//!
//! A network that cannot be set up is a guest that cannot be: its job would find out one
//! connection at a time.

use super::Interface;
use super::netlink::{Kind, Message, Netlink, attribute};
use super::port::wait_for;
use crate::failure::{Context, Failure, text};
use crate::file::{self, read_bounded, scan};
use aleph_guest_proto::Network;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::CStr;
use core::net::Ipv4Addr;
use rustix::fs::FileType;
use rustix::io::Errno;

/// How long the interface may take to appear after its driver, in microseconds.
const PATIENCE_US: u64 = 5_000_000;

/// Takes the interface of a template out of use: with it go routes and neighbours. Its address stays
/// until a clone has one of its own.
pub(super) fn quiet(network: &Interface) -> Result<(), Failure> {
    let mac = mac_text(network.mac);
    let link = find(&mac)
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the network interface {mac}"))?;
    let mut netlink = Netlink::open().context(|| "opening a netlink socket".into())?;
    netlink
        .ask(link.down())
        .context(|| format!("taking {} out of use", link.name))?;
    let old = link.address_gone(Family::V4, &network.address, network.prefix_length);
    netlink
        .ask(old)
        .context(|| format!("taking its address from {}", link.name))
}

/// Gives the interface that a template had a hardware address of the clone's own, and then all else.
pub(super) fn take_over(template: [u8; 6], network: &Network<'_>) -> Result<(), Failure> {
    let mac = mac_text(template);
    let link = find(&mac)
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the network interface {mac}"))?;
    let mut netlink = Netlink::open().context(|| "opening a netlink socket".into())?;
    netlink
        .ask(link.hardware_address(network.mac))
        .context(|| format!("giving {} its hardware address", link.name))?;
    set_up(&mut netlink, &link, network)
}

/// Gives the interface its MTU, addresses, neighbours and routes.
///
/// # Errors
/// What could not be set up, with the interface.
pub(super) fn configure(network: &Network<'_>) -> Result<(), Failure> {
    let mac = mac_text(network.mac);
    let link = wait_for(PATIENCE_US, || find(&mac))
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the network interface {mac}"))?;
    let mut netlink = Netlink::open().context(|| "opening a netlink socket".into())?;
    set_up(&mut netlink, &link, network)
}

/// Sets up a link to the host, which no other packets take.
pub(super) fn link(told: &aleph_guest_proto::Link) -> Result<(), Failure> {
    let mac = mac_text(told.mac);
    let link = wait_for(PATIENCE_US, || find(&mac))
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the network interface {mac}"))?;
    let mut netlink = Netlink::open().context(|| "opening a netlink socket".into())?;
    // Refused by a kernel without IPv6, which has no such address.
    let _ = netlink.ask(link.without_link_local());
    let v4 = Family::V4;
    for message in [
        link.up(told.mtu),
        link.address(v4, &told.address, told.prefix_length),
        link.neighbour(v4, &told.host, told.host_mac),
    ] {
        netlink
            .ask(message)
            .context(|| format!("setting up the link {}", link.name))?;
    }
    Ok(())
}

fn set_up(netlink: &mut Netlink, link: &Link, network: &Network<'_>) -> Result<(), Failure> {
    // Refused by a kernel without IPv6, which has no such address.
    let _ = netlink.ask(link.without_link_local());
    let mut ask = |what: &str, message| {
        netlink
            .ask(message)
            .context(|| format!("giving {} its {what}", link.name))
    };
    ask("MTU", link.up(network.mtu))?;
    let v4 = Family::V4;
    ask(
        "IPv4 address",
        link.address(v4, &network.address, network.prefix_length),
    )?;
    ask(
        "IPv4 gateway",
        link.neighbour(v4, &network.gateway, network.gateway_mac),
    )?;
    ask("IPv4 route", link.route(v4, &network.gateway))?;
    if let Some(net) = &network.v6 {
        let v6 = Family::V6;
        ask(
            "IPv6 address",
            link.address(v6, &net.address, net.prefix_length),
        )?;
        ask(
            "IPv6 gateway",
            link.neighbour(v6, &net.gateway, network.gateway_mac),
        )?;
        ask("IPv6 route", link.route(v6, &net.gateway))?;
    }
    Ok(())
}

/// Writes down which name server to ask, where there is one. What stands in its place and is no
/// file goes: mostly a link to what a service would make that does not run here.
///
/// # Errors
/// Where it cannot be written: names would be looked up nowhere, or by somebody else.
pub(super) fn write_resolver(network: &Network<'_>) -> Result<(), Failure> {
    write_resolver_at(c"/etc/resolv.conf", network)
}

fn write_resolver_at(path: &CStr, network: &Network<'_>) -> Result<(), Failure> {
    let Some(resolver) = network.resolver else {
        return Ok(());
    };
    let kind = rustix::fs::lstat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind.is_ok_and(|kind| !kind.is_file()) {
        // One that cannot go is seen by the next step.
        let _ = rustix::fs::unlink(path);
    }
    let resolver = Ipv4Addr::from(resolver).to_string();
    let mut parts = Vec::from([&b"nameserver "[..], resolver.as_bytes(), b"\n"]);
    if !network.search.is_empty() {
        parts.extend([&b"search "[..], network.search, b"\n"]);
    }
    file::write(path, &parts).context(|| format!("writing {}", path.to_string_lossy()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Family {
    V4 = 2,
    V6 = 10,
}

struct Link {
    name: String,
    index: u32,
}

impl Link {
    /// Sets the MTU and brings it up.
    fn up(&self, mtu: u16) -> Message {
        const UP: u32 = 1;
        const MTU: u16 = 4;
        // struct ifinfomsg: family, padding, type; index, flags, which of them change.
        let (index, up) = (self.index.to_ne_bytes(), UP.to_ne_bytes());
        Message::new(Kind::Link, &[&[0; 4], &index, &up, &up])
            .with(MTU, &u32::from(mtu).to_ne_bytes())
    }

    /// Takes it down.
    fn down(&self) -> Message {
        const UP: u32 = 1;
        let (index, which) = (self.index.to_ne_bytes(), UP.to_ne_bytes());
        Message::new(Kind::Link, &[&[0; 4], &index, &[0; 4], &which])
    }

    /// Gives it another hardware address.
    fn hardware_address(&self, mac: [u8; 6]) -> Message {
        const ADDRESS: u16 = 1;
        let index = self.index.to_ne_bytes();
        Message::new(Kind::Link, &[&[0; 4], &index, &[0; 8]]).with(ADDRESS, &mac)
    }

    fn address_gone(&self, family: Family, address: &[u8], prefix_length: u8) -> Message {
        const LOCAL: u16 = 2;
        let fixed = [family as u8, prefix_length, 0, 0];
        Message::new(Kind::AddressGone, &[&fixed, &self.index.to_ne_bytes()]).with(LOCAL, address)
    }

    /// Keeps the kernel from giving it a link-local address, once it is up.
    fn without_link_local(&self) -> Message {
        const OF_FAMILIES: u16 = 26;
        const GENERATION: u16 = 8;
        const NONE: u8 = 1;
        let index = self.index.to_ne_bytes();
        let of_v6 = attribute(Family::V6 as u16, &attribute(GENERATION, &[NONE]));
        Message::new(Kind::Link, &[&[0; 4], &index, &[0; 8]]).with(OF_FAMILIES, &of_v6)
    }

    fn address(&self, family: Family, address: &[u8], prefix_length: u8) -> Message {
        // An IPv6 address would wait a second for somebody who has it, too.
        const NO_PROBE: u8 = 0x02;
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        // struct ifaddrmsg: family, length of the prefix, flags, scope; index.
        let flags = if family == Family::V6 { NO_PROBE } else { 0 };
        let fixed = [family as u8, prefix_length, flags, 0];
        Message::new(Kind::Address, &[&fixed, &self.index.to_ne_bytes()])
            .with(LOCAL, address)
            .with(ADDRESS, address)
    }

    fn neighbour(&self, family: Family, address: &[u8], mac: [u8; 6]) -> Message {
        const PERMANENT: u16 = 0x80;
        const ADDRESS: u16 = 1;
        const LINK_ADDRESS: u16 = 2;
        // struct ndmsg: family, padding; index; state, flags, type.
        let [low, high] = PERMANENT.to_ne_bytes();
        let index = self.index.to_ne_bytes();
        let fixed: [&[u8]; 3] = [&[family as u8, 0, 0, 0], &index, &[low, high, 0, 0]];
        Message::new(Kind::Neighbour, &fixed)
            .with(ADDRESS, address)
            .with(LINK_ADDRESS, &mac)
    }

    /// The default route.
    fn route(&self, family: Family, gateway: &[u8]) -> Message {
        const TABLE_MAIN: u8 = 254;
        const BY_ADMINISTRATOR: u8 = 4;
        const UNIVERSE: u8 = 0;
        const UNICAST: u8 = 1;
        /// Whatever the subnet, the gateway is there.
        const ON_LINK: u32 = 4;
        const INTERFACE: u16 = 4;
        const GATEWAY: u16 = 5;
        // struct rtmsg: family, lengths of destination and source, type of service, table, who
        // made it, scope, type; flags.
        let fixed = [
            family as u8,
            0,
            0,
            0,
            TABLE_MAIN,
            BY_ADMINISTRATOR,
            UNIVERSE,
            UNICAST,
        ];
        Message::new(Kind::Route, &[&fixed, &ON_LINK.to_ne_bytes()])
            .with(GATEWAY, gateway)
            .with(INTERFACE, &self.index.to_ne_bytes())
    }
}

fn find(mac: &str) -> Option<Link> {
    scan(c"/sys/class/net", |name| {
        let read = |file: &[u8]| {
            read_bounded([b"/sys/class/net/", name, file].concat())
                .ok()
                .map(|bytes| text(bytes.trim_ascii()))
        };
        let is_it = read(b"/address")? == mac;
        let index = if is_it {
            read(b"/ifindex")?.parse().ok()?
        } else {
            return None;
        };
        Some(Link {
            name: text(name),
            index,
        })
    })
}

/// A hardware address as the kernel prints it.
fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::ffi::CString;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_name_server_is_written_down_whatever_stood_there() {
        let mut network = Network {
            mac: [2; 6],
            address: [10, 0, 0, 2],
            prefix_length: 30,
            gateway: [10, 0, 0, 1],
            gateway_mac: [2; 6],
            mtu: 1500,
            resolver: Some([10, 0, 0, 1]),
            search: b"jobs.internal",
            v6: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        let other = dir.path().join("other");

        symlink("../run/stub-resolv.conf", &path).unwrap();
        write_resolver_at(&name, &network).unwrap();
        assert_eq!(read(), "nameserver 10.0.0.1\nsearch jobs.internal\n");

        std::fs::write(&other, "another's").unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        network.search = b"";
        write_resolver_at(&name, &network).unwrap();
        assert_eq!(read(), "nameserver 10.0.0.1\n");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "another's");

        network.resolver = None;
        write_resolver_at(&name, &network).unwrap();
        assert_eq!(read(), "nameserver 10.0.0.1\n");

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        network.resolver = Some([10, 0, 0, 1]);
        let failure = write_resolver_at(&name, &network).unwrap_err();
        assert!(
            failure.message.ends_with("resolv.conf: Is a directory"),
            "{failure:?}"
        );
    }

    #[test]
    fn hardware_addresses_are_written_as_the_kernel_does() {
        assert_eq!(
            mac_text([0x52, 0x54, 0, 0xab, 1, 0xff]),
            "52:54:00:ab:01:ff"
        );
    }
}
