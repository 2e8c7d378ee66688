//! The node is killed in the middle of backups and restores, while a guest writes; whoever opens it next finds no
//! part of either, and can do both. Then QEMU is killed in the middle of backups.

use crate::backups::{back_up, back_up_meanwhile, bring_back, is_good, repository};
use crate::guest::{
    Guest, LIMIT, all, check, empty, image, nothing_is_left, open, until, volume, volumes,
};
use crate::killed::{BACKEND, mount};
use crate::victim::{killed_at, qemu_of};
use aleph_backup::{Id, ProgressSink};
use aleph_executor::Node;
use aleph_executor::volumes::{GuestState, Owner};
use aleph_testkit::TestRoot;
use aleph_types::{JobState, VolumeAttach};
use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, getpid, kill_process};
use std::path::Path;

/// Where a node may die that backs a volume up.
const BACKUP: &[&str] = &[
    "cover.begin:after",
    "cover:frozen",
    "cover:put",
    "cover.finish:after",
    "volume.read:one",
    TOLD,
];

/// Where a node may die that makes a volume of a backup.
const RESTORE: &[&str] = &[
    TOLD,
    "volume.intend:after",
    "layer.fill:made",
    "volume.ready:before",
    "volume.ready:after",
];

/// Where a part of a backup has been sent, or written.
const TOLD: &str = "backup:told";

const BACK: &str = "back";

