//! Flows that the kernel follows: whose they are, and how many a guest may have.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::Network;
use aleph_vm_networking::NetworkConfig;
use aleph_vm_networking::ruleset::DropReason;
use libtest_mimic::{Arguments, Trial};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use world::guest::{Ends, Guest};
use world::{ARRIVES, NODE, OUTSIDE, World, receive, spec, trial};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 5] = [
        ("an_error_is_believed_of_its_own_flow_alone", errors),
        ("the_hosts_flows_are_not_broken_by_guests", errors_to_host),
        ("questions_for_names_count_as_connections", questions),
        ("who_cannot_be_counted_does_not_connect", uncounted),
        ("who_cannot_be_counted_is_not_connected_to", uncounted_in),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn dropped(network: &Arc<Network>, guest: &Guest, reason: DropReason) -> u64 {
    let counters = network.counters().unwrap();
    let drops = &counters[&guest.vm].drops;
    let found = drops.iter().find(|(r, _)| *r == reason);
    found.map_or(0, |(_, packets)| *packets)
}

/// Unreachable, quench, redirect, time exceeded, parameter problem.
const KINDS: [u8; 5] = [3, 4, 5, 11, 12];
const SOON: Duration = Duration::from_millis(100);

fn errors() {
    let world = World::new();
    let network = world.open();
    let victim = world.guest(&network, 1, &spec(r#"{"ports": ["8080:80/udp"]}"#));
    let hostile = world.guest(&network, 2, &spec("{}"));
    let outside = world.outside_socket(7000);
    // One flow that the victim began, and one that leads to it.
    victim.send((OUTSIDE, 7000), "hello");
    let (_, from) = receive(&outside);
    outside.send_to(b"to a port", (NODE, 8080)).unwrap();
    let (_, inwards) = victim.receive();
    let outwards = Ends {
        from: (victim.address, 5000),
        to: (OUTSIDE, 7000),
    };
    let answers = |ends: Ends| Ends {
        from: ends.to,
        to: ends.from,
    };
    for kind in KINDS {
        for about in [outwards, answers(outwards), inwards, answers(inwards)] {
            for to in [victim.address, OUTSIDE, NODE] {
                hostile.icmp_error(to, kind, about);
            }
        }
        // As the world sees the flow.
        for about in [
            Ends {
                from: (NODE, from.port()),
                to: (OUTSIDE, 7000),
            },
            Ends {
                from: (OUTSIDE, 7000),
                to: (NODE, from.port()),
            },
            Ends {
                from: (OUTSIDE, 7000),
                to: (NODE, 8080),
            },
        ] {
            for to in [OUTSIDE, NODE] {
                hostile.icmp_error(to, kind, about);
            }
        }
    }
    assert_eq!(victim.received_error(SOON), None);
    // Both flows go on, as does what tells of them.
    outside.connect(from).unwrap();
    outside.send(b"still there").unwrap();
    let (text, ends) = victim.receive();
    assert_eq!(text, "still there");
    victim.answer(ends, "so am I");
    assert_eq!(receive(&outside).0, "so am I");
    // An honest error of the guest's reaches whom it concerns, and one of the world's the guest.
    victim.icmp_error(OUTSIDE, 3, ends);
    let refused = outside.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    victim.send((OUTSIDE, 4), "to nobody");
    assert_eq!(victim.received_error(ARRIVES), Some((3, OUTSIDE)));
}

fn errors_to_host() {
    let world = World::new();
    let network = world.open();
    let hostile = world.guest(&network, 1, &spec("{}"));
    let (host, outside) = (world.node_socket(NODE, 6000), world.outside_socket(7000));
    host.connect((OUTSIDE, 7000)).unwrap();
    host.send(b"hello").unwrap();
    assert_eq!(receive(&outside).0, "hello");
    let flow = Ends {
        from: (NODE, 6000),
        to: (OUTSIDE, 7000),
    };
    for kind in KINDS {
        hostile.icmp_error(NODE, kind, flow);
        hostile.icmp_error(hostile.gateway, kind, flow);
    }
    outside.send_to(b"marker", (NODE, 6000)).unwrap();
    assert_eq!(receive(&host).0, "marker");
    assert_eq!(dropped(&network, &hostile, DropReason::Host), 10);
    // A real one is believed.
    drop(outside);
    host.send(b"anybody?").unwrap();
    let refused = host.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn questions() {
    let world = World::new();
    let forwarder = world.node_socket(Ipv4Addr::UNSPECIFIED, 5300);
    let config = NetworkConfig {
        dns_port: Some(5300),
        ..world.config()
    };
    let network = Arc::new(world.try_open(config, Vec::new()).unwrap());
    let (guest, other) = (
        world.guest(&network, 1, &spec("{}")),
        world.guest(&network, 2, &spec("{}")),
    );
    let outside = world.outside_socket(7000);
    guest.send_as(
        guest.mac,
        (guest.address, 1),
        (OUTSIDE, 7000),
        "the first of 64",
    );
    assert_eq!(receive(&outside).0, "the first of 64");
    for port in 1..=100 {
        let to = (guest.gateway, 53);
        guest.send_as(guest.mac, (guest.address, port), to, "question");
    }
    assert_eq!(dropped(&network, &guest, DropReason::Connections), 37);
    other.send((other.gateway, 53), "marker");
    let received: Vec<_> = (0..64).map(|_| receive(&forwarder)).collect();
    let question = |(text, _): &&(String, _)| text == "question";
    assert_eq!(received.iter().filter(question).count(), 63);
    assert_eq!(received[63].0, "marker");
    // Another question of a flow that was answered is no connection.
    forwarder.send_to(b"answer", received[0].1).unwrap();
    let (text, ends) = guest.receive();
    assert_eq!((text.as_str(), ends.from), ("answer", (guest.gateway, 53)));
    guest.answer(ends, "and another");
    assert_eq!(receive(&forwarder).0, "and another");
}

/// Leaves room for one guest in what counts connections. As full as this it would be with 65,535
/// guests, or where the kernel has no memory for another.
fn make_room_for_one(world: &World, set: &str) {
    let rules = tempfile::NamedTempFile::new().unwrap();
    world.node.sh(&format!(
        "exec > {}; echo flush ruleset
         nft list ruleset | sed '/set {set} {{/,/}}/ s/size 65535/size 1/'",
        rules.path().display()
    ));
    let text = std::fs::read_to_string(rules.path()).unwrap();
    assert!(text.contains("size 1\n"), "{text}");
    world.node.sh(&format!("nft -f {}", rules.path().display()));
}

fn uncounted() {
    let world = World::new();
    let network = world.open();
    let (first, second) = (
        world.guest(&network, 1, &spec("{}")),
        world.guest(&network, 2, &spec("{}")),
    );
    make_room_for_one(&world, "connections");
    let outside = world.outside_socket(7000);
    first.send((OUTSIDE, 7000), "counted");
    assert_eq!(receive(&outside).0, "counted");
    second.send((OUTSIDE, 7000), "not counted");
    second.send((second.gateway, 53), "not counted");
    first.send((OUTSIDE, 7000), "marker");
    assert_eq!(receive(&outside).0, "marker");
    assert_eq!(dropped(&network, &second, DropReason::Connections), 2);
    assert_eq!(dropped(&network, &first, DropReason::Connections), 0);
}

fn uncounted_in() {
    let world = World::new();
    let network = world.open();
    let (first, second) = (
        world.guest(&network, 1, &spec(r#"{"ports": ["8080:80/udp"]}"#)),
        world.guest(&network, 2, &spec(r#"{"ports": ["8081:80/udp"]}"#)),
    );
    make_room_for_one(&world, "connections-in");
    let outside = world.outside_socket(7000);
    outside.send_to(b"counted", (NODE, 8080)).unwrap();
    assert_eq!(first.receive().0, "counted");
    outside.send_to(b"not counted", (NODE, 8081)).unwrap();
    outside.send_to(b"marker", (NODE, 8080)).unwrap();
    assert_eq!(first.receive().0, "marker");
    assert_eq!(dropped(&network, &second, DropReason::Connections), 1);
    assert_eq!(second.received(SOON), None);
}
