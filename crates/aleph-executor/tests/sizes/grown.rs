//! A guest that grows, what is refused, and what it begins with afterwards.

use crate::guest::{ACCOUNT, Guest, nothing_is_left, open_with, until};
use crate::{BEGINS, BLOCKS, OVERHEAD, given, recorded, room, sees, share, size, uses};
use aleph_executor::node::{CreateOptions, NodeError};
use aleph_executor::{Node, NodeConfig};
use aleph_testkit::TestRoot;
use aleph_types::{Classify, JobId, JobResize, JobSpec, JobState, MiB};
use anyhow::{Result, bail, ensure};

fn refused<T>(done: Result<T, NodeError>, code: &str, says: &str) -> Result<()> {
    let Err(error) = done else {
        bail!("not refused with {code}")
    };
    let text = error.to_string();
    ensure!(
        error.code() == code && text.contains(says),
        "{code}: {} {text}",
        error.code()
    );
    ensure!(
        error.advice().is_some(),
        "{code} says nothing of what to do"
    );
    Ok(())
}

/// As one of these sizes is: what it has, what is given to it, and what its guest sees.
async fn is(node: &Node, guest: &mut Guest, (cpus, memory, blocks): (u16, u32, u32)) -> Result<()> {
    ensure!(
        recorded(node, guest.job)? == (cpus, memory),
        "{:?}",
        recorded(node, guest.job)?
    );
    ensure!(given(node)? == share(cpus, memory), "{:?}", given(node)?);
    sees(node, guest, cpus, blocks).await
}

/// Opens the node anew over the guest that runs.
async fn reopened(
    root: &TestRoot,
    node: Node,
    guest: &Guest,
    differs: impl Fn(&mut NodeConfig),
) -> Result<Node> {
    node.shutdown().await;
    drop(node);
    let node = open_with(root, differs).await?;
    guest.adopted(&node).await?;
    Ok(node)
}

async fn of_micro_vms(node: &Node) -> Result<()> {
    let spec = JobSpec::new("busybox", vec!["true".into()]);
    let options = CreateOptions {
        account: ACCOUNT.into(),
        start: false,
        idempotency_key: None,
    };
    let micro = node.create(spec, options).await?.job.id;
    let before = node.job(micro)?;
    refused(
        node.resize(micro, size(2, 512)).await,
        "size_fixed",
        "it is a microVM",
    )?;
    ensure!(node.job(micro)? == before, "it has changed");
    refused(
        node.resize(JobId::random(), size(2, 512)).await,
        "no_job",
        "no job",
    )?;
    Ok(node.destroy(micro, true).await?)
}

