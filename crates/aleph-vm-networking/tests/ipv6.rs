//! What passes by IPv6 and what does not, shown by packets through a real kernel.
//!
//! As with IPv4, what must not pass is followed by a marker that must come first.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::ruleset::DropReason;
use aleph_vm_networking::{Network, NetworkConfig};
use libtest_mimic::{Arguments, Trial};
use std::net::{IpAddr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use world::guest::Guest;
use world::{NODE6, OUTSIDE6, World, receive, spec, trial};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 12] = [
        ("a_guest_reaches_the_world_by_the_hosts_address", nat),
        ("a_routed_guest_is_seen_under_its_own_address", routed),
        ("a_guest_has_one_prefix_and_one_mac", no_spoofing),
        ("a_guest_says_nothing_to_the_host", no_host),
        ("guests_do_not_reach_each_other", no_neighbours),
        ("jobs_of_one_private_network_do", private_networks),
        ("a_forwarded_port_leads_to_its_guest", forwards),
        ("a_forward_of_one_family_is_of_that_family", one_family),
        ("published_ports_are_open_on_a_routed_address", open_ports),
        ("egress_is_what_the_job_says", egress),
        ("rates_are_those_of_both_families", rates),
        ("flows_of_a_prefix_end_with_it", flows),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const PLAIN: &str = "{}";
const ROUTED: &str = "2001:db8:1::/48";

fn dropped(network: &Arc<Network>, guest: &Guest, reason: DropReason) -> u64 {
    let counters = network.counters().unwrap();
    let drops = &counters[&guest.vm].drops;
    let found = drops.iter().find(|(r, _)| *r == reason);
    found.map_or(0, |(_, packets)| *packets)
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn nat() {
    let world = World::new().with_ipv6(None);
    // There is a way out, so a node that says nothing has IPv6.
    let network = world.open_with("auto");
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let outside = world.outside_socket6(7000);
    guest.send6((OUTSIDE6, 7000), "hello");
    let (text, from) = receive(&outside);
    assert_eq!((text.as_str(), from.ip()), ("hello", NODE6.into()));
    assert!(from.port() >= 61_000, "{from}");
    outside.send_to(b"and back", from).unwrap();
    let (text, ends) = guest.receive6();
    assert_eq!((text.as_str(), ends.from), ("and back", (OUTSIDE6, 7000)));
    let counters = network.counters().unwrap()[&guest.vm].clone();
    assert_eq!((counters.link.rx_packets, counters.link.tx_packets), (1, 1));
    assert_eq!(counters.drops, []);
    let without = World::new();
    let network = without.open_with("auto");
    let guest = without.guest(&network, 1, &spec(PLAIN));
    assert_eq!(guest.claim.ipv6, None);
}

fn routed() {
    let world = World::new().with_ipv6(Some(ROUTED));
    let network = world.open_with(ROUTED);
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let outside = world.outside_socket6(7000);
    assert_eq!(guest.address6(), ip("2001:db8:1::2"));
    guest.send6((OUTSIDE6, 7000), "hello");
    let (text, from) = receive(&outside);
    assert_eq!(
        (text.as_str(), from.ip()),
        ("hello", guest.address6().into())
    );
    outside.send_to(b"and back", from).unwrap();
    assert_eq!(guest.receive6().0, "and back");
    // All of the prefix is the guest's, and what it has not asked for stays outside.
    let other = ip("2001:db8:1::77:1");
    outside.send_to(b"unasked", (other, 5000)).unwrap();
    outside
        .send_to(b"unasked", (guest.address6(), 5001))
        .unwrap();
    guest.send6_as(
        guest.mac,
        (other, 5000),
        (OUTSIDE6, 7000),
        "another of mine",
    );
    let (text, from) = receive(&outside);
    assert_eq!(
        (text.as_str(), from.ip()),
        ("another of mine", other.into())
    );
    outside.send_to(b"asked", from).unwrap();
    let (text, ends) = guest.receive6();
    assert_eq!((text.as_str(), ends.to), ("asked", (other, 5000)));
    assert_eq!(dropped(&network, &guest, DropReason::Inbound), 2);
}

fn no_spoofing() {
    let world = World::new().with_ipv6(Some(ROUTED));
    let network = world.open_with(ROUTED);
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    let outside = world.outside_socket6(7000);
    let to = (OUTSIDE6, 7000);
    let link_local = ip("fe80::2");
    for address in [
        other.address6(),
        NODE6,
        ip("2001:db8:9::1"),
        link_local,
        Ipv6Addr::LOCALHOST,
    ] {
        guest.send6_as(guest.mac, (address, 5000), to, "another's address");
    }
    for mac in [other.mac, Mac::HOST] {
        guest.send6_as(mac, (guest.address6(), 5000), to, "another's MAC");
    }
    guest.frame(guest.mac, 0x0800, &[0x60, 0, 0, 0, 0, 0, 59, 255].repeat(5));
    guest.frame(guest.mac, 0x88b5, &[0; 46]);
    guest.send6(to, "honest");
    assert_eq!(receive(&outside).0, "honest");
    // The kernel itself drops what claims to come from its loopback address.
    assert_eq!(dropped(&network, &guest, DropReason::Spoofed), 6);
    assert_eq!(dropped(&network, &other, DropReason::Spoofed), 0);
    // Nor does somebody outside have a guest's address.
    world.outside.sh(&format!(
        "ip address add {}/128 dev lo nodad",
        ip("2001:db8:1:1::7")
    ));
    let liar = world
        .outside
        .run(|| world::socket(ip("2001:db8:1:1::7"), 0));
    let host = world.node_socket(NODE6, 7001);
    liar.send_to(b"from within?", (NODE6, 7001)).unwrap();
    outside.send_to(b"marker", (NODE6, 7001)).unwrap();
    assert_eq!(receive(&host).0, "marker");
}

fn no_host() {
    let world = World::new().with_ipv6(Some(ROUTED));
    let network = world.open_with(ROUTED);
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let host = world.node_socket(Ipv6Addr::UNSPECIFIED, 7001);
    let outside = world.outside_socket6(7000);
    guest.send6((NODE6, 7001), "to the host");
    assert_eq!(dropped(&network, &guest, DropReason::Host), 1);
    for address in [
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
    ] {
        guest.send6((ip(address), 7001), "to the host");
    }
    // The kernel itself drops what is for its loopback address, and finds no way to a link-local one
    // or a group from a link that has none.
    assert_eq!(dropped(&network, &guest, DropReason::Reserved), 2);
    // Neighbour discovery and advertisements change nothing, and are not heard.
    let all = ip("ff02::1");
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    advertisement.extend([
        3, 4, 64, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    advertisement.extend(ip("2001:db8:bad::").octets());
    guest.icmp6(ip("fe80::2"), all, &advertisement);
    let mut redirect = vec![137, 0, 0, 0, 0, 0, 0, 0];
    redirect.extend(ip("fe80::2").octets());
    redirect.extend(OUTSIDE6.octets());
    guest.icmp6(ip("fe80::1"), NODE6, &redirect);
    let mut question = vec![135, 0, 0, 0, 0, 0, 0, 0];
    question.extend(NODE6.octets());
    question.extend([1, 1]);
    question.extend(guest.mac.0);
    for low in 0x100..0x120 {
        let from = Ipv6Addr::from_bits(ip("2001:db8:1::").to_bits() | low);
        guest.icmp6(from, NODE6, &question);
    }
    guest.icmp6(guest.address6(), NODE6, &[128, 0, 0, 0, 0, 1, 0, 1]);
    outside.send_to(b"marker", (NODE6, 7001)).unwrap();
    assert_eq!(receive(&host).0, "marker");
    let tap = guest.tap();
    let seen = world.node.sh(&format!(
        "ip -6 neighbour show dev {tap}; ip -6 address show dev {tap}; ip -6 route show dev {tap}
         ip -6 route show table local dev {tap}"
    ));
    let seen: Vec<&str> = seen.lines().map(str::trim).collect();
    assert_eq!(
        seen,
        [
            &format!("fe80::2 lladdr {} PERMANENT", guest.mac)[..],
            "2001:db8:1::/64 via fe80::2 proto static metric 1024 pref medium",
        ]
    );
    // The host reaches the guest.
    let to_guest = world.node_socket(NODE6, 7002);
    to_guest
        .send_to(b"from the host", (guest.address6(), 9))
        .unwrap();
    let (text, ends) = guest.receive6();
    assert_eq!(text, "from the host");
    guest.answer6(ends, "heard");
    assert_eq!(receive(&to_guest).0, "heard");
}

fn no_neighbours() {
    let world = World::new().with_ipv6(Some(ROUTED));
    // A router, by its owner's will.
    world.node.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let network = world.open_with(ROUTED);
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(r#"{"ports": ["7100:9/udp"]}"#)),
    );
    let to_other = (other.address6(), 9);
    guest.send6(to_other, "to my neighbour");
    assert_eq!(dropped(&network, &guest, DropReason::Neighbour), 1);
    let host = world.node_socket(NODE6, 7002);
    host.send_to(b"marker", to_other).unwrap();
    assert_eq!(other.receive6().0, "marker");
    // Nor do they leave for where nobody is: it would come back for ever, from hop to hop.
    let nobody = ip("2001:db8:1:77::2");
    world.node.sh("nft add table ip6 probe
         nft add chain ip6 probe out '{ type filter hook postrouting priority 300; }'
         nft add rule ip6 probe out ip6 daddr 2001:db8:1:77::/64 counter
         sysctl -qw net.ipv6.conf.up0.forwarding=1");
    guest.send6((nobody, 9), "to nobody");
    assert_eq!(dropped(&network, &guest, DropReason::Neighbour), 2);
    let outside = world.outside_socket6(7003);
    outside.send_to(b"to nobody", (nobody, 9)).unwrap();
    outside.send_to(b"marker", (NODE6, 7100)).unwrap();
    assert_eq!(other.receive6().0, "marker");
    let left = world.node.sh("nft list table ip6 probe");
    assert!(left.contains("counter packets 0 "), "{left}");
    // What it publishes, it publishes to everybody, by the host's address.
    guest.send6((NODE6, 7100), "to a published port");
    let (text, ends) = other.receive6();
    assert_eq!((text.as_str(), ends.to), ("to a published port", to_other));
    other.answer6(ends, "welcome");
    let (text, ends) = guest.receive6();
    assert_eq!((text.as_str(), ends.from), ("welcome", (NODE6, 7100)));
}

fn private_networks() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let private = spec(r#"{"mode": "private:x"}"#);
    let (guest, friend, stranger) = (
        world.guest(&network, 1, &private),
        world.guest(&network, 2, &private),
        world.guest_of(&network, "another", 3, &private),
    );
    stranger.send6((friend.address6(), 9), "from a stranger");
    assert_eq!(dropped(&network, &stranger, DropReason::Neighbour), 1);
    guest.send6((friend.address6(), 9), "to a friend");
    let (text, ends) = friend.receive6();
    assert_eq!(
        (text.as_str(), ends.from.0),
        ("to a friend", guest.address6())
    );
    friend.answer6(ends, "hello");
    assert_eq!(guest.receive6().0, "hello");
}

fn forwards() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let ports = r#"{"ports": ["7100:9/udp", "9/udp"], "egress": "deny"}"#;
    let guest = world.guest(&network, 1, &spec(ports));
    for port in [7100, guest.port(1)] {
        let outside = world.outside_socket6(port);
        outside.send_to(b"from outside", (NODE6, port)).unwrap();
        let (text, ends) = guest.receive6();
        assert_eq!(
            (text.as_str(), ends.from),
            ("from outside", (OUTSIDE6, port))
        );
        guest.answer6(ends, "welcome");
        assert_eq!(receive(&outside), ("welcome".into(), (NODE6, port).into()));
    }
    // From the host's own address, and to the guest by way of the host.
    let host = world.node_socket(NODE6, 7002);
    host.send_to(b"from the host", (NODE6, 7100)).unwrap();
    let (text, ends) = guest.receive6();
    assert_eq!(text, "from the host");
    guest.answer6(ends, "welcome");
    assert_eq!(receive(&host).0, "welcome");
    guest.send6((OUTSIDE6, 7000), "egress is denied");
    assert_eq!(dropped(&network, &guest, DropReason::Egress), 1);
}

fn one_family() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let ports = format!(
        r#"{{"ports": ["[::]:7100:9/udp", "[{NODE6}]:7101:9/udp", "{}:7102:9/udp"]}}"#,
        world::NODE
    );
    let guest = world.guest(&network, 1, &spec(&ports));
    let (v4, v6) = (world.outside_socket(7000), world.outside_socket6(7000));
    let host = world.node_socket(IpAddr::from(world::NODE), 7100);
    v4.send_to(b"the host's own", (world::NODE, 7100)).unwrap();
    assert_eq!(receive(&host).0, "the host's own");
    for port in [7100, 7101] {
        v6.send_to(b"by six", (NODE6, port)).unwrap();
        assert_eq!(guest.receive6().0, "by six");
    }
    v4.send_to(b"by four", (world::NODE, 7102)).unwrap();
    assert_eq!(guest.receive().0, "by four");
    let host = world.node_socket(NODE6, 7102);
    v6.send_to(b"the host's own", (NODE6, 7102)).unwrap();
    assert_eq!(receive(&host).0, "the host's own");
}

fn open_ports() {
    let world = World::new().with_ipv6(Some(ROUTED));
    let network = world.open_with(ROUTED);
    let ports = format!(r#"{{"ports": ["7100:9/udp", "7101:9/udp", "[{NODE6}]:7102:10/udp"]}}"#);
    let guest = world.guest(&network, 1, &spec(&ports));
    let outside = world.outside_socket6(7000);
    outside
        .send_to(b"not on this address", (guest.address6(), 10))
        .unwrap();
    outside
        .send_to(b"to its own address", (guest.address6(), 9))
        .unwrap();
    let (text, ends) = guest.receive6();
    assert_eq!(text, "to its own address");
    guest.answer6(ends, "welcome");
    assert_eq!(receive(&outside).0, "welcome");
    assert_eq!(dropped(&network, &guest, DropReason::Inbound), 1);
    // It closes with the job.
    let vm = guest.vm;
    let ended = Arc::clone(&network);
    world.node.run(move || {
        ended.detach(vm).unwrap();
        ended.release(vm);
        ended.reap().unwrap();
        ended.close().unwrap();
    });
    assert_eq!(
        world
            .node
            .sh("nft list ruleset; ip -6 route show 2001:db8:1::/48"),
        ""
    );
}

fn egress() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    for address in ["2001:db8:80::1", "2001:db8:81::1", "2001:db8:82::1"] {
        world
            .outside
            .sh(&format!("ip address add {address}/128 dev lo nodad"));
    }
    let only = r#"{"egress": {"only": ["2001:db8:80::/48", "2001:db8:80:1::/64", "a.example"]}}"#;
    let guest = world.guest(&network, 1, &spec(only));
    let outside = world
        .outside
        .run(|| world::socket(Ipv6Addr::UNSPECIFIED, 7000));
    let to = |n: u16| (Ipv6Addr::new(0x2001, 0xdb8, n, 0, 0, 0, 0, 1), 7000);
    guest.send6(to(0x82), "to elsewhere");
    guest.send6(to(0x81), "to what no name has led to yet");
    guest.send6(to(0x80), "to a listed network");
    assert_eq!(receive(&outside).0, "to a listed network");
    assert_eq!(dropped(&network, &guest, DropReason::Egress), 2);
    let (named, address) = (Arc::clone(&network), guest.address);
    let led_to = [
        to(0x81).0,
        NODE6,
        ip("::1"),
        ip("fe80::1"),
        guest.address6(),
    ];
    let led_to = led_to.map(|address| (address.into(), Duration::from_secs(600)));
    world
        .node
        .run(move || named.resolved(address, &led_to).unwrap());
    guest.send6(to(0x82), "to elsewhere");
    guest.send6(to(0x81), "to where a name led");
    assert_eq!(receive(&outside).0, "to where a name led");
    // It is there again after somebody's flush, and for a node that takes over.
    world.node.sh("nft flush ruleset");
    let swept = Arc::clone(&network);
    world.node.run(move || swept.sweep().unwrap());
    guest.send6(to(0x82), "to elsewhere");
    guest.send6_as(
        guest.mac,
        (guest.address6(), 5001),
        to(0x81),
        "after a flush",
    );
    assert_eq!(receive(&outside).0, "after a flush");
    let config = NetworkConfig {
        ipv6: "nat".parse().unwrap(),
        ..world.config()
    };
    let claims = vec![(guest.vm, "job-1".into(), guest.claim.clone())];
    drop(network);
    let network = Arc::new(world.try_open(config, claims).unwrap());
    guest.send6(to(0x82), "to elsewhere");
    guest.send6_as(
        guest.mac,
        (guest.address6(), 5002),
        to(0x81),
        "after a restart",
    );
    assert_eq!(receive(&outside).0, "after a restart");
    let sets = world.node.sh("nft list set inet aleph-test resolved6");
    assert_eq!(sets.matches("expires").count(), 1, "{sets}");
    assert_eq!(dropped(&network, &guest, DropReason::Egress), 2);
}

fn rates() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let limited = spec(r#"{"limits": {"sent": {"packets_per_second": 10}}}"#);
    let guest = world.guest(&network, 1, &limited);
    for _ in 0..200 {
        guest.send6((OUTSIDE6, 7000), "too many");
    }
    let lost = dropped(&network, &guest, DropReason::Rate);
    assert!((100..200).contains(&lost), "{lost}");
}

fn flows() {
    let world = World::new().with_ipv6(Some(ROUTED));
    let network = world.open_with(ROUTED);
    let guest = world.guest(&network, 1, &spec(r#"{"ports": ["7100:9/udp"]}"#));
    let outside = world.outside_socket6(7000);
    let other = ip("2001:db8:1::77");
    guest.send6_as(guest.mac, (other, 5000), (OUTSIDE6, 7000), "hello");
    receive(&outside);
    outside.send_to(b"to the old VM", (NODE6, 7100)).unwrap();
    assert_eq!(guest.receive6().0, "to the old VM");
    let vm = guest.vm;
    let ended = Arc::clone(&network);
    world.node.run(move || {
        ended.detach(vm).unwrap();
        ended.release(vm);
        ended.reap().unwrap();
    });
    let next = world.guest(&network, 2, &spec(r#"{"ports": ["7100:9/udp"]}"#));
    outside.send_to(b"to the new VM", (NODE6, 7100)).unwrap();
    assert_eq!(next.receive6().0, "to the new VM");
    // Nor does an answer to the old one's other address go on.
    outside.send_to(b"late", (other, 5000)).unwrap();
    outside.send_to(b"marker", (NODE6, 7100)).unwrap();
    assert_eq!(next.receive6().0, "marker");
}
