//! Full VMs beside those of libvirt, which Debian has: the same disk image, firmware, processor and seed,
//! both emulated, in turn.
//!
//! | file | what it is |
//! | --- | --- |
//! | `space` | what both have in common |
//! | `node` | ours |
//! | `libvirt` | virt-install and virsh, with a libvirtd of its own |
//!
//! "To running" is from the user's command until it is said that the VM runs. "To ssh" is from the
//! same moment until a server of SSH greets over the VM's network: nearly all of that is the guest's own.

mod libvirt;
mod node;
mod space;

use crate::Bench;
use crate::network::alone;
use crate::row::Row;
use aleph_testkit::DebianDisk;
use aleph_types::MiB;
use anyhow::{Context, Result};
use space::{Shared, address, wait_for_ssh};
use std::path::Path;

const MILLI: f64 = 1e3;
/// VMs that are only started, and those that boot.
const STARTS: usize = 10;
const BOOTS: usize = 3;
const REFERENCE: &str = "virt-install of Debian 12, qemu:///system";

#[derive(Default)]
struct Samples {
    running: Vec<f64>,
    ssh: Vec<f64>,
}

pub(crate) fn machines(bench: &Bench) -> Result<Vec<Row>> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let disk = DebianDisk::new()?;
    let folder = tempfile::tempdir()?;
    let shared = Shared {
        image: disk.qcow2,
        seed: folder.path().join("seed"),
        cpus: 2,
        memory: MiB(1024),
        disk: MiB(6144),
    };
    space::write_peers_seed(&shared.seed)?;
    alone(|| {
        measure(
            &bench.aleph,
            &shared,
            folder.path(),
            (&mut ours, &mut theirs),
        )
    })?;
    Ok(vec![
        Row::new("full VM, command to running", "ms", &ours.running)
            .against(REFERENCE, &theirs.running)
            .at_most_times(1.0),
        Row::new("the same, to ssh", "s", &ours.ssh)
            .against(REFERENCE, &theirs.ssh)
            .at_most_times(1.0),
    ])
}

fn measure(
    aleph: &Path,
    shared: &Shared,
    folder: &Path,
    (ours, theirs): (&mut Samples, &mut Samples),
) -> Result<()> {
    let node = node::Daemon::start(aleph, shared)?;
    let mut libvirt = libvirt::Libvirt::start()?;
    let disk = folder.join("peer.qcow2");
    for round in 0..STARTS {
        let boots = round < BOOTS;
        let (began, took) = node.create(shared).context("ours")?;
        ours.running.push(took.as_secs_f64() * MILLI);
        if boots {
            node.wait_for_ssh()?;
            ours.ssh.push(began.elapsed().as_secs_f64());
        }
        node.remove()?;
        let (began, took) = libvirt.create(shared, &disk).context("libvirt's")?;
        theirs.running.push(took.as_secs_f64() * MILLI);
        if boots {
            wait_for_ssh(address::PEER_GUEST)?;
            theirs.ssh.push(began.elapsed().as_secs_f64());
        }
        libvirt.remove()?;
    }
    drop(libvirt);
    node.end()
}
