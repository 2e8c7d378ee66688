//! Ten thousand forwards at once, and one more.

use super::space::alone;
use super::{MICRO, MILLI};
use crate::row::Row;
use aleph_types::{Egress, NetworkLimits, Protocol, VmId};
use aleph_vm_networking::forwards::Forward;
use aleph_vm_networking::mac::Mac;
use aleph_vm_networking::nft::{Change, Rules};
use aleph_vm_networking::ruleset::{Base, Element, Set, VmRules, elements};
use anyhow::Result;
use std::fmt::Write;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Instant;

const FORWARDS: u16 = 10_000;
const ROUNDS: usize = 7;
const SINGLE: usize = 300;

pub(super) fn rules() -> Result<Vec<Row>> {
    alone(|| {
        let mut rules = Rules::new(base());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let text = text();
        for _ in 0..ROUNDS {
            rules.install()?;
            let began = Instant::now();
            rules.change(&add(forwards(1..=FORWARDS)))?;
            ours.push(began.elapsed().as_secs_f64() * MILLI);
            rules.install()?;
            let began = Instant::now();
            nft(&text)?;
            theirs.push(began.elapsed().as_secs_f64() * MILLI);
        }
        let (mut one, mut by_nft) = (Vec::new(), Vec::new());
        for round in 0..SINGLE {
            let port = 20_000 + u16::try_from(round)?;
            let began = Instant::now();
            rules.change(&add(forwards(port..=port)))?;
            one.push(began.elapsed().as_secs_f64() * MICRO);
            if round % 10 == 0 {
                let port = port + 20_000;
                let began = Instant::now();
                nft(&format!(
                    "add element inet aleph-bench forwards-any {{ tcp . {port} : 10.0.0.2 . 80 }}"
                ))?;
                by_nft.push(began.elapsed().as_secs_f64() * MICRO);
            }
        }
        Ok(vec![
            Row::new("10,000 forwards loaded at once", "ms", &ours)
                .against("the same by nft -f", &theirs),
            Row::new("one forward added to 10,000", "µs", &one).against("the same by nft", &by_nft),
        ])
    })
}

pub(super) fn base() -> Base {
    Base {
        table: "aleph-bench".into(),
        group: 0x4000_0000,
        pool: aleph_vm_networking::DEFAULT_POOL,
        ipv6: None,
        connections: 4096,
    }
}

pub(super) fn add(add: Vec<Element>) -> Change {
    Change {
        add,
        ..Change::default()
    }
}

pub(super) fn forwards(ports: impl Iterator<Item = u16>) -> Vec<Element> {
    let forwards: Vec<Forward> = ports
        .map(|host_port| Forward {
            protocol: Protocol::Tcp,
            address: None,
            host_port,
            guest_port: 80,
        })
        .collect();
    let elements = elements(&VmRules {
        tap: "tap",
        guest: Ipv4Addr::new(10, 0, 0, 2),
        host: Ipv4Addr::new(10, 0, 0, 1),
        ipv6: None,
        is_routed: false,
        mac: Mac::of(VmId::random()),
        private: None,
        egress: &Egress::Allow,
        forwards: &forwards,
        limits: NetworkLimits::default(),
    });
    let forwards = elements.into_iter();
    forwards
        .filter(|element| element.set == Set::ForwardsAny)
        .collect()
}

fn text() -> String {
    let mut text = String::from("add element inet aleph-bench forwards-any {");
    for port in 1..=FORWARDS {
        let _ = write!(text, " tcp . {port} : 10.0.0.2 . 80,");
    }
    text.push_str(" }\n");
    text
}

fn nft(text: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut to) = child.stdin.take() {
        to.write_all(text.as_bytes())?;
    }
    anyhow::ensure!(child.wait()?.success(), "nft refuses");
    Ok(())
}
