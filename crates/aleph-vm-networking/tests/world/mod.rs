//! A host of its own for each test: a network namespace for the node, and one for the world
//! outside, with a cable between them. Nothing of it is in the namespace of the tests.

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod space;

use aleph_types::{Egress, NetworkLimits, NetworkSpec, VmId, VmNetwork};
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::tap::Tap;
use aleph_vm_networking::{Attachment, Claim, Ipv6Config, Network, NetworkConfig};
use guest::Guest;
use libtest_mimic::Trial;
use space::Space;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// The node's address on the cable, and that of the world.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The same in IPv6, where a test has it.
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2);

pub(crate) struct World {
    pub(crate) node: Space,
    pub(crate) outside: Space,
    run: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let (node, outside) = (Space::new(), Space::new());
        let far = outside.path();
        node.sh(&format!(
            "ip link set lo up
             ip link add up0 type veth peer name out0 netns {far}
             ip address add {NODE}/24 dev up0
             ip link set up0 up
             ip route add default via {OUTSIDE}"
        ));
        outside.sh(&format!(
            "ip link set lo up
             ip address add {OUTSIDE}/24 dev out0
             ip link set out0 up
             ip route add 10.0.0.0/8 via {NODE}"
        ));
        let run = tempfile::tempdir().unwrap();
        Self { node, outside, run }
    }

    /// Gives the cable IPv6. A prefix that is routed to the node is so from outside.
    pub(crate) fn with_ipv6(self, routed: Option<&str>) -> Self {
        self.node.sh(&format!(
            "ip address add {NODE6}/64 dev up0 nodad
             ip route add default via {OUTSIDE6}"
        ));
        self.outside
            .sh(&format!("ip address add {OUTSIDE6}/64 dev out0 nodad"));
        if let Some(prefix) = routed {
            self.outside
                .sh(&format!("ip route add {prefix} via {NODE6}"));
        }
        self
    }

    pub(crate) fn open_with(&self, ipv6: &str) -> Arc<Network> {
        let config = NetworkConfig {
            ipv6: ipv6.parse().unwrap(),
            ..self.config()
        };
        Arc::new(self.try_open(config, Vec::new()).unwrap())
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            name: "aleph-test".into(),
            pool: "10.0.0.0/16".parse().unwrap(),
            ipv6: Ipv6Config::Off,
            cool_down: Duration::from_secs(60),
            connections: 64,
            limits: NetworkLimits::default(),
            dns_port: None,
            run: self.run.path().to_owned(),
        }
    }

    /// A folder of a further node.
    pub(crate) fn folder(&self, name: &str) -> std::path::PathBuf {
        let folder = self.run.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    pub(crate) fn open(&self) -> Arc<Network> {
        let network = self.try_open(self.config(), Vec::new());
        Arc::new(network.unwrap())
    }

    pub(crate) fn try_open(
        &self,
        config: NetworkConfig,
        claims: Vec<(VmId, String, Claim)>,
    ) -> Result<Network, aleph_vm_networking::NetworkError> {
        self.node.run(move || Network::open(&config, claims))
    }

    /// A VM with this network, and this test as its guest.
    pub(crate) fn guest(&self, network: &Arc<Network>, bits: u32, spec: &NetworkSpec) -> Guest {
        self.guest_of(network, "default", bits, spec)
    }

    pub(crate) fn guest_of(
        &self,
        network: &Arc<Network>,
        account: &'static str,
        bits: u32,
        spec: &NetworkSpec,
    ) -> Guest {
        let (network, spec) = (Arc::clone(network), spec.clone());
        self.node.run(move || {
            let vm = vm(bits);
            let claim = network.claim(vm, (account, &format!("job-{bits}")), &spec);
            let claim = claim.unwrap();
            let attachment = network.attach(vm, 1, None).unwrap();
            Guest::new(vm, attachment, claim)
        })
    }

    /// Another host of a network of the node's, whose every frame the test writes.
    pub(crate) fn lan(&self) -> Guest {
        let tap = self.node.run(|| Tap::make("lan0", 1, None).unwrap());
        self.node.sh(&format!(
            "ip link set lan0 address {mac} up
             ip address add 198.18.0.1/24 dev lan0",
            mac = Mac::HOST
        ));
        let network = VmNetwork {
            tap_name: "lan0".into(),
            vm_ip: Ipv4Addr::new(198, 18, 0, 2),
            host_ip: Ipv4Addr::new(198, 18, 0, 1),
            vm_ipv6: None,
            ipv6_prefix: None,
            mac: String::new(),
            private_network: None,
            forwarded_ports: Vec::new(),
            limits: NetworkLimits::default(),
        };
        let claim = Claim {
            slot: 0,
            ipv6: None,
            ports: Vec::new(),
            private: None,
            egress: Egress::Allow,
            limits: NetworkLimits::default(),
        };
        let attachment = Attachment {
            tap,
            mac: Mac::of(vm(1000)),
            mtu: 1500,
            network,
        };
        Guest::new(vm(1000), attachment, claim)
    }

    /// Names of the objects that count what VMs send and receive.
    pub(crate) fn limits(&self) -> Vec<String> {
        let listed = self.node.sh("nft list limits table inet aleph-test");
        let names = listed.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("limit ")?;
            Some(name.trim_end_matches(" {").to_owned())
        });
        names.collect()
    }

    /// A UDP socket of the world outside.
    pub(crate) fn outside_socket(&self, port: u16) -> UdpSocket {
        self.outside.run(move || socket(OUTSIDE, port))
    }

    pub(crate) fn outside_socket6(&self, port: u16) -> UdpSocket {
        self.outside.run(move || socket(OUTSIDE6, port))
    }

    /// A UDP socket of the node's.
    pub(crate) fn node_socket(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let address = address.into();
        self.node.run(move || socket(address, port))
    }
}

pub(crate) fn vm(bits: u32) -> VmId {
    VmId::from_bits(bits).unwrap()
}

pub(crate) fn spec(json: &str) -> NetworkSpec {
    serde_json::from_str(json).unwrap()
}

pub(crate) fn socket(address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address.into(), port)).unwrap();
    socket.set_read_timeout(Some(ARRIVES)).unwrap();
    socket
}

/// How long is waited for what must arrive.
pub(crate) const ARRIVES: Duration = Duration::from_secs(30);

/// What arrives at a socket, and from where.
pub(crate) fn receive(socket: &UdpSocket) -> (String, std::net::SocketAddr) {
    let mut bytes = [0; 2048];
    let (n, from) = socket.recv_from(&mut bytes).expect("nothing arrives");
    (String::from_utf8_lossy(&bytes[..n]).into_owned(), from)
}

/// A test, or an ignored one that says why it cannot run here.
pub(crate) fn trial(name: &str, test: fn()) -> Trial {
    let missing = space::missing();
    if let Some(why) = &missing {
        eprintln!("{name} cannot run here: {why}");
    }
    let trial = Trial::test(name, move || {
        test();
        Ok(())
    });
    trial.with_ignored_flag(missing.is_some())
}

/// Waits for what must come to be, with a limit that only a hang exceeds.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(
            std::time::Instant::now() < end,
            "{what}: not within a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
