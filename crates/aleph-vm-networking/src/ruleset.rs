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
//! | elsewhere | elsewhere | nothing through a link that forwards for VMs alone |
//!
//! A VM with limits on its rate loses what is above them, both ways. What is dropped is counted for each VM and reason. All guests' DNS goes to one socket, so each
//! may send a thousand datagrams a second there, in bursts that its buffer has room for.

mod limits;

pub use limits::{Limit, Unit};

use crate::forwards::Forward;
use crate::mac::Mac;
use aleph_types::{Egress, Ipv4Network, NetworkLimits, Protocol};
use std::fmt::Write;
use std::net::Ipv4Addr;

/// What all rules of a node depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The name of its tables.
    pub table: String,
    /// The group of links that its TAPs are in.
    pub group: u32,
    /// Its pool.
    pub pool: Ipv4Network,
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

    fn inet(&self) -> String {
        let Self {
            group,
            pool,
            connections,
            ..
        } = self;
        let retired = group + 1;
        let mut counted = String::new();
        for reason in DropReason::ALL {
            let set = reason.set();
            let _ = writeln!(
                counted,
                "  set {set} {{ type ifname; size 65535; flags dynamic; counter; }}"
            );
        }
        // Counted in a rule of its own: where a counter cannot be had, the rule ends and the next
        // one drops all the same.
        for reason in DropReason::ALL {
            let (name, set) = (reason.name(), reason.set());
            let side = match reason {
                DropReason::Inbound => "oifname",
                _ => "iifname",
            };
            let _ = writeln!(
                counted,
                "  chain drop-{name} {{\n    update @{set} {{ {side} }}\n    drop\n  }}"
            );
        }
        let many = DropReason::Connections.set();
        let much = DropReason::Rate.set();
        // An error that reports another's packet: of which flow it is, the kernel has checked; not
        // who sends it.
        let strange = "ct state related iifname . ct original ip saddr . ether saddr != @guests \
                       iifname . ct reply ip saddr . ether saddr != @guests";
        format!(
            "
  set guests {{ type ifname . ipv4_addr . ether_addr; }}
  set gateways {{ type ifname . ipv4_addr; }}
  map forwards {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map forwards-any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map egress {{ type ifname : verdict; }}
  set allowed {{ type ifname . ipv4_addr; flags interval; }}
  set resolved {{ type ifname . ipv4_addr; flags timeout; }}
  map private {{ type ifname : mark; }}
  set members {{ type ifname . mark; }}
  set uplinks {{ type ifname; }}
  map dns {{ type inet_proto . inet_service : inet_service; }}
  set dns-ports {{ type inet_proto . inet_service; }}
  set dns-rate {{ type ifname; size 65535; flags dynamic,timeout; timeout 1m; }}
  set limited {{ type ifname; }}
  map sent-bytes {{ type ifname : limit; }}
  map sent-packets {{ type ifname : limit; }}
  map received-bytes {{ type ifname : limit; }}
  map received-packets {{ type ifname : limit; }}
  set connections {{ type ipv4_addr; size 65535; flags dynamic; }}
  set connections-in {{ type ipv4_addr; size 65535; flags dynamic; }}
{counted}  chain drop-connections-in {{
    update @{many} {{ oifname }}
    drop
  }}
  chain drop-rate-in {{
    update @{much} {{ oifname }}
    drop
  }}

  chain prerouting {{
    type filter hook prerouting priority -450; policy accept;
    iifgroup {group} goto from-guest
    iifgroup {retired} drop
    iifname != \"lo\" ip daddr 127.0.0.0/8 drop
    iifname != \"lo\" ip saddr {pool} drop
  }}
  chain from-guest {{
    meta nfproto != ipv4 goto drop-spoofed
    iifname . ip saddr . ether saddr != @guests goto drop-spoofed
    ip daddr {{ {RESERVED} }} goto drop-reserved
    iifname @limited goto sent
  }}
  chain sent {{
    limit name iifname map @sent-bytes goto drop-rate
    limit name iifname map @sent-packets goto drop-rate
  }}
  chain to-guest {{
    type filter hook postrouting priority filter; policy accept;
    oifgroup {group} oifname @limited goto received
  }}
  chain received {{
    limit name oifname map @received-bytes goto drop-rate-in
    limit name oifname map @received-packets goto drop-rate-in
  }}

  chain destination {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname . ip daddr @gateways meta l4proto {{ tcp, udp }} redirect to :meta l4proto . th dport map @dns
    fib daddr type local jump forwarded
  }}
  chain destination-from-host {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump forwarded
  }}
  chain forwarded {{
    dnat ip to ip daddr . meta l4proto . th dport map @forwards
    dnat ip to meta l4proto . th dport map @forwards-any
  }}
  chain source {{
    type nat hook postrouting priority srcnat; policy accept;
    oifgroup {group} ip saddr 127.0.0.0/8 masquerade
    oifgroup {group} ct status dnat ip saddr {pool} masquerade
    oifgroup != {group} ip saddr {pool} meta l4proto {{ tcp, udp }} masquerade to :{FIRST_SOURCE_PORT}-65535 fully-random
    oifgroup != {group} ip saddr {pool} masquerade
  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifgroup {group} jump to-host
    ct state new meta l4proto . th dport @dns-ports drop
  }}
  chain to-host {{
    meta l4proto udp meta l4proto . th dport @dns-ports update @dns-rate {{ iifname limit rate over 1000/second burst 200 packets }} goto drop-host
    {strange} goto drop-host
    ct state established,related accept
    ct state new add @connections {{ ip saddr ct count over {connections} }} goto drop-connections
    iifname . ip daddr @gateways ct status dnat meta l4proto . th dport @dns-ports accept
    goto drop-host
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifgroup {retired} drop
    iifgroup {group} jump out-of-guest
    oifgroup {group} jump into-guest
    iifname @uplinks drop
  }}
  chain out-of-guest {{
    oifgroup != {group} ct status dnat ct direction original goto drop-host
    {strange} goto drop-neighbour
    ct state established,related accept
    ct state invalid drop
    ct state new add @connections {{ ip saddr ct count over {connections} }} goto drop-connections
    oifgroup {group} meta mark set iifname map @private oifname . meta mark @members accept
    iifname vmap @egress
    oifgroup {group} ct status dnat accept
    oifgroup {group} goto drop-neighbour
    accept
  }}
  chain egress-list {{
    iifname . ip daddr @allowed return
    iifname . ip daddr @resolved return
    goto drop-egress
  }}
  chain egress-deny {{
    goto drop-egress
  }}
  chain into-guest {{
    ct state established,related accept
    ct status dnat ct state new add @connections-in {{ ip daddr ct count over {connections} }} goto drop-connections-in
    ct status dnat accept
    goto drop-inbound
  }}
"
        )
    }

    fn arp(&self) -> String {
        let Self { group, .. } = self;
        let retired = group + 1;
        format!(
            "
  set guests {{ type ifname . ipv4_addr . ether_addr; }}
  set gateways {{ type ifname . ipv4_addr; }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifgroup {group} jump from-guest
    iifgroup {retired} drop
  }}
  chain from-guest {{
    iifname . arp saddr ip . arp saddr ether != @guests drop
    iifname . arp daddr ip != @gateways drop
  }}
"
        )
    }
}

