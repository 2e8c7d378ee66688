//! Full VMs that get more processors and memory while their guests run: real guests see them, begin with them
//! after a restart, and what cannot be leaves nothing. The node is killed in every step of it, and QEMU, too.
//! And that a guest's processors and memory are arranged as its job says.

mod grown;
#[path = "../live_volumes/guest.rs"]
#[allow(dead_code, reason = "its guests have volumes as well")]
mod guest;
mod killed;
mod nodes;
#[path = "../live_volumes/victim.rs"]
mod victim;

use aleph_executor::Node;
use aleph_types::{HotplugRoom, JobId, JobResize, JobSpec, MachineSpec, MiB};
use anyhow::Result;
use guest::{Guest, trial, until};
use libtest_mimic::Arguments;

fn main() {
    if victim::is_one(killed::grow) {
        return;
    }
    let trials = vec![
        trial(
            "alone_a_guest_has_what_it_is_given",
            grown::a_guest_has_what_it_is_given,
        ),
        trial(
            "alone_a_node_that_is_killed_finds_what_the_machine_has",
            killed::a_node_that_is_killed_finds_what_the_machine_has,
        ),
        trial(
            "a_guest_has_its_machine_as_its_job_says",
            nodes::a_guest_has_its_machine_as_its_job_says,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Memory that a guest begins with.
const BEGINS: u32 = 256;
/// What a VM costs beside its guest's memory.
const OVERHEAD: u32 = 64;

/// Has a machine of one processor have room for another, and for this much memory.
fn room(memory: u32) -> impl FnOnce(&mut JobSpec) {
    move |spec| {
        (spec.resources.cpus, spec.resources.memory) = (1, MiB(BEGINS));
        spec.machine = Some(MachineSpec {
            room: HotplugRoom {
                cpus: 1,
                memory: MiB(memory),
                slots: 0,
            },
            ..MachineSpec::default()
        });
    }
}

fn size(cpus: u16, memory: u32) -> JobResize {
    JobResize {
        cpus: Some(cpus),
        memory: Some(MiB(memory)),
    }
}

/// What a job's record says that it has.
fn recorded(node: &Node, job: JobId) -> Result<(u16, u32)> {
    let resources = node.job(job)?.spec.resources;
    Ok((resources.cpus, resources.memory.0))
}

/// What of the host is given away.
fn given(node: &Node) -> Result<(u32, u32)> {
    let given = node.info()?.allocated;
    Ok((given.cpus, given.memory.0))
}

/// What its only VM is to be given.
fn share(cpus: u16, memory: u32) -> (u32, u32) {
    (cpus.into(), memory + OVERHEAD)
}

/// Blocks of memory that a guest has.
const BLOCKS: &str = "ls -d /sys/devices/system/memory/memory[0-9]* | wc -l";

/// Waits until a guest sees so many blocks of memory and so many processors, and uses these.
async fn sees(node: &Node, guest: &mut Guest, cpus: u16, blocks: u32) -> Result<()> {
    until("the guest to see what it has", async || {
        let there = guest.run(node, BLOCKS).await?;
        let cpu = "/sys/devices/system/cpu/cpu1";
        let second = format!("test -e {cpu} && echo there || echo none");
        let second = guest.run(node, &second).await?;
        Ok(there == blocks.to_string() && (second == "there") == (cpus == 2))
    })
    .await?;
    for file in ["cpu/cpu1/online", "memory/memory*/online"] {
        let online = format!(
            "for f in /sys/devices/system/{file}; do test $(cat $f || echo 1) = 1 || echo 1 >$f; done"
        );
        guest.run(node, &online).await?;
    }
    let used = guest.run(node, "nproc").await?;
    anyhow::ensure!(used == cpus.to_string(), "{used} processors are used");
    Ok(())
}

/// Memory that a guest's kernel has, in MiB.
async fn uses(node: &Node, guest: &mut Guest) -> Result<u32> {
    let line = "grep MemTotal: /proc/meminfo | tr -dc 0-9";
    let kib: u32 = guest.run(node, line).await?.parse()?;
    Ok(kib / 1024)
}
