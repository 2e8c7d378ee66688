//! IPv6 networks.

use crate::InvalidNetwork;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// An IPv6 network in CIDR notation, such as `2001:db8::/48`; no bit is set beyond its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv6Network {
    first: Ipv6Addr,
    prefix: u8,
}

impl Ipv6Network {
    /// A network; `None` where a bit is set beyond the prefix, or the prefix is over 128.
    #[must_use]
    pub const fn new(first: Ipv6Addr, prefix: u8) -> Option<Self> {
        let network = Self { first, prefix };
        if prefix <= 128 && first.to_bits() & !network.mask() == 0 {
            Some(network)
        } else {
            None
        }
    }

    /// The network of this size that an address is in; `None` where the prefix is over 128.
    #[must_use]
    pub fn around(address: Ipv6Addr, prefix: u8) -> Option<Self> {
        let network = Self {
            first: Ipv6Addr::UNSPECIFIED,
            prefix: prefix.min(128),
        };
        let first = Ipv6Addr::from_bits(address.to_bits() & network.mask());
        Self::new(first, prefix)
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> Ipv6Addr {
        self.first
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.first.to_bits() | !self.mask())
    }

    /// How many bits all its addresses share.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that all its addresses share, set.
    #[must_use]
    pub const fn mask(self) -> u128 {
        match self.prefix {
            0 => 0,
            prefix => u128::MAX << (128 - prefix),
        }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & self.mask() == self.first.to_bits()
    }

    /// Whether they share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl fmt::Display for Ipv6Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Ipv6Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let wrong = || InvalidNetwork::Network(text.to_owned());
        let (first, prefix) = text.split_once('/').unwrap_or((text, "128"));
        let first = first.parse().map_err(|_| wrong())?;
        // `u8::from_str` takes a plus sign.
        let is_number = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| is_number);
        prefix
            .and_then(|prefix| Self::new(first, prefix))
            .ok_or_else(wrong)
    }
}

impl Serialize for Ipv6Network {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ipv6Network {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        let network = |text: &str| text.parse::<Ipv6Network>();
        let node = network("2001:db8::/32").unwrap();
        assert_eq!(node.to_string(), "2001:db8::/32");
        assert!(node.contains("2001:db8:ffff::1".parse().unwrap()));
        assert!(!node.contains("2001:db9::".parse().unwrap()));
        assert!(node.overlaps(network("2001:db8::7").unwrap()));
        assert_eq!(
            node.last().to_string(),
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"
        );
        let around = Ipv6Network::around("2001:db8:1::7".parse().unwrap(), 48);
        assert_eq!(around, network("2001:db8:1::/48").ok());
        assert_eq!(Ipv6Network::around(Ipv6Addr::LOCALHOST, 129), None);
        for text in ["2001:db8::1/32", "::/129", "::/+1", "10.0.0.0/8", "x", ""] {
            assert!(network(text).is_err(), "{text:?}");
        }
    }
}
