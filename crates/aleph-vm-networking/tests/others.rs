//! What others do to a node's rules, and rules of others that are in its way.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::foreign::obstacles;
use aleph_vm_networking::watch::Watch;
use libtest_mimic::{Arguments, Trial};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use world::{NODE, OUTSIDE, World, receive, spec, trial};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 3] = [
        ("a_flushed_ruleset_comes_back", flushed),
        ("a_loss_of_rules_is_heard_of", heard),
        ("whoever_is_in_the_way_is_named", in_the_way),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn flushed() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(
        &network,
        1,
        &spec(r#"{"ports": ["8080:80/udp"], "limits": {"sent": {"bits_per_second": "1G"}}}"#),
    );
    world.node.sh("nft flush ruleset");
    let again = Arc::clone(&network);
    world.node.run(move || again.sweep().unwrap());
    let outside = world.outside_socket(7000);
    outside.send_to(b"back", (NODE, 8080)).unwrap();
    assert_eq!(guest.receive().0, "back");
    // Chains that were emptied, or that are there without their tables for ARP.
    for harm in [
        "flush table inet aleph-test",
        "flush chain inet aleph-test forward",
        "delete table arp aleph-test",
    ] {
        world.node.sh(&format!("nft {harm}"));
        let again = Arc::clone(&network);
        world.node.run(move || again.sweep().unwrap());
        outside.send_to(harm.as_bytes(), (NODE, 8080)).unwrap();
        assert_eq!(guest.receive().0, harm);
        let rules = world.node.sh("nft list table arp aleph-test");
        assert!(rules.contains("elements"), "{rules}");
        assert_eq!(world.limits(), [format!("sent-bytes-{}", guest.tap())]);
    }
    // Nor does anything that happens before the sweep fail.
    world.node.sh("nft flush ruleset");
    let other = world.guest(&network, 2, &spec("{}"));
    other.send((OUTSIDE, 7000), "hello");
    assert_eq!(receive(&outside).0, "hello");
    // Other people's tables are theirs.
    world.node.sh("nft add table inet mine");
    let last = Arc::clone(&network);
    world.node.run(move || last.remove().unwrap());
    // Whoever heard of that, or sweeps just now, is too late.
    world.node.run(move || {
        assert!(!network.mend().unwrap());
        network.sweep().unwrap();
    });
    assert_eq!(
        world.node.sh("nft list ruleset").trim(),
        "table inet mine {\n}"
    );
}

fn heard() {
    let world = World::new();
    let watch = world.node.run(|| Watch::open("aleph-test").unwrap());
    let network = world.open();
    let mend = || {
        let network = Arc::clone(&network);
        world.node.run(move || network.mend().unwrap())
    };
    assert!(watch.lost().unwrap(), "tables of an earlier revision go");
    assert!(!mend(), "and are there again");
    // What VMs add and take away is none, nor is what becomes of tables of others.
    let private = spec(r#"{"ports": ["8080:80/udp"]}"#);
    let (guest, other) = (
        world.guest(&network, 1, &private),
        world.guest(&network, 2, &spec("{}")),
    );
    let third = world.guest(&network, 3, &spec("{}"));
    let gone = Arc::clone(&network);
    world.node.run(move || {
        gone.detach(third.vm).unwrap();
        gone.release(third.vm);
        gone.reap().unwrap();
    });
    world
        .node
        .sh("nft add table inet mine; nft delete table inet mine");
    assert!(!watch.lost().unwrap());

    let outside = world.outside_socket(7000);
    for harm in [
        "flush ruleset",
        "delete table inet aleph-test",
        "delete table arp aleph-test",
        "flush chain inet aleph-test forward",
        "flush chain inet aleph-test from-guest",
    ] {
        world.node.sh(&format!("nft {harm}"));
        assert!(watch.lost().unwrap(), "{harm}");
        assert!(mend(), "{harm}");
        outside.send_to(harm.as_bytes(), (NODE, 8080)).unwrap();
        assert_eq!(guest.receive().0, harm);
    }

    // What guests began while there were no rules ends with that.
    world.node.sh("nft flush ruleset");
    guest.send((other.address, 9), "through the gap");
    let (text, ends) = other.receive();
    assert_eq!(text, "through the gap");
    other.answer(ends, "and back");
    assert_eq!(guest.receive().0, "and back");
    assert!(watch.lost().unwrap() && mend());
    guest.send((other.address, 9), "on and on");
    other.answer(ends, "and back again");
    let host = world.node_socket(Ipv4Addr::UNSPECIFIED, 7000);
    for guest in [&guest, &other] {
        host.send_to(b"marker", (guest.address, 9)).unwrap();
        assert_eq!(guest.receive().0, "marker");
    }
    // The node's own tables come anew: it looks once more, and finds them.
    assert!(watch.lost().unwrap() && !mend() && !watch.lost().unwrap());
    // Where more was told than there is room for, nobody knows what it was.
    let many: Vec<String> = (0..40_000).map(|n| n.to_string()).collect();
    let noise = tempfile::NamedTempFile::new().unwrap();
    let set = "add table inet mine\nadd set inet mine many { type mark; }\n";
    let text = format!(
        "{set}add element inet mine many {{ {} }}\n",
        many.join(", ")
    );
    std::fs::write(noise.path(), text).unwrap();
    world.node.sh(&format!("nft -f {}", noise.path().display()));
    assert!(watch.lost().unwrap() && !watch.lost().unwrap());
}

/// The part of firewalld's table that forwarded packets come through, as version 1.3 writes it.
const FIREWALLD: &str = "table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname \"lo\" accept
    jump filter_FORWARD_ZONES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    iifname \"up0\" goto filter_FWD_public
  }
  chain filter_FWD_public {
    jump filter_FWD_public_allow
  }
  chain filter_FWD_public_allow {
    oifname \"up0\" accept
  }
}";

