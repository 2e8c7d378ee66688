//! The node is killed in every step of every change, while a guest writes; whoever opens it next finds what
//! there was before or after. Then QEMU is killed in the middle of all of them.

use crate::guest::{
    ACCOUNT, Guest, LIMIT, all, check, empty, image, is_written, new, nothing_is_left, open, until,
    volume, volumes,
};
use crate::victim::{killed_at, qemu_of};
use aleph_executor::Node;
use aleph_executor::volumes::{BackendChoice, Owner};
use aleph_testkit::TestRoot;
use aleph_types::{Classify, Filesystem, JobId, JobState, MiB, VolumeAttach};
use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use std::time::Duration;

pub(crate) const BACKEND: BackendChoice = BackendChoice::Qcow2;
const LETS_GO: Duration = Duration::from_secs(120);

/// Where a node may die: each change, and the places that it comes by.
const PLACES: &[(&str, &[&str])] = &[
    (
        "attach",
        &[
            "job.volumes:before",
            "job.volumes:after",
            "volume.attach:after",
            "volume.plug:leased",
            "volume.plug:plugged",
            "job.volumes:after:2",
        ],
    ),
    (
        "detach",
        &[
            "job.volumes:after",
            "volume.unplug:unplugged",
            "volume.release_one:after",
            "job.volumes:before:2",
            "job.volumes:after:2",
        ],
    ),
    (
        "resize",
        &[
            "volume.grow_live:before",
            "volume.grow_live:after",
            "volume.resize_live:grown",
        ],
    ),
    (
        "snapshot",
        &[
            "cover.begin:after",
            "layer.fill:made",
            "cover:begun",
            "cover.arm:after",
            "cover.guest:after",
            "cover:frozen",
            "cover:put",
            "cover:thawed",
            "cover.finish:before",
            "cover.finish:after",
        ],
    ),
];

/// What the process does that is killed.
pub(crate) async fn change(root: &TestRoot, job: JobId, change: &str) -> Result<()> {
    let node = open(root, BACKEND).await?;
    until("the VM", async || {
        Ok(node.job(job)?.state == JobState::Running)
    })
    .await?;
    let (change, argument) = change.split_once(' ').context("no argument")?;
    match change {
        "attach" => {
            let how = VolumeAttach::default();
            node.attach_volume(job, argument, how).await.map(drop)?;
        }
        "detach" => node.detach_volume(job, argument, LETS_GO).await?,
        "resize" => {
            let size = MiB(argument.parse()?);
            node.resize_volume(&all(), "data", size).await.map(drop)?;
        }
        "merge" => crate::merged::keeps(&node, argument).await?,
        "backup" => crate::killed_backups::backs_up(&node, root).await?,
        "restore" => crate::killed_backups::brings_back(&node, root, argument).await?,
        _ => {
            node.snapshot_volume(&all(), "data", argument)
                .await
                .map(drop)?;
        }
    }
    Ok(())
}

/// Waits until what a job's record and the leases of a volume say agree.
async fn agrees(node: &Node, guest: &Guest, name: &str) -> Result<()> {
    until("one state or the other", async || {
        let mut has = node.job(guest.job)?.spec.volumes.into_iter();
        let is_recorded = has.any(|mount| mount.name == name);
        Ok(is_written(&volume(node, name).await?) == is_recorded)
    })
    .await
}

