//! Networks that come and go, and what crashes leave.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_types::{Classify, Egress, ForwardedPort, NetworkLimits, Protocol};
use aleph_vm_networking::frames::{self, Waiting};
use aleph_vm_networking::link::Links;
use aleph_vm_networking::network::{link_name, tap_name};
use aleph_vm_networking::tap::{Interface, Tap};
use aleph_vm_networking::{Claim, NetworkConfig, NetworkError};
use libtest_mimic::{Arguments, Trial};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use world::{NODE, World, spec, trial, vm};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 11] = [
        ("nothing_is_left_of_a_thousand", a_thousand),
        ("thousands_come_in_one_transaction", thousands),
        ("a_flow_does_not_stick_to_a_released_vm", no_sticking),
        ("a_crash_is_swept", crash),
        ("forwarding_is_put_back", forwarding),
        ("one_of_many_gets_a_port", race),
        ("whoever_has_a_port_is_named", taken),
        ("a_pool_that_others_use_is_refused", overlap),
        ("a_step_can_be_repeated", repeated),
        ("a_tap_whose_maker_stops_halfway_is_gone", halfway),
        ("a_tap_that_is_open_still_is_waited_for", open_still),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// All that is in the node's namespace beside the cable and the base rules.
fn residue(world: &World) -> (String, String) {
    let links = world.node.sh("ip -br link | grep tap- || true");
    let elements = world
        .node
        .sh("nft list ruleset | grep -A1 'elements = ' || true
         nft list limits | grep 'limit ' || true");
    (links, elements)
}

fn nothing() -> (String, String) {
    (String::new(), String::new())
}

fn a_thousand() {
    let world = World::new();
    let network = world.open();
    for bits in 1..=1000 {
        let port = 10_000 + bits;
        drop(world.guest(
            &network,
            bits,
            &spec(&format!(
                r#"{{"ports": ["{port}:80"], "limits": {{"sent": {{"bits_per_second": "1M"}}}}}}"#
            )),
        ));
    }
    let links = world.node.sh("ip -br link | grep -c tap-");
    assert_eq!(links.trim(), "1000");
    let forwards = world
        .node
        .sh("nft list map inet aleph-test forwards-any | grep -o ' : 10[.]' | wc -l");
    assert_eq!(forwards.trim(), "1000");
    assert_eq!(world.limits().len(), 1000);
    let counters = network.counters().unwrap();
    assert_eq!(counters.len(), 1000);
    world.node.run(move || {
        for bits in 1..=1000 {
            network.detach(vm(bits)).unwrap();
            network.release(vm(bits));
        }
        assert!(network.waits());
        network.reap().unwrap();
        assert!(!network.waits());
    });
    assert_eq!(residue(&world), nothing());
}

/// As when a node with many VMs starts again: far more than a socket takes by default.
fn thousands() {
    let world = World::new();
    let claims = |count: u32| -> Vec<_> {
        let claim = |slot: u32| Claim {
            slot,
            ipv6: None,
            ports: vec![ForwardedPort {
                protocol: Protocol::Udp,
                host_ip: Ipv4Addr::LOCALHOST.into(),
                host_port: u16::try_from(20_000 + slot).unwrap(),
                vm_port: 80,
            }],
            private: None,
            egress: Egress::Allow,
            limits: NetworkLimits::default(),
        };
        (0..count)
            .map(|n| (vm(n), n.to_string(), claim(n)))
            .collect()
    };
    let network = world.try_open(world.config(), claims(5000)).unwrap();
    let count = || {
        let map = world
            .node
            .sh("nft list map inet aleph-test forwards | grep -o ' : 10[.]' | wc -l");
        map.trim().parse::<u32>().unwrap()
    };
    assert_eq!(count(), 5000);
    drop(network);
    drop(world.try_open(world.config(), claims(3000)).unwrap());
    assert_eq!(count(), 3000);
}

fn no_sticking() {
    let world = World::new();
    let network = world.open();
    let forwarded = spec(r#"{"ports": ["8080:80/udp"]}"#);
    let outside = world.outside_socket(7000);
    // One that speaks before there is a forward.
    outside.send_to(b"early", (NODE, 8080)).unwrap();
    let first = world.guest(&network, 1, &forwarded);
    let reaped = Arc::clone(&network);
    world.node.run(move || reaped.reap().unwrap());
    outside.send_to(b"to the first", (NODE, 8080)).unwrap();
    assert_eq!(first.receive().0, "to the first");
    let released = Arc::clone(&network);
    world.node.run(move || {
        released.detach(vm(1)).unwrap();
        released.release(vm(1));
    });
    let second = world.guest(&network, 2, &forwarded);
    let reaped = Arc::clone(&network);
    world.node.run(move || reaped.reap().unwrap());
    outside.send_to(b"to the second", (NODE, 8080)).unwrap();
    assert_eq!(second.receive().0, "to the second");
    // Nor does its address come back at once.
    assert_ne!(first.address, second.address);
}

fn crash() {
    let world = World::new();
    let network = world.open();
    let forwarded = spec(
        r#"{"ports": ["8080:80/udp"], "mode": "private:x",
            "limits": {"sent": {"packets_per_second": 1000}}}"#,
    );
    let kept = world.guest(&network, 1, &forwarded);
    let lost = world.guest(
        &network,
        2,
        &spec(r#"{"ports": ["8081:80/udp"], "limits": {"received": {"bits_per_second": "1G"}}}"#),
    );
    assert_eq!(world.limits().len(), 2);
    let claim = kept.claim.clone();
    for guest in [&kept, &lost] {
        guest.send((NODE, 7000), "counted");
    }
    let counted = || world.node.sh("nft list set inet aleph-test dropped-host");
    assert!(counted().contains(lost.tap()));
    // A VMM in a jail has a user of its own, and the TAPs of links are there until it has them open.
    for (guest, user) in [(&kept, 300_000), (&lost, 300_001)] {
        Interface::set_owner(&guest.queue(), user).unwrap();
    }
    let (tap, link, other) = (lost.tap(), link_name(vm(2), 0), link_name(vm(1), 0));
    world.node.sh(&format!(
        "group=$(ip link show {tap} | sed 's/.* group \\([0-9]*\\) .*/\\1/;q')
         for link in {link} {other}; do
           ip tuntap add $link mode tap user 300000
           ip link set $link group $group
         done"
    ));
    // A process that is killed runs no destructor that would undo anything: neither has this.
    drop(network);
    let claims = vec![(vm(1), "job".to_owned(), claim)];
    let network = Arc::new(world.try_open(world.config(), claims).unwrap());
    let again = Arc::clone(&network);
    let swept = world.node.run(move || {
        again.adopt(vm(1)).unwrap();
        again.sweep().unwrap()
    });
    assert_eq!(swept, [lost.tap(), &link]);
    let links = world
        .node
        .sh("ip -br link | grep -E 'tap-|lnk-' | cut -d' ' -f1");
    assert_eq!(links.lines().collect::<Vec<_>>(), [kept.tap(), &other]);
    let outside = world.outside_socket(7000);
    outside.send_to(b"still there", (NODE, 8080)).unwrap();
    assert_eq!(kept.receive().0, "still there");
    let forwards = world.node.sh("nft list map inet aleph-test forwards-any");
    assert!(!forwards.contains("8081"), "{forwards}");
    assert_eq!(world.limits(), [format!("sent-packets-{}", kept.tap())]);
    let counted = counted();
    assert!(counted.contains(kept.tap()) && !counted.contains(lost.tap()));
    // Its address has an owner.
    let next = world.guest(&network, 3, &spec("{}"));
    assert_ne!(next.address, kept.address);
}

fn forwarding() {
    let world = World::new();
    let network = world.open();
    let state = || {
        world
            .node
            .sh("cat /proc/sys/net/ipv4/conf/up0/forwarding /proc/sys/net/ipv4/ip_forward")
    };
    assert_eq!(state(), "0\n0\n");
    drop(world.guest(&network, 1, &spec("{}")));
    assert_eq!(state(), "1\n0\n");
    // A process that died in between knows of it.
    drop(network);
    let network = Arc::new(world.try_open(world.config(), Vec::new()).unwrap());
    let guest = world.guest(&network, 2, &spec("{}"));
    let last = Arc::clone(&network);
    world.node.run(move || last.detach(guest.vm).unwrap());
    assert_eq!(state(), "0\n0\n");
}

fn race() {
    let world = World::new();
    let network = world.open();
    let barrier = Arc::new(Barrier::new(8));
    let racers: Vec<_> = (1..=8)
        .map(|bits| {
            let (network, barrier) = (Arc::clone(&network), Arc::clone(&barrier));
            world.node.run(move || {
                // A thread starts in the namespace of the one that makes it.
                std::thread::spawn(move || {
                    barrier.wait();
                    let spec = spec(r#"{"ports": ["8080:80"]}"#);
                    network.claim(vm(bits), ("a", &format!("job-{bits}")), &spec)
                })
            })
        })
        .collect();
    let results: Vec<_> = racers
        .into_iter()
        .map(|racer| racer.join().unwrap())
        .collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(
            error.to_string().contains("is forwarded to the job job-"),
            "{error}"
        );
    }
}

fn taken() {
    let world = World::new();
    let network = world.open();
    let _listener = world
        .node
        .run(|| UdpSocket::bind(("0.0.0.0", 5353)).unwrap());
    drop(world.guest(&network, 1, &spec(r#"{"ports": ["127.0.0.1:8080:80"]}"#)));
    let claim = |ports: &'static str| -> NetworkError {
        let network = Arc::clone(&network);
        let spec = spec(ports);
        world
            .node
            .run(move || network.claim(vm(2), ("a", "b"), &spec).unwrap_err())
    };
    let error = claim(r#"{"ports": ["80", "5353:53/udp"]}"#);
    let me = "0.0.0.0:5353/udp is in use by ";
    assert!(error.to_string().starts_with(me), "{error}");
    assert_eq!(error.code(), "port_taken");
    let error = claim(r#"{"ports": ["8080:80"]}"#);
    assert_eq!(
        error.to_string(),
        "0.0.0.0:8080/tcp is forwarded to the job job-1 already"
    );
    let error = claim(r#"{"ports": ["203.0.113.5:80:80"]}"#);
    assert_eq!(
        error.to_string(),
        "this host has no address 203.0.113.5 to forward from"
    );
    // What was refused holds nothing.
    let network_ = Arc::clone(&network);
    let claim = world.node.run(move || {
        let spec = spec(r#"{"ports": ["80/tcp"]}"#);
        network_.claim(vm(2), ("a", "b"), &spec).unwrap()
    });
    assert_eq!((claim.slot, claim.ports[0].protocol), (1, Protocol::Tcp));
}

fn overlap() {
    let world = World::new();
    world.node.sh("ip route add 10.0.128.0/24 dev up0");
    let refused = |pool: &str| {
        let config = NetworkConfig {
            pool: pool.parse().unwrap(),
            ..world.config()
        };
        world
            .try_open(config, Vec::new())
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(
        refused("10.0.0.0/16").as_deref(),
        Some("the pool 10.0.0.0/16 overlaps 10.0.128.0/24, which this host reaches through up0")
    );
    assert!(refused("192.0.2.128/25").is_some());
    assert_eq!(
        refused("10.1.0.0/31").as_deref(),
        Some("the pool 10.1.0.0/31 has no room for one /30")
    );
    assert_eq!(refused("10.1.0.0/16"), None);
    // A node's own TAPs are no others.
    let config = || NetworkConfig {
        pool: "10.1.0.0/30".parse().unwrap(),
        ..world.config()
    };
    let network = Arc::new(world.try_open(config(), Vec::new()).unwrap());
    drop(world.guest(&network, 1, &spec("{}")));
    let full = Arc::clone(&network);
    let error = world
        .node
        .run(move || full.claim(vm(2), ("a", "b"), &spec("{}")).unwrap_err());
    assert_eq!(error.code(), "no_address");
    drop(network);
    assert!(world.try_open(config(), Vec::new()).is_ok());
}

fn repeated() {
    let world = World::new();
    let network = world.open();
    let spec = spec(
        r#"{"ports": ["8080:80/udp"], "mode": "private:x",
            "egress": {"only": ["192.0.2.0/24", "example.com"]},
            "limits": {"sent": {"bits_per_second": "1M", "packets_per_second": 100},
                       "received": {"bits_per_second": "1M", "packets_per_second": 100}}}"#,
    );
    let guest = world.guest(&network, 1, &spec);
    let tap = guest.tap().to_owned();
    drop(guest);
    let again = Arc::clone(&network);
    let outcome = world.node.run(move || {
        // With its TAP there already, as after a crash before it was recorded.
        again.attach(vm(1), 1, Some(1)).unwrap();
        again.adopt(vm(1)).unwrap();
        again.detach(vm(1)).unwrap();
        again.detach(vm(1)).unwrap();
        // And one of which nothing is known.
        again.detach(vm(9)).unwrap();
        again.release(vm(1));
        again.release(vm(1));
        again.sweep()
    });
    assert_eq!(outcome.unwrap(), Vec::<String>::new());
    assert_eq!(tap, tap_name(vm(1)));
    assert_eq!(residue(&world), nothing());
}

fn halfway() {
    let world = World::new();
    world.node.run(|| {
        let (name, group) = ("lnk-halfway", 77);
        let mut links = Links::new();
        let made = Tap::make_after(name, 1, Some(300_000), || {
            links.retire(name, group)?;
            // Whoever is killed now closes the queue, as the error does.
            Err(std::io::ErrorKind::Interrupted.into())
        });
        assert!(made.is_err());
        assert_eq!(Links::new().group(name).unwrap(), None, "it is left");

        let waiting = Waiting {
            name,
            owner: Some(300_000),
            group,
        };
        let here = frames::here().unwrap();
        frames::make(here.as_fd(), &[waiting]).unwrap();
        assert_eq!(Links::new().group(name).unwrap(), Some(group));
        frames::remove(here.as_fd(), name).unwrap();
    });
}

/// As one is that another program has for a moment, which is started by this process.
fn open_still() {
    let world = World::new();
    world.node.run(|| {
        let here = frames::here().unwrap();
        let mut tap = Tap::make("tap-open", 1, None).unwrap();
        let queue = tap.queues.pop().unwrap();
        let child = queue.try_clone().unwrap();
        drop((tap, queue));
        assert!(Links::new().is_open("tap-open").unwrap());
        let is_closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                is_closed.store(true, Ordering::SeqCst);
                drop(child);
            });
            frames::wait_until_closed(here.as_fd(), &["tap-open", "tap-none"]).unwrap();
            assert!(is_closed.load(Ordering::SeqCst), "it was not waited for");
        });
        assert!(!Links::new().is_open("tap-open").unwrap());
        Links::new().delete("tap-open").unwrap();
    });
}
