//! Connections that the kernel follows.
//!
//! A flow keeps going where its first packet went, whatever the rules say later: a UDP client that
//! sends all the time would be steered to a released address for ever, and one that spoke to a
//! port before it was forwarded would never reach the guest. So a VM's flows are forgotten when
//! its network comes and when it goes. The kernel walks its whole table for that, which takes
//! some 9 ms with nothing in it.

use crate::ipv6::Ipv6Pool;
use aleph_types::{Ipv4Network, Ipv6Network};
use netlink_bindings::conntrack::{self, Nfgenmsg};
use netlink_bindings::nftables;
use netlink_bindings::utils::Pusher;
use netlink_socket2::NetlinkSocket;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

/// A connection to the kernel's table, in the network namespace of the thread that made it.
pub struct Connections {
    socket: NetlinkSocket,
}

/// How many flows the kernel follows, for all; `None` where it follows none yet.
#[must_use]
pub fn limit() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?;
    text.trim().parse().ok()
}

/// Why so many VMs with so many connections each can leave nobody a connection, and the command
/// that mends it.
#[must_use]
pub fn shortage(limit: u64, vms: u64, connections: u32) -> Option<(String, String)> {
    let wanted = vms.saturating_mul(connections.into());
    let found = format!(
        "the kernel follows {limit} connections of all, and {vms} VMs may have {connections} each"
    );
    let mend = format!("sysctl -w net.netfilter.nf_conntrack_max={wanted}");
    (limit < wanted).then_some((found, mend))
}

/// Flows to forget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// Those with one of these addresses at any end, translated or not. The first address of a
    /// VM's IPv6 prefix stands for all of it.
    pub addresses: HashSet<IpAddr>,
    /// Which prefixes there are.
    pub ipv6: Option<Ipv6Pool>,
    /// Those to one of these ports of the host's own, by the number of the transport, which lead
    /// nowhere else.
    pub ports: HashSet<(u8, u16)>,
    /// The host's own addresses, for the ports.
    pub own: HashSet<IpAddr>,
    /// Those with an end in this pool, or in a prefix, that no rule has translated: where the rules
    /// were gone for a while, they are what nobody looked at.
    pub bare: Option<Ipv4Network>,
    /// Those of a pool that an earlier process left.
    pub earlier: Option<Earlier>,
}

/// What is left of an earlier process in a pool: flows of addresses that have no owner any more,
/// and questions to its resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// The pool.
    pub pool: Ipv4Network,
    /// Guests that run on.
    pub guests: HashSet<IpAddr>,
    /// The host's addresses on their cables.
    pub gateways: HashSet<IpAddr>,
}

impl Earlier {
    fn covers(&self, flow: &Flow, ipv6: Option<Ipv6Network>) -> bool {
        let is_ours = |end: IpAddr| match end {
            IpAddr::V4(end) => self.pool.contains(end),
            IpAddr::V6(end) => ipv6.is_some_and(|prefix| prefix.contains(end)),
        };
        let is_stray = |end: &IpAddr| {
            is_ours(*end) && !self.guests.contains(end) && !self.gateways.contains(end)
        };
        let asks = flow.port == Some((17, 53)) && is_ours(flow.original[1]);
        asks || flow.original.iter().chain(&flow.answer).any(is_stray)
    }
}

/// The ends of a flow: source and destination of the first packet, and of the answers.
struct Flow {
    original: [IpAddr; 2],
    answer: [IpAddr; 2],
    port: Option<(u8, u16)>,
}

impl Flows {
    fn cover(&self, flow: &Flow) -> bool {
        let Flow {
            original,
            answer,
            port,
        } = flow;
        let mut ends = original.iter().chain(answer);
        let has_address = ends.any(|end| self.addresses.contains(end));
        let to = original[1];
        // One that is translated already goes to a guest, and goes with its address.
        let to_host = to == answer[0] && (to.is_loopback() || self.own.contains(&to));
        let to_port = to_host && port.is_some_and(|port| self.ports.contains(&port));
        let is_translated = answer[0] != original[1] || answer[1] != original[0];
        let prefix = self.ipv6.map(Ipv6Pool::prefix);
        let is_bare = !is_translated
            && self.bare.is_some_and(|pool| {
                original.iter().any(|end| match end {
                    IpAddr::V4(end) => pool.contains(*end),
                    IpAddr::V6(end) => prefix.is_some_and(|prefix| prefix.contains(*end)),
                })
            });
        let left = self
            .earlier
            .as_ref()
            .is_some_and(|earlier| earlier.covers(flow, prefix));
        has_address || to_port || is_bare || left
    }

