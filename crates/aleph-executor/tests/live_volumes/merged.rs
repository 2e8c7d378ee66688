//! A guest writes while states of its volume are kept again and again, and layers are merged meanwhile.

use crate::guest::{
    Guest, LIMIT, all, check, empty, image, nothing_is_left, open, until, volume, volumes,
};
use crate::victim::{killed_at, qemu_of};
use aleph_executor::Node;
use aleph_executor::volumes::{BackendChoice, MAX_DEPTH, Owner};
use aleph_testkit::TestRoot;
use aleph_types::{JobState, VolumeAttach, VolumeId};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

const BACKEND: BackendChoice = BackendChoice::Qcow2;
const LETS_GO: Duration = Duration::from_secs(120);

/// More than a chain may have layers.
const STATES: usize = MAX_DEPTH + 8;

/// From so many layers on they are merged, where no backup may know them.
const DEEP: usize = MAX_DEPTH - 6;

/// From so many on they are merged in any case.
const PRESSED: usize = MAX_DEPTH - 2;

/// How long a merge is waited for that may not be needed. One that begins later is met by a later state.
const BEGINS: Duration = Duration::from_secs(5);

/// Where a node may die that merges layers.
const PLACES: &[&str] = &[
    "merge.begin:after",
    "merge.fill:one",
    "merge.filled:after",
    "merge:read",
    "merge.finish:after",
    "merge:finished",
];

/// States that were kept, each with the last block that was durable before.
type Kept = Vec<(String, u64)>;

/// Keeps the state of `data` under a name.
async fn keep(node: &Node, guest: &Guest, name: String, kept: &mut Kept) -> Result<()> {
    let durable = guest.goes_on(node, "data", 1).await?;
    node.snapshot_volume(&all(), "data", &name).await?;
    kept.push((name, durable));
    Ok(())
}

async fn depth(node: &Node) -> Result<usize> {
    let id = volume(node, "data").await?.id;
    volumes(node, move |v| Ok(v.depth(id)?)).await
}

/// Waits until no layers are merged, and the chain is short.
async fn is_merged(node: &Node) -> Result<()> {
    until("the end of a merge", async || {
        let merging = volumes(node, |v| Ok(v.merging()?)).await?;
        Ok(merging.is_empty() && depth(node).await? < DEEP)
    })
    .await
}

/// Checks that a process has files of layers open, and none that is gone.
fn has_none_that_is_gone(process: Pid) -> Result<()> {
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    let (mut open, mut gone) = (0, Vec::new());
    for entry in std::fs::read_dir(folder)? {
        // It may be closed meanwhile.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if target.contains("/layers/") {
            open += 1;
            gone.extend(target.ends_with(" (deleted)").then_some(target));
        }
    }
    ensure!(open > 0 && gone.is_empty(), "{gone:?} of {open}");
    Ok(())
}

pub(crate) async fn states_are_kept_for_ever_and_none_is_refused() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BACKEND).await?;
    empty(&node, "data", 64).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how.clone()).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, 0).await?;
    let mut kept = Kept::new();
    for n in 0..STATES {
        keep(&node, &guest, format!("s{n}"), &mut kept).await?;
        if n % 4 == 0 {
            // What a backup reads is no snapshot, so its layer can go.
            let read = node.volume_image(&all(), "data", None).await?;
            ensure!(read.consistency.is_some(), "{read:?}");
            // The next one goes on from it, whatever is merged meanwhile.
            let state = read.image.state().context("a state that has no name")?;
            let next = node.volume_image(&all(), "data", None).await?;
            let changed = next.image.changed_since(state);
            ensure!(
                changed.is_some(),
                "what changed is not known after {n} states"
            );
        }
    }
    is_merged(&node).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(&root, vm)?;
    // Layers that nothing needs any more are closed before they go.
    has_none_that_is_gone(qemu)?;
    guest.goes_on(&node, "data", 3).await?;

    // Detached in the middle of a merge, which is over then.
    while depth(&node).await? < MAX_DEPTH - 7 {
        let name = format!("d{}", kept.len());
        keep(&node, &guest, name, &mut kept).await?;
    }
    let durable = guest.stops(&node, "data").await?;
    node.snapshot_volume(&all(), "data", "last").await?;
    kept.push(("last".into(), durable));
    node.detach_volume(guest.job, "data", LETS_GO).await?;
    guest.lacks(&node, &attached.serial).await?;
    until("the end of a merge", async || {
        Ok(volumes(&node, |v| Ok(v.merging()?)).await?.is_empty())
    })
    .await?;
    check(&image(&node, "data", None).await?, "data", durable)?;

    // QEMU is killed in the middle of another one.
    node.attach_volume(guest.job, "data", how).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, durable + 1).await?;
    let (durable, owner) = stands_still(&node, &guest, qemu, &mut kept).await?;
    kill_process(qemu, Signal::KILL)?;
    let over = tokio::time::timeout(LIMIT, node.wait(guest.job, &[JobState::Failed]));
    over.await??;
    let id = volume(&node, "data").await?.id;
    ensure!(
        !volumes(&node, move |v| Ok(v.finish_merge(id, &owner)?)).await?,
        "the merge of one that is gone"
    );
    ensure!(
        volumes(&node, |v| Ok(v.merging()?)).await?.is_empty(),
        "it is not over"
    );
    check(&image(&node, "data", None).await?, "data", durable)?;
    for (name, durable) in &kept {
        check(&image(&node, "data", Some(name)).await?, "data", *durable)
            .with_context(|| name.clone())?;
    }

    // Each can be had back.
    let (name, durable) = kept[kept.len() / 2].clone();
    volumes(&node, move |v| Ok(v.restore(id, &name).map(drop)?)).await?;
    check(&image(&node, "data", None).await?, "data", durable)?;
    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Has QEMU stand still while layers are merged, until only it is waited for. Gives the last block that is
