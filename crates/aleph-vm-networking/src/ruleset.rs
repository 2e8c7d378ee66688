//! The rules, as a pure function of the node's settings, and the elements that a VM adds.
//!
//! [`Base::text`] gives the tables for `nft -f`; they never change while VMs come and go.
//! [`elements`] gives what one VM has in their sets and maps. What passes:
//!
//! | from | to | passes |
//! | --- | --- | --- |
//! | a guest, with another address or MAC | anywhere | nothing |
//! | a guest | loopback, link-local and metadata addresses | nothing |
//! | a guest | the host | DNS to its own gateway, led to the forwarder's port; answers |
//! | a guest | a guest | the same private network; a forwarded port; answers |
//! | a guest | elsewhere | what its egress says, behind the host's address |
//! | elsewhere, with an address of the pool or to loopback | anywhere | nothing |
//! | elsewhere | a guest | forwarded ports, answers |
//! | the host | a guest | everything |
//! | anybody | an address of the pool that is no VM's | nothing: it would leave by the default route |
//! | elsewhere | elsewhere | nothing through a link that forwards for VMs alone |
//!
//! The same holds for IPv6, where a node has it; but that guests ask for names by IPv4 alone, so
//! the host takes nothing from a guest by IPv6 but answers; and that nothing is forwarded from
//! `::1`, to which no answer comes back from another link, whatever is translated: there a client
//! is refused at once and tries 127.0.0.1. Where the prefix is routed to the host, ports that are
//! forwarded on all its addresses are open on the guest's own as well.
//!
//! A VM with limits on its rate loses what is above them, both ways. What is dropped is counted
//! for each VM and reason. All guests' DNS goes to one socket, so each may send a thousand
//! datagrams a second there, in bursts that its buffer has room for.

mod limits;
mod reserved;
mod set;
mod tables;

pub use limits::{Limit, Unit};
pub(crate) use reserved::is_reserved;
use set::Key;
pub use set::{Element, Set, Value};

use crate::forwards::Forward;
use crate::ipv6::{self, Ipv6Pool};
use crate::mac::Mac;
use aleph_types::{Egress, Ipv4Network, Ipv6Network, NetworkLimits, Protocol};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// What all rules of a node depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The name of its tables.
    pub table: String,
    /// The group of links that its TAPs are in.
    pub group: u32,
    /// Its pool.
    pub pool: Ipv4Network,
    /// The same for IPv6; its VMs have none without.
    pub ipv6: Option<Ipv6Pool>,
    /// Connections that one VM may have open.
    pub connections: u32,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// It had another source than its VM's.
    Spoofed,
    /// It was to a loopback or link-local address.
    Reserved,
    /// It was to the host.
    Host,
    /// It was to another VM.
    Neighbour,
    /// Its job's egress forbids it.
    Egress,
    /// It came from outside, and to no forwarded port.
    Inbound,
    /// Its VM had too many connections.
    Connections,
    /// Its VM sent or received too much.
    Rate,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Spoofed,
        Self::Reserved,
        Self::Host,
        Self::Neighbour,
        Self::Egress,
        Self::Inbound,
        Self::Connections,
        Self::Rate,
    ];

    /// Its name, for people and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spoofed => "spoofed",
            Self::Reserved => "reserved",
            Self::Host => "host",
            Self::Neighbour => "neighbour",
            Self::Egress => "egress",
            Self::Inbound => "inbound",
            Self::Connections => "connections",
            Self::Rate => "rate",
        }
    }

    /// The set that counts it for each TAP.
    #[must_use]
    pub fn set(self) -> String {
        format!("dropped-{}", self.name())
    }
}