pub(crate) async fn a_node_that_is_killed_in_every_step_loses_nothing() -> Result<()> {
    let root = TestRoot::new()?;
    let mut node = open(&root, BACKEND).await?;
    for name in ["data", "other"] {
        empty(&node, name, 64).await?;
    }
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how.clone()).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, 0).await?;
    mount(&node, &mut guest).await?;
    let mut kept = Vec::new();
    let mut size = 64;
    for (change, places) in PLACES {
        for place in *places {
            let durable = guest.goes_on(&node, "data", 2).await?;
            let name = format!("at-{}", place.replace([':', '.'], "-"));
            match *change {
                // Whatever the last one left is brought to where this one begins.
                "attach" => bring(&node, &mut guest, false).await?,
                "detach" => bring(&node, &mut guest, true).await?,
                "resize" => size += 1,
                _ => {}
            }
            let argument = match *change {
                "resize" => size.to_string(),
                "snapshot" => name.clone(),
                _ => "other".to_owned(),
            };
            node.shutdown().await;
            drop(node);
            killed_at(&root, guest.job, format!("{change} {argument}"), place).await?;
            node = open(&root, BACKEND).await?;
            let job = guest.adopted(&node).await?;
            match *change {
                "attach" | "detach" => {
                    agrees(&node, &guest, "other").await?;
                    // It can be changed again, either way.
                    for wanted in [true, false] {
                        bring(&node, &mut guest, wanted).await?;
                    }
                }
                "resize" => {
                    let disk = format!("cat /sys/block/{}/size", &device[5..]);
                    until("the record's size", async || {
                        let now = volume(&node, "data").await?.size;
                        let sectors = (now.bytes() / 512).to_string();
                        Ok(guest.run(&node, &disk).await? == sectors)
                    })
                    .await?;
                    size = volume(&node, "data").await?.size.0;
                }
                _ => {
                    let owner = Owner {
                        job: job.id,
                        incarnation: job.incarnation,
                    };
                    until("the end of what was begun", async || {
                        let held = volumes(&node, move |v| Ok(v.held_by(&owner)?)).await?;
                        Ok(held.iter().all(|(_, pending)| pending.is_none()))
                    })
                    .await?;
                    // Its filesystems go on.
                    guest.run(&node, "echo $$ >/f/now && sync").await?;
                    let now = volume(&node, "data").await?;
                    if now.snapshots.iter().any(|snapshot| snapshot.name == name) {
                        kept.push((name, durable));
                    }
                }
            }
            let state = node.job(guest.job)?.state;
            ensure!(state == JobState::Running, "{place}: {state}");
        }
    }
    ensure!(!kept.is_empty(), "no state was kept");
    guest.goes_on(&node, "data", 2).await?;
    qemu_is_killed(&root, &node, &mut guest, &kept).await?;
    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Gives the guest a filesystem, which can stand still.
pub(crate) async fn mount(node: &Node, guest: &mut Guest) -> Result<()> {
    volumes(node, |v| {
        let (account, name) = (ACCOUNT, "files");
        v.create(new(account, name), MiB(32), Filesystem::Ext4)?;
        Ok(())
    })
    .await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "files", how).await?;
    let device = guest.device(node, &attached.serial).await?;
    let line = format!("mkdir -p /f && mount -t ext4 {device} /f");
    guest.run(node, &line).await.map(drop)
}

