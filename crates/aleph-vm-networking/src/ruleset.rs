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

pub use limits::{Limit, Unit};

use crate::forwards::Forward;
use crate::ipv6::{self, Ipv6Pool};
use crate::mac::Mac;
use aleph_types::{Egress, Ipv4Network, Ipv6Network, NetworkLimits, Protocol};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

    /// The table of packets.
    pub(crate) fn inet(&self) -> String {
        let Self {
            group,
            pool,
            connections,
            ..
        } = self;
        let V6 {
            strange: strange6,
            outside: outside6,
            source: source6,
            guest: guest6,
        } = self.v6();
        let strange6 = |to| match &strange6[..] {
            "" => String::new(),
            strange => format!("    {strange} goto {to}\n"),
        };
        let strange6_host = strange6("drop-host");
        let strange6_neighbour = strange6("drop-neighbour");
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
        // Where an element cannot be had, the rule that counts ends without a verdict.
        let uncounted = "ct state new iifname != @connections";
        format!(
            "
  set guests {{ type ifname . ipv4_addr . ether_addr; }}
  set gateways {{ type ifname . ipv4_addr; }}
  map forwards {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map forwards-any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  set guests6 {{ type ifname . ipv6_addr . ether_addr; }}
  map forwards6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map forwards6-any {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  set open6 {{ type ipv6_addr . inet_proto . inet_service; }}
  set uplinks6 {{ type ifname; }}
  map egress {{ type ifname : verdict; }}
  set allowed {{ type ifname . ipv4_addr; flags interval; }}
  set resolved {{ type ifname . ipv4_addr; flags timeout; }}
  set allowed6 {{ type ifname . ipv6_addr; flags interval; }}
  set resolved6 {{ type ifname . ipv6_addr; flags timeout; }}
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
  set connections {{ type ifname; size 65535; flags dynamic; }}
  set connections-in {{ type ifname; size 65535; flags dynamic; }}
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
{outside6}  }}
  chain from-guest {{
    meta nfproto != ipv4 goto from-guest6
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
  chain from-guest6 {{
{guest6}  }}

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
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @forwards6
    ip6 daddr != ::1 dnat ip6 to meta l4proto . th dport map @forwards6-any
  }}
  chain source {{
    type nat hook postrouting priority srcnat; policy accept;
    oifgroup {group} ip saddr 127.0.0.0/8 masquerade
    oifgroup {group} ct status dnat ip saddr {pool} masquerade
    oifgroup != {group} ip saddr {pool} meta l4proto {{ tcp, udp }} masquerade to :{FIRST_SOURCE_PORT}-65535 fully-random
    oifgroup != {group} ip saddr {pool} masquerade
{source6}  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifgroup {group} jump to-host
    ct state new meta l4proto . th dport @dns-ports drop
  }}
  chain to-host {{
    meta l4proto udp meta l4proto . th dport @dns-ports update @dns-rate {{ iifname limit rate over 1000/second burst 200 packets }} goto drop-host
    {strange} goto drop-host
{strange6_host}    ct state established,related accept
    ct state new add @connections {{ iifname ct count over {connections} }} goto drop-connections
    {uncounted} goto drop-connections
    iifname . ip daddr @gateways ct status dnat meta l4proto . th dport @dns-ports accept
    goto drop-host
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifgroup {retired} drop
    iifgroup {group} jump out-of-guest
    oifgroup {group} jump into-guest
    meta nfproto ipv4 iifname @uplinks drop
    meta nfproto ipv6 iifname @uplinks6 drop
  }}
  chain out-of-guest {{
    oifgroup != {group} ct status dnat ct direction original goto drop-host
    {strange} goto drop-neighbour
{strange6_neighbour}    ct state established,related accept
    ct state invalid drop
    ct state new add @connections {{ iifname ct count over {connections} }} goto drop-connections
    {uncounted} goto drop-connections
    oifgroup {group} meta mark set iifname map @private oifname . meta mark @members accept
    iifname vmap @egress
    oifgroup {group} ct status dnat accept
    oifgroup {group} goto drop-neighbour
    accept
  }}
  chain egress-list {{
    iifname . ip daddr @allowed return
    iifname . ip daddr @resolved return
    iifname . ip6 daddr @allowed6 return
    iifname . ip6 daddr @resolved6 return
    goto drop-egress
  }}
  chain egress-deny {{
    goto drop-egress
  }}
  chain into-guest {{
    ct state established,related accept
    ct status dnat ct state new add @connections-in {{ oifname ct count over {connections} }} goto drop-connections-in
    ct status dnat ct state new oifname != @connections-in goto drop-connections-in
    ct status dnat accept
    ip6 daddr . meta l4proto . th dport @open6 ct state new add @connections-in {{ oifname ct count over {connections} }} goto drop-connections-in
    ip6 daddr . meta l4proto . th dport @open6 ct state new oifname != @connections-in goto drop-connections-in
    ip6 daddr . meta l4proto . th dport @open6 accept
    goto drop-inbound
  }}
"
        )
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

    fn v6(&self) -> V6 {
        let Some(pool) = &self.ipv6 else {
            return V6 {
                guest: "    goto drop-spoofed\n".into(),
                ..V6::default()
            };
        };
        let (group, prefix, mask) = (self.group, pool.prefix(), pool.mask());
        let mut source =
            format!("    oifgroup {group} ct status dnat ip6 saddr {prefix} masquerade\n");
        if pool.is_nat() {
            let _ = write!(
                source,
                "    oifgroup != {group} ip6 saddr {prefix} meta l4proto {{ tcp, udp }} masquerade to :{FIRST_SOURCE_PORT}-65535 fully-random
    oifgroup != {group} ip6 saddr {prefix} masquerade\n"
            );
        }
        V6 {
            strange: format!(
                "ct state related iifname . ct original ip6 saddr & {mask} . ether saddr != @guests6 \
                 iifname . ct reply ip6 saddr & {mask} . ether saddr != @guests6"
            ),
            outside: format!("    iifname != \"lo\" ip6 saddr {prefix} drop\n"),
            source,
            // What a kernel says by itself on a cable that has no use for it is not counted.
            guest: format!(
                "    meta nfproto != ipv6 goto drop-spoofed
    icmpv6 type {{ {BY_ITSELF} }} drop
    iifname . ip6 saddr & {mask} . ether saddr != @guests6 goto drop-spoofed
    ip6 daddr {{ {RESERVED6} }} goto drop-reserved
    iifname @limited goto sent\n"
            ),
        }
    }

    /// The table of ARP.
    pub(crate) fn arp(&self) -> String {
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

/// What IPv6 adds to the rules: whole lines, and a condition.
#[derive(Default)]
struct V6 {
    strange: String,
    outside: String,
    source: String,
    guest: String,
}

/// Reports of multicast groups, and neighbour discovery.
const BY_ITSELF: &str = "mld-listener-report, mld-listener-done, mld2-listener-report, \
                         nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert";

/// Where no guest sends to by IPv6: itself, IPv4 in disguise, link-local addresses and groups; and
/// what clouds use for their metadata (AWS, Google).
const RESERVED6: &str = "::/127, ::ffff:0:0/96, fe80::/10, ff00::/8, fd00:ec2::254, fd20:ce::254";

/// Where no guest sends to: this host, every loopback, and link-local addresses; and what clouds
/// use for their metadata outside of those (Azure, Alibaba, Oracle).
const RESERVED: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 168.63.129.16, 100.100.100.200, \
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
    /// Links that the host forwards IPv6 from for its VMs alone.
    Uplinks6,
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
    pub const ALL: [Self; 24] = [
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
        Self::Uplinks6,
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
            Self::Uplinks6 => "uplinks6",
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
        elements.push(plain(Set::Guests6, identity));
    }
    for element in vm
        .forwards
        .iter()
        .flat_map(|forward| leading_to(vm, forward))
    {
        // Two ports of the host may lead to one of the guest, which is open once.
        if element.set != Set::Open6 || !elements.contains(&element) {
            elements.push(element);
        }
    }
    elements
}

/// The elements of one forwarded port.
fn leading_to(vm: &VmRules<'_>, forward: &Forward) -> Vec<Element> {
    let ports = |key: Key, port| key.byte(forward.protocol.number()).port(port);
    let host = |key| ports(key, forward.host_port).0;
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
            if vm.is_routed {
                elements.push(Element {
                    set: Set::Open6,
                    key: ports(v6(), forward.guest_port).0,
                    last: None,
                    value: None,
                });
            }
        }
        Some(IpAddr::V4(_)) => {}
    }
    elements
}

/// The element of a link that the host forwards from for its VMs alone, in a set of uplinks.
#[must_use]
pub fn uplink(set: Set, name: &str) -> Element {
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

    fn address6(self, address: Ipv6Addr) -> Self {
        self.part(&address.octets(), 16)
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