/// Dies once a part is done, where the process is to die there.
fn told() -> ProgressSink {
    let dies = std::env::var("ALEPH_FAILPOINT").is_ok_and(|place| place == TOLD);
    ProgressSink::new(move |step| {
        if dies && step.done > 0 {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    })
}

/// What the process does that is killed.
pub(crate) async fn backs_up(node: &Node, root: &TestRoot) -> Result<()> {
    let store = root.path().join("store");
    back_up_meanwhile(node, &store, told(), || ())
        .await
        .map(drop)
}

/// The other thing that it does.
pub(crate) async fn brings_back(node: &Node, root: &TestRoot, id: &str) -> Result<()> {
    let store = root.path().join("store");
    let id = repository(&store).await?.snapshot(id).await?.id;
    bring_back(node, &store, id, BACK, told()).await
}

fn files_in(folder: &Path) -> Result<usize> {
    let files = std::fs::read_dir(folder).with_context(|| folder.display().to_string());
    Ok(files?.count())
}

async fn owner(node: &Node, guest: &Guest) -> Result<Owner> {
    Ok(Owner {
        job: guest.job,
        incarnation: node.job(guest.job)?.incarnation,
    })
}

/// Waits until nothing is begun any more, and checks that nothing is left of it.
async fn settled(root: &TestRoot, node: &Node, guest: &mut Guest) -> Result<()> {
    let owner = owner(node, guest).await?;
    until("the end of what was begun", async || {
        let held = volumes(node, move |v| Ok(v.held_by(&owner)?)).await?;
        let owed = volumes(node, move |v| Ok(v.thaw_owed(&owner)?)).await?;
        let is_begun = held.iter().any(|(_, pending)| pending.is_some());
        Ok(!is_begun && owed == GuestState::Running)
    })
    .await?;
    // Its filesystems go on.
    guest.run(node, "echo $$ >/f/now && sync").await?;
    let left = files_in(&root.path().join("volumes/work"))?;
    ensure!(left == 0, "{left} scratch files stay");
    let state = node.job(guest.job)?.state;
    ensure!(state == JobState::Running, "{state}");
    Ok(())
}

/// Makes a backup, and checks it, and that nobody has the repository afterwards.
async fn backs_up_well(node: &Node, guest: &Guest, store: &Path) -> Result<(Id, u64)> {
    let durable = guest.goes_on(node, "data", 1).await?;
    let id = back_up(node, store).await?;
    is_good(store, id, durable).await?;
    let left = files_in(&store.join("locks"))?;
    ensure!(left == 0, "{left} locks stay");
    Ok((id, durable))
}

pub(crate) async fn a_node_that_is_killed_while_it_backs_up_loses_nothing() -> Result<()> {
    let root = TestRoot::new()?;
    let mut node = open(&root, BACKEND).await?;
    empty(&node, "data", 64).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, 0).await?;
    mount(&node, &mut guest).await?;
    let store = root.path().join("store");
    let mut backups = vec![backs_up_well(&node, &guest, &store).await?];
    for place in BACKUP {
        guest.goes_on(&node, "data", 2).await?;
        node.shutdown().await;
        drop(node);
        killed_at(&root, guest.job, "backup data".to_owned(), place).await?;
        node = open(&root, BACKEND).await?;
        guest.adopted(&node).await?;
        settled(&root, &node, &mut guest).await.context(*place)?;
        let there = repository(&store).await?.snapshots().await?.len();
        ensure!(there == backups.len(), "{place}: half a backup is there");
        let made = backs_up_well(&node, &guest, &store).await;
        backups.push(made.context(*place)?);
    }

    let (id, durable) = backups[backups.len() / 2];
    for place in RESTORE {
        guest.goes_on(&node, "data", 2).await?;
        node.shutdown().await;
        drop(node);
        killed_at(&root, guest.job, format!("restore {id}"), place).await?;
        node = open(&root, BACKEND).await?;
        guest.adopted(&node).await?;
        settled(&root, &node, &mut guest).await.context(*place)?;
        let there = volumes(&node, |v| Ok(v.list(&all(), true)?)).await?;
        let is_there = there.iter().any(|volume| volume.name == BACK);
        ensure!(
            is_there == (*place == "volume.ready:after"),
            "{place}: {there:?}"
        );
        if !is_there {
            let done = bring_back(&node, &store, id, BACK, ProgressSink::default());
            done.await.context(*place)?;
        }
        check(&image(&node, BACK, None).await?, "data", durable).context(*place)?;
        let back = volume(&node, BACK).await?.id;
        volumes(&node, move |v| Ok(v.remove(back, true)?)).await?;
    }

    qemu_is_killed(&root, &node, &mut guest, &store).await?;
    for (id, durable) in backups {
        is_good(&store, id, durable).await?;
    }
    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Waits until a VM is over, whose volume is free then.
async fn is_over(node: &Node, guest: &Guest) -> Result<()> {
    let over = tokio::time::timeout(LIMIT, node.wait(guest.job, &[JobState::Failed]));
    over.await??;
    let left = volume(node, "data").await?.leases;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Once while its disk is made to stand still, and once while that is read.
async fn qemu_is_killed(
    root: &TestRoot,
    node: &Node,
    guest: &mut Guest,
    store: &Path,
) -> Result<()> {
    let there = repository(store).await?.snapshots().await?.len();
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(root, vm)?;
    let owner = owner(node, guest).await?;
    let durable = guest.goes_on(node, "data", 1).await?;
    kill_process(qemu, Signal::STOP)?;
    let (backed_up, killed) = tokio::join!(back_up(node, store), async {
        until("the intent", async || {
            let held = volumes(node, move |v| Ok(v.held_by(&owner)?)).await?;
            let mut pending = held.iter().filter_map(|(_, pending)| pending.as_ref());
            Ok(pending.any(|pending| pending.armed))
        })
        .await?;
        Ok::<_, anyhow::Error>(kill_process(qemu, Signal::KILL)?)
    });
    killed?;
    ensure!(backed_up.is_err(), "{backed_up:?}");
    is_over(node, guest).await?;
    let now = repository(store).await?.snapshots().await?.len();
    ensure!(now == there, "half a backup is there");
    check(&image(node, "data", None).await?, "data", durable)?;
    // One that nobody writes to.
    let (id, consistency) = back_up_meanwhile(node, store, ProgressSink::default(), || ()).await?;
    ensure!(consistency.is_none(), "{consistency:?}");
    is_good(store, id, durable).await?;

    // What stands still needs no QEMU.
    node.start(guest.job).await?;
    guest.ready(node).await?;
    let how = VolumeAttach::default();
    let serial = node.attach_volume(guest.job, "data", how).await?.serial;
    let device = guest.device(node, &serial).await?;
    guest.writes(node, "data", &device, durable + 1).await?;
    let durable = guest.goes_on(node, "data", 2).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(root, vm)?;
    let kills = move || {
        // It is gone from the second time on.
        let _ = kill_process(qemu, Signal::KILL);
    };
    let (id, _) = back_up_meanwhile(node, store, ProgressSink::default(), kills).await?;
    is_over(node, guest).await?;
    is_good(store, id, durable).await?;
    check(&image(node, "data", None).await?, "data", durable).map(drop)
}