pub(crate) async fn a_guest_has_what_it_is_given() -> Result<()> {
    let root = TestRoot::new()?;
    let plain = |_: &mut NodeConfig| ();
    let node = open_with(&root, plain).await?;
    of_micro_vms(&node).await?;
    let mut guest = Guest::boot_as(&root, &node, room(256)).await?;
    let job = guest.job;
    let blocks: u32 = guest.run(&node, BLOCKS).await?.parse()?;
    let begins = (1, BEGINS, blocks);
    is(&node, &mut guest, begins).await?;

    // A host that has nothing left to give.
    let host = node.info()?;
    let tight = |config: &mut NodeConfig| {
        let all = host.allocatable.memory.0;
        config.reserved_memory = MiB(all - BEGINS - OVERHEAD - 128);
        // One processor, rounded down.
        config.overcommit.cpus = 1.5 / f64::from(host.total.cpus);
    };
    let node = reopened(&root, node, &guest, tight).await?;
    refused(
        node.resize(job, size(1, 512)).await,
        "memory_exhausted",
        "448 MiB left",
    )?;
    refused(
        node.resize(job, size(2, BEGINS)).await,
        "cpus_exhausted",
        "1 left to give",
    )?;
    is(&node, &mut guest, begins).await?;

    // What its machine cannot have, whatever the host has.
    let node = reopened(&root, node, &guest, plain).await?;
    for (wanted, code, says) in [
        (size(3, 384), "machine_room", "at most 2 CPUs, and 3"),
        (
            size(2, 640),
            "machine_room",
            "at most 512 MiB of memory, and 640",
        ),
        (size(2, 128), "machine_shrinks", "it has 256 MiB of memory"),
        (size(2, 300), "memory_step", "in steps of 128 MiB"),
    ] {
        refused(node.resize(job, wanted).await, code, says)?;
    }
    node.pause(job).await?;
    refused(
        node.resize(job, size(2, 512)).await,
        "wrong_state",
        "paused",
    )?;
    node.resume(job).await?;
    is(&node, &mut guest, begins).await?;

    // All at once, and the same again.
    let before = uses(&node, &mut guest).await?;
    let grown = node.resize(job, size(2, 512)).await?;
    let room = grown.spec.machine.as_ref().map(|machine| machine.room);
    ensure!(
        room.is_some_and(|room| (room.cpus, room.memory) == (0, MiB(0))),
        "{room:?}"
    );
    // What its guest lets go of it is given again.
    let has = async |guest: &mut Guest, wanted: u32| {
        let there: u32 = guest.run(&node, BLOCKS).await?.parse()?;
        Ok(there == wanted)
    };
    until("the guest to see its memory", async || {
        has(&mut guest, blocks + 2).await
    })
    .await?;
    let eject = "for d in /sys/bus/acpi/devices/PNP0C80:*; do \
                 test $(cat $d/status) = 15 && echo 1 >$d/eject && break; done; true";
    guest.run(&node, eject).await?;
    until("the guest to let go", async || {
        has(&mut guest, blocks).await
    })
    .await?;
    until("it to have it again", async || {
        // It may be about to let go still.
        node.resize(job, size(2, 512)).await?;
        has(&mut guest, blocks + 2).await
    })
    .await?;
    let ends = (2, 512, blocks + 2);
    is(&node, &mut guest, ends).await?;
    let more = uses(&node, &mut guest).await?;
    ensure!(more >= before + 200, "{before} MiB became {more}");
    let again = node.resize(job, size(2, 512)).await?;
    ensure!(again.generation == node.job(job)?.generation);
    refused(
        node.resize(job, size(1, 512)).await,
        "machine_shrinks",
        "does not get smaller",
    )?;

    // One that finds it has it so, and so has each start.
    let node = reopened(&root, node, &guest, plain).await?;
    is(&node, &mut guest, ends).await?;
    node.kill(job, 9).await?;
    ensure!(given(&node)? == (0, 0), "{:?}", given(&node)?);
    node.start(job).await?;
    guest.ready(&node).await?;
    ensure!(given(&node)? == share(2, 512), "{:?}", given(&node)?);
    let used = guest.run(&node, "nproc").await?;
    ensure!(used == "2", "it begins with {used} processors");
    let begins_with = uses(&node, &mut guest).await?;
    ensure!(begins_with >= more, "{more} MiB became {begins_with}");

    // What does not run may become smaller, within the same bounds.
    node.kill(job, 9).await?;
    refused(
        node.resize(job, size(3, 512)).await,
        "machine_room",
        "at most 2 CPUs",
    )?;
    let one = JobResize {
        cpus: Some(1),
        memory: None,
    };
    node.resize(job, one).await?;
    node.resize(job, size(1, 384)).await?;
    ensure!(recorded(&node, job)? == (1, 384) && given(&node)? == (0, 0));
    node.start(job).await?;
    until("its start", async || {
        Ok(node.job(job)?.state == JobState::Running)
    })
    .await?;
    ensure!(given(&node)? == share(1, 384), "{:?}", given(&node)?);
    node.destroy(job, true).await?;
    ensure!(given(&node)? == (0, 0), "{:?}", given(&node)?);
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    // Whoever waits for the last of its VMs lets go a moment later.
    drop(node);
    until("a host without anything of it", async || {
        Ok(root.residue()?.is_empty())
    })
    .await
}
