//! Sets and maps of the tables, and what is in them.

use super::Limit;
use crate::mac::Mac;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A set or map of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Set {
    /// Which address and MAC a TAP's guest has, and whether what it sends is counted.
    Guests,
    /// Which address the host has on a TAP.
    Gateways,
    /// The same for ARP.
    ArpGuests,
    /// The same for ARP.
    ArpGateways,
    /// Ports of one address.
    Forwards,
    /// Ports of all addresses.
    ForwardsAny,
    /// What a TAP's guest may reach, where that is not everything.
    Egress,
    /// Networks that a guest may reach.
    Allowed,
    /// The private network of a TAP.
    Private,
    /// TAPs of a private network.
    Members,
    /// Links that the host forwards from for its VMs alone.
    Uplinks,
    /// Which IPv6 prefix and MAC a TAP's guest has.
    Guests6,
    /// IPv6 networks that a guest may reach.
    Allowed6,
    /// Ports of one IPv6 address.
    Forwards6,
    /// Ports of all IPv6 addresses.
    ForwardsAny6,
    /// Ports of guests that are open on their own IPv6 addresses.
    Open6,
    /// IPv6, where the host forwards it for its VMs alone.
    Alone,
    /// Links that forward IPv6 for others all the same.
    Routers6,
    /// Where the DNS forwarder listens, by the port that guests know.
    Dns,
    /// Where it listens: closed to all but what was led there.
    DnsPorts,
    /// TAPs that have limits of what they receive.
    Limited,
    /// Limits of what guests send, in bytes.
    SentBytes,
    /// The same in packets.
    SentPackets,
    /// Limits of what guests receive, in bytes.
    ReceivedBytes,
    /// The same in packets.
    ReceivedPackets,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::Guests,
        Self::Gateways,
        Self::ArpGuests,
        Self::ArpGateways,
        Self::Forwards,
        Self::ForwardsAny,
        Self::Egress,
        Self::Allowed,
        Self::Private,
        Self::Members,
        Self::Uplinks,
        Self::Guests6,
        Self::Allowed6,
        Self::Forwards6,
        Self::ForwardsAny6,
        Self::Open6,
        Self::Alone,
        Self::Routers6,
        Self::Dns,
        Self::DnsPorts,
        Self::Limited,
        Self::SentBytes,
        Self::SentPackets,
        Self::ReceivedBytes,
        Self::ReceivedPackets,
    ];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guests | Self::ArpGuests => "guests",
            Self::Gateways | Self::ArpGateways => "gateways",
            Self::Forwards => "forwards",
            Self::ForwardsAny => "forwards-any",
            Self::Egress => "egress",
            Self::Allowed => "allowed",
            Self::Private => "private",
            Self::Members => "members",
            Self::Uplinks => "uplinks",
            Self::Guests6 => "guests6",
            Self::Allowed6 => "allowed6",
            Self::Forwards6 => "forwards6",
            Self::ForwardsAny6 => "forwards6-any",
            Self::Open6 => "open6",
            Self::Alone => "alone",
            Self::Routers6 => "routers6",
            Self::Dns => "dns",
            Self::DnsPorts => "dns-ports",
            Self::Limited => "limited",
            Self::SentBytes => "sent-bytes",
            Self::SentPackets => "sent-packets",
            Self::ReceivedBytes => "received-bytes",
            Self::ReceivedPackets => "received-packets",
        }
    }

    /// Whether it is in the table of ARP.
    #[must_use]
    pub fn is_arp(self) -> bool {
        matches!(self, Self::ArpGuests | Self::ArpGateways)
    }
}

/// What a key of a map leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Bytes as the kernel compares them.
    Bytes(Vec<u8>),
    /// The packet passes this hook.
    Accept,
    /// Go on in this chain, and come back.
    Jump(&'static str),
    /// Go on in this chain.
    Goto(&'static str),
    /// An object, which comes and goes with the element.
    Limit(Limit),
}

/// An element, in the kernel's form: each part of a key is filled up to four bytes, numbers of
/// the network in its byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Where it belongs.
    pub set: Set,
    /// Its key, or the first of an interval.
    pub key: Vec<u8>,
    /// The last of an interval.
    pub last: Option<Vec<u8>>,
    /// What a map holds for it.
    pub value: Option<Value>,
}

/// A key of several parts.
#[derive(Debug, Default)]
pub(super) struct Key(pub(super) Vec<u8>);

impl Key {
    fn part(mut self, bytes: &[u8], room: usize) -> Self {
        let end = self.0.len() + room;
        self.0.extend(bytes);
        self.0.resize(end, 0);
        self
    }

    pub(super) fn name(self, name: &str) -> Self {
        self.part(name.as_bytes(), 16)
    }

    pub(super) fn address(self, address: Ipv4Addr) -> Self {
        self.part(&address.octets(), 4)
    }

    pub(super) fn address6(self, address: Ipv6Addr) -> Self {
        self.part(&address.octets(), 16)
    }

    pub(super) fn mac(self, mac: Mac) -> Self {
        self.part(&mac.0, 8)
    }

    pub(super) fn mark(self, mark: u32) -> Self {
        self.part(&mark.to_ne_bytes(), 4)
    }

    pub(super) fn byte(self, byte: u8) -> Self {
        self.part(&[byte], 4)
    }

    pub(super) fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes(), 4)
    }
}
