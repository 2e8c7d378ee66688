//! The tables' text.
//!
//! What most packets meet comes first: a guest's packet costs a look-up of its source, and an
//! answer the state of its connection. Where a connection may lead is looked at as it begins.

use super::reserved::{RESERVED, RESERVED6};
use super::{Base, DropReason, FIRST_SOURCE_PORT};
use std::fmt::Write;

impl Base {
    /// The table of packets.
    pub(crate) fn inet(&self) -> String {
        let Self {
            group,
            pool,
            connections,
            ..
        } = self;
        let V6 {
            related: related6,
            reserved: reserved6,
            outside: outside6,
            source: source6,
            guest: guest6,
            chains: chains6,
            nobody: nobody6,
            unknown: unknown6,
        } = self.v6();
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
        // who sends it. What is left is a stranger's.
        let related = format!(
            "    ct state related iifname . ct original ip saddr . ether saddr vmap @guests
    ct state related iifname . ct reply ip saddr . ether saddr vmap @guests
{related6}"
        );
        // Where an element cannot be had, the rule that counts ends without a verdict.
        let uncounted = "ct state new iifname != @connections";
        format!(
            "
  map guests {{ type ifname . ipv4_addr . ether_addr : verdict; }}
  set gateways {{ type ifname . ipv4_addr; }}
  map forwards {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map forwards-any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map guests6 {{ type ifname . ipv6_addr . ether_addr : verdict; }}
  map forwards6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  map forwards6-any {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  set open6 {{ type ipv6_addr . inet_proto . inet_service; }}
  set alone {{ type nf_proto; }}
  set routers6 {{ type ifname; }}
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
    ip daddr 127.0.0.0/8 goto drop-reserved
    iifname . ip saddr . ether saddr vmap @guests
{guest6}    goto drop-spoofed
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
{chains6}
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
    ct state established ct direction reply accept
    meta l4proto udp meta l4proto . th dport @dns-ports update @dns-rate {{ iifname limit rate over 1000/second burst 200 packets }} goto drop-host
    ct state established accept
    ip daddr {{ {RESERVED} }} goto drop-reserved
{reserved6}{related}    ct state related goto drop-host
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
    meta iifgroup & 0xc0000001 == 0x40000000 accept
    meta oifgroup & 0xc0000001 == 0x40000000 accept
    oifgroup != {group} ip daddr {pool} drop
{unknown6}    meta nfproto ipv4 iifname @uplinks drop
    meta nfproto @alone iifname != @routers6 drop
  }}
  chain out-of-guest {{
    oifgroup != {group} ct status dnat ct direction original goto drop-host
    ct state established accept
    ip daddr {{ {RESERVED} }} goto drop-reserved
{reserved6}{related}    ct state related goto drop-neighbour
    ct state invalid,untracked drop
    ct state new add @connections {{ iifname ct count over {connections} }} goto drop-connections
    {uncounted} goto drop-connections
    oifgroup {group} meta mark set iifname map @private oifname . meta mark @members accept
    oifgroup != {group} ip daddr {pool} goto drop-neighbour
{nobody6}    iifname vmap @egress
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

    fn v6(&self) -> V6 {
        let Some(pool) = &self.ipv6 else {
            return V6::default();
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
        let identity = format!("ip6 saddr & {mask} . ether saddr vmap @guests6");
        let of = |way| format!("ct {way} ip6 saddr & {mask} . ether saddr vmap @guests6");
        V6 {
            related: format!(
                "    ct state related iifname . {}\n    ct state related iifname . {}\n",
                of("original"),
                of("reply")
            ),
            reserved: format!("    ip6 daddr {{ {RESERVED6} }} goto drop-reserved\n"),
            nobody: format!("    oifgroup != {group} ip6 daddr {prefix} goto drop-neighbour\n"),
            unknown: format!("    oifgroup != {group} ip6 daddr {prefix} drop\n"),
            outside: format!("    iifname != \"lo\" ip6 saddr {prefix} drop\n"),
            source,
            guest: "    meta nfproto ipv6 goto from-guest6\n".into(),
            // What a kernel says by itself on a cable that has no use for it is not counted.
            chains: format!(
                "  chain from-guest6 {{
    icmpv6 type {{ {BY_ITSELF} }} drop
    iifname . {identity}
    goto drop-spoofed
  }}\n"
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

/// What IPv6 adds to the rules: whole lines.
#[derive(Default)]
struct V6 {
    related: String,
    reserved: String,
    outside: String,
    source: String,
    guest: String,
    chains: String,
    nobody: String,
    unknown: String,
}

/// Reports of multicast groups, and neighbour discovery.
const BY_ITSELF: &str = "mld-listener-query, mld-listener-report, mld-listener-done, \
                         mld2-listener-report, nd-router-solicit, nd-router-advert, \
                         nd-neighbor-solicit, nd-neighbor-advert, nd-redirect";