/// Brings a job to have its other volume, or not: whatever is still being found out is waited for.
async fn bring(node: &Node, guest: &mut Guest, wanted: bool) -> Result<()> {
    until("the other volume to change", async || {
        let done = match wanted {
            true => {
                let how = VolumeAttach::default();
                let attached = node.attach_volume(guest.job, "other", how).await;
                attached.map(drop)
            }
            false => node.detach_volume(guest.job, "other", LETS_GO).await,
        };
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.code() == "volume_not_attached" => Ok(!wanted),
            Err(error) if error.code() == "wrong_state" => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    let other = volume(node, "other").await?;
    ensure!(is_written(&other) == wanted, "{other:?}");
    let serial = format!("v{}", &other.id.to_string()[2..18]);
    if !wanted {
        guest.lacks(node, &serial).await?;
        return other_holds(node, guest).await;
    }
    // It is written whenever it is there.
    let device = guest.device(node, &serial).await?;
    let before = guest.durable(node, "other").await?;
    until("more blocks of the other volume", async || {
        let durable = guest.durable(node, "other").await?;
        if !guest.is_writing(node, "other").await? {
            let next = durable.map_or(0, |last| last + 1);
            guest.writes(node, "other", &device, next).await?;
        }
        Ok(durable > before)
    })
    .await
}

/// Checks what the other volume holds, which was detached while it was written.
async fn other_holds(node: &Node, guest: &mut Guest) -> Result<()> {
    if guest.durable(node, "other").await?.is_none() {
        return Ok(());
    }
    let durable = guest.ended(node, "other").await?;
    let image = image(node, "other", None).await?;
    check(&image, "other", durable).map(drop)
}

/// It stands still, so that each change is in its middle, and then it is no more.
async fn qemu_is_killed(
    root: &TestRoot,
    node: &Node,
    guest: &mut Guest,
    kept: &[(String, u64)],
) -> Result<()> {
    bring(node, guest, false).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(root, vm)?;
    let durable = guest.durable(node, "data").await?.context("nothing")?;
    kill_process(qemu, Signal::STOP)?;
    let (how, scope) = (VolumeAttach::default(), all());
    let (attached, grown, killed) = tokio::join!(
        node.attach_volume(guest.job, "other", how),
        node.resize_volume(&scope, "data", MiB(100)),
        async {
            // Whatever they wait for by now.
            until("the intent", async || {
                Ok(volume(node, "data").await?.size == MiB(100)
                    && is_written(&volume(node, "other").await?))
            })
            .await?;
            Ok::<_, anyhow::Error>(kill_process(qemu, Signal::KILL)?)
        },
    );
    killed?;
    ensure!(
        attached.is_err() && grown.is_err(),
        "{attached:?} {grown:?}"
    );
    let over = tokio::time::timeout(LIMIT, node.wait(guest.job, &[JobState::Failed]));
    over.await??;
    for name in ["data", "other"] {
        let leases = volume(node, name).await?.leases;
        ensure!(leases.is_empty(), "{name}: {leases:?}");
    }
    let has = node.job(guest.job)?.spec.volumes;
    let names: Vec<&str> = has.iter().map(|mount| mount.name.as_str()).collect();
    ensure!(names == ["data", "files"], "{names:?}");
    check(&image(node, "data", None).await?, "data", durable)?;
    let other = guest.durable(node, "other").await?.context("nothing")?;
    check(&image(node, "other", None).await?, "other", other)?;
    for (name, durable) in kept {
        check(&image(node, "data", Some(name)).await?, "data", *durable)
            .with_context(|| name.clone())?;
    }
    // In the middle of a snapshot: the record is ahead of the machine, or the machine of the record.
    node.start(guest.job).await?;
    guest.ready(node).await?;
    let serial = node
        .attach_volume(guest.job, "data", VolumeAttach::default())
        .await?
        .serial;
    let device = guest.device(node, &serial).await?;
    guest.writes(node, "data", &device, durable + 1).await?;
    let durable = guest.goes_on(node, "data", 2).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(root, vm)?;
    kill_process(qemu, Signal::STOP)?;
    let (snapshot, killed) = tokio::join!(node.snapshot_volume(&scope, "data", "half"), async {
        let (job, incarnation) = (guest.job, node.job(guest.job)?.incarnation);
        let owner = Owner { job, incarnation };
        until("the intent", async || {
            let held = volumes(node, move |v| Ok(v.held_by(&owner)?)).await?;
            let mut pending = held.iter().filter_map(|(_, pending)| pending.as_ref());
            Ok(pending.any(|pending| pending.armed))
        })
        .await?;
        Ok::<_, anyhow::Error>(kill_process(qemu, Signal::KILL)?)
    },);
    killed?;
    ensure!(snapshot.is_err(), "{snapshot:?}");
    let over = tokio::time::timeout(LIMIT, node.wait(guest.job, &[JobState::Failed]));
    over.await??;
    let now = volume(node, "data").await?;
    ensure!(now.leases.is_empty(), "{now:?}");
    ensure!(now.snapshots.iter().all(|it| it.name != "half"), "{now:?}");
    check(&image(node, "data", None).await?, "data", durable)?;
    qemu_is_killed_in_a_detach(root, node, guest).await
}

/// The job has the volume still, with all that was durable, and can be without it.
async fn qemu_is_killed_in_a_detach(root: &TestRoot, node: &Node, guest: &mut Guest) -> Result<()> {
    node.start(guest.job).await?;
    guest.ready(node).await?;
    bring(node, guest, true).await?;
    let vm = node.job(guest.job)?.vm.context("no VM")?;
    let qemu = qemu_of(root, vm)?;
    let durable = guest.durable(node, "other").await?.context("nothing")?;
    kill_process(qemu, Signal::STOP)?;
    let before = node.job(guest.job)?.generation;
    let detach = node.detach_volume(guest.job, "other", LETS_GO);
    let (detached, killed) = tokio::join!(detach, async {
        until("the intent", async || {
            Ok(node.job(guest.job)?.generation > before)
        })
        .await?;
        Ok::<_, anyhow::Error>(kill_process(qemu, Signal::KILL)?)
    });
    killed?;
    ensure!(detached.is_err(), "{detached:?}");
    let over = tokio::time::timeout(LIMIT, node.wait(guest.job, &[JobState::Failed]));
    over.await??;
    let has = node.job(guest.job)?.spec.volumes;
    ensure!(has.iter().any(|mount| mount.name == "other"), "{has:?}");
    let leases = volume(node, "other").await?.leases;
    ensure!(leases.is_empty(), "{leases:?}");
    check(&image(node, "other", None).await?, "other", durable)?;
    node.detach_volume(guest.job, "other", LETS_GO).await?;
    let has = node.job(guest.job)?.spec.volumes;
    ensure!(has.iter().all(|mount| mount.name != "other"), "{has:?}");
    Ok(())
}
