//! Every change of a volume under write load, one after the other.

use crate::backups::{back_up, is_good};
use crate::guest::{
    ACCOUNT, Guest, all, check, empty, image, is_written, new, nothing_is_left, open, until,
    volume, volumes,
};
use aleph_executor::Node;
use aleph_executor::volumes::BackendChoice;
use aleph_testkit::TestRoot;
use aleph_types::{Filesystem, MiB, VolumeAttach, VolumeConsistency};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::time::Duration;

const LETS_GO: Duration = Duration::from_secs(120);

pub(crate) async fn what_a_guest_wrote_is_there_over_every_change(
    backend: BackendChoice,
) -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, backend).await?;
    empty(&node, "data", 32).await?;
    let mut guest = Guest::boot(&root, &node).await?;

    // Attached while it runs, and written to from then on.
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "data", how.clone()).await?;
    ensure!(
        attached.plugged && attached.volume.path == "/mnt/data",
        "{attached:?}"
    );
    let again = node.attach_volume(guest.job, "data", how.clone()).await?;
    ensure!(again == attached, "{again:?}");
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, 0).await?;

    // Grown while it is written.
    guest.goes_on(&node, "data", 3).await?;
    let grown = node.resize_volume(&all(), "data", MiB(48)).await?;
    ensure!(grown.size == MiB(48), "{grown:?}");
    let sectors = (48 * 2048).to_string();
    let size = format!("cat /sys/block/{}/size", &device[5..]);
    until("the new size in the guest", async || {
        Ok(guest.run(&node, &size).await? == sectors)
    })
    .await?;

    // Kept while it is written: nothing of it is mounted, so nothing can stand still.
    let mut kept = Vec::new();
    for name in ["one", "two"] {
        let durable = guest.goes_on(&node, "data", 3).await?;
        let now = node.snapshot_volume(&all(), "data", name).await?;
        let snapshot = now.snapshots.last().context("no snapshot")?;
        ensure!(
            snapshot.consistency == Some(VolumeConsistency::Crash),
            "{snapshot:?}"
        );
        kept.push((name, durable));
    }
    filesystem(&node, &mut guest).await?;

    // Backed up while it is written, and made again in another node's root.
    let durable = guest.goes_on(&node, "data", 3).await?;
    let store = root.path().join("store");
    let backup = back_up(&node, &store).await?;
    guest.goes_on(&node, "data", 3).await?;
    is_good(&store, backup, durable).await?;

    // Grown again, over the layers.
    node.resize_volume(&all(), "data", MiB(52)).await?;
    let sectors = (52 * 2048).to_string();
    until("the second new size in the guest", async || {
        Ok(guest.run(&node, &size).await? == sectors)
    })
    .await?;

    // Detached while it is written: the writer hears that its disk is gone, and what it was told to be durable until
    // then is there.
    let before = guest.goes_on(&node, "data", 1).await?;
    node.detach_volume(guest.job, "data", LETS_GO).await?;
    guest.lacks(&node, &attached.serial).await?;
    let durable = guest.ended(&node, "data").await?;
    ensure!(durable >= before, "{durable} of {before}");
    ensure!(
        !is_written(&volume(&node, "data").await?),
        "it is still leased"
    );
    ensure!(
        node.job(guest.job)?.spec.volumes.is_empty(),
        "the job still has it"
    );
    check(&image(&node, "data", None).await?, "data", durable)?;
    for (name, durable) in kept {
        check(&image(&node, "data", Some(name)).await?, "data", durable)?;
    }

    // Attached again it goes on, and comes with the next start, too: that one is attached cold.
    node.attach_volume(guest.job, "data", how.clone()).await?;
    let device = guest.device(&node, &attached.serial).await?;
    guest.writes(&node, "data", &device, durable + 1).await?;
    guest.goes_on(&node, "data", 3).await?;
    let durable = guest.stops(&node, "data").await?;
    node.stop(guest.job, Some(LETS_GO)).await?;
    let cold = VolumeAttach {
        path: Some("/more".into()),
        read_only: true,
    };
    empty(&node, "more", 8).await?;
    let more = node.attach_volume(guest.job, "more", cold).await?;
    ensure!(!more.plugged, "{more:?}");
    node.start(guest.job).await?;
    guest.ready(&node).await?;
    for serial in [&attached.serial, &more.serial] {
        guest.device(&node, serial).await?;
    }
    node.kill(guest.job, 9).await?;
    node.detach_volume(guest.job, "more", LETS_GO).await?;
    let volumes_of: Vec<_> = node.job(guest.job)?.spec.volumes;
    ensure!(
        volumes_of.len() == 1 && volumes_of[0].name == "data",
        "{volumes_of:?}"
    );
    check(&image(&node, "data", None).await?, "data", durable)?;

    node.destroy(guest.job, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Where the guest has a filesystem there, its agent has that stand still.
async fn filesystem(node: &Node, guest: &mut Guest) -> Result<()> {
    volumes(node, |v| {
        let (account, name) = (ACCOUNT, "files");
        v.create(new(account, name), MiB(32), Filesystem::Ext4)?;
        Ok(())
    })
    .await?;
    let how = VolumeAttach::default();
    let attached = node.attach_volume(guest.job, "files", how).await?;
    let device = guest.device(node, &attached.serial).await?;
    // What was not synced is in the guest's memory alone: only a filesystem that stands still has it.
    let line = format!("mkdir -p /f && mount -t ext4 {device} /f && echo kept >/f/word");
    guest.run(node, &line).await?;
    let kept = node.snapshot_volume(&all(), "files", "still").await?;
    let snapshot = kept.snapshots.last().context("no snapshot")?;
    ensure!(
        snapshot.consistency == Some(VolumeConsistency::Filesystem),
        "{snapshot:?}"
    );
    // And goes on.
    guest
        .run(node, "echo more >/f/more && sync && umount /f")
        .await?;
    node.detach_volume(guest.job, "files", LETS_GO).await?;
    let still = image(node, "files", Some("still")).await?;
    ensure!(
        word(&still, "/word").await? == "kept\n",
        "it was not written out"
    );
    ensure!(
        word(&still, "/more").await?.is_empty(),
        "it is of a later moment"
    );
    let now = image(node, "files", None).await?;
    ensure!(word(&now, "/more").await? == "more\n", "it does not go on");
    Ok(())
}

/// What a file of a filesystem holds; nothing, where it is not there.
async fn word(image: &File, path: &str) -> Result<String> {
    use std::os::fd::AsRawFd;
    let disk = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let request = format!("cat {path}");
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new("debugfs")
            .args(["-R", &request, &disk])
            .output()
    })
    .await??;
    Ok(String::from_utf8(output.stdout)?)
}
