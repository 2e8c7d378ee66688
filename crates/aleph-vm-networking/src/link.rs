//! Links, addresses and routes, over rtnetlink.
//!
//! A TAP is set up in one round trip: everything about the link in one message, its address and
//! the guest's neighbour entry in two more. Forwarding and the routing of loopback addresses are
//! switched on for the TAP alone, in that same message, and never for the host as a whole.

use crate::ipv6;
use crate::mac::Mac;
use aleph_types::{Ipv4Network, Ipv6Network};
use netlink_bindings::{rt_addr, rt_link, rt_neigh, rt_route, tc};
use netlink_socket2::NetlinkSocket;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A connection to the kernel's links, in the network namespace in which it was made.
pub struct Links {
    socket: NetlinkSocket,
}

/// How a TAP is set up.
#[derive(Debug, Clone, Copy)]
pub struct Cable<'a> {
    /// The TAP.
    pub name: &'a str,
    /// The group of links that it joins.
    pub group: u32,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// The host's address on it, of a /30.
    pub host: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's hardware address.
    pub guest_mac: Mac,
    /// The prefix that is the guest's.
    pub ipv6: Option<Ipv6Network>,
    /// Whether the host reaches it from its loopback addresses too, for forwards. Then loopback
    /// addresses of the host are on this cable, and only the rules keep the guest from them.
    pub from_loopback: bool,
}

/// What went through a link, as the kernel counts it: received is what came from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Bytes that came from it.
    pub rx_bytes: u64,
    /// Packets that came from it.
    pub rx_packets: u64,
    /// Bytes that went to it.
    pub tx_bytes: u64,
    /// Packets that went to it.
    pub tx_packets: u64,
    /// Packets to it that were dropped, because the guest did not take them.
    pub tx_dropped: u64,
}

/// A link as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: u32,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// What went through.
    pub counters: LinkCounters,
}

/// Where the host sends packets for a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Which network; all of it for a default route.
    pub to: Ipv4Network,
    /// The number of the link.
    pub link: u32,
}

