//! Networks of VMs: what one costs to make and to undo, what rules cost to change, and what they
//! cost each packet.
//!
//! | file | what it is |
//! | --- | --- |
//! | `space` | a network namespace of a thread; nothing here is in the host's own |
//! | `life` | networks made and undone beside none, a thousand and ten thousand others |
//! | `rules` | ten thousand forwards at once, and one more |
//! | `guest` | packets to a real guest and back, with rules and without |
//! | `path` | the same with this program as the guest |
//!
//! What `path` measures is the host's way alone, without an emulated processor in it: a floor that no
//! VM comes near, in which the rules weigh most. The bar is on `guest`.

mod guest;
mod life;
mod path;
mod rules;
mod space;

pub(crate) use space::{alone, sh};

use crate::Bench;
use crate::row::Row;
use aleph_types::{NetworkLimits, NetworkSpec, VmId};
use aleph_vm_networking::{Ipv6Config, Network, NetworkConfig};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

const MICRO: f64 = 1e6;
const MILLI: f64 = 1e3;

pub(crate) fn network(bench: &Bench) -> Result<Vec<Row>> {
    let run = bench.root.path().to_owned();
    let mut rows = life::life(&run).context("networks that come and go")?;
    rows.extend(rules::rules().context("rules")?);
    rows.extend(guest::guest(bench).context("packets of a real guest")?);
    rows.extend(path::path(&run).context("packets")?);
    Ok(rows)
}

fn open(run: &Path, ipv6: Ipv6Config) -> Result<Network> {
    let config = NetworkConfig {
        name: "aleph-bench".into(),
        pool: aleph_vm_networking::DEFAULT_POOL,
        ipv6,
        cool_down: Duration::from_secs(60),
        connections: 4096,
        limits: NetworkLimits::default(),
        run: run.to_owned(),
        dns_port: None,
    };
    Ok(Network::open(&config, Vec::new())?)
}

fn vm(bits: u32) -> Result<VmId> {
    VmId::from_bits(bits).context("no such id")
}

fn spec(port: Option<u16>) -> Result<NetworkSpec> {
    let ports = port.map(|port| format!("{port}:80").parse()).transpose()?;
    Ok(NetworkSpec {
        ports: ports.into_iter().collect(),
        ..NetworkSpec::default()
    })
}