/// durable, and whose merge that is.
async fn stands_still(
    node: &Node,
    guest: &Guest,
    qemu: Pid,
    kept: &mut Kept,
) -> Result<(u64, Owner)> {
    let (job, incarnation) = (guest.job, node.job(guest.job)?.incarnation);
    let owner = Owner { job, incarnation };
    let id = volume(node, "data").await?.id;
    loop {
        let name = format!("k{}", kept.len());
        keep(node, guest, name, kept).await?;
        kill_process(qemu, Signal::STOP)?;
        if waits_for_qemu(node, id, owner).await? {
            break;
        }
        kill_process(qemu, Signal::CONT)?;
        ensure!(kept.len() < 4 * MAX_DEPTH, "nothing is merged");
    }
    let durable = guest.durable(node, "data").await?.context("nothing")?;
    Ok((durable, owner))
}

/// Whether layers are merged while QEMU stands still, once the new one is whole: only QEMU keeps that from its
/// end. `false` where the chain needs no merge yet, or one was over before QEMU stood still.
async fn waits_for_qemu(node: &Node, id: VolumeId, owner: Owner) -> Result<bool> {
    let (asked, mut is_begun) = (Instant::now(), false);
    loop {
        if volumes(node, move |v| Ok(v.open_merge(id, &owner)?.is_some())).await? {
            return Ok(true);
        }
        let is_merging = volumes(node, move |v| Ok(v.merging()?.contains(&id))).await?;
        if is_begun && !is_merging {
            return Ok(false);
        }
        is_begun |= is_merging;
        let patience = match depth(node).await? {
            _ if is_begun => LIMIT,
            PRESSED.. => LIMIT,
            DEEP..PRESSED => BEGINS,
            _ => return Ok(false),
        };
        if asked.elapsed() > patience {
            ensure!(patience < LIMIT, "the merge of a deep chain does not come");
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn a_node_that_is_killed_while_it_merges_loses_nothing() -> Result<()> {
    let root = TestRoot::new()?;
    let mut node = open(&root, BACKEND).await?;
    empty(&node, "data", 64).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, 0).await?;
    let mut durables = Vec::new();
    for place in PLACES {
        durables.push(guest.goes_on(&node, "data", 2).await?);
        node.shutdown().await;
        drop(node);
        // Names that tell in which order they were kept.
        let change = format!("merge p{}", durables.len());
        killed_at(&root, guest.job, change, place).await?;
        node = open(&root, BACKEND).await?;
        guest.adopted(&node).await?;
        is_merged(&node)
            .await
            .with_context(|| (*place).to_owned())?;
    }
    let durable = guest.goes_on(&node, "data", 2).await?;
    ensure!(guest.stops(&node, "data").await? >= durable, "it was lost");
    node.detach_volume(guest.job, "data", LETS_GO).await?;
    check(&image(&node, "data", None).await?, "data", durable)?;
    let snapshots = volume(&node, "data").await?.snapshots;
    ensure!(snapshots.len() > MAX_DEPTH, "{}", snapshots.len());
    for snapshot in snapshots {
        let name = snapshot.name;
        let round = name[1..].split('-').next().context("no round")?;
        let durable = durables[round.parse::<usize>()? - 1];
        check(&image(&node, "data", Some(&name)).await?, "data", durable).context(name)?;
    }
    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// What the process does that is killed: it keeps states until layers are merged.
pub(crate) async fn keeps(node: &Node, name: &str) -> Result<()> {
    for n in 0..STATES {
        node.snapshot_volume(&all(), "data", &format!("{name}-{n}"))
            .await?;
        if depth(node).await? >= DEEP {
            // Here it dies.
            is_merged(node).await?;
        }
    }
    Ok(())
}
