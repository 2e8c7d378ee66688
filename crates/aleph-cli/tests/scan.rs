//! A guest that looks for everything around it: a scan of its gateway, of all other addresses of
//! its host and of its neighbours, by TCP, UDP and ICMP, finds names at its gateway and ports that
//! are published, and nothing else. The same scan finds what is open to it, and the world finds
//! what is closed to the guest, so that "nothing" means something.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use support::namespace::{NODE, OUTSIDE, World};
use support::{Daemon, LIMIT};

/// An address of the host that is on no cable.
const SECOND: &str = "198.51.100.1";
/// Where the host has services of its own, at all of its addresses.
const SERVICES: [u16; 2] = [22, 7001];
/// Where nothing is.
const CLOSED: u16 = 4;
/// Where clouds have their metadata.
const METADATA: &str = "169.254.169.254";

/// What busybox can do: `nc` for TCP, a first message of TFTP for UDP. A line for each probe: it
/// and what came back.
const PROBE: &str = r#"
probe() {
  case $1 in
    tcp) said=$(printf 'GET / HTTP/1.0\r\n\r\n' | timeout 20 nc -w 5 $2 $3 2>&1); code=$? ;;
    udp) said=$(timeout 5 tftp -g -r probe -l /dev/null $2 $3 2>&1); code=1 ;;
    icmp) said=$(ping -c 1 -W 5 $2 2>&1); code=$? ;;
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
        visitors.push(visitor.ip());
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
            let address = (Ipv4Addr::UNSPECIFIED, port);
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