impl Base {
    /// The tables. Those of an earlier revision are replaced in the same transaction.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { table, .. } = self;
        let marker = self.marker();
        let mut text = String::new();
        for family in ["inet", "arp"] {
            let _ = writeln!(
                text,
                "table {family} {table}\ndelete table {family} {table}"
            );
        }
        let _ = write!(
            text,
            "table inet {table} {{\n  chain {marker} {{ }}\n{}}}\n\
             table arp {table} {{\n  chain {marker} {{ }}\n{}}}\n",
            self.inet(),
            self.arp()
        );
        text
    }

    /// The name of an empty chain in both tables, which changes with every change of the rules or
    /// of what they depend on: a node that finds another in the kernel writes its own.
    #[must_use]
    pub fn marker(&self) -> String {
        let text = format!("{}{}", self.inet(), self.arp());
        // FNV-1a.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("revision-{hash:016x}")
    }

    /// Whether an address belongs to a VM, or would.
    pub(crate) fn is_of_guests(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.pool.contains(address),
            IpAddr::V6(address) => {
                let prefix = self.ipv6.map(Ipv6Pool::prefix);
                prefix.is_some_and(|prefix| prefix.contains(address))
            }
        }
    }
}

/// From here on are the ports from which the host connects for its guests. No port is forwarded
/// from among them, so that no guest can have answers sent to itself that are meant for another.
/// They are above the range from which Linux takes its own by default (`ip_local_port_range`).
pub const FIRST_SOURCE_PORT: u16 = 61_000;

/// What the rules know of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRules<'a> {
    /// Its TAP.
    pub tap: &'a str,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The host's address on this cable.
    pub host: Ipv4Addr,
    /// The guest's hardware address.
    pub mac: Mac,
    /// Its IPv6 prefix.
    pub ipv6: Option<Ipv6Network>,
    /// Whether that can be reached from outside.
    pub is_routed: bool,
    /// Its private network, as a number that no other on this node has.
    pub private: Option<u32>,
    /// Where it may connect to.
    pub egress: &'a Egress,
    /// What leads to it.
    pub forwards: &'a [Forward],
    /// How much it may send and receive.
    pub limits: NetworkLimits,
}

/// The elements of a VM.
#[must_use]
pub fn elements(vm: &VmRules<'_>) -> Vec<Element> {
    let plain = |set, key: Key| Element {
        set,
        key: key.0,
        last: None,
        value: None,
    };
    let tap = || Key::default().name(vm.tap);
    let identity = || tap().address(vm.guest).mac(vm.mac);
    let gateway = || tap().address(vm.host);
    // One lookup says whose the packet is, and whether it is counted.
    let of_guest = match vm.limits.sent.is_none() {
        true => Value::Accept,
        false => Value::Goto("sent"),
    };
    let mut elements = vec![
        Element {
            value: Some(of_guest.clone()),
            ..plain(Set::Guests, identity())
        },
        plain(Set::Gateways, gateway()),
        plain(Set::ArpGuests, identity()),
        plain(Set::ArpGateways, gateway()),
    ];
    if let Some(network) = vm.private {
        elements.push(Element {
            value: Some(Value::Bytes(network.to_ne_bytes().into())),
            ..plain(Set::Private, tap())
        });
        elements.push(plain(Set::Members, tap().mark(network)));
    }
    match vm.egress {
        Egress::Allow => {}
        Egress::Deny => elements.push(Element {
            value: Some(Value::Jump("egress-deny")),
            ..plain(Set::Egress, tap())
        }),
        Egress::Only(_) => {
            elements.push(Element {
                value: Some(Value::Jump("egress-list")),
                ..plain(Set::Egress, tap())
            });
            let v4 = vm.egress.networks().collect();
            for network in without_overlap(v4, Ipv4Network::prefix, Ipv4Network::overlaps) {
                elements.push(Element {
                    last: Some(tap().address(network.last()).0),
                    ..plain(Set::Allowed, tap().address(network.first()))
                });
            }
            let v6 = vm.egress.networks6().collect();
            for network in without_overlap(v6, Ipv6Network::prefix, Ipv6Network::overlaps) {
                elements.push(Element {
                    last: Some(tap().address6(network.last()).0),
                    ..plain(Set::Allowed6, tap().address6(network.first()))
                });
            }
        }
    }
    elements.extend(limits::elements(vm.tap, &vm.limits));
    if let Some(prefix) = vm.ipv6 {
        let identity = tap().address6(prefix.first()).mac(vm.mac);
        elements.push(Element {
            value: Some(of_guest),
            ..plain(Set::Guests6, identity)
        });
    }
    let ports = vm.forwards.iter();
    elements.extend(ports.flat_map(|forward| leading_to(vm, forward)));
    elements.extend(open(vm));
    elements
}

