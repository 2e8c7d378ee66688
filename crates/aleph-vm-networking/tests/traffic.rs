//! What passes and what does not, shown by packets through a real kernel.
//!
//! "Nothing arrives" cannot be waited for: after what must not pass, a marker is sent on a way
//! that is known to be open and reads the same socket, and the marker must come first.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::Network;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::ruleset::DropReason;
use libtest_mimic::{Arguments, Trial};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use world::guest::Guest;
use world::space::Space;
use world::{NODE, OUTSIDE, World, receive, spec, trial};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 18] = [
        (
            "a_guest_reaches_the_world_by_the_hosts_address",
            reaches_the_world,
        ),
        ("a_guest_has_one_address_and_one_mac", no_spoofing),
        ("a_guest_does_not_reach_the_host", no_host),
        ("a_guest_asks_for_its_gateway_alone", arp),
        ("guests_do_not_reach_each_other", no_neighbours),
        ("jobs_of_one_private_network_do", private_networks),
        (
            "a_forwarded_port_leads_to_its_guest_from_everywhere",
            forwards,
        ),
        ("a_forward_of_one_address_is_of_that_address", one_address),
        ("nothing_else_comes_in", no_inbound),
        ("a_neighbour_of_the_host_reaches_what_is_published", lan),
        ("a_guest_cannot_take_anothers_port_over", port_shadow),
        ("a_guest_does_not_reach_what_others_publish", others_ports),
        ("a_part_of_a_packet_is_looked_at_too", fragments),
        ("a_tap_out_of_use_carries_nothing", retired),
        ("egress_is_what_the_job_says", egress),
        ("a_guest_has_so_many_connections", connections),
        ("a_guest_sends_so_much", sends_so_much),
        ("a_guest_receives_so_much", receives_so_much),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const PLAIN: &str = "{}";

fn dropped(network: &Arc<Network>, guest: &Guest, reason: DropReason) -> u64 {
    let counters = network.counters().unwrap();
    let drops = &counters[&guest.vm].drops;
    let found = drops.iter().find(|(r, _)| *r == reason);
    found.map_or(0, |(_, packets)| *packets)
}

fn reaches_the_world() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let outside = world.outside_socket(7000);
    guest.send((OUTSIDE, 7000), "hello");
    let (text, from) = receive(&outside);
    assert_eq!((text.as_str(), from.ip()), ("hello", NODE.into()));
    outside.send_to(b"and back", from).unwrap();
    let (text, ends) = guest.receive();
    assert_eq!((text.as_str(), ends.from), ("and back", (OUTSIDE, 7000)));
    let counters = network.counters().unwrap()[&guest.vm].clone();
    assert_eq!((counters.link.rx_packets, counters.link.tx_packets), (1, 1));
    assert_eq!(counters.drops, []);
}

fn no_spoofing() {
    let world = World::new();
    let network = world.open();
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    let outside = world.outside_socket(7000);
    let to = (OUTSIDE, 7000);
    for address in [
        other.address,
        NODE,
        Ipv4Addr::new(8, 8, 8, 8),
        guest.gateway,
    ] {
        guest.send_as(guest.mac, (address, 5000), to, "another's address");
    }
    for mac in [other.mac, Mac::HOST] {
        guest.send_as(mac, (guest.address, 5000), to, "another's MAC");
    }
    // There is no IPv6 on a TAP: the kernel drops it before any rule.
    guest.frame(guest.mac, 0x86dd, &[0x60, 0, 0, 0, 0, 0, 59, 255].repeat(5));
    guest.send(to, "honest");
    assert_eq!(receive(&outside).0, "honest");
    assert_eq!(dropped(&network, &guest, DropReason::Spoofed), 6);
    assert_eq!(dropped(&network, &other, DropReason::Spoofed), 0);
}

fn no_host() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    guest.send((NODE, 7000), "to the host");
    guest.send((guest.gateway, 7000), "to the gateway");
    guest.send((Ipv4Addr::LOCALHOST, 7000), "to its loopback");
    guest.send((Ipv4Addr::new(169, 254, 169, 254), 7000), "to metadata");
    // The host reaches the guest, and gets its answer.
    host.send_to(b"marker", (guest.address, 9)).unwrap();
    let (text, ends) = guest.receive();
    assert_eq!(text, "marker");
    guest.answer(ends, "answer");
    assert_eq!(receive(&host).0, "answer");
    assert_eq!(dropped(&network, &guest, DropReason::Host), 2);
    assert_eq!(dropped(&network, &guest, DropReason::Reserved), 2);
    // Without a forwarder nothing of the host's answers DNS either.
    guest.send((guest.gateway, 53), "question");
    host.send_to(b"marker", (guest.address, 9)).unwrap();
    assert_eq!(guest.receive().0, "marker");
    assert_eq!(dropped(&network, &guest, DropReason::Host), 3);
}