// From linux/ip.h: numbers of the per-link settings of IPv4.
const FORWARDING: u16 = 1;
const ROUTE_LOCALNET: u16 = 26;

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    /// A connection. It is made at the first request, in the namespace of its thread.
    #[must_use]
    pub fn new() -> Self {
        Self {
            socket: NetlinkSocket::new(),
        }
    }

    /// Sets a TAP up, and takes it up. Can be done again. Gives its number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up(&mut self, cable: &Cable<'_>) -> io::Result<u32> {
        // In two steps, since the kernel takes a link up before it looks at the settings of one
        // message.
        let mut request = rt_link::Request::new().op_newlink_do(&rt_link::Ifinfomsg::default());
        let families = request
            .encode()
            .push_ifname_bytes(cable.name.as_bytes())
            .push_mtu(cable.mtu)
            .push_group(cable.group)
            .push_address(&Mac::HOST.0)
            .nested_af_spec()
            .nested_inet()
            .push_conf(&settings(&[
                (FORWARDING, 1),
                (ROUTE_LOCALNET, u32::from(cable.from_loopback)),
            ]))
            .end_nested();
        match cable.ipv6 {
            None => families.end_nested(),
            Some(_) => {
                let v6 = families.nested_inet6();
                v6.push_addr_gen_mode(NO_ADDRESS).end_nested().end_nested()
            }
        };
        self.socket
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)?;
        let index = self.index(cable.name)?.ok_or(io::ErrorKind::NotFound)?;
        match cable.ipv6 {
            None => set_ipv6(cable.name, "disable_ipv6", "1")?,
            // The rules drop them as well.
            Some(_) => set_ipv6(cable.name, "accept_ra", "0")?,
        }
        self.without_queue(index)?;
        let up = number(libc::IFF_UP)?;
        self.change(index, up, up)?;
        self.add_address(index, cable.host)?;
        self.add_neighbour(index, cable.guest.into(), cable.guest_mac)?;
        if let Some(prefix) = cable.ipv6 {
            self.remove_groups(index)?;
            self.add_neighbour(index, ipv6::NEXT_HOP.into(), cable.guest_mac)?;
            self.add_route(index, prefix)?;
        }
        Ok(index)
    }

    /// The kernel's own route to groups on this link. The host has nothing to say there, and the
    /// next link that comes up would be compared with every one: a third of all that a network with
    /// IPv6 takes beside 10,000 others.
    fn remove_groups(&mut self, link: u32) -> io::Result<()> {
        let mut request = rt_route::Request::new().op_delroute_do(&rt_route::Rtmsg {
            rtm_family: INET6,
            rtm_dst_len: 8,
            rtm_table: libc::RT_TABLE_LOCAL,
            rtm_type: libc::RTN_MULTICAST,
            ..Default::default()
        });
        let groups = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);
        request.encode().push_dst(groups.into()).push_oif(link);
        match self.socket.request(&request)?.recv_ack() {
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => Ok(done?),
        }
    }

    /// All of a prefix leads to one neighbour on this link.
    fn add_route(&mut self, link: u32, to: Ipv6Network) -> io::Result<()> {
        // From linux/rtnetlink.h.
        const BY_ADMINISTRATOR: u8 = 4;
        let mut request = rt_route::Request::new()
            .set_create()
            .set_replace()
            .op_newroute_do(&rt_route::Rtmsg {
                rtm_family: INET6,
                rtm_dst_len: to.prefix(),
                rtm_table: libc::RT_TABLE_MAIN,
                rtm_protocol: BY_ADMINISTRATOR,
                rtm_type: libc::RTN_UNICAST,
                ..Default::default()
            });
        request
            .encode()
            .push_dst(to.first().into())
            .push_gateway(ipv6::NEXT_HOP.into())
            .push_oif(link);
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    /// A TAP has a queue of its own, from which its VMM reads. Without this, the kernel makes a
    /// second one ahead of it, as the link comes up: 12 KiB, and a hand more for each packet.
    fn without_queue(&mut self, link: u32) -> io::Result<()> {
        const ROOT: u32 = u32::MAX;
        let mut request = tc::Request::new()
            .set_create()
            .set_replace()
            .op_newqdisc_do(&tc::Tcmsg {
                ifindex: i32::try_from(link).unwrap_or(0),
                parent: ROOT,
                ..Default::default()
            });
        request.encode().push_kind_bytes(b"noqueue");
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    fn add_address(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut request = rt_addr::Request::new()
            .set_create()
            .set_replace()
            .op_newaddr_do(&rt_addr::Ifaddrmsg {
                ifa_family: INET,
                ifa_prefixlen: 30,
                ifa_index: link,
                ..Default::default()
            });
        request
            .encode()
            .push_local(IpAddr::V4(address))
            .push_address(IpAddr::V4(address));
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    /// The guest is known beforehand: neither ARP nor neighbour discovery is needed, and none can
    /// lie.
    fn add_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let mut request = rt_neigh::Request::new()
            .set_create()
            .set_replace()
            .op_newneigh_do(&rt_neigh::Ndmsg {
                ndm_family: if address.is_ipv4() { INET } else { INET6 },
                ndm_ifindex: i32::try_from(link).unwrap_or(0),
                ndm_state: PERMANENT,
                ..Default::default()
            });
        request.encode().push_dst(address).push_lladdr(&mac.0);
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    /// Moves a link into another group, to be deleted with it. Its address stays until then: taking
    /// that away walks all routes. One that is gone is no error; says whether it was there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retire(&mut self, name: &str, group: u32) -> io::Result<bool> {
        let mut request = rt_link::Request::new().op_newlink_do(&rt_link::Ifinfomsg::default());
        request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .push_group(group);
        match self.socket.request(&request)?.recv_ack() {
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    }

    /// Moves a link into another network namespace, where it is down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn move_to(&mut self, name: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let number = u32::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?;
        let mut request = rt_link::Request::new().op_newlink_do(&rt_link::Ifinfomsg::default());
        request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .push_net_ns_fd(number);
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    /// Takes a link up that has no address, asks nobody anything and has no IPv6. Gives its number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up_alone(&mut self, name: &str, mtu: u32) -> io::Result<u32> {
        let index = self.index(name)?.ok_or(io::ErrorKind::NotFound)?;
        let mut request = rt_link::Request::new().op_newlink_do(&rt_link::Ifinfomsg::default());
        request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .push_mtu(mtu);
        self.socket
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)?;
        set_ipv6(name, "disable_ipv6", "1")?;
        self.without_queue(index)?;
        let flags = number(libc::IFF_UP | libc::IFF_NOARP)?;
        self.change(index, flags, flags)?;
        Ok(index)
    }

    /// Takes a link down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_down(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?.ok_or(io::ErrorKind::NotFound)?;
        self.change(index, 0, number(libc::IFF_UP)?)
    }

    fn change(&mut self, index: u32, flags: u32, which: u32) -> io::Result<()> {
        let request = rt_link::Request::new().op_newlink_do(&rt_link::Ifinfomsg {
            ifi_index: i32::try_from(index).unwrap_or(0),
            ifi_flags: flags,
            ifi_change: which,
            ..Default::default()
        });
        Ok(self.socket.request(&request)?.recv_ack()?)
    }

    /// The group of a link; `None` where there is none of this name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn group(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        match reply.recv_one() {
            Ok((_, attributes)) => Ok(Some(attributes.get_group().unwrap_or(0))),
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether somebody has a queue of a TAP open. One that is gone is not open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_open(&mut self, name: &str) -> io::Result<bool> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        match reply.recv_one() {
            // A TAP has a carrier as long as it has a queue.
            Ok((_, attributes)) => Ok(attributes.get_carrier().unwrap_or(0) != 0),
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a link. One that is gone is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_ifname_bytes(name.as_bytes());
        let done = self.socket.request(&request)?.recv_ack();
        unless_gone(done.map_err(io::Error::from))
    }

    /// Deletes all links of a group at once.
    ///
    /// # Errors
    /// The kernel's; an empty group is none.
    pub fn delete_group(&mut self, group: u32) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_group(group);
        let done = self.socket.request(&request)?.recv_ack();
        unless_gone(done.map_err(io::Error::from))
    }

    /// All links, in one dump.
    ///
    /// # Errors
    /// The kernel's.
    pub fn all(&mut self) -> io::Result<Vec<Link>> {
        let request = rt_link::Request::new().op_getlink_dump(&rt_link::Ifinfomsg::default());
        let mut replies = self.socket.request(&request)?;
        let mut links = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attributes) = reply?;
            links.push(link(&header, &attributes)?);
        }
        Ok(links)
    }

    /// A link's number; `None` where there is none of this name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn index(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::default());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        match reply.recv_one() {
            Ok((header, _)) => Ok(u32::try_from(header.ifi_index).ok()),
            Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The host's own addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self) -> io::Result<HashSet<IpAddr>> {
        let request = rt_addr::Request::new().op_getaddr_dump(&rt_addr::Ifaddrmsg::default());
        let mut replies = self.socket.request(&request)?;
        let mut addresses = HashSet::new();
        while let Some(reply) = replies.recv() {
            let (_, attributes) = reply?;
            // IPv6 says it once where there is no other end.
            if let Ok(address) = attributes.get_local().or_else(|_| attributes.get_address()) {
                addresses.insert(address);
            }
        }
        Ok(addresses)
    }

    /// Whether packets to this address stay on this host. An address without a route is not its own.
    pub fn is_own(&mut self, address: IpAddr) -> bool {
        let (family, length) = match address {
            IpAddr::V4(_) => (INET, 32),
            IpAddr::V6(_) => (INET6, 128),
        };
        let mut request = rt_route::Request::new().op_getroute_do(&rt_route::Rtmsg {
            rtm_family: family,
            rtm_dst_len: length,
            ..Default::default()
        });
        request.encode().push_dst(address);
        let Ok(mut reply) = self.socket.request(&request) else {
            return false;
        };
        let found = reply.recv_one();
        found.is_ok_and(|(header, _)| header.rtm_type == libc::RTN_LOCAL)
    }

    /// The routes of the main table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let request = rt_route::Request::new().op_getroute_dump(&rt_route::Rtmsg {
            rtm_family: INET,
            ..Default::default()
        });
        let mut replies = self.socket.request(&request)?;
        let mut routes = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attributes) = reply?;
            if header.rtm_table != libc::RT_TABLE_MAIN {
                continue;
            }
            let to = match attributes.get_dst() {
                Ok(IpAddr::V4(to)) => to,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            let Some(to) = Ipv4Network::new(to, header.rtm_dst_len) else {
                continue;
            };
            if let Ok(link) = attributes.get_oif() {
                routes.push(Route { to, link });
            }
        }
        Ok(routes)
    }

    /// Whether there is a way out for IPv6, and which networks are on the host's links, each with
    /// the link's number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes6(&mut self) -> io::Result<Vec<(Ipv6Network, u32)>> {
        let request = rt_route::Request::new().op_getroute_dump(&rt_route::Rtmsg {
            rtm_family: INET6,
            ..Default::default()
        });
        let mut replies = self.socket.request(&request)?;
        let mut routes = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attributes) = reply?;
            // One of type unreachable leads nowhere.
            if header.rtm_table != libc::RT_TABLE_MAIN || header.rtm_type != libc::RTN_UNICAST {
                continue;
            }
            let to = match attributes.get_dst() {
                Ok(IpAddr::V6(to)) => to,
                _ => Ipv6Addr::UNSPECIFIED,
            };
            let Some(to) = Ipv6Network::new(to, header.rtm_dst_len) else {
                continue;
            };
            routes.push((to, attributes.get_oif().unwrap_or(0)));
        }
        Ok(routes)
    }

    /// Counters of all links of a group, by name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&mut self, group: u32) -> io::Result<HashMap<String, LinkCounters>> {
        let links = self.all()?.into_iter();
        let ours = links.filter(|link| link.group == group);
        Ok(ours.map(|link| (link.name, link.counters)).collect())
    }
}

