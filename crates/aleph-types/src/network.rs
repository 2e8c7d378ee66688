//! What a job asks of the network, and what its VM got.

mod egress;
mod rate;

pub use egress::{DomainPattern, Egress, EgressTarget};
pub use rate::{BothWays, InvalidRate, NetworkLimits, Rate, RateLimit};

use crate::Ipv6Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What a job asks of the network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// `nat`, `none` or `private:NAME`; the node's default where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(value_type = Option<String>, pattern = "^(nat|none|private:[a-z0-9][a-z0-9-]{0,31})$")
    )]
    pub mode: Option<NetworkMode>,
    /// Ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub ports: Vec<PortForward>,
    /// Where the guest may open connections to.
    #[serde(default, skip_serializing_if = "Egress::is_allow")]
    pub egress: Egress,
    /// How much may go through in a second. The node's own limits hold too.
    #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
    pub limits: NetworkLimits,
}

impl NetworkSpec {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks all that can be known without a node.
    pub(crate) fn check(&self) -> Result<(), InvalidNetwork> {
        let ports: usize = self.ports.iter().map(|p| usize::from(p.guest.len())).sum();
        if ports > MAX_PORTS {
            return Err(InvalidNetwork::TooManyPorts(ports));
        }
        if self.mode == Some(NetworkMode::None) && !self.ports.is_empty() {
            return Err(InvalidNetwork::PortsWithoutNetwork);
        }
        for (index, forward) in self.ports.iter().enumerate() {
            forward.check()?;
            let clash = self.ports[..index].iter().find(|b| forward.overlaps(b));
            if let Some(other) = clash {
                return Err(InvalidNetwork::Overlap(*forward, *other));
            }
        }
        self.limits.check().map_err(InvalidNetwork::Rate)?;
        let Egress::Only(targets) = &self.egress else {
            return Ok(());
        };
        if targets.len() > MAX_TARGETS {
            return Err(InvalidNetwork::TooManyTargets(targets.len()));
        }
        Ok(())
    }
}

/// Ports that all forwards of a job may have together.
pub const MAX_PORTS: usize = 1024;
/// Targets that a job's egress may name.
const MAX_TARGETS: usize = 64;

/// How a VM is connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// An address of its own behind the host's; other VMs and the host are out of reach.
    Nat,
    /// No network device.
    None,
    /// The same as `Nat`, and jobs of the same account in the same network reach each other.
    Private(String),
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat => f.write_str("nat"),
            Self::None => f.write_str("none"),
            Self::Private(name) => write!(f, "private:{name}"),
        }
    }
}

impl FromStr for NetworkMode {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let is_name = |name: &str| {
            (1..=32).contains(&name.len())
                && !name.starts_with('-')
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        match text {
            "nat" => Ok(Self::Nat),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("private:") {
                Some(name) if is_name(name) => Ok(Self::Private(name.to_owned())),
                _ => Err(InvalidNetwork::Mode(text.to_owned())),
            },
        }
    }
}

/// The transport of a forward.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// From `first` to `last`; `None` with port 0 or backwards.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// The first.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// How many, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is always one
    pub fn len(self) -> u16 {
        // Port 0 is in no range, so all of them are 65,535.
        self.last - self.first + 1
    }

    /// Each of them.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last > self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

impl FromStr for PortRange {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let wrong = || InvalidNetwork::Port(text.to_owned());
        // `u16::from_str` takes a plus sign.
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(wrong()),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(port(first)?, port(last)?).ok_or_else(wrong)
    }
}

/// Ports of the host that lead to a guest, written `[ADDRESS:][HOST:]GUEST[/PROTOCOL]` as
/// docker's `-p` is: `8080:80`, `127.0.0.1:5353:53/udp`, `[2001:db8::1]:8080:80`, `80`,
/// `7000-7009:7000-7009`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortForward {
    /// The address of the host; all of them, of both families, where it is absent.
    pub address: Option<IpAddr>,
    /// The host's ports, as many as the guest's; the node picks where they are absent.
    pub host: Option<PortRange>,
    /// The guest's ports.
    pub guest: PortRange,
    /// The transport.
    pub protocol: Protocol,
}