fn scan(daemon: &Daemon, job: &str, probes: &[String]) -> Result<Found> {
    let mut line = PROBE.to_owned();
    for probe in probes {
        line += &format!("probe {probe} &\n");
    }
    line += "wait\n";
    let text = daemon.ok(&["exec", job, "sh", "-c", &line])?;
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

/// Errors that came to the guest, as what is sent to a closed UDP port brings.
fn unreachable(daemon: &Daemon) -> Result<u64> {
    let text = daemon.ok(&["exec", "scanner", "grep", "^Icmp:", "/proc/net/snmp"])?;
    let (names, counts) = text.split_once('\n').context("no counters")?;
    let mut both = names.split(' ').zip(counts.split(' '));
    let (_, count) = both
        .find(|(name, _)| *name == "InDestUnreachs")
        .context("no counter")?;
    Ok(count.trim().parse()?)
}

fn probes(address: &str, ports: &[u16]) -> Vec<String> {
    let ports = ports
        .iter()
        .flat_map(|port| ["tcp", "udp"].map(|transport| format!("{transport} {address} {port}")));
    ports.chain([format!("icmp {address}")]).collect()
}

#[test]
fn a_guest_that_scans_finds_nothing() -> Result<()> {
    let world = World::new()?;
    world.text(&world.node, &format!("ip address add {SECOND}/32 dev lo"))?;
    world.text(&world.outside, &format!("ip route add {SECOND} via {NODE}"))?;
    let (host, outside) = (Visitors::default(), Visitors::default());
    host.serve(&world, &world.node)?;
    outside.serve(&world, &world.outside)?;
    let daemon = Daemon::configured("", &["--netns", &world.node])?;
    let page = "mkdir /www; echo here I am > /www/index.html; exec httpd -f -p 80 -h /www";
    let start = |name: &str, words: &[&str]| -> Result<(String, String)> {
        let run = [
            &["run", "-d", "--name", name],
            words,
            &["busybox", "sh", "-c", page],
        ];
        daemon.ok(&run.concat())?;
        let job = daemon.json(&["inspect", name])?;
        let address = |key: &str| job[0]["network"][key].as_str().map(str::to_owned);
        let (guest, gateway) = (address("vm_ip"), address("host_ip"));
        Ok((guest.context("no address")?, gateway.context("no gateway")?))
    };
    let (own, gateway) = start("scanner", &[])?;
    let publish = ["-p", "8080:80", "-p", "127.0.0.1:8081:80"];
    let neighbours = [
        start("published", &publish)?,
        start("private", &["--network", "private:x"])?,
    ];
    let page = |netns: &str, address: &str| {
        wait_until(address, LIMIT, || world.get(netns, address));
    };
    page(&world.outside, &format!("{NODE}:8080"));
    page(&world.node, "127.0.0.1:8081");
    for (guest, _) in &neighbours {
        page(&world.node, &format!("{guest}:80"));
    }

    // What is open to the guest is found, and nothing is where nothing is.
    let mut open = [probes(OUTSIDE, &SERVICES), probes(&own, &[80])].concat();
    open.retain(|probe| *probe != format!("udp {own} 80"));
    open.extend([
        format!("tcp {NODE} 8080"),
        format!("tcp {SECOND} 8080"),
        format!("tcp {gateway} 53"),
    ]);
    let found = scan(&daemon, "scanner", &open)?;
    assert!(found.values().all(|found| found == "answers"), "{found:#?}");
    let closed = [
        format!("tcp {OUTSIDE} {CLOSED}"),
        format!("udp {OUTSIDE} {CLOSED}"),
    ];
    let before = unreachable(&daemon)?;
    let found = scan(&daemon, "scanner", &closed)?;
    assert_eq!(found[&closed[0]], "refused");
    assert!(unreachable(&daemon)? > before, "by ICMP");
    let name = daemon.ok(&[
        "exec",
        "scanner",
        "sh",
        "-c",
        "nslookup x.internal 2>&1; true",
    ])?;
    assert!(name.contains("NXDOMAIN"), "{name}");
    // What is closed to it is open to the world, or to the host.
    world.within(&world.outside, || {
        for address in [NODE, SECOND] {
            let address: Ipv4Addr = address.parse()?;
            for port in SERVICES {
                TcpStream::connect_timeout(&(address, port).into(), LIMIT)?;
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(LIMIT))?;
                socket.send_to(b"anybody?", (address, port))?;
                socket.recv_from(&mut [0; 64])?;
            }
        }
        Ok(())
    })?;

    // Everything else.
    let forwarder = world.text(&world.node, "nft -j list ruleset")?;
    let forwarder: serde_json::Value = serde_json::from_str(&forwarder)?;
    let sets = forwarder["nftables"].as_array().into_iter().flatten();
    let ports = sets
        .filter(|object| object["set"]["name"] == "dns-ports")
        .flat_map(|object| object["set"]["elem"].as_array().into_iter().flatten())
        .filter_map(|element| u16::try_from(element["concat"][1].as_u64()?).ok());
    let forwarders: BTreeSet<u16> = ports.collect();
    ensure!(!forwarders.is_empty(), "no forwarder");
    let all = SERVICES.into_iter().chain(forwarders);
    let all: Vec<u16> = all.chain([CLOSED, 80, 8081]).collect();
    let mut shut = probes(METADATA, &[80]);
    for address in [NODE, SECOND, &gateway] {
        shut.extend(probes(address, &all));
    }
    for address in [NODE, SECOND] {
        shut.extend(probes(address, &[53]));
    }
    for (guest, gateway) in &neighbours {
        shut.extend(probes(guest, &[22, 80, CLOSED]));
        shut.extend(probes(gateway, &[53, 7001]));
    }
    let before = (host.all().len(), unreachable(&daemon)?);
    let mut found = Found::new();
    // A guest has so much memory.
    for part in shut.chunks(40) {
        found.extend(scan(&daemon, "scanner", part)?);
    }
    found.retain(|_, found| found != "nothing");
    assert_eq!(found, Found::new());
    assert_eq!(unreachable(&daemon)?, before.1, "nor is it refused by ICMP");
    assert_eq!(host.all().len(), before.0, "visitors: {:?}", host.all());
    let node: IpAddr = NODE.parse()?;
    assert!(outside.all().contains(&node), "the guest was outside");

    // Its neighbours saw nothing of it, and it is still there.
    let found = scan(&daemon, "scanner", &open[..1])?;
    assert!(found.values().all(|found| found == "answers"), "{found:#?}");
    daemon.end()
}