const INET: u8 = 2;
const INET6: u8 = 10;
/// `IN6_ADDR_GEN_MODE_NONE` of linux/if_link.h.
const NO_ADDRESS: u8 = 1;

fn link(
    header: &rt_link::Ifinfomsg,
    attributes: &rt_link::IterableLinkAttrs<'_>,
) -> io::Result<Link> {
    let unread = |error| io::Error::other(format!("a link without its parts: {error:?}"));
    let counters = attributes.get_stats64().map_or_else(
        |_| LinkCounters::default(),
        |stats| LinkCounters {
            rx_bytes: stats.rx_bytes,
            rx_packets: stats.rx_packets,
            tx_bytes: stats.tx_bytes,
            tx_packets: stats.tx_packets,
            tx_dropped: stats.tx_dropped,
        },
    );
    Ok(Link {
        index: u32::try_from(header.ifi_index).unwrap_or(0),
        name: attributes
            .get_ifname()
            .map_err(unread)?
            .to_string_lossy()
            .into_owned(),
        group: attributes.get_group().unwrap_or(0),
        mtu: attributes.get_mtu().unwrap_or(0),
        counters,
    })
}

/// A setting of IPv6 for a TAP. A kernel without IPv6 has no such file.
///
/// Where VMs have none it is taken off: the kernel walks all its routes of IPv6 for each link that
/// comes up, 0.7 ms with 10,000. Where they have, the host's end has no address, since all TAPs
/// have one MAC there and all would have one link-local address, which cost 6 ms more.
fn set_ipv6(name: &str, setting: &str, value: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// `IFLA_INET_CONF`: each setting is an attribute with its number as type.
fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, value) in settings {
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

fn number(flags: libc::c_int) -> io::Result<u32> {
    u32::try_from(flags).map_err(io::Error::other)
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done,
    }
}