impl PortForward {
    fn check(&self) -> Result<(), InvalidNetwork> {
        match self.host {
            Some(host) if host.len() != self.guest.len() => {
                let guest = self.guest;
                Err(InvalidNetwork::Lengths { host, guest })
            }
            _ => Ok(()),
        }
    }

    /// Whether both claim one port of one address.
    fn overlaps(&self, other: &Self) -> bool {
        let addresses = share_an_address(self.address, other.address);
        let ports = match (self.host, other.host) {
            (Some(a), Some(b)) => a.overlaps(b),
            _ => false,
        };
        addresses && ports && self.protocol == other.protocol
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        match self.host {
            Some(host) => write!(f, "{host}:")?,
            None if self.address.is_some() => f.write_str(":")?,
            None => {}
        }
        write!(f, "{}", self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl FromStr for PortForward {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(InvalidNetwork::Protocol(other.to_owned())),
        };
        // An IPv6 address has colons of its own, and stands in brackets.
        let (v6, ports) = match ports.strip_prefix('[').map(|rest| rest.split_once("]:")) {
            None => (None, ports),
            Some(Some((address, ports))) => {
                let wrong = |_| InvalidNetwork::Address(address.to_owned());
                (Some(address.parse::<Ipv6Addr>().map_err(wrong)?), ports)
            }
            Some(None) => return Err(InvalidNetwork::Forward(text.to_owned())),
        };
        let words: Vec<&str> = ports.split(':').collect();
        let address = |text: &str| match text {
            "" | "0.0.0.0" => Ok(None),
            _ => match text.parse::<Ipv4Addr>() {
                Ok(address) => Ok(Some(address.into())),
                Err(_) => Err(InvalidNetwork::Address(text.to_owned())),
            },
        };
        let host = |text: &str| match text {
            "" => Ok(None),
            _ => text.parse().map(Some),
        };
        let (address, host, guest) = match (v6, &words[..]) {
            (None, [guest]) => (None, None, *guest),
            (None, [ports, guest]) => (None, host(ports)?, *guest),
            (None, [on, ports, guest]) => (address(on)?, host(ports)?, *guest),
            (Some(on), [ports, guest]) => (Some(on.into()), host(ports)?, *guest),
            _ => return Err(InvalidNetwork::Forward(text.to_owned())),
        };
        let forward = Self {
            address,
            host,
            guest: guest.parse()?,
            protocol,
        };
        forward.check()?;
        Ok(forward)
    }
}

/// Whether a port on both of these is one port: on an address of the host, on all of a family
/// (unspecified), or on all (absent).
#[must_use]
pub fn share_an_address(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return true;
    };
    a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}

/// An IPv4 network in CIDR notation, such as `10.0.0.0/16`; no bit is set beyond its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Network {
    first: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Network {
    /// A network; `None` where a bit is set beyond the prefix, or the prefix is over 32.
    #[must_use]
    pub const fn new(first: Ipv4Addr, prefix: u8) -> Option<Self> {
        let network = Self { first, prefix };
        if prefix <= 32 && first.to_bits() & !network.mask() == 0 {
            Some(network)
        } else {
            None
        }
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !self.mask())
    }

    /// How many bits all its addresses share.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.first.to_bits()
    }

    /// Whether they share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    const fn mask(self) -> u32 {
        match self.prefix {
            0 => 0,
            prefix => u32::MAX << (32 - prefix),
        }
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Ipv4Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let wrong = || InvalidNetwork::Network(text.to_owned());
        let (first, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let first = first.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        Self::new(first, prefix).ok_or_else(wrong)
    }
}

/// What a VM's network is, as long as it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmNetwork {
    /// The host's side of its cable.
    pub tap_name: String,
    /// The guest's address.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = Ipv4))]
    pub vm_ip: Ipv4Addr,
    /// The host's address on this cable: the guest's gateway and resolver.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = Ipv4))]
    pub host_ip: Ipv4Addr,
    /// The guest's IPv6 address, where the node has IPv6 for its VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = Ipv6))]
    pub vm_ipv6: Option<Ipv6Addr>,
    /// The prefix that is all the guest's own, in CIDR notation; its address is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub ipv6_prefix: Option<Ipv6Network>,
    /// The guest's hardware address.
    pub mac: String,
    /// The private network that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_network: Option<String>,
    /// Ports of the host that lead to it, those that the node picked included.
    pub forwarded_ports: Vec<ForwardedPort>,
    /// How much may go through in a second: the lower of what its job and what the node says.
    #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
    pub limits: NetworkLimits,
}