/// Where no guest sends to: this host, every loopback, and link-local addresses; and what clouds
/// use for their metadata outside of those (Azure, Alibaba, Oracle).
const RESERVED: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 168.63.129.16, 100.100.100.200, \
                        192.0.0.192";

/// Whether no guest sends to this address, whatever its egress says; no more does it to groups.
pub(crate) fn is_reserved(address: Ipv4Addr) -> bool {
    let networks = RESERVED.split(", ").map(str::parse::<Ipv4Network>);
    let is_one = networks.flatten().any(|network| network.contains(address));
    is_one || address.is_multicast() || address.is_broadcast()
}

/// From here on are the ports from which the host connects for its guests. No port is forwarded
/// from among them, so that no guest can have answers sent to itself that are meant for another.
/// They are above the range from which Linux takes its own by default (`ip_local_port_range`).
pub const FIRST_SOURCE_PORT: u16 = 61_000;

/// A set or map of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Set {
    /// Which address and MAC a TAP's guest has.
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
    /// Where the DNS forwarder listens, by the port that guests know.
    Dns,
    /// Where it listens: closed to all but what was led there.
    DnsPorts,
    /// TAPs that have limits.
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
    pub const ALL: [Self; 18] = [
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
    /// Go on in this chain, and come back.
    Jump(&'static str),
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
    let mut elements = vec![
        plain(Set::Guests, identity()),
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
            for network in without_overlap(vm.egress.networks().collect()) {
                elements.push(Element {
                    last: Some(tap().address(network.last()).0),
                    ..plain(Set::Allowed, tap().address(network.first()))
                });
            }
        }
    }
    elements.extend(limits::elements(vm.tap, &vm.limits));
    elements.extend(vm.forwards.iter().map(|forward| {
        let to = Key::default().address(vm.guest).port(forward.guest_port);
        let port = |key: Key| key.byte(forward.protocol.number()).port(forward.host_port);
        let (set, key) = match forward.address {
            Some(address) => (Set::Forwards, port(Key::default().address(address))),
            None => (Set::ForwardsAny, port(Key::default())),
        };
        Element {
            value: Some(Value::Bytes(to.0)),
            ..plain(set, key)
        }
    }));
    elements
}

