//! `make bench`: every figure beside its limit or its peer, measured in the same run.
//!
//! Prints a table and puts each group's rows into `bench/results.json`, where those of the groups
//! that did not run stay. Samples of a figure and of its reference are
//! taken in turn, so that a host whose speed drifts slows both. It exits 0 whatever holds.

mod backup;
mod boot;
mod by_hand;
mod exec;
mod firecracker;
mod functions;
mod image;
mod machines;
mod network;
mod node;
mod results;
mod row;
mod size;
mod volumes;

use anyhow::{Context, Result, bail};
use results::Results;
use row::Row;
use std::path::{Path, PathBuf};

/// What every group is given.
struct Bench {
    root: aleph_testkit::TestRoot,
    /// The release build of the program under test.
    aleph: PathBuf,
    runtime: tokio::runtime::Runtime,
}

type Group = fn(&Bench) -> Result<Vec<Row>>;

const GROUPS: [(&str, Group); 11] = [
    ("backup", backup::backup),
    ("boot", boot::boot),
    ("exec", exec::exec),
    ("firecracker", firecracker::firecracker),
    ("functions", functions::functions),
    ("image", image::image),
    ("machines", machines::machines),
    ("network", network::network),
    ("node", node::node),
    ("size", size::size),
    ("volumes", volumes::volumes),
];

fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    if let Some(only) = &only
        && !GROUPS.iter().any(|(name, _)| name == only)
    {
        bail!(
            "there is no group {only:?}: the groups are backup, boot, exec, firecracker, functions, image, machines, network, node, size and volumes"
        );
    }
    let exe = std::env::current_exe()?;
    let aleph = exe
        .parent()
        .context("the program has no folder")?
        .join("aleph");
    let bench = Bench {
        root: aleph_testkit::TestRoot::new()?,
        aleph,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("results.json");
    let mut results = Results::read(&file)?;
    let mut rows = Vec::new();
    for (name, group) in GROUPS {
        if only.as_deref().is_none_or(|only| only == name) {
            eprintln!("measuring {name}");
            let measured = group(&bench).with_context(|| format!("group {name}"))?;
            // Written at once, so that a later group that fails does not cost the others'.
            results.replace(name, &measured)?;
            results.write(&file)?;
            rows.extend(measured);
        }
    }
    println!("{}", row::table(&rows));
    println!("written to bench/results.json");
    Ok(())
}
