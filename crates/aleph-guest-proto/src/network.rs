//! A guest's network, as the host lays it out.

use crate::ProtocolError;
use crate::wire::{Reader, Writer};

/// What a guest gives its one network interface. All of it is static: there is nobody on the
/// other side who answers DHCP or sends router advertisements.
///
/// It stands at the end of a [`crate::Setup`] from version
/// [`Versions::NETWORK`](crate::Versions::NETWORK) on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network<'a> {
    /// The interface's hardware address, which it is found by.
    pub mac: [u8; 6],
    /// Its address.
    pub address: [u8; 4],
    /// How many bits of that name the subnet: 1 to 32.
    pub prefix_length: u8,
    /// Where all that is not in the subnet goes; on the link in any case.
    pub gateway: [u8; 4],
    /// The gateway's hardware address, of both families: nothing asks for it.
    pub gateway_mac: [u8; 6],
    /// The largest packet in bytes: 68 to 65535, 1280 or more with [`Network::v6`].
    pub mtu: u16,
    /// The name server; without one the image's own `resolv.conf` stays as it is.
    pub resolver: Option<[u8; 4]>,
    /// The domain that names without dots are looked up in; none when empty, and then only with
    /// a name server.
    pub search: &'a [u8],
    /// The same for IPv6.
    pub v6: Option<NetworkV6>,
}

/// A static address of the second family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkV6 {
    /// The address.
    pub address: [u8; 16],
    /// How many bits of it name the subnet: 1 to 128.
    pub prefix_length: u8,
    /// Where all that is not in the subnet goes; on the link in any case, so it may be a
    /// link-local address.
    pub gateway: [u8; 16],
}

/// The longest domain name (RFC 1035, section 2.3.4).
const MAX_DOMAIN: usize = 253;