/// What went through a VM's network since it was made, and what did not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NetworkUsage {
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Packets that the guest sent.
    pub sent_packets: u64,
    /// Bytes that went to the guest.
    pub received_bytes: u64,
    /// Packets that went to the guest.
    pub received_packets: u64,
    /// Packets to the guest that it did not take in time.
    pub overruns: u64,
    /// Packets that the rules dropped, by reason: `spoofed`, `reserved`, `host`, `neighbour`,
    /// `egress`, `inbound`, `connections`, `rate`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, u64>,
}

/// One port of the host that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ForwardedPort {
    /// The transport.
    pub protocol: Protocol,
    /// The address of the host; `0.0.0.0` for all of them, `::` for all of IPv6.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub host_ip: IpAddr,
    /// Its port.
    pub host_port: u16,
    /// The guest's port.
    pub vm_port: u16,
}

impl fmt::Display for ForwardedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            host_ip,
            host_port,
            vm_port,
        } = self;
        let host = SocketAddr::new(*host_ip, *host_port);
        write!(f, "{vm_port}/{protocol} -> {host}")
    }
}

/// A network that no node could make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// Not of the form.
    #[error("{0:?} is no network of a job")]
    Mode(String),
    /// Not of the form.
    #[error("{0:?} is no forwarded port")]
    Forward(String),
    /// Not from 1 to 65535, or backwards.
    #[error("{0:?} is no port, nor a range of them")]
    Port(String),
    /// Neither TCP nor UDP.
    #[error("{0:?} is no protocol that is forwarded")]
    Protocol(String),
    /// No address.
    #[error("{0:?} is no IP address")]
    Address(String),
    /// No network in CIDR notation, or none of its family.
    #[error("{0:?} is no IP network, or has bits beyond its prefix")]
    Network(String),
    /// Neither a network nor a name.
    #[error("{0:?} is no network, and no domain name")]
    Target(String),
    /// One side has more ports than the other.
    #[error("the host's ports {host} and the guest's {guest} are not as many")]
    Lengths {
        /// The host's.
        host: PortRange,
        /// The guest's.
        guest: PortRange,
    },
    /// Two forwards of one job claim the same port.
    #[error("the forwards {0} and {1} claim the same port")]
    Overlap(PortForward, PortForward),
    /// Too many of them.
    #[error("the job forwards {0} ports, at most {MAX_PORTS} are taken")]
    TooManyPorts(usize),
    /// Too many of them.
    #[error("the job's egress has {0} targets, at most {MAX_TARGETS} are taken")]
    TooManyTargets(usize),
    /// Not a rate.
    #[error(transparent)]
    Rate(InvalidRate),
    /// Nothing could arrive.
    #[error("the job forwards ports and has no network")]
    PortsWithoutNetwork,
}

impl InvalidNetwork {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Mode(_) => "Say nat, none or private:NAME (lower case letters, digits and \
                              dashes, at most 32)."
                .into(),
            Self::Forward(_) | Self::Protocol(_) | Self::Lengths { .. } => {
                "Write [ADDRESS:][HOST:]GUEST[/tcp|/udp], with ranges of the same length.".into()
            }
            Self::Port(_) => "Ports are from 1 to 65535, ranges FIRST-LAST.".into(),
            Self::Address(_) => {
                "Name an address of the host, such as 127.0.0.1 or [2001:db8::1].".into()
            }
            Self::Network(_) => "Write it as 192.0.2.0/24.".into(),
            Self::Target(_) => "Write a network as 192.0.2.0/24, a name as example.com, and all \
                                names below it as *.example.com."
                .into(),
            Self::Overlap(..) => "Give each forward ports of its own.".into(),
            Self::TooManyPorts(_) | Self::TooManyTargets(_) => "Name fewer.".into(),
            Self::Rate(error) => error.advice(),
            Self::PortsWithoutNetwork => "Leave the ports or --network none out.".into(),
        }
    }
}

/// Types whose serde form is their text.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(NetworkMode, PortForward, Ipv4Network, EgressTarget);

