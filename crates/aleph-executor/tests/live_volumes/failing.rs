//! A disk fails below a volume that a guest writes to: the guest is told so and goes on, and so does all else that
//! it has. What it was told to be durable is there once the disk works again.

use crate::guest::{
    ACCOUNT, BLOCK, Guest, all, empty, image, is_written, nothing_is_left, open, volume, volumes,
};
use aleph_executor::Node;
use aleph_executor::volumes::{BackendChoice, Owner};
use aleph_testkit::{FailingDisk, TestRoot};
use aleph_types::{Classify, ErrorClass, JobState, VolumeAttach};
use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LETS_GO: Duration = Duration::from_secs(120);

/// From which block on it fails; what is further on was written before.
const FAILS: u64 = 1024;
const FURTHER: u64 = 1500;

/// A layer's file, which is on another disk than the rest for as long as this lives.
struct Moved(PathBuf);

impl Moved {
    fn onto(disk: &FailingDisk, layer: PathBuf) -> Result<Self> {
        mount_bind(disk.file(), &layer)?;
        Ok(Self(layer))
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{} stays on its disk: {error}", self.0.display());
        }
    }
}

fn layers(root: &Path) -> Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(root.join("volumes/layers"))?;
    let files = files.map(|file| Ok(file?.path()));
    let mut files = files.collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Checks that a volume has a block as its writer wrote it.
async fn has(node: &Node, what: &str, blocks: impl Iterator<Item = u64>) -> Result<()> {
    let image = image(node, "data", None).await?;
    let mut block = vec![0; usize::try_from(BLOCK)?];
    for n in blocks {
        image.read_exact_at(&mut block, n * BLOCK)?;
        let line = format!("block {n} of data\n");
        let is_whole = line.bytes().cycle().zip(&block).all(|(a, b)| a == *b);
        ensure!(is_whole, "{what}: block {n} is lost");
    }
    Ok(())
}

pub(crate) async fn a_guest_is_told_that_its_disk_fails_and_goes_on() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BackendChoice::Files).await?;
    empty(&node, "data", 32).await?;
    let layer = layers(root.path())?.pop().context("no layer")?;
    let disk = FailingDisk::with_file(root.path(), 32 << 20)?;
    let moved = Moved::onto(&disk, layer)?;
    empty(&node, "other", 32).await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let how = VolumeAttach::default();
    let mut devices = Vec::new();
    for name in ["data", "other"] {
        let attached = node.attach_volume(guest.job, name, how.clone()).await?;
        devices.push(guest.device(&node, &attached.serial).await?);
    }
    let (data, other) = (devices[0].clone(), devices[1].clone());
    let writes = |n: u64, words: &str| {
        format!(
            "yes \"block {n} of data\" | head -c {BLOCK} | \
             dd of={data} bs={BLOCK} seek={n} conv=fsync,notrunc 2>{words}"
        )
    };
    guest.run(&node, &writes(FURTHER, "/dev/null")).await?;
    guest.writes(&node, "data", &data, 0).await?;
    guest.writes(&node, "other", &other, 0).await?;
    guest.goes_on(&node, "data", 3).await?;
    let before = layers(root.path())?;

    disk.fails_from(FAILS * BLOCK)?;
    // What is before that is written and made durable as ever.
    guest.goes_on(&node, "data", 3).await?;
    // Its guest has it from the disk, as after a while.
    let line = format!(
        "echo 3 >/proc/sys/vm/drop_caches; \
         dd if={data} bs={BLOCK} skip={FURTHER} count=1 of=/dev/null 2>/said && echo gotten; \
         cat /said"
    );
    let said = guest.run(&node, &line).await?;
    ensure!(
        said.contains("rror") && !said.contains("gotten"),
        "it was read: {said}"
    );
    let line = format!(
        "{} && echo written; cat /said",
        writes(FURTHER + 1, "/said")
    );
    let said = guest.run(&node, &line).await?;
    ensure!(
        said.contains("rror") && !said.contains("written"),
        "it was written: {said}"
    );
    // From then on nothing of this disk is told to be durable, since what was lost is not known; all else goes on.
    guest.goes_on(&node, "other", 3).await?;
    let state = node.job(guest.job)?.state;
    ensure!(state == JobState::Running, "{state}");

    // Nor is a state kept of which a part may be missing.
    let kept = node.snapshot_volume(&all(), "data", "half").await;
    let error = kept.err().context("it was kept")?;
    let is_told = (error.class(), error.code());
    ensure!(
        is_told == (ErrorClass::Unavailable, "disk_failing"),
        "{error:?}"
    );
    let read = node.volume_image(&all(), "data", None).await;
    ensure!(read.is_err(), "{read:?}");
    let now = volume(&node, "data").await?;
    ensure!(now.snapshots.is_empty() && is_written(&now), "{now:?}");
    let left = layers(root.path())?;
    ensure!(left == before, "{left:?} and not {before:?}");
    let owner = Owner {
        job: guest.job,
        incarnation: node.job(guest.job)?.incarnation,
    };
    let held = volumes(&node, move |v| Ok(v.held_by(&owner)?)).await?;
    ensure!(held.iter().all(|(_, it)| it.is_none()), "{held:?}");

    // Its guest lets go of it.
    let durable = guest.ended(&node, "data").await?;
    node.detach_volume(guest.job, "data", LETS_GO).await?;
    ensure!(volume(&node, "data").await?.leases.is_empty(), "a lease");

    // Once it works, all is there that was durable, and it goes on.
    disk.works()?;
    let blocks = || (0..=durable).chain([FURTHER]);
    has(&node, "as it was", blocks()).await?;
    node.attach_volume(guest.job, "data", how).await?;
    let serial = format!("v{}", &volume(&node, "data").await?.id.to_string()[2..18]);
    let device = guest.device(&node, &serial).await?;
    guest.writes(&node, "data", &device, durable + 1).await?;
    guest.goes_on(&node, "data", 3).await?;
    node.snapshot_volume(&all(), "data", "whole").await?;
    let durable = guest.stops(&node, "data").await?;
    ensure!(durable < FURTHER, "{durable} were written");
    node.detach_volume(guest.job, "data", LETS_GO).await?;
    has(&node, "afterwards", (0..=durable).chain([FURTHER])).await?;
    ensure!(volume(&node, "data").await?.account == ACCOUNT, "whose?");

    node.destroy(guest.job, true).await?;
    drop(moved);
    drop(disk);
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}
