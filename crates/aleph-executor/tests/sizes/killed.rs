//! The node is killed in every step while a VM grows, and whoever opens it next finds what the machine has;
//! then QEMU is killed in the middle.

use crate::guest::{Guest, LIMIT, nothing_is_left, open_with, until};
use crate::victim::{killed_at, qemu_of};
use crate::{BEGINS, BLOCKS, given, recorded, room, sees, share, size};
use aleph_executor::Node;
use aleph_testkit::TestRoot;
use aleph_types::{Classify, JobId, JobResize, JobState};
use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};

/// A module.
const STEP: u32 = 128;

/// Where a node may die, and whether the machine has its memory, and its other processor, by then.
const PLACES: [(&str, bool, bool); 7] = [
    ("job.resize:before", false, false),
    ("job.resize:after", false, false),
    ("vm.resize:limited", false, false),
    ("vm.resize:memory", true, false),
    ("vm.resize:cpus", true, true),
    ("job.resize:before:2", true, true),
    ("job.resize:after:2", true, true),
];

/// What the process does that is killed: it has the VM grow.
pub(crate) async fn grow(root: &TestRoot, job: JobId, memory: &str) -> Result<()> {
    let node = open_with(root, |_| ()).await?;
    until("the VM", async || {
        Ok(node.job(job)?.state == JobState::Running)
    })
    .await?;
    node.resize(job, size(2, memory.parse()?)).await.map(drop)?;
    Ok(())
}

/// Waits until nothing of a change is left to be found out.
async fn settled(node: &Node, job: JobId) -> Result<()> {
    until("what the machine has", async || {
        // Nothing is asked for, which waits for its turn all the same.
        match node.resize(job, JobResize::default()).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == "wrong_state" => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

pub(crate) async fn a_node_that_is_killed_finds_what_the_machine_has() -> Result<()> {
    let root = TestRoot::new()?;
    let mut node = open_with(&root, |_| ()).await?;
    let mut guest = Guest::boot_as(&root, &node, room(16 * STEP)).await?;
    let job = guest.job;
    let first: u32 = guest.run(&node, BLOCKS).await?.parse()?;
    let (mut cpus, mut memory) = (1, BEGINS);
    for (place, has_memory, has_cpu) in PLACES {
        node.shutdown().await;
        drop(node);
        killed_at(&root, job, (memory + STEP).to_string(), place).await?;
        node = open_with(&root, |_| ()).await?;
        guest.adopted(&node).await?;
        settled(&node, job).await?;
        memory += if has_memory { STEP } else { 0 };
        cpus = if has_cpu { 2 } else { cpus };
        let found = recorded(&node, job)?;
        ensure!(found == (cpus, memory), "{place}: {found:?}");
        ensure!(
            given(&node)? == share(cpus, memory),
            "{place}: {:?}",
            given(&node)?
        );
        let blocks = first + (memory - BEGINS) / STEP;
        sees(&node, &mut guest, cpus, blocks).await.context(place)?;
    }
    // It grows as if nothing had been.
    memory += STEP;
    node.resize(job, size(2, memory)).await?;
    let blocks = first + (memory - BEGINS) / STEP;
    sees(&node, &mut guest, 2, blocks).await?;

    // QEMU stands still, so that it is in the middle of it, and then it is no more.
    let vm = node.job(job)?.vm.context("no VM")?;
    let qemu = qemu_of(&root, vm)?;
    kill_process(qemu, Signal::STOP)?;
    let (grown, killed) = tokio::join!(node.resize(job, size(2, memory + STEP)), async {
        // What is reserved counts.
        until("the intent", async || {
            Ok(given(&node)? == share(2, memory + STEP))
        })
        .await?;
        // What it has is told, not what it is to have.
        let told = recorded(&node, job)?;
        ensure!(told == (2, memory), "{told:?}");
        // A QEMU that hears nothing would stop its guest later.
        let paused = node.pause(job).await.err().context("it is paused")?;
        ensure!(paused.code() == "wrong_state", "{paused}");
        Ok::<_, anyhow::Error>(kill_process(qemu, Signal::KILL)?)
    });
    killed?;
    ensure!(grown.is_err(), "{grown:?}");
    let over = tokio::time::timeout(LIMIT, node.wait(job, &[JobState::Failed]));
    over.await??;
    ensure!(
        recorded(&node, job)? == (2, memory),
        "{:?}",
        recorded(&node, job)?
    );
    ensure!(given(&node)? == (0, 0), "{:?}", given(&node)?);
    node.destroy(job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}