/// The element of a link that the host forwards from for its VMs alone.
#[must_use]
pub fn uplink(name: &str) -> Element {
    Element {
        set: Set::Uplinks,
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
fn without_overlap(mut sorted: Vec<Ipv4Network>) -> Vec<Ipv4Network> {
    sorted.sort_by_key(|network| (network.prefix(), network.first()));
    let mut kept: Vec<Ipv4Network> = Vec::with_capacity(sorted.len());
    for network in sorted {
        if !kept.iter().any(|wider| wider.overlaps(network)) {
            kept.push(network);
        }
    }
    kept
}

/// A key of several parts.
#[derive(Debug, Default)]
struct Key(Vec<u8>);

impl Key {
    fn part(mut self, bytes: &[u8], room: usize) -> Self {
        let end = self.0.len() + room;
        self.0.extend(bytes);
        self.0.resize(end, 0);
        self
    }

    fn name(self, name: &str) -> Self {
        self.part(name.as_bytes(), 16)
    }

    fn address(self, address: Ipv4Addr) -> Self {
        self.part(&address.octets(), 4)
    }

    fn mac(self, mac: Mac) -> Self {
        self.part(&mac.0, 8)
    }

    fn mark(self, mark: u32) -> Self {
        self.part(&mark.to_ne_bytes(), 4)
    }

    fn byte(self, byte: u8) -> Self {
        self.part(&[byte], 4)
    }

    fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes(), 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::VmId;

    #[test]
    fn the_tables_of_a_node() {
        insta::assert_snapshot!(
            Base {
                table: "aleph-node".into(),
                group: 0x0a1e_0000,
                pool: "10.0.0.0/16".parse().unwrap(),
                connections: 4096,
            }
            .text()
        );
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
                Some(Value::Jump(chain)) => writeln!(text, " : jump {chain}"),
                Some(Value::Limit(limit)) => writeln!(text, " : {limit:?}"),
                None => writeln!(text),
            };
        }
        text
    }

    #[test]
    fn no_name_leads_to_what_is_reserved() {
        for address in [
            "127.0.0.53",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
        ] {
            assert!(is_reserved(address.parse().unwrap()), "{address}");
        }
        for address in ["100.100.100.201", "192.0.2.1", "10.0.0.1"] {
            assert!(!is_reserved(address.parse().unwrap()), "{address}");
        }
        assert!(
            RESERVED
                .split(", ")
                .all(|text| text.parse::<Ipv4Network>().is_ok())
        );
    }

    #[test]
    fn the_elements_of_a_vm() {
        let plain = VmRules {
            tap: "tap-01234abc",
            guest: Ipv4Addr::new(10, 0, 0, 2),
            host: Ipv4Addr::new(10, 0, 0, 1),
            mac: Mac::of(VmId::from_bits(0x0123_4abc).unwrap()),
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
        insta::assert_snapshot!(
            [
                shown(&plain),
                shown(&VmRules {
                    private: Some(7),
                    egress: &Egress::Only(targets.map(|t| t.parse().unwrap()).into()),
                    forwards: &[
                        forward(None, 8080, 80, Protocol::Tcp),
                        forward(Some(Ipv4Addr::LOCALHOST), 5353, 53, Protocol::Udp),
                    ],
                    ..plain.clone()
                }),
                shown(&VmRules {
                    egress: &Egress::Deny,
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
