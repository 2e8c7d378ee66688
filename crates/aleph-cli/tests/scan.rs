//! A guest that looks for everything around it: a scan of its gateway, of all other addresses of
//! its host and of its neighbours, by TCP, UDP and ICMP, finds names at its gateway and ports that
//! are published, and nothing else, by IPv4 and by IPv6. The same scan finds what is open to it, and
//! the world finds what is closed to the guest, so that "nothing" means something.
//!
//! The gateway's link-local address is not among what is scanned: the guest's kernel has no route to
//! it, so no packet would leave. Packets that go there all the same are sent by the networking
//! crate's own tests.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use support::namespace::{NODE, NODE6, OUTSIDE, OUTSIDE6, World};
use support::{Daemon, LIMIT};

/// Addresses of the host that are on no cable.
const SECOND: [&str; 2] = ["198.51.100.1", "2001:db8:fe::1"];
/// Where the host has services of its own, at all of its addresses.
const SERVICES: [u16; 2] = [22, 7001];
/// Where nothing is.
const CLOSED: u16 = 4;
/// Where clouds have their metadata.
const METADATA: &str = "169.254.169.254";

/// What busybox can do: `nc` for TCP, a first message of TFTP for UDP. A line for each probe: it
/// and what came back within $wait seconds.
const PROBE: &str = r#"
probe() {
  case $1 in
    tcp) said=$(printf 'GET / HTTP/1.0\r\n\r\n' | timeout $((wait * 2)) nc -w $wait $2 $3 2>&1); code=$? ;;
    udp) said=$(timeout $wait tftp -g -r probe -l /dev/null $2 $3 2>&1); code=1 ;;
    icmp) said=$(ping -c 1 -W $wait $2 2>&1); code=$? ;;
  esac
  case $code.$said in
    0.*|*'here I am'*) found=answers ;;
    *refused*|*nreachable*|*rohibited*) found=refused ;;
    *) found=nothing ;;
  esac
  echo $1 $2 $3 $found
}
"#;

/// Who came to the services of a namespace.
#[derive(Clone, Default)]
struct Visitors(Arc<Mutex<Vec<IpAddr>>>);

impl Visitors {
    fn add(&self, visitor: SocketAddr) {
        let mut visitors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        visitors.push(visitor.ip().to_canonical());
    }

    fn all(&self) -> Vec<IpAddr> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Services at all addresses of a namespace, which answer whoever comes.
    fn serve(&self, world: &World, netns: &str) -> Result<()> {
        for port in SERVICES {
            let address = (Ipv6Addr::UNSPECIFIED, port);
            let (tcp, udp) = world.within(netns, || {
                Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?))
            })?;
            let visitors = self.clone();
            std::thread::spawn(move || {
                while let Ok((_, from)) = tcp.accept() {
                    visitors.add(from);
                }
            });
            let visitors = self.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 2048];
                while let Ok((_, from)) = udp.recv_from(&mut bytes) {
                    visitors.add(from);
                    // An error of TFTP, with a text.
                    let _ = udp.send_to(b"\0\x05\0\0here I am\0", from);
                }
            });
        }
        Ok(())
    }
}

/// What was looked for, and what came back.
type Found = BTreeMap<String, String>;

/// What is open is found much sooner; what is shut is waited for.
const OPEN: u32 = 20;
const SHUT: u32 = 3;

fn scan(daemon: &Daemon, probes: &[String], wait: u32) -> Result<Found> {
    let mut line = format!("wait={wait}\n{PROBE}");
    for probe in probes {
        line += &format!("probe {probe} &\n");
    }
    line += "wait\n";
    let text = daemon.ok(&["exec", "scanner", "sh", "-c", &line])?;
    let found: Found = text
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(probe, found)| (probe.trim_end().to_owned(), found.to_owned()))
        .collect();
    ensure!(
        found.len() == probes.len(),
        "{} probes: {text}",
        probes.len()
    );
    Ok(found)
}

/// Errors that came to the guest, as what is sent to a closed UDP port brings, for both families.
fn unreachable(daemon: &Daemon) -> Result<[u64; 2]> {
    let line = "awk '/^Icmp:/ { print $5 }' /proc/net/snmp | tail -n 1; \
                awk '/^Icmp6InDestUnreachs/ { print $2 }' /proc/net/snmp6";
    let text = daemon.ok(&["exec", "scanner", "sh", "-c", line])?;
    let (v4, v6) = text.split_once('\n').context("no counters")?;
    Ok([v4.trim().parse()?, v6.trim().parse()?])
}

fn probes(address: &str, ports: &[u16]) -> Vec<String> {
    let ports = ports
        .iter()
        .flat_map(|port| ["tcp", "udp"].map(|transport| format!("{transport} {address} {port}")));
    ports.chain([format!("icmp {address}")]).collect()
}

/// A job with a web server: its addresses, and that of its gateway.
struct Served {
    guest: [String; 2],
    gateway: String,
}

fn start(daemon: &Daemon, name: &str, words: &[&str]) -> Result<Served> {
    let page = "mkdir /www; echo here I am > /www/index.html; exec httpd -f -p 80 -h /www";
    let image = ["busybox", "sh", "-c", page];
    let run = [&["run", "-d", "--name", name], words, &image];
    daemon.ok(&run.concat())?;
    let job = daemon.json(&["inspect", name])?;
    let address = |key: &str| {
        let found = job[0]["network"][key].as_str().map(str::to_owned);
        found.with_context(|| format!("no {key}: {job}"))
    };
    Ok(Served {
        guest: [address("vm_ip")?, address("vm_ipv6")?],
        gateway: address("host_ip")?,
    })
}

