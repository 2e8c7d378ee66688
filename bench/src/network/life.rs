//! Networks made and undone beside none, a thousand and ten thousand others.

use super::space::{alone, sh};
use super::{MICRO, open, spec, vm};
use crate::row::Row;
use aleph_vm_networking::{Attachment, Ipv6Config, Network};
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::Instant;

/// How many are there beside the one that is measured.
const PRESENT: [u32; 3] = [0, 1000, 10_000];
const SAMPLES: u32 = 200;
const BY_SCRIPT: u32 = 20;
/// Ids of what is measured, apart from those that are there.
const FIRST: u32 = 1 << 20;

/// Microseconds that each took to be made and to be undone.
#[derive(Default)]
struct Samples {
    made: Vec<f64>,
    undone: Vec<f64>,
}

pub(super) fn life(run: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (ipv6, family) in [(Ipv6Config::Off, ""), (Ipv6Config::Nat, " with IPv6")] {
        rows.extend(with(run, ipv6, family)?);
    }
    Ok(rows)
}

fn with(run: &Path, ipv6: Ipv6Config, family: &str) -> Result<Vec<Row>> {
    let run = run.to_owned();
    let (all, script) = alone(move || {
        // All of them once, unmeasured: the first to use memory of a virtual machine waits for its
        // host to find some.
        let network = open(&run, ipv6)?;
        let mut there = Vec::new();
        fill(&network, &mut there, PRESENT[PRESENT.len() - 1])?;
        network.remove()?;
        drop(network);
        there.clear();
        let network = open(&run, ipv6)?;
        let mut all = Vec::new();
        let script = by_script()?;
        for (round, count) in (0_u32..).zip(PRESENT) {
            fill(&network, &mut there, count)?;
            eprintln!("measuring beside {count} networks{family}");
            let first = FIRST + round * 1000;
            all.push(samples(&network, first)?);
        }
        network.remove()?;
        drop(there);
        Ok((all, script))
    })?;
    let mut rows = Vec::new();
    let first = &all[0];
    for (samples, count) in all.iter().zip(PRESENT) {
        let beside = match count {
            0 => String::new(),
            _ => format!(" beside {count} others"),
        };
        let name = |what: &str| format!("network of a VM{family}{beside} {what}");
        let made = Row::new(
            name("made: address, port, TAP and rules"),
            "µs",
            &samples.made,
        );
        let undone = Row::new(
            name("undone, its TAP left to be removed"),
            "µs",
            &samples.undone,
        );
        if count > 0 {
            let beside = "the same beside none";
            rows.push(made.against(beside, &first.made).at_most_times(1.3));
            rows.push(undone.against(beside, &first.undone).at_most_times(1.3));
            continue;
        }
        // The script makes no IPv6.
        if ipv6 == Ipv6Config::Off {
            let by = "the same objects by ip and nft";
            rows.push(made.clone().against(by, &script.made));
            rows.push(undone.against(by, &script.undone));
        } else {
            rows.push(undone);
        }
        rows.push(made.at_most(1000.0));
    }
    Ok(rows)
}

/// Makes networks until there are so many.
fn fill(network: &Network, there: &mut Vec<Attachment>, count: u32) -> Result<()> {
    for n in u32::try_from(there.len())?..count {
        // Every tenth has a port.
        let port = (n % 10 == 0).then(|| 10_000 + u16::try_from(n / 10).unwrap_or(0));
        there.push(make(network, n, port)?);
    }
    Ok(())
}

fn make(network: &Network, bits: u32, port: Option<u16>) -> Result<Attachment> {
    let vm = vm(bits)?;
    network.claim(vm, ("bench", "bench"), &spec(port)?)?;
    Ok(network.attach(vm, 1, Some(vm.uid()))?)
}

fn samples(network: &Network, first: u32) -> Result<Samples> {
    let mut samples = Samples::default();
    let mut open = Vec::new();
    for n in 0..SAMPLES {
        let port = Some(40_000 + u16::try_from(n)?);
        let began = Instant::now();
        open.push(make(network, first + n, port)?);
        samples.made.push(began.elapsed().as_secs_f64() * MICRO);
    }
    for n in 0..SAMPLES {
        let began = Instant::now();
        network.detach(vm(first + n)?)?;
        network.release(vm(first + n)?);
        samples.undone.push(began.elapsed().as_secs_f64() * MICRO);
    }
    ensure!(network.waits(), "nothing waits to be removed");
    network.reap()?;
    Ok(samples)
}

/// A TAP with an address and a neighbour, and the elements of one VM with a port, by programs.
fn by_script() -> Result<Samples> {
    let mut samples = Samples::default();
    let element = |n: u32| {
        format!(
            "nft add element inet aleph-bench guests '{{ \"t{n}\" . 10.9.0.2 . 02:a2:00:00:00:01 : accept }}';
             nft add element inet aleph-bench gateways '{{ \"t{n}\" . 10.9.0.1 }}';
             nft add element inet aleph-bench forwards-any '{{ tcp . {n} : 10.9.0.2 . 80 }}'"
        )
    };
    for n in 1..=BY_SCRIPT {
        let began = Instant::now();
        sh(&format!(
            "ip tuntap add t{n} mode tap vnet_hdr
             ip link set t{n} address 02:a1:00:00:00:01 mtu 1500 group 7 up
             ip address add 10.9.0.1/30 dev t{n}
             ip neighbour add 10.9.0.2 lladdr 02:a2:00:00:00:01 dev t{n}
             {}",
            element(n)
        ))?;
        samples.made.push(began.elapsed().as_secs_f64() * MICRO);
        let began = Instant::now();
        sh(&format!(
            "{}
             ip link del t{n}",
            element(n).replace("nft add", "nft delete")
        ))?;
        samples.undone.push(began.elapsed().as_secs_f64() * MICRO);
    }
    Ok(samples)
}
