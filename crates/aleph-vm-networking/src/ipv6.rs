//! Which IPv6 prefix is whose.
//!
//! A node has a prefix, and each VM one out of it, at the place of its /30: there is nothing to
//! allocate. The guest has the address `::2` in its prefix, and may use all of it: the host routes
//! the prefix to it. A VM's prefix is a /64 where the node's has room for that many, and
//! narrower by as little as need be otherwise.
//!
//! The host has no address on the cable, and says and hears nothing of neighbour discovery there:
//! it knows the guest's hardware address, and tells the guest's agent its own. So none of it can
//! be forged, and a guest cannot fill the host's table of neighbours.
//!
//! A prefix of unique local addresses (RFC 4193) is hidden behind the host's address (NAT66, as
//! with IPv4); any other is meant to be routed to this host, and guests are seen from outside
//! under their own addresses.

use aleph_types::{InvalidNetwork, Ipv4Network, Ipv6Network};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The guest, as the host's routes name it on every cable. A global address there would have to be
/// on no other link of the host's, whatever routes there are.
pub const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// The guest's gateway, on every cable.
pub const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const UNIQUE_LOCAL: Ipv6Network = network(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// What is given out of the Internet's addresses (RFC 4291, 2.4).
const UNICAST: Ipv6Network = network(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

const fn network(first: Ipv6Addr, prefix: u8) -> Ipv6Network {
    match Ipv6Network::new(first, prefix) {
        Some(network) => network,
        None => unreachable!(),
    }
}

/// Whether a node's VMs have IPv6, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6Config {
    /// Unique local addresses where the host has an IPv6 default route as the node starts, and
    /// none elsewhere.
    #[default]
    Auto,
    /// None.
    Off,
    /// Unique local addresses that are made from the name of this host.
    Nat,
    /// Out of this prefix.
    Prefix(Ipv6Network),
}

impl fmt::Display for Ipv6Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Nat => f.write_str("nat"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for Ipv6Config {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "off" => Self::Off,
            "nat" => Self::Nat,
            text => {
                let prefix: Ipv6Network = text.parse()?;
                let of_guests = [UNICAST, UNIQUE_LOCAL];
                match of_guests.iter().any(|all| all.contains(prefix.first())) {
                    true => Self::Prefix(prefix),
                    false => return Err(InvalidNetwork::Network(text.to_owned())),
                }
            }
        })
    }
}

/// The prefixes of a node's VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Pool {
    prefix: Ipv6Network,
    /// How many bits of an address name its VM.
    of_vm: u8,
}

/// A prefix that has too few addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the IPv6 prefix {prefix} has no room for the {vms} VMs of {pool}")]
pub struct TooNarrow {
    /// The node's prefix.
    pub prefix: Ipv6Network,
    /// How many VMs the node's pool has room for.
    pub vms: u32,
    /// That pool.
    pub pool: Ipv4Network,
}

impl Ipv6Pool {
    /// Prefixes for as many VMs as a pool of /30s has.
    ///
    /// # Errors
    /// Where they would have fewer than sixteen addresses each.
    pub fn new(prefix: Ipv6Network, pool: Ipv4Network) -> Result<Self, TooNarrow> {
        let bits = 30_u8.saturating_sub(pool.prefix());
        // Whole digits, for people.
        let of_vm = (prefix.prefix() + bits).next_multiple_of(4).max(64);
        match of_vm <= 124 {
            true => Ok(Self { prefix, of_vm }),
            false => Err(TooNarrow {
                prefix,
                vms: 1 << bits,
                pool,
            }),
        }
    }

    /// The prefix that a node makes for itself: `fd` and 40 bits that hardly any other host has,
    /// as RFC 4193 wants it. They are the same with each start.
    #[must_use]
    pub fn unique_local(of_host: &str) -> Ipv6Network {
        // FNV-1a, which will never change.
        let hash = of_host.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
            (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        let first = (0xfd << 40 | u128::from(hash >> 24)) << 80;
        Ipv6Network::around(Ipv6Addr::from_bits(first), 48).unwrap_or(UNIQUE_LOCAL)
    }

    /// The node's prefix.
    #[must_use]
    pub fn prefix(self) -> Ipv6Network {
        self.prefix
    }

    /// Whether the guests are hidden behind the host's address.
    #[must_use]
    pub fn is_nat(self) -> bool {
        UNIQUE_LOCAL.contains(self.prefix.first())
    }

    /// The bits of an address that name its VM, set.
    #[must_use]
    pub fn mask(self) -> Ipv6Addr {
        let whole = Ipv6Network::around(Ipv6Addr::UNSPECIFIED, self.of_vm);
        Ipv6Addr::from_bits(whole.map_or(u128::MAX, Ipv6Network::mask))
    }

    /// The prefix at a place of the pool.
    #[must_use]
    pub fn at(self, slot: u32) -> Option<Ipv6Network> {
        let first = self.prefix.first().to_bits() | u128::from(slot) << (128 - self.of_vm);
        Ipv6Network::new(Ipv6Addr::from_bits(first), self.of_vm)
    }
}

/// The guest's address in its prefix.
#[must_use]
pub fn guest(prefix: Ipv6Network) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.first().to_bits() | 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(prefix: &str) -> Result<Ipv6Pool, TooNarrow> {
        Ipv6Pool::new(prefix.parse().unwrap(), crate::DEFAULT_POOL)
    }

    #[test]
    fn a_vm_has_a_prefix_at_its_place() {
        for (prefix, first, last) in [
            ("2001:db8::/48", "2001:db8::/64", "2001:db8:0:3fff::/64"),
            ("2001:db8::/50", "2001:db8::/64", "2001:db8:0:3fff::/64"),
            ("2001:db8::/64", "2001:db8::/80", "2001:db8:0:0:3fff::/80"),
            ("2001:db8::/108", "2001:db8::/124", "2001:db8::3:fff0/124"),
        ] {
            let pool = pool(prefix).unwrap();
            assert_eq!(pool.at(0).unwrap().to_string(), first);
            assert_eq!(pool.at(16_383).unwrap().to_string(), last);
            assert!(pool.prefix().contains(pool.at(16_383).unwrap().last()));
            assert!(!pool.is_nat());
        }
        let narrow = pool("2001:db8::/112").unwrap_err();
        assert_eq!(narrow.vms, 16_384);
    }

    #[test]
    fn a_host_makes_a_prefix_of_its_own() {
        let (one, other) = (Ipv6Pool::unique_local("a"), Ipv6Pool::unique_local("b"));
        assert_ne!(one, other);
        assert_eq!(one, Ipv6Pool::unique_local("a"));
        assert!(one.to_string().starts_with("fd"), "{one}");
        assert_eq!(one.prefix(), 48);
        let pool = Ipv6Pool::new(one, crate::DEFAULT_POOL).unwrap();
        assert!(pool.is_nat());
        assert_eq!(pool.mask().to_string(), "ffff:ffff:ffff:ffff::");
        let of_vm = pool.at(7).unwrap();
        assert_eq!(guest(of_vm).segments()[3..], [7, 0, 0, 0, 2]);
    }

    #[test]
    fn settings_are_read_and_written() {
        for text in ["auto", "off", "nat", "2001:db8::/56"] {
            assert_eq!(text.parse::<Ipv6Config>().unwrap().to_string(), text);
        }
        for text in ["on", "fe80::/64", "ff00::/8", "::/8", "2001:db8::1/64"] {
            assert!(text.parse::<Ipv6Config>().is_err(), "{text}");
        }
    }
}