    /// What stands for an address in [`Flows::addresses`].
    fn key(&self, address: IpAddr) -> IpAddr {
        let (IpAddr::V6(v6), Some(pool)) = (address, self.ipv6) else {
            return address;
        };
        match pool.prefix().contains(v6) {
            true => (v6 & pool.mask()).into(),
            false => address,
        }
    }

    /// Whether there are none to forget.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let named = !self.addresses.is_empty() || !self.ports.is_empty();
        !named && self.bare.is_none() && self.earlier.is_none()
    }
}

const INET: u8 = 2;
const INET6: u8 = 10;
/// Subsystem 1 (conntrack), message 2 (delete).
const DELETE: u16 = 0x0102;
/// `CTA_TUPLE_ORIG`, nested.
const TUPLE_ORIGINAL: u16 = 0x8001;

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

impl Connections {
    /// A connection; it is made at the first request.
    #[must_use]
    pub fn new() -> Self {
        Self {
            socket: NetlinkSocket::new(),
        }
    }

    /// Forgets flows, and says how many there were.
    ///
    /// # Errors
    /// The kernel's. Flows that ended in the meantime are none.
    pub fn forget(&mut self, flows: &Flows) -> io::Result<usize> {
        if flows.is_empty() {
            return Ok(0);
        }
        let tuples = self.matching(flows)?;
        let mut forgotten = 0;
        for (family, tuple) in &tuples {
            let mut header = nftables::Nfgenmsg::new();
            header.nfgen_family = *family;
            let mut request = nftables::Request::new().op_do(DELETE, &header);
            let mut encoder = request.encode();
            let buffer = encoder.as_vec_mut();
            let length = u16::try_from(tuple.len() + 4).map_err(io::Error::other)?;
            buffer.extend(length.to_ne_bytes());
            buffer.extend(TUPLE_ORIGINAL.to_ne_bytes());
            buffer.extend(tuple);
            drop(encoder);
            match self.socket.request(&request)?.recv_ack() {
                Ok(()) => forgotten += 1,
                Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(forgotten)
    }

    /// The first direction of each flow that matches, as the kernel wrote it.
    fn matching(&mut self, flows: &Flows) -> io::Result<Vec<(u8, Vec<u8>)>> {
        // Of both families, in one dump.
        let request = conntrack::Request::new().op_get_dump(&Nfgenmsg::new());
        let mut replies = self.socket.request(&request)?;
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let (_, attributes) = reply?;
            let (Ok(original), Ok(answer)) =
                (attributes.get_tuple_orig(), attributes.get_tuple_reply())
            else {
                continue;
            };
            let (Some(first), Some(second)) = (ends(&original), ends(&answer)) else {
                continue;
            };
            let family = if first[0].is_ipv4() { INET } else { INET6 };
            let flow = Flow {
                original: first.map(|end| flows.key(end)),
                answer: second.map(|end| flows.key(end)),
                port: port(&original),
            };
            if flows.cover(&flow) {
                found.push((family, original.get_buf().to_vec()));
            }
        }
        Ok(found)
    }
}

fn ends(tuple: &conntrack::IterableTupleAttrs<'_>) -> Option<[IpAddr; 2]> {
    let ip = tuple.get_tuple_ip().ok()?;
    if let (Ok(from), Ok(to)) = (ip.get_ip_v4_src(), ip.get_ip_v4_dst()) {
        return Some([IpAddr::from(from), to.into()]);
    }
    Some([
        ip.get_ip_v6_src().ok()?.into(),
        ip.get_ip_v6_dst().ok()?.into(),
    ])
}

fn port(tuple: &conntrack::IterableTupleAttrs<'_>) -> Option<(u8, u16)> {
    let proto = tuple.get_tuple_proto().ok()?;
    Some((
        proto.get_proto_num().ok()?,
        proto.get_proto_dst_port().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_follows_too_few_is_named() {
        assert_eq!(shortage(262_144, 64, 4096), None);
        let found = "the kernel follows 262144 connections of all, and 65 VMs may have 4096 each";
        let mend = "sysctl -w net.netfilter.nf_conntrack_max=266240";
        let both = Some((found.to_owned(), mend.to_owned()));
        assert_eq!(shortage(262_144, 65, 4096), both);
    }
}