/// The elements of one forwarded port.
fn leading_to(vm: &VmRules<'_>, forward: &Forward) -> Vec<Element> {
    let host = |key: Key| {
        key.byte(forward.protocol.number())
            .port(forward.host_port)
            .0
    };
    let entry = |set, key, to: Key| Element {
        set,
        key,
        last: None,
        value: Some(Value::Bytes(to.port(forward.guest_port).0)),
    };
    let mut elements = Vec::with_capacity(1);
    let v4 = || Key::default().address(vm.guest);
    match forward.address {
        Some(IpAddr::V4(address)) => {
            elements.push(entry(
                Set::Forwards,
                host(Key::default().address(address)),
                v4(),
            ));
        }
        None => elements.push(entry(Set::ForwardsAny, host(Key::default()), v4())),
        Some(IpAddr::V6(_)) => {}
    }
    let Some(guest) = vm.ipv6.map(ipv6::guest) else {
        return elements;
    };
    let v6 = || Key::default().address6(guest);
    match forward.address {
        Some(IpAddr::V6(address)) if !address.is_unspecified() => {
            elements.push(entry(
                Set::Forwards6,
                host(Key::default().address6(address)),
                v6(),
            ));
        }
        Some(IpAddr::V6(_)) | None => {
            elements.push(entry(Set::ForwardsAny6, host(Key::default()), v6()));
        }
        Some(IpAddr::V4(_)) => {}
    }
    elements
}

/// The ports that are open on a guest's own address, each once.
fn open(vm: &VmRules<'_>) -> impl Iterator<Item = Element> {
    let guest = vm.ipv6.filter(|_| vm.is_routed).map(ipv6::guest);
    let everywhere = |forward: &&Forward| match forward.address {
        None => true,
        Some(address) => address.is_ipv6() && address.is_unspecified(),
    };
    let ports = vm.forwards.iter().filter(everywhere);
    let ports: BTreeSet<(u8, u16)> = ports
        .map(|forward| (forward.protocol.number(), forward.guest_port))
        .collect();
    guest.into_iter().flat_map(move |guest| {
        ports
            .clone()
            .into_iter()
            .map(move |(protocol, port)| Element {
                set: Set::Open6,
                key: Key::default().address6(guest).byte(protocol).port(port).0,
                last: None,
                value: None,
            })
    })
}

/// The element that says that the host forwards IPv6 for its VMs alone.
#[must_use]
pub fn alone() -> Element {
    // NFPROTO_IPV6; a key of one part is not filled up.
    Element {
        set: Set::Alone,
        key: vec![10],
        last: None,
        value: None,
    }
}

/// The element of a link in a set of links.
#[must_use]
pub fn link(set: Set, name: &str) -> Element {
    Element {
        set,
        key: Key::default().name(name).0,
        last: None,
        value: None,
    }
}

/// The elements of a DNS forwarder that listens at a port of the host.
///
/// The port is another with each start of a node. As elements, it changes in the transaction that
/// writes those of all VMs again, and guests that run notice nothing.
#[must_use]
pub fn dns(port: u16) -> Vec<Element> {
    const DNS: u16 = 53;
    let protocols = [Protocol::Udp, Protocol::Tcp].map(Protocol::number);
    let elements = protocols.map(|protocol| {
        let key = |port| Key::default().byte(protocol).port(port).0;
        let plain = |set, key| Element {
            set,
            key,
            last: None,
            value: None,
        };
        [
            Element {
                value: Some(Value::Bytes(port.to_be_bytes().into())),
                ..plain(Set::Dns, key(DNS))
            },
            plain(Set::DnsPorts, key(port)),
        ]
    });
    elements.concat()
}

