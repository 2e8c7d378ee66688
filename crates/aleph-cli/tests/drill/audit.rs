//! What the network of the daemon's host holds, against the jobs that have a VM: its TAPs, the
//! elements of every set of its rules, the flows that its kernel follows, the ports that are kept,
//! and what the journal says was given away.

use crate::support::namespace::World;
use crate::support::{LIMIT, Node};
use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Instant;

pub(crate) struct Audit<'a> {
    node: &'a Node,
    world: &'a World,
    /// Ports that some job has had.
    ports: RefCell<BTreeSet<Port>>,
}

/// The transport and the number.
type Port = (String, u16);

/// What a job with a VM has.
struct Cable {
    job: String,
    tap: String,
    guest: Ipv4Addr,
    gateway: Ipv4Addr,
    is_private: bool,
    is_cut_off: bool,
    ports: Vec<Port>,
}

/// The pool's first two bytes.
const POOL: [u8; 2] = [10, 0];

impl<'a> Audit<'a> {
    pub(crate) fn new(node: &'a Node, world: &'a World) -> Self {
        Self {
            node,
            world,
            ports: RefCell::default(),
        }
    }

    /// Waits until the host has what jobs with a VM have, and nothing else; gives how many things
    /// that was.
    pub(crate) fn settle(&self) -> Result<u64> {
        let began = Instant::now();
        loop {
            let (looked_at, wrong) = self.look()?;
            if wrong.is_empty() {
                return Ok(looked_at);
            }
            ensure!(
                began.elapsed() < LIMIT,
                "the network is not that of its jobs: {wrong:#?}"
            );
            // TAPs and flows go once a second.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    fn look(&self) -> Result<(u64, Vec<String>)> {
        let cables = self.cables()?;
        let mut wrong = Vec::new();
        let (taps, flows) = self.world.within(&self.world.node, || {
            let read = |path| std::fs::read_to_string(path);
            Ok((
                read("/proc/thread-self/net/dev")?,
                read("/proc/thread-self/net/nf_conntrack")?,
            ))
        })?;
        let taps: BTreeSet<&str> = taps
            .lines()
            .filter_map(|line| line.trim_start().split_once(':'))
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("tap-"))
            .collect();
        let wanted: BTreeSet<&str> = cables.iter().map(|cable| cable.tap.as_str()).collect();
        if taps != wanted {
            wrong.push(format!("TAPs {taps:?} for {wanted:?}"));
        }
        let addresses: BTreeSet<Ipv4Addr> = cables
            .iter()
            .flat_map(|cable| [cable.guest, cable.gateway])
            .collect();
        let mut looked_at = taps.len() + flows.lines().count();
        wrong.extend(stray_flows(&flows, &addresses));
        looked_at += self.elements(&cables, &addresses, &mut wrong)?;
        looked_at += self.kept_ports(&cables, &mut wrong)?;
        looked_at += self.claims(&cables, &mut wrong)?;
        Ok((u64::try_from(looked_at)?, wrong))
    }

    fn cables(&self) -> Result<Vec<Cable>> {
        let ended = self.node.aleph(&["ps", "-a", "--json"])?;
        ensure!(ended.code == 0, "{ended:?}");
        let list: Value = serde_json::from_slice(&ended.stdout)?;
        let jobs = list.as_array().context("ps --json has another form")?;
        let connected = jobs.iter().filter(|job| !job["network"].is_null());
        connected.map(cable).collect()
    }

    /// Each set has an element for each job that belongs there, and none of another.
    fn elements(
        &self,
        cables: &[Cable],
        addresses: &BTreeSet<Ipv4Addr>,
        wrong: &mut Vec<String>,
    ) -> Result<usize> {
        let listing = self.world.text(&self.world.node, "nft -j list ruleset")?;
        let listing: Value = serde_json::from_str(&listing)?;
        let count = |of: fn(&Cable) -> bool| cables.iter().filter(|cable| of(cable)).count();
        let ports = cables.iter().map(|cable| cable.ports.len()).sum();
        let (all, private) = (cables.len(), count(|cable| cable.is_private));
        let mut wanted = BTreeMap::from([
            ("inet guests", all),
            ("inet gateways", all),
            ("arp guests", all),
            ("arp gateways", all),
            ("inet forwards-any", ports),
            ("inet forwards", 0),
            ("inet private", private),
            ("inet members", private),
            ("inet egress", count(|cable| cable.is_cut_off)),
            ("inet allowed", 0),
            ("inet uplinks", usize::from(all > 0)),
            ("inet dns", 2),
            ("inet dns-ports", 2),
        ]);
        let mut looked_at = 0;
        let objects = listing["nftables"].as_array().into_iter().flatten();
        let objects = objects.flat_map(|object| [&object["set"], &object["map"]]);
        for set in objects.filter(|set| !set.is_null()) {
            let part = |key: &str| set[key].as_str().unwrap_or_default();
            let name = format!("{} {}", part("family"), part("name"));
            let elements: Vec<&Value> = set["elem"].as_array().into_iter().flatten().collect();
            looked_at += elements.len();
            if let Some(wanted) = wanted.remove(name.as_str())
                && wanted != elements.len()
            {
                wrong.push(format!("{wanted} elements are {name}: {elements:?}"));
            }
            if ["inet uplinks", "inet dns", "inet dns-ports"].contains(&name.as_str()) {
                continue;
            }
            let is_known = |word: &&str| {
                let address = word.parse().is_ok_and(|ip| addresses.contains(&ip));
                address || cables.iter().any(|cable| cable.tap == *word)
            };
            for element in elements {
                let mut words = Vec::new();
                texts(element, &mut words);
                if !words.iter().any(is_known) {
                    wrong.push(format!("nobody's element of {name}: {element}"));
                }
            }
        }
        let missing = wanted.into_keys().map(|set| format!("there is no {set}"));
        wrong.extend(missing);
        Ok(looked_at)
    }