fn in_the_way() {
    let world = World::new();
    let network = world.open();
    let guest = world.guest(&network, 1, &spec("{}"));
    let outside = world.outside_socket(7000);
    let found = || -> Vec<String> {
        let found = world.node.run(|| obstacles().unwrap());
        let texts = found
            .iter()
            .map(|found| format!("{found}: {}", found.mend()));
        texts.collect()
    };
    let load = |table: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), table).unwrap();
        world.node.sh(&format!("nft -f {}", file.path().display()));
    };
    assert_eq!(
        found(),
        Vec::<String>::new(),
        "a node is not in its own way"
    );

    load(FIREWALLD);
    guest.send((OUTSIDE, 7000), "rejected");
    assert!(guest.received_error(world::ARRIVES).is_some());
    let named = found();
    assert_eq!(named.len(), 1, "{named:?}");
    let words =
        "chain filter_FORWARD of the table inet firewalld drops forwarded packets: firewall-cmd";
    assert!(named[0].starts_with(words), "{named:?}");

    // The mend for any other lets VMs pass, and only needs to know the way out.
    world.node.sh("nft delete table inet firewalld");
    load(
        &FIREWALLD
            .replace("inet firewalld", "inet mine")
            .replace("reject with", "counter log reject with"),
    );
    guest.send((OUTSIDE, 7000), "rejected");
    assert!(guest.received_error(world::ARRIVES).is_some());
    let named = found();
    let mend = named[0]
        .split_once(": ")
        .unwrap()
        .1
        .replace("UPLINK", "up0");
    world.node.sh(&mend);
    guest.send((OUTSIDE, 7000), "let through");
    assert_eq!(receive(&outside).0, "let through");

    // What rejects some packets alone is in nobody's way.
    world.node.sh("nft delete table inet mine");
    load(
        "table inet mine { chain f { type filter hook forward priority 0; tcp dport 25 reject; ct state invalid drop\n }\n }",
    );
    assert_eq!(found(), Vec::<String>::new());
}