fn arp() {
    let world = World::new();
    let network = world.open();
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    for address in [NODE, other.gateway, other.address, Ipv4Addr::LOCALHOST] {
        guest.ask(guest.address, address);
    }
    guest.ask(other.address, guest.gateway);
    guest.ask(guest.address, guest.gateway);
    assert_eq!(guest.answered(world::ARRIVES), Some(guest.gateway));
    assert_eq!(guest.answered(Duration::from_millis(200)), None);
}

fn no_neighbours() {
    let world = World::new();
    let network = world.open();
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    guest.send((other.address, 80), "to a neighbour");
    guest.send((other.gateway, 80), "to its gateway");
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    host.send_to(b"marker", (other.address, 80)).unwrap();
    assert_eq!(other.receive().0, "marker");
    assert_eq!(dropped(&network, &guest, DropReason::Neighbour), 1);
    assert_eq!(dropped(&network, &guest, DropReason::Host), 1);
}

fn private_networks() {
    let world = World::new();
    let network = world.open();
    let of = |account, bits, mode: &str| {
        let spec = spec(&format!(r#"{{"mode": "{mode}"}}"#));
        world.guest_of(&network, account, bits, &spec)
    };
    let (one, other) = (of("a", 1, "private:x"), of("a", 2, "private:x"));
    let strangers = [
        of("b", 3, "private:x"),
        of("a", 4, "private:y"),
        of("a", 5, "nat"),
    ];
    one.send((other.address, 80), "hello");
    let (text, ends) = other.receive();
    assert_eq!((text.as_str(), ends.from.0), ("hello", one.address));
    other.answer(ends, "hello back");
    assert_eq!(one.receive().0, "hello back");
    for stranger in &strangers {
        stranger.send((one.address, 80), "let me in");
        one.send((stranger.address, 80), "let me in");
        assert_eq!(dropped(&network, stranger, DropReason::Neighbour), 1);
    }
    assert_eq!(dropped(&network, &one, DropReason::Neighbour), 3);
    other.send((one.address, 80), "marker");
    assert_eq!(one.receive().0, "marker");
}

fn forwards() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(
        &network,
        1,
        &spec(r#"{"ports": ["8080:80/udp", "90/udp"]}"#),
    );
    let other = world.guest(&network, 2, &spec(PLAIN));
    let asks = |socket: &std::net::UdpSocket, at: (Ipv4Addr, u16), to: u16| {
        socket.send_to(b"question", at).unwrap();
        let (text, ends) = guest.receive();
        assert_eq!((text.as_str(), ends.to), ("question", (guest.address, to)));
        guest.answer(ends, "answer");
        let (text, from) = receive(socket);
        assert_eq!((text.as_str(), from), ("answer", at.into()));
    };
    let outside = world.outside_socket(7000);
    asks(&outside, (NODE, 8080), 80);
    // The node picked this one.
    asks(&outside, (NODE, guest.port(1)), 90);
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    asks(&host, (NODE, 8080), 80);
    asks(&host, (Ipv4Addr::LOCALHOST, 8080), 80);
    asks(&host, (Ipv4Addr::new(127, 1, 2, 3), 8080), 80);
    // From a guest, the one that it leads to included.
    for from in [&other, &guest] {
        from.send((NODE, 8080), "question");
        let (text, ends) = guest.receive();
        assert_eq!((text.as_str(), ends.to), ("question", (guest.address, 80)));
        guest.answer(ends, "answer");
        let (text, ends) = from.receive();
        assert_eq!((text.as_str(), ends.from), ("answer", (NODE, 8080)));
    }
    assert_eq!(network.counters().unwrap()[&guest.vm].drops, []);
}

fn one_address() {
    let world = World::new();
    let network = world.open();
    let local = world.guest(
        &network,
        1,
        &spec(r#"{"ports": ["127.0.0.1:8080:80/udp"]}"#),
    );
    let public = world.guest(
        &network,
        2,
        &spec(r#"{"ports": ["192.0.2.1:8080:80/udp"]}"#),
    );
    let (outside, host) = (
        world.outside_socket(7000),
        world.node_socket(Ipv4Addr::UNSPECIFIED, 7000),
    );
    outside.send_to(b"outside", (NODE, 8080)).unwrap();
    host.send_to(b"host", (Ipv4Addr::LOCALHOST, 8080)).unwrap();
    assert_eq!(public.receive().0, "outside");
    assert_eq!(local.receive().0, "host");
}

fn no_inbound() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec(r#"{"ports": ["8080:80/udp"]}"#));
    let outside = world.outside_socket(7000);
    outside
        .send_to(b"by its address", (guest.address, 80))
        .unwrap();
    outside.send_to(b"another port", (NODE, 8081)).unwrap();
    outside.send_to(b"by its port", (NODE, 8080)).unwrap();
    assert_eq!(guest.receive().0, "by its port");
    assert_eq!(dropped(&network, &guest, DropReason::Inbound), 1);
    // The host forwards for its guests, and for nobody else.
    let far = Space::new();
    let there = far.path();
    world.node.sh(&format!(
        "ip link add far0 type veth peer name far1 netns {there}
         ip address add 198.51.100.1/24 dev far0
         ip link set far0 up"
    ));
    far.sh("ip address add 198.51.100.2/24 dev far1; ip link set far1 up");
    world
        .outside
        .sh(&format!("ip route add 198.51.100.0/24 via {NODE}"));
    let target = Ipv4Addr::new(198, 51, 100, 2);
    let stranger = far.run(move || world::socket(target, 9));
    outside.send_to(b"through the host", (target, 9)).unwrap();
    guest.send((target, 9), "from a guest");
    assert_eq!(receive(&stranger).0, "from a guest");
}

/// A hostile host on the same network as this one.
fn lan() {
    let world = World::new();
    let network = world.open();
    let local = world.guest(
        &network,
        1,
        &spec(r#"{"ports": ["127.0.0.1:8080:80/udp"]}"#),
    );
    let of = |bits| world.guest(&network, bits, &spec(r#"{"mode": "private:x"}"#));
    let (one, other) = (of(2), of(3));
    let lan = world.lan();
    lan.send_as(
        lan.mac,
        (lan.address, 9),
        (Ipv4Addr::LOCALHOST, 8080),
        "to loopback",
    );
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    host.send_to(b"marker", (Ipv4Addr::LOCALHOST, 8080))
        .unwrap();
    assert_eq!(local.receive().0, "marker");
    // Into a flow of two guests, under the name of one.
    one.send((other.address, 80), "hello");
    let (_, ends) = other.receive();
    lan.send_as(lan.mac, ends.from, ends.to, "injected");
    one.send((other.address, 80), "marker");
    assert_eq!(other.receive().0, "marker");
    // What it may: nothing stands in the way of this very sender.
    let listener = world.node_socket(Ipv4Addr::UNSPECIFIED, 7001);
    lan.send_as(lan.mac, (lan.address, 9), (lan.gateway, 7001), "honest");
    assert_eq!(receive(&listener).0, "honest");
}

fn port_shadow() {
    let world = World::new();
    let network = world.open();
    let owner = world.guest(&network, 1, &spec(r#"{"ports": ["9090:80/udp"]}"#));
    let thief = world.guest(&network, 2, &spec(PLAIN));
    let outside = world.outside_socket(4000);
    thief.send_as(
        thief.mac,
        (thief.address, 9090),
        (OUTSIDE, 4000),
        "I am 9090",
    );
    let (_, from) = receive(&outside);
    assert!(from.port() >= 61_000, "{from}");
    outside.send_to(b"for the owner", (NODE, 9090)).unwrap();
    assert_eq!(owner.receive().0, "for the owner");
}

/// A port of the host that another program forwards, as Docker does.
fn others_ports() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec(PLAIN));
    world.node.sh("nft add table ip docker
         nft 'add chain ip docker pre { type nat hook prerouting priority dstnat; }'
         nft add rule ip docker pre udp dport 5432 dnat to 192.0.2.2:7000");
    let outside = world.outside_socket(7000);
    guest.send((NODE, 5432), "to a container");
    guest.send((OUTSIDE, 7000), "marker");
    assert_eq!(receive(&outside).0, "marker");
    assert_eq!(dropped(&network, &guest, DropReason::Host), 1);
}

/// Parts of a packet are put together before most rules see it, with those of others.
fn fragments() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec(PLAIN));
    guest.fragment((OUTSIDE, 53), (NODE, 7000), "the end of another's packet");
    let outside = world.outside_socket(7000);
    guest.send((OUTSIDE, 7000), "marker");
    assert_eq!(receive(&outside).0, "marker");
    assert_eq!(dropped(&network, &guest, DropReason::Spoofed), 1);
}

fn retired() {
    let world = World::new();
    let network = world.open();
    let (guest, other) = (
        world.guest(&network, 1, &spec(r#"{"ports": ["8080:80/udp"]}"#)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    let outside = world.outside_socket(7000);
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    let detached = Arc::clone(&network);
    world
        .node
        .run(move || detached.detach(world::vm(1)).unwrap());
    // Its VMM should be gone. This one is not.
    for to in [OUTSIDE, NODE, Ipv4Addr::LOCALHOST, other.address] {
        guest.send((to, 7000), "still here");
    }
    other.send((OUTSIDE, 7000), "marker");
    assert_eq!(receive(&outside).0, "marker");
    host.send_to(b"marker", (other.address, 9)).unwrap();
    let (_, ends) = other.receive();
    other.answer(ends, "answer");
    assert_eq!(receive(&host).0, "answer");
}

fn egress() {
    let world = World::new();
    let network = world.open();
    let deny = world.guest(
        &network,
        1,
        &spec(r#"{"egress": "deny", "ports": ["8080:80/udp"]}"#),
    );
    let list = world.guest(
        &network,
        2,
        &spec(r#"{"egress": {"only": ["192.0.2.2", "192.0.2.0/30", "203.0.113.0/24"]}}"#),
    );
    world.outside.sh("ip address add 192.0.2.9/24 dev out0");
    let (near, far) = (world.outside_socket(7000), {
        world
            .outside
            .run(|| std::net::UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 9), 7000)).unwrap())
    });
    far.set_read_timeout(Some(world::ARRIVES)).unwrap();
    deny.send((OUTSIDE, 7000), "denied");
    list.send((Ipv4Addr::new(192, 0, 2, 9), 7000), "not on the list");
    list.send((OUTSIDE, 7000), "on the list");
    assert_eq!(receive(&near).0, "on the list");
    assert_eq!(dropped(&network, &deny, DropReason::Egress), 1);
    assert_eq!(dropped(&network, &list, DropReason::Egress), 1);
    // Answers from a forwarded port are no connections of its own.
    near.send_to(b"question", (NODE, 8080)).unwrap();
    let (_, ends) = deny.receive();
    deny.answer(ends, "answer");
    assert_eq!(receive(&near).0, "answer");
    world
        .guest(&network, 3, &spec(PLAIN))
        .send((Ipv4Addr::new(192, 0, 2, 9), 7000), "allowed");
    assert_eq!(receive(&far).0, "allowed");
}

fn connections() {
    let world = World::new();
    let network = world.open();
    let (guest, other) = (
        world.guest(&network, 1, &spec(PLAIN)),
        world.guest(&network, 2, &spec(PLAIN)),
    );
    let outside = world.outside_socket(7000);
    for port in 1..=100 {
        guest.send_as(
            guest.mac,
            (guest.address, port),
            (OUTSIDE, 7000),
            "one more",
        );
    }
    assert_eq!(dropped(&network, &guest, DropReason::Connections), 36);
    other.send((OUTSIDE, 7000), "marker");
    let texts: Vec<String> = (0..65).map(|_| receive(&outside).0).collect();
    assert_eq!(texts.iter().filter(|text| *text == "one more").count(), 64);
    assert_eq!(texts[64], "marker");
}

/// A burst far above any limit of these tests, and what is sure to pass of one of bytes or packets
/// alike: 128 KiB, or 32 packets. More pass where the test is slow, but not most of them.
const BURST: u64 = 400;
const MOST: u64 = 250;

/// Sends many packets, and says how many arrived: all others were dropped for that reason.
fn burst(
    network: &Arc<Network>,
    guest: &Guest,
    send: impl Fn(&str),
    mut arrived: impl FnMut() -> bool,
    text: &str,
) -> u64 {
    let before = dropped(network, guest, DropReason::Rate);
    let mut count = 0;
    for _ in 0..BURST {
        send(text);
        while arrived() {
            count += 1;
        }
    }
    let end = std::time::Instant::now() + world::ARRIVES;
    while count + dropped(network, guest, DropReason::Rate) - before < BURST {
        count += u64::from(arrived());
        assert!(std::time::Instant::now() < end, "{count} arrived");
    }
    count
}

/// Whether a datagram is there.
fn takes(socket: &std::net::UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    socket.recv(&mut [0; 2048]).is_ok()
}

fn sends_so_much() {
    let world = World::new();
    let network = world.open();
    let limited = |bits, limits: &str| {
        let json = format!(r#"{{"limits": {{"sent": {limits}}}}}"#);
        world.guest(&network, bits, &spec(&json))
    };
    let (few, little, other) = (
        limited(1, r#"{"packets_per_second": 1}"#),
        limited(2, r#"{"bits_per_second": "8k"}"#),
        world.guest(&network, 3, &spec(PLAIN)),
    );
    let outside = world.outside_socket(7000);
    // A whole burst finds room there, where the host allows it: what comes late may come at once.
    let room = usize::try_from(BURST).unwrap() * 4096;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&outside, room);
    let passes = |guest: &Guest, text: &str| {
        let send = |text: &str| guest.send((OUTSIDE, 7000), text);
        burst(&network, guest, send, || takes(&outside), text)
    };
    let large = "x".repeat(1000);
    let packets = passes(&few, "x");
    assert!((32..MOST).contains(&packets), "{packets}");
    let bytes = passes(&little, &large);
    assert!((128..MOST).contains(&bytes), "{bytes}");
    assert_eq!(passes(&other, &large), BURST);
    // Questions to its resolver count too: nothing that a guest sends is free.
    let before = dropped(&network, &few, DropReason::Rate);
    for _ in 0..BURST {
        few.send((few.gateway, 53), "question");
    }
    let lost = dropped(&network, &few, DropReason::Rate) - before;
    assert!(lost > BURST - MOST, "{lost}");
}

fn receives_so_much() {
    let world = World::new();
    let network = world.open();
    let limited = |bits, port: u16, limits: &str| {
        let json = format!(r#"{{"ports": ["{port}:80/udp"], "limits": {{"received": {limits}}}}}"#);
        world.guest(&network, bits, &spec(&json))
    };
    let (few, little, other) = (
        limited(1, 8081, r#"{"packets_per_second": 1}"#),
        limited(2, 8082, r#"{"bits_per_second": "8k"}"#),
        world.guest(&network, 3, &spec(r#"{"ports": ["8083:80/udp"]}"#)),
    );
    let (host, outside) = (
        world.node_socket(Ipv4Addr::UNSPECIFIED, 7000),
        world.outside_socket(7000),
    );
    let passes = |guest: &Guest, send: &dyn Fn(&str), text: &str| {
        let arrived = || guest.received(Duration::from_millis(1)).is_some();
        burst(&network, guest, send, arrived, text)
    };
    let large = "x".repeat(1000);
    // From the host itself, and by a forwarded port.
    let from_host = |guest: &Guest, text: &str| {
        // The host hears of what it loses itself.
        match host.send_to(text.as_bytes(), (guest.address, 9)) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            sent => assert_eq!(sent.unwrap(), text.len()),
        }
    };
    let from_outside = |guest: &Guest, text: &str| {
        outside
            .send_to(text.as_bytes(), (NODE, guest.port(0)))
            .unwrap();
    };
    let packets = passes(&few, &|text| from_host(&few, text), "x");
    assert!((32..MOST).contains(&packets), "{packets}");
    let bytes = passes(&little, &|text| from_outside(&little, text), &large);
    assert!((128..MOST).contains(&bytes), "{bytes}");
    assert_eq!(
        passes(&other, &|text| from_host(&other, text), &large),
        BURST
    );
    assert_eq!(
        passes(&other, &|text| from_outside(&other, text), &large),
        BURST
    );
    // What it sends is another matter.
    few.send((OUTSIDE, 7000), "free");
    outside.set_nonblocking(false).unwrap();
    assert_eq!(receive(&outside).0, "free");
}