#[test]
fn a_guest_that_scans_finds_nothing() -> Result<()> {
    let world = World::new()?.with_ipv6()?;
    let [second, second6] = SECOND;
    world.text(
        &world.node,
        &format!("ip address add {second}/32 dev lo; ip address add {second6}/128 dev lo"),
    )?;
    world.text(
        &world.outside,
        &format!("ip route add {second} via {NODE}; ip route add {second6} via {NODE6}"),
    )?;
    let (host, outside) = (Visitors::default(), Visitors::default());
    host.serve(&world, &world.node)?;
    outside.serve(&world, &world.outside)?;
    let daemon = Daemon::configured("", &["--netns", &world.node])?;
    let scanner = start(&daemon, "scanner", &[])?;
    let publish = ["-p", "8080:80", "-p", "127.0.0.1:8081:80"];
    let neighbours = [
        start(&daemon, "published", &publish)?,
        start(&daemon, "private", &["--network", "private:x"])?,
    ];
    // What is closed to the guest is open to the world, or to the host.
    let page = |netns: &str, address: &str| {
        wait_until(address, LIMIT, || world.get(netns, address));
    };
    page(&world.outside, &format!("{NODE}:8080"));
    page(&world.node, "127.0.0.1:8081");
    for neighbour in &neighbours {
        page(&world.node, &format!("{}:80", neighbour.guest[0]));
    }
    world.within(&world.outside, || {
        for address in [NODE, second, NODE6, second6] {
            let address: IpAddr = address.parse()?;
            for port in SERVICES {
                TcpStream::connect_timeout(&(address, port).into(), LIMIT)?;
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                let to = match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                socket.set_read_timeout(Some(LIMIT))?;
                socket.send_to(b"anybody?", (to, port))?;
                socket.recv_from(&mut [0; 64])?;
            }
        }
        Ok(())
    })?;

    // What is open to the guest is found, and nothing is where nothing is.
    let mut open = vec![format!("tcp {} 53", scanner.gateway)];
    for address in [OUTSIDE, OUTSIDE6] {
        open.extend(probes(address, &SERVICES));
    }
    for address in &scanner.guest {
        open.extend([format!("tcp {address} 80"), format!("icmp {address}")]);
    }
    for address in [NODE, second, NODE6, second6] {
        open.push(format!("tcp {address} 8080"));
    }
    let found = scan(&daemon, &open, OPEN)?;
    assert!(found.values().all(|found| found == "answers"), "{found:#?}");
    let before = unreachable(&daemon)?;
    for address in [OUTSIDE, OUTSIDE6] {
        let closed = ["tcp", "udp"].map(|transport| format!("{transport} {address} {CLOSED}"));
        let found = scan(&daemon, &closed, SHUT)?;
        assert_eq!(found[&closed[0]], "refused");
    }
    let after = unreachable(&daemon)?;
    assert!(after[0] > before[0] && after[1] > before[1], "{after:?}");
    let name = daemon.ok(&[
        "exec",
        "scanner",
        "sh",
        "-c",
        "nslookup x.internal 2>&1; true",
    ])?;
    assert!(name.contains("NXDOMAIN"), "{name}");

    // Everything else.
    let all = SERVICES.into_iter().chain(forwarder(&world)?);
    let all: Vec<u16> = all.chain([CLOSED, 80, 8081]).collect();
    let mut shut = probes(METADATA, &[80]);
    for address in [NODE, second, &scanner.gateway, NODE6, second6] {
        shut.extend(probes(address, &all));
    }
    for address in [NODE, second, NODE6, second6] {
        shut.extend(probes(address, &[53]));
    }
    for neighbour in &neighbours {
        for address in &neighbour.guest {
            shut.extend(probes(address, &[22, 80, CLOSED]));
        }
        shut.extend(probes(&neighbour.gateway, &[53, 7001]));
    }
    shut.sort();
    shut.dedup();
    let before = (host.all().len(), unreachable(&daemon)?);
    let mut found = Found::new();
    // A guest has so much memory.
    for part in shut.chunks(60) {
        found.extend(scan(&daemon, part, SHUT)?);
    }
    found.retain(|_, found| found != "nothing");
    assert_eq!(found, Found::new());
    assert_eq!(unreachable(&daemon)?, before.1, "nor is it refused by ICMP");
    assert_eq!(host.all().len(), before.0, "visitors: {:?}", host.all());
    for node in [NODE, NODE6] {
        let node: IpAddr = node.parse()?;
        assert!(outside.all().contains(&node), "the guest was outside");
    }

    // It is still there, and can do what it could.
    let found = scan(&daemon, &open[..2], OPEN)?;
    assert!(found.values().all(|found| found == "answers"), "{found:#?}");
    daemon.end()
}

/// Where the node's forwarder listens.
fn forwarder(world: &World) -> Result<BTreeSet<u16>> {
    let listing = world.text(&world.node, "nft -j list ruleset")?;
    let listing: serde_json::Value = serde_json::from_str(&listing)?;
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let ports = objects
        .filter(|object| object["set"]["name"] == "dns-ports")
        .flat_map(|object| object["set"]["elem"].as_array().into_iter().flatten())
        .filter_map(|element| u16::try_from(element["concat"][1].as_u64()?).ok());
    let ports: BTreeSet<u16> = ports.collect();
    ensure!(!ports.is_empty(), "no forwarder");
    Ok(ports)
}
