//! What IPv6 of guests asks of a host, and leaves of it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests without #[test]

mod world;

use aleph_vm_networking::{Network, NetworkConfig, NetworkError};
use libtest_mimic::{Arguments, Trial};
use std::net::Ipv6Addr;
use std::process::ExitCode;
use std::sync::Arc;
use world::{NODE6, OUTSIDE, OUTSIDE6, World, receive, spec, trial};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 6] = [
        ("a_node_that_is_no_router_stays_none", no_router),
        ("a_host_that_becomes_a_router_stays_one", becomes_router),
        ("two_nodes_of_one_host_leave_each_other_alone", two_nodes),
        ("routes_of_the_hosts_are_in_nobodys_way", wide_routes),
        ("what_the_kernel_does_not_follow_does_not_leave", untracked),
        ("what_cannot_be_is_refused", refused),
    ];
    let tests: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const PLAIN: &str = "{}";
const ROUTED: &str = "2001:db8:1::/48";

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn no_router() {
    let world = World::new().with_ipv6(Some("2001:db8:2::/64"));
    // Another network of the host's, and a link that forwards by somebody's will.
    world.node.sh("ip link add lan1 type veth peer name far1
         ip address add 2001:db8:2::1/64 dev lan1 nodad
         ip link set lan1 up
         ip link set far1 up
         ip link add lan2 type veth peer name far2
         sysctl -qw net.ipv6.conf.lan2.forwarding=1 net.ipv6.conf.up0.accept_ra=1");
    let settings = "cd /proc/sys/net/ipv6/conf; for link in lo up0 lan1 lan2 default; do
        echo $link $(cat $link/forwarding) $(cat $link/accept_ra); done";
    let before = world.node.sh(settings);
    let all = || {
        world
            .node
            .sh("cat /proc/sys/net/ipv6/conf/all/forwarding")
            .trim()
            == "1"
    };
    let network = world.open_with("nat");
    assert!(!all());
    let guest = world.guest(&network, 1, &spec(r#"{"ports": ["7100:9/udp"]}"#));
    assert!(all());
    assert_eq!(world.node.sh(settings), before);
    assert!(world.node.sh("ip -6 route show default").contains("up0"));
    // What is for others is not forwarded.
    world.node.sh(
        "ip neigh add 2001:db8:2::7 lladdr 02:00:00:00:00:07 dev lan1
         nft add table ip6 probe
         nft add chain ip6 probe out '{ type filter hook postrouting priority 300; }'
         nft add rule ip6 probe out ip6 daddr 2001:db8:2::7 counter",
    );
    let passed = |packets: u64| {
        let rules = world.node.sh("nft list table ip6 probe");
        rules.contains(&format!("counter packets {packets} "))
    };
    let outside = world.outside_socket6(7000);
    let other = (ip("2001:db8:2::7"), 9);
    outside.send_to(b"by way of the host", other).unwrap();
    let marker = world.outside_socket6(7003);
    marker.send_to(b"marker", (NODE6, 7100)).unwrap();
    assert_eq!(guest.receive6().0, "marker");
    assert!(passed(0));
    let host = world.node_socket(Ipv6Addr::UNSPECIFIED, 0);
    host.send_to(b"by the host", other).unwrap();
    assert!(passed(1));
    // A killed node finds out that it did this.
    let claim = guest.claim.clone();
    drop(network);
    let config = NetworkConfig {
        ipv6: "auto".parse().unwrap(),
        ..world.config()
    };
    world.node.sh("ip -6 route del default");
    let network = Arc::new(
        world
            .try_open(config, vec![(guest.vm, "job-1".into(), claim)])
            .unwrap(),
    );
    marker.send_to(b"after", (NODE6, 7100)).unwrap();
    assert_eq!(guest.receive6().0, "after");
    let vm = guest.vm;
    world.node.run(move || {
        network.detach(vm).unwrap();
        network.release(vm);
        network.close().unwrap();
    });
    assert!(!all());
    assert_eq!(world.node.sh(settings), before);
}

fn becomes_router() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let (vm, all) = (guest.vm, "net.ipv6.conf.all.forwarding");
    let rules = || world.node.sh("nft list set inet aleph-test alone");
    assert!(rules().contains("elements"));
    world.node.sh(&format!("sysctl -qw {all}=1"));
    let swept = Arc::clone(&network);
    world.node.run(move || swept.sweep().unwrap());
    assert!(!rules().contains("elements"), "it is a router's again");
    world.node.run(move || {
        network.detach(vm).unwrap();
        network.release(vm);
        network.close().unwrap();
    });
    assert_eq!(world.node.sh(&format!("sysctl -n {all}")).trim(), "1");
}

fn two_nodes() {
    let world = World::new().with_ipv6(None);
    let other = |name: &str, pool: &str| NetworkConfig {
        name: name.into(),
        pool: pool.parse().unwrap(),
        ipv6: "nat".parse().unwrap(),
        run: world.folder(name),
        ..world.config()
    };
    let open = |config| Arc::new(world.try_open(config, Vec::new()).unwrap());
    let one = open(other("aleph-one", "10.0.0.0/16"));
    let two = open(other("aleph-two", "10.1.0.0/16"));
    let (a, b) = (
        world.guest(&one, 1, &spec(PLAIN)),
        world.guest(&two, 2, &spec(PLAIN)),
    );
    let (v4, v6) = (world.outside_socket(7000), world.outside_socket6(7000));
    let talks = |guest: &world::guest::Guest| {
        guest.send((OUTSIDE, 7000), "by four");
        let (text, from) = receive(&v4);
        assert_eq!(text, "by four");
        v4.send_to(b"answer", from).unwrap();
        assert_eq!(guest.receive().0, "answer");
        guest.send6((OUTSIDE6, 7000), "by six");
        let (text, from) = receive(&v6);
        assert_eq!(text, "by six");
        v6.send_to(b"answer", from).unwrap();
        assert_eq!(guest.receive6().0, "answer");
    };
    let sweep = |network: &Arc<Network>| {
        let network = Arc::clone(network);
        world.node.run(move || network.sweep().unwrap());
    };
    for network in [&one, &two] {
        sweep(network);
    }
    talks(&a);
    talks(&b);
    // One that ends takes nothing from the other.
    let vm = a.vm;
    world.node.run(move || {
        one.detach(vm).unwrap();
        one.release(vm);
        one.reap().unwrap();
        one.close().unwrap();
        one.remove().unwrap();
    });
    talks(&b);
    drop(two);
}

/// A kernel takes no gateway that another link might have.
fn wide_routes() {
    for (ipv6, route) in [
        ("nat", "fc00::/7"),
        (ROUTED, "2000::/3"),
        (ROUTED, "2001:db8::/32"),
    ] {
        let world = World::new().with_ipv6(Some(ROUTED));
        world.node.sh(&format!("ip route add {route} dev up0"));
        let network = world.open_with(ipv6);
        let guest = world.guest(&network, 1, &spec(PLAIN));
        let outside = world.outside_socket6(7000);
        guest.send6((OUTSIDE6, 7000), "hello");
        let (text, from) = receive(&outside);
        assert_eq!(text, "hello", "{route}");
        outside.send_to(b"and back", from).unwrap();
        assert_eq!(guest.receive6().0, "and back");
    }
}

fn untracked() {
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    let guest = world.guest(&network, 1, &spec(PLAIN));
    world.node.sh("nft add table ip6 probe
         nft add chain ip6 probe out '{ type filter hook postrouting priority 300; }'
         nft add rule ip6 probe out oifname up0 ip6 saddr fc00::/7 counter");
    // Queries for groups and neighbour discovery, which are for a link alone.
    for kind in [130_u8, 131, 132, 133, 134, 135, 136, 137, 143, 200] {
        guest.icmp6(guest.address6(), OUTSIDE6, &[kind, 0, 0, 0, 0, 0, 0, 0]);
    }
    let outside = world.outside_socket6(7000);
    guest.send6((OUTSIDE6, 7000), "marker");
    assert_eq!(receive(&outside).0, "marker");
    let left = world.node.sh("nft list table ip6 probe");
    assert!(left.contains("counter packets 0 "), "{left}");
}

fn refused() {
    let world = World::new().with_ipv6(None);
    let open = |ipv6: &str, claims| {
        let config = NetworkConfig {
            ipv6: ipv6.parse().unwrap(),
            ..world.config()
        };
        world.try_open(config, claims)
    };
    let narrow = open("2001:db8:1::/120", Vec::new()).err().unwrap();
    assert!(matches!(narrow, NetworkError::Ipv6Narrow(_)), "{narrow}");
    let overlap = open("2001:db8::/32", Vec::new()).err().unwrap();
    assert!(
        matches!(overlap, NetworkError::Ipv6Overlap { .. }),
        "{overlap}"
    );
    // Guests would have addresses of the host's, or of its neighbours.
    for (own, prefix) in [
        ("2001:db8:5::7/128", "2001:db8:5::/48"),
        ("2001:db8:6::9/64", "2001:db8:6::/64"),
    ] {
        world
            .node
            .sh(&format!("ip address add {own} dev up0 nodad"));
        let overlap = open(prefix, Vec::new()).err().unwrap();
        assert!(
            matches!(overlap, NetworkError::Ipv6Overlap { .. }),
            "{overlap}"
        );
    }
    let network = world.open_with(ROUTED);
    let guest = world.guest(&network, 1, &spec(PLAIN));
    let claims = || vec![(guest.vm, "job-1".to_owned(), guest.claim.clone())];
    for other in ["off", "nat", "auto", "2001:db8:3::/48", "2001:db8:1::/56"] {
        let changed = open(other, claims()).err().unwrap();
        assert!(
            matches!(changed, NetworkError::Ipv6Changed { .. }),
            "{changed}"
        );
    }
    open(ROUTED, claims()).unwrap();
    let v4 = World::new();
    for (network, forward, why) in [
        (v4.open(), "[::]:7100:9", "VMs of this node have none"),
        (network, "[::1]:7100:9", "asks for ::1"),
    ] {
        let spec = spec(&format!(r#"{{"ports": ["{forward}"]}}"#));
        let refused = network.claim(world::vm(9), ("default", "job"), &spec);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    // A client that tries ::1 first is refused at once, and tries the next address.
    let world = World::new().with_ipv6(None);
    let network = world.open_with("nat");
    world.guest(&network, 1, &spec(r#"{"ports": ["7100:9"]}"#));
    let connected = world
        .node
        .run(|| std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, 7100)));
    assert_eq!(
        connected.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}