    /// A port that a job has cannot be bound; one that a job has had can.
    fn kept_ports(&self, cables: &[Cable], wrong: &mut Vec<String>) -> Result<usize> {
        let mut seen = self.ports.borrow_mut();
        let now: BTreeMap<&Port, &str> = cables
            .iter()
            .flat_map(|cable| cable.ports.iter().map(|port| (port, cable.job.as_str())))
            .collect();
        seen.extend(now.keys().map(|port| (*port).clone()));
        let all: Vec<Port> = seen.iter().cloned().collect();
        let bound = self.world.within(&self.world.node, move || {
            let is_bound = |(transport, number): &Port| {
                let address = (Ipv4Addr::UNSPECIFIED, *number);
                match transport.as_str() {
                    "udp" => UdpSocket::bind(address).is_err(),
                    _ => TcpListener::bind(address).is_err(),
                }
            };
            Ok(all.into_iter().filter(is_bound).collect::<BTreeSet<_>>())
        })?;
        for port in seen.iter() {
            match (now.get(port), bound.contains(port)) {
                (Some(_), true) | (None, false) => {}
                (Some(job), false) => wrong.push(format!("{job}'s {port:?} is not kept")),
                (None, true) => wrong.push(format!("{port:?} is kept for nobody")),
            }
        }
        Ok(seen.len())
    }

    /// What the journal says was given away is what jobs have.
    fn claims(&self, cables: &[Cable], wrong: &mut Vec<String>) -> Result<usize> {
        let path = self.node.root.path().join("state.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let journal = Connection::open_with_flags(path, flags)?;
        let mut rows = journal.prepare("SELECT vm, network FROM vms WHERE network IS NOT NULL")?;
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
        let mut claimed = BTreeMap::new();
        for (vm, claim) in rows {
            let claim: Value = serde_json::from_str(&claim)?;
            let slot = u32::try_from(claim["slot"].as_u64().context("no slot")?)?;
            let guest =
                Ipv4Addr::from_bits(Ipv4Addr::new(POOL[0], POOL[1], 0, 0).to_bits() + slot * 4 + 2);
            claimed.insert(format!("tap-{vm}"), guest);
        }
        let has: BTreeMap<String, Ipv4Addr> = cables
            .iter()
            .map(|cable| (cable.tap.clone(), cable.guest))
            .collect();
        if claimed != has {
            wrong.push(format!(
                "the journal has {claimed:?}, and jobs have {has:?}"
            ));
        }
        Ok(claimed.len())
    }
}

/// A node that has stopped, and has no VMs, leaves its host as it was.
pub(crate) fn nothing_left(world: &World) -> Result<()> {
    let left = world.text(
        &world.node,
        "nft list ruleset; ip -br link | grep tap- || true; \
         grep -h 1 /proc/sys/net/ipv4/conf/up0/forwarding || true",
    )?;
    ensure!(left.is_empty(), "left in the namespace: {left}");
    Ok(())
}

fn cable(job: &Value) -> Result<Cable> {
    let network = &job["network"];
    let text = |key: &str| {
        network[key]
            .as_str()
            .with_context(|| format!("{key}: {job}"))
    };
    let ports = network["forwarded_ports"].as_array().into_iter().flatten();
    let ports = ports.map(|port| {
        let number = port["host_port"].as_u64().context("no port")?;
        let transport = port["protocol"].as_str().context("no transport")?;
        Ok((transport.to_owned(), u16::try_from(number)?))
    });
    Ok(Cable {
        job: job["name"].as_str().context("no name")?.to_owned(),
        tap: text("tap_name")?.to_owned(),
        guest: text("vm_ip")?.parse()?,
        gateway: text("host_ip")?.parse()?,
        is_private: !network["private_network"].is_null(),
        is_cut_off: job["spec"]["network"]["egress"] == "deny",
        ports: ports.collect::<Result<_>>()?,
    })
}

/// Flows of the pool with an end that no guest has.
fn stray_flows(flows: &str, addresses: &BTreeSet<Ipv4Addr>) -> Vec<String> {
    let is_stray = |flow: &&str| {
        let ends = flow.split_whitespace().filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            let end: Ipv4Addr = value.parse().ok()?;
            ["src", "dst"].contains(&key).then_some(end)
        });
        let mut ours = ends.filter(|end| end.octets()[..2] == POOL);
        ours.any(|end| !addresses.contains(&end))
    };
    let stray = flows.lines().filter(is_stray);
    stray.map(|flow| format!("nobody's flow: {flow}")).collect()
}

/// All texts of a value.
fn texts<'v>(value: &'v Value, into: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(list) => list.iter().for_each(|value| texts(value, into)),
        Value::Object(map) => map.values().for_each(|value| texts(value, into)),
        _ => {}
    }
}