impl<'a> Network<'a> {
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        let network = Self {
            mac: r.array()?,
            address: r.array()?,
            prefix_length: r.u8()?,
            gateway: r.array()?,
            gateway_mac: r.array()?,
            mtu: r.u16()?,
            resolver: if r.bool()? { Some(r.array()?) } else { None },
            search: r.text()?,
            v6: if r.bool()? {
                Some(NetworkV6 {
                    address: r.array()?,
                    prefix_length: r.u8()?,
                    gateway: r.array()?,
                })
            } else {
                None
            },
        };
        network.check()?;
        Ok(network)
    }

    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.raw(&self.mac);
        w.raw(&self.address);
        w.u8(self.prefix_length);
        w.raw(&self.gateway);
        w.raw(&self.gateway_mac);
        w.u16(self.mtu);
        w.bool(self.resolver.is_some());
        if let Some(resolver) = &self.resolver {
            w.raw(resolver);
        }
        w.bytes(self.search);
        w.bool(self.v6.is_some());
        if let Some(v6) = &self.v6 {
            w.raw(&v6.address);
            w.u8(v6.prefix_length);
            w.raw(&v6.gateway);
        }
    }

    /// Checks what no guest could be set up with.
    pub(crate) fn check(&self) -> Result<(), ProtocolError> {
        let is_host = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6];
        let is_usable = |address: &[u8; 4]| !matches!(address[0], 0 | 127 | 224..);
        let is_usable_v6 = |address: &[u8; 16]| {
            let zeros = address[..15].iter().all(|byte| *byte == 0);
            address[0] != 0xff && !(zeros && address[15] <= 1)
        };
        let is_domain = self.search.len() <= MAX_DOMAIN
            && self
                .search
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte));
        let least_mtu = if self.v6.is_some() { 1280 } else { 68 };
        let v6 = self.v6.as_ref();
        let checks = [
            (is_host(&self.mac), "hardware address"),
            (is_host(&self.gateway_mac), "the gateway's hardware address"),
            (is_usable(&self.address), "address"),
            (is_usable(&self.gateway), "gateway"),
            ((1..=32).contains(&self.prefix_length), "prefix"),
            (self.mtu >= least_mtu, "MTU"),
            (is_domain, "search domain"),
            (
                self.search.is_empty() || self.resolver.is_some(),
                "a search domain without a name server",
            ),
            (
                v6.is_none_or(|v6| is_usable_v6(&v6.address)),
                "IPv6 address",
            ),
            (
                v6.is_none_or(|v6| is_usable_v6(&v6.gateway)),
                "IPv6 gateway",
            ),
            (
                v6.is_none_or(|v6| (1..=128).contains(&v6.prefix_length)),
                "IPv6 prefix",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(ProtocolError::Malformed(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const PLAIN: Network<'static> = Network {
        mac: [2, 0, 0, 0, 0, 1],
        address: [10, 0, 0, 2],
        prefix_length: 30,
        gateway: [10, 0, 0, 1],
        gateway_mac: [2, 0, 0, 0, 0, 0xff],
        mtu: 1500,
        resolver: Some([10, 0, 0, 1]),
        search: b"jobs.internal",
        v6: Some(NetworkV6 {
            address: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            prefix_length: 64,
            gateway: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        }),
    };

    fn read_back(network: &Network<'_>) -> Result<(), ProtocolError> {
        let mut bytes = Vec::new();
        network.write(&mut Writer(&mut bytes));
        let mut r = Reader::new(&bytes);
        let read = Network::read(&mut r)?;
        assert_eq!(read, *network);
        r.end()
    }

    #[test]
    fn what_a_guest_can_have_is_read_as_it_was_written() {
        let v4 = Network { v6: None, ..PLAIN };
        for network in [
            PLAIN,
            v4,
            Network {
                resolver: None,
                search: b"",
                ..v4
            },
            Network { mtu: 68, ..v4 },
            Network {
                mtu: u16::MAX,
                prefix_length: 32,
                ..PLAIN
            },
        ] {
            read_back(&network).unwrap();
        }
    }

    #[test]
    fn what_no_guest_can_have_is_refused() {
        let v6 = PLAIN.v6.unwrap();
        let with = |v6| Network {
            v6: Some(v6),
            ..PLAIN
        };
        let long = [b'a'; MAX_DOMAIN + 1];
        let (multicast, loopback) = ([0xff; 16], 1_u128.to_be_bytes());
        for (network, why) in [
            (
                Network {
                    mac: [0; 6],
                    ..PLAIN
                },
                "hardware address",
            ),
            (
                Network {
                    mac: [1; 6],
                    ..PLAIN
                },
                "hardware address",
            ),
            (
                Network {
                    gateway_mac: [0xff; 6],
                    ..PLAIN
                },
                "the gateway's hardware address",
            ),
            (
                Network {
                    address: [0; 4],
                    ..PLAIN
                },
                "address",
            ),
            (
                Network {
                    address: [127, 0, 0, 1],
                    ..PLAIN
                },
                "address",
            ),
            (
                Network {
                    gateway: [224, 0, 0, 1],
                    ..PLAIN
                },
                "gateway",
            ),
            (
                Network {
                    prefix_length: 0,
                    ..PLAIN
                },
                "prefix",
            ),
            (
                Network {
                    prefix_length: 33,
                    ..PLAIN
                },
                "prefix",
            ),
            (Network { mtu: 1279, ..PLAIN }, "MTU"),
            (
                Network {
                    mtu: 67,
                    v6: None,
                    ..PLAIN
                },
                "MTU",
            ),
            (
                Network {
                    search: b"a\nnameserver b",
                    ..PLAIN
                },
                "search domain",
            ),
            (
                Network {
                    search: &long,
                    ..PLAIN
                },
                "search domain",
            ),
            (
                Network {
                    resolver: None,
                    ..PLAIN
                },
                "a search domain without a name server",
            ),
            (
                with(NetworkV6 {
                    address: multicast,
                    ..v6
                }),
                "IPv6 address",
            ),
            (
                with(NetworkV6 {
                    gateway: loopback,
                    ..v6
                }),
                "IPv6 gateway",
            ),
            (
                with(NetworkV6 {
                    gateway: [0; 16],
                    ..v6
                }),
                "IPv6 gateway",
            ),
            (
                with(NetworkV6 {
                    prefix_length: 129,
                    ..v6
                }),
                "IPv6 prefix",
            ),
        ] {
            assert_eq!(
                read_back(&network),
                Err(ProtocolError::Malformed(why)),
                "{network:?}"
            );
        }
    }
}
