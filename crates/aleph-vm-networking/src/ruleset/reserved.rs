//! Addresses that no guest sends to.

use aleph_types::{Ipv4Network, Ipv6Network};
use std::net::IpAddr;

/// Where no guest sends to by IPv6: itself, IPv4 in disguise (by way of NAT64, its loopback and
/// link-local addresses alone), link-local addresses and groups; and what clouds use for their
/// metadata (AWS, Google).
pub(super) const RESERVED6: &str = "::/127, ::ffff:0:0/96, 2002::/16, 64:ff9b::7f00:0/104, \
                                    64:ff9b::a9fe:0/112, fe80::/10, ff00::/8, fd00:ec2::254, \
                                    fd20:ce::254";

/// Where no guest sends to: this host, every loopback, and link-local addresses; and what clouds
/// use for their metadata outside of those (Azure, Alibaba, Oracle).
pub(super) const RESERVED: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 168.63.129.16, 100.100.100.200, \
                        192.0.0.192";

/// Whether no guest sends to this address, whatever its egress says; no more does it to groups.
pub(crate) fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let networks = RESERVED.split(", ").map(str::parse::<Ipv4Network>);
            let is_one = networks.flatten().any(|network| network.contains(address));
            is_one || address.is_multicast() || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            let mut networks = RESERVED6.split(", ").map(str::parse::<Ipv6Network>);
            networks.any(|network| network.is_ok_and(|network| network.contains(address)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_to_what_is_reserved() {
        for address in [
            "127.0.0.53",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_reserved(address.parse().unwrap()), "{address}");
        }
        for address in ["100.100.100.201", "192.0.2.1", "10.0.0.1", "2001:db8::1"] {
            assert!(!is_reserved(address.parse().unwrap()), "{address}");
        }
        assert!(
            RESERVED
                .split(", ")
                .all(|text| text.parse::<Ipv4Network>().is_ok())
        );
        let mut v6 = RESERVED6.split(", ");
        assert!(v6.all(|text| text.parse::<Ipv6Network>().is_ok()));
    }
}
