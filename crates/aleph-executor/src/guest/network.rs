//! What a guest is told of its network.

use aleph_guest_proto::{Network, NetworkV6};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a guest gives the network interface that has the hardware address `mac`
/// ([`crate::hypervisor::Nic`]). All of it is static. The bounds are those of
/// [`aleph_guest_proto::Network`]: what is out of them is refused as
/// [`AgentError::Request`](super::AgentError::Request) before the guest hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The interface's hardware address.
    pub mac: [u8; 6],
    /// Its address, which the guest's hostname stands for, too.
    pub address: Ipv4Addr,
    /// How many bits of that name the subnet.
    pub prefix_length: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// The gateway's hardware address. It is a permanent neighbour, so the guest never asks.
    pub gateway_mac: [u8; 6],
    /// The largest packet in bytes.
    pub mtu: u16,
    /// The name server; without one the image's own `resolv.conf` stays as it is.
    pub resolver: Option<Ipv4Addr>,
    /// The domain that short names are looked up in; none when empty.
    pub search: String,
    /// The same for IPv6.
    pub v6: Option<GuestNetworkV6>,
}

/// A static address of the second family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestNetworkV6 {
    /// The address.
    pub address: Ipv6Addr,
    /// How many bits of it name the subnet.
    pub prefix_length: u8,
    /// Where everything else goes; a link-local address will do.
    pub gateway: Ipv6Addr,
}

impl GuestNetwork {
    pub(super) fn as_message(&self) -> Network<'_> {
        Network {
            mac: self.mac,
            address: self.address.octets(),
            prefix_length: self.prefix_length,
            gateway: self.gateway.octets(),
            gateway_mac: self.gateway_mac,
            mtu: self.mtu,
            resolver: self.resolver.map(|address| address.octets()),
            search: self.search.as_bytes(),
            v6: self.v6.map(|v6| NetworkV6 {
                address: v6.address.octets(),
                prefix_length: v6.prefix_length,
                gateway: v6.gateway.octets(),
            }),
        }
    }
}