/// In a schema they are texts too.
#[cfg(feature = "schema")]
mod schema {
    use super::PortForward;
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    use utoipa::openapi::{RefOr, Schema};

    impl utoipa::PartialSchema for PortForward {
        fn schema() -> RefOr<Schema> {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some(
                    "`[ADDRESS:][HOST:]GUEST[/PROTOCOL]`, as docker's `-p`: `8080:80`, `80/udp`, \
                     `[2001:db8::1]:8080:80`",
                ))
                .into()
        }
    }

    impl utoipa::ToSchema for PortForward {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_and_written() {
        for text in [
            "80",
            "8080:80",
            "8080:80/udp",
            "127.0.0.1:5353:53/udp",
            "127.0.0.1::53",
            "7000-7009:8000-8009",
            "[::1]:8080:80",
            "[2001:db8::7]::53/udp",
            "[::]:1:2",
        ] {
            let forward: PortForward = text.parse().unwrap();
            assert_eq!(forward.to_string(), text);
        }
        let plain: PortForward = "0.0.0.0:1:2/tcp".parse().unwrap();
        assert_eq!(plain.to_string(), "1:2");
    }

    #[test]
    fn wrong_forwards_are_refused() {
        for text in [
            "",
            "0",
            "70000",
            "+80",
            "a",
            "80/sctp",
            "80/",
            "1:2:3",
            "1.2.3:1:2",
            "1:2:3:4",
            "9-8",
            "1-2:3",
            "0-1",
            "-",
            "1-",
            "::1:80:80",
            "[::1]",
            "[::1]80",
            "[::1]:80",
            "[127.0.0.1]:1:2",
            "[::1]:1:2:3",
        ] {
            assert!(text.parse::<PortForward>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn forwards_of_one_job_may_not_overlap() {
        let check = |ports: &[&str]| {
            let ports = ports.iter().map(|p| p.parse().unwrap()).collect();
            NetworkSpec {
                ports,
                ..NetworkSpec::default()
            }
            .check()
        };
        assert!(check(&["80:80", "80:80/udp", "80", "80"]).is_ok());
        assert!(check(&["127.0.0.1:80:80", "127.0.0.2:80:80"]).is_ok());
        assert!(check(&["80:80", "127.0.0.2:80:81"]).is_err());
        assert!(check(&["127.0.0.1:80:80", "[::]:80:80"]).is_ok());
        assert!(check(&["[::1]:80:80", "[::]:80:80"]).is_err());
        assert!(check(&["80:80", "[::1]:80:81"]).is_err());
        assert!(check(&["10-20:10-20", "20:1"]).is_err());
        assert!(check(&["1-1025:1-1025"]).is_err());
    }

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        let network = |text: &str| text.parse::<Ipv4Network>();
        let pool = network("10.0.0.0/16").unwrap();
        assert!(pool.contains(Ipv4Addr::new(10, 0, 255, 255)));
        assert!(!pool.contains(Ipv4Addr::new(10, 1, 0, 0)));
        assert!(pool.overlaps(network("0.0.0.0/0").unwrap()));
        assert!(pool.overlaps(network("10.0.3.7").unwrap()));
        assert_eq!(pool.last(), Ipv4Addr::new(10, 0, 255, 255));
        for text in ["10.0.0.1/16", "10.0.0.0/33", "x/8", "10.0.0.0/-1", ""] {
            assert!(network(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn modes_are_read_and_written() {
        for text in ["nat", "none", "private:db-1"] {
            assert_eq!(text.parse::<NetworkMode>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "private:",
            "private:-a",
            "private:A",
            "private:a/b",
        ] {
            assert!(text.parse::<NetworkMode>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_network_is_short_in_json() {
        let spec: NetworkSpec = serde_json::from_str(
            r#"{"mode": "private:x", "ports": ["80"], "egress": {"only": ["10.0.0.0/8", "x.org"]}}"#,
        )
        .unwrap();
        assert_eq!(
            serde_json::to_string(&spec).unwrap(),
            r#"{"mode":"private:x","ports":["80"],"egress":{"only":["10.0.0.0/8","x.org"]}}"#
        );
        assert!(NetworkSpec::default().is_default());
        assert_eq!(
            serde_json::to_string(&NetworkSpec::default()).unwrap(),
            "{}"
        );
    }
}