/// The kernel takes no interval that another one holds.
fn without_overlap<N: Copy>(
    mut sorted: Vec<N>,
    prefix: impl Fn(N) -> u8,
    overlap: impl Fn(N, N) -> bool,
) -> Vec<N> {
    sorted.sort_by_key(|network| prefix(*network));
    let mut kept: Vec<N> = Vec::with_capacity(sorted.len());
    for network in sorted {
        if !kept.iter().any(|wider| overlap(*wider, network)) {
            kept.push(network);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::VmId;

    fn base(ipv6: Option<&str>) -> Base {
        let pool = "10.0.0.0/16".parse().unwrap();
        Base {
            table: "aleph-node".into(),
            group: 0x0a1e_0000,
            pool,
            ipv6: ipv6.map(|prefix| Ipv6Pool::new(prefix.parse().unwrap(), pool).unwrap()),
            connections: 4096,
        }
    }

    #[test]
    fn the_tables_of_a_node() {
        insta::assert_snapshot!(base(None).text());
    }

    #[test]
    fn the_tables_of_a_node_with_ipv6() {
        let without = base(None).text();
        let added = |prefix| {
            let with = base(Some(prefix)).text();
            let new = with.lines().filter(|line| !without.contains(line));
            new.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!([added("fd00:1:2::/48"), added("2001:db8::/64")].join("\n\n"));
    }

    fn shown(vm: &VmRules<'_>) -> String {
        lines(&elements(vm))
    }

    fn lines(elements: &[Element]) -> String {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let mut text = String::new();
        for element in elements {
            let _ = write!(text, "{:?} {}", element.set, hex(&element.key));
            if let Some(last) = &element.last {
                let _ = write!(text, " to {}", hex(last));
            }
            let _ = match &element.value {
                Some(Value::Bytes(bytes)) => writeln!(text, " : {}", hex(bytes)),
                Some(Value::Accept) => writeln!(text, " : accept"),
                Some(Value::Jump(chain)) => writeln!(text, " : jump {chain}"),
                Some(Value::Goto(chain)) => writeln!(text, " : goto {chain}"),
                Some(Value::Limit(limit)) => writeln!(text, " : {limit:?}"),
                None => writeln!(text),
            };
        }
        text
    }

    #[test]
    fn the_elements_of_a_vm() {
        let plain = VmRules {
            tap: "tap-01234abc",
            guest: Ipv4Addr::new(10, 0, 0, 2),
            host: Ipv4Addr::new(10, 0, 0, 1),
            mac: Mac::of(VmId::from_bits(0x0123_4abc).unwrap()),
            ipv6: None,
            is_routed: false,
            private: None,
            egress: &Egress::Allow,
            forwards: &[],
            limits: NetworkLimits::default(),
        };
        let targets = ["10.1.0.0/16", "10.1.2.0/24", "192.0.2.7", "example.com"];
        let forward = |address, host_port, guest_port, protocol| Forward {
            protocol,
            address,
            host_port,
            guest_port,
        };
        let targets6 = [
            "2001:db8::/32",
            "2001:db8:1::/48",
            "192.0.2.7",
            "2001:dba::7",
        ];
        insta::assert_snapshot!(
            [
                shown(&plain),
                shown(&VmRules {
                    private: Some(7),
                    egress: &Egress::Only(targets.map(|t| t.parse().unwrap()).into()),
                    forwards: &[
                        forward(None, 8080, 80, Protocol::Tcp),
                        forward(Some(Ipv4Addr::LOCALHOST.into()), 5353, 53, Protocol::Udp),
                    ],
                    ..plain.clone()
                }),
                shown(&VmRules {
                    egress: &Egress::Deny,
                    ..plain.clone()
                }),
                shown(&VmRules {
                    ipv6: "2001:db8:0:7::/64".parse().ok(),
                    is_routed: true,
                    egress: &Egress::Only(targets6.map(|t| t.parse().unwrap()).into()),
                    forwards: &[
                        forward(None, 8080, 80, Protocol::Tcp),
                        forward("2001:db8::7".parse().ok(), 5353, 53, Protocol::Udp),
                    ],
                    ..plain.clone()
                }),
                shown(&VmRules {
                    limits: NetworkLimits::default()
                        .with_bandwidth("sent=8k,received=100G".parse().unwrap())
                        .with_packet_rate("received=100k".parse().unwrap()),
                    ..plain
                }),
                lines(&dns(40_000)),
            ]
            .join("\n")
        );
    }
}
