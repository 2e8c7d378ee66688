//! What is refused, in words, and changes nothing.

use crate::guest::{
    ACCOUNT, Guest, all, empty, image, new, nothing_is_left, open, volume, volumes,
};
use aleph_executor::Node;
use aleph_executor::node::{NodeError, Scope};
use aleph_executor::volumes::{BackendChoice, MAX_DEPTH, Owner};
use aleph_testkit::TestRoot;
use aleph_types::{
    Classify, Filesystem, Incarnation, JobId, JobSpec, MiB, VolumeAccess, VolumeAttach,
};
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(1);
const LETS_GO: Duration = Duration::from_secs(120);

fn refused<T>(done: Result<T, NodeError>, code: &str) -> Result<()> {
    match done {
        Ok(_) => bail!("not refused with {code}"),
        Err(error) => {
            ensure!(error.code() == code, "{code}: {} {error}", error.code());
            Ok(())
        }
    }
}

pub(crate) async fn what_cannot_be_changed_is_refused() -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BackendChoice::Qcow2).await?;
    for name in ["data", "busy", "more"] {
        empty(&node, name, 4).await?;
    }
    volumes(&node, |v| {
        let (account, name) = ("b", "theirs");
        v.create(new(account, name), MiB(4), Filesystem::None)?;
        Ok(())
    })
    .await?;
    let mut guest = Guest::boot(&root, &node).await?;
    let job = guest.job;
    let how = VolumeAttach::default;

    // What there is not, or is not this account's: the same answer.
    let nobody = JobId::random();
    refused(node.attach_volume(nobody, "data", how()).await, "no_job")?;
    refused(node.detach_volume(nobody, "data", SOON).await, "no_job")?;
    for name in ["nosuch", "theirs"] {
        refused(node.attach_volume(job, name, how()).await, "no_volume")?;
    }
    let theirs = Scope::Account("b".into());
    refused(
        node.resize_volume(&theirs, "data", MiB(8)).await,
        "no_volume",
    )?;
    refused(
        node.snapshot_volume(&theirs, "data", "x").await,
        "no_volume",
    )?;
    refused(
        node.detach_volume(job, "data", SOON).await,
        "volume_not_attached",
    )?;
    refused(
        node.detach_volume(job, "nosuch", SOON).await,
        "volume_not_attached",
    )?;
    let plain = JobSpec::new("busybox", vec!["true".into()]);
    let options = aleph_executor::node::CreateOptions {
        account: ACCOUNT.into(),
        start: false,
        idempotency_key: None,
    };
    let micro = node.create(plain, options).await?.job.id;
    refused(
        node.attach_volume(micro, "data", how()).await,
        "volumes_fixed",
    )?;

    // One that another job has.
    let other = Owner {
        job: JobId::random(),
        incarnation: Incarnation::default(),
    };
    let lent = volumes(&node, move |v| {
        Ok(v.attach(ACCOUNT, "busy", &other, VolumeAccess::Exclusive)?)
    })
    .await?;
    refused(
        node.attach_volume(job, "busy", how()).await,
        "volume_attached",
    )?;
    refused(
        node.resize_volume(&all(), "busy", MiB(8)).await,
        "volume_attached",
    )?;
    refused(
        node.snapshot_volume(&all(), "busy", "x").await,
        "volume_attached",
    )?;
    drop(lent);
    volumes(&node, move |v| Ok(v.release(&other, true)?)).await?;

    // Its own root disk, a path that is taken, and the same volume in another way.
    let root_disk = format!("root-{}", &job.to_string()[2..]);
    refused(
        node.attach_volume(job, &root_disk, how()).await,
        "root_disk",
    )?;
    let attached = node.attach_volume(job, "data", how()).await?;
    let taken = VolumeAttach {
        path: Some("/mnt/data".into()),
        read_only: false,
    };
    refused(node.attach_volume(job, "more", taken).await, "bad_text")?;
    // One that cloud-init could not be told of at the next start.
    let spaced = VolumeAttach {
        path: Some("/srv/my data".into()),
        read_only: false,
    };
    refused(
        node.attach_volume(job, "more", spaced).await,
        "bad_guest_field",
    )?;
    let read_only = VolumeAttach {
        path: None,
        read_only: true,
    };
    refused(
        node.attach_volume(job, "data", read_only).await,
        "volume_attached_here",
    )?;
    refused(
        node.resize_volume(&all(), "data", MiB(2)).await,
        "bad_volume_size",
    )?;
    unchanged(&node, job).await?;

    // A backup that finds no place among the images on their way leaves no layer.
    let places = volumes(&node, |v| {
        let mut places = Vec::new();
        while let Ok(place) = v.image_place() {
            places.push(place);
        }
        Ok(places)
    })
    .await?;
    let layers = || std::fs::read_dir(root.path().join("volumes/layers")).map(Iterator::count);
    let before = layers()?;
    refused(
        node.volume_image(&all(), "data", None).await.map(drop),
        "too_many_images",
    )?;
    ensure!(layers()? == before, "a layer is left");
    drop(places);

    // A guest that stands still hears nothing.
    let device = guest.device(&node, &attached.serial).await?;
    guest
        .run(&node, &format!("head -c 512 {device} >/dev/null"))
        .await?;
    node.pause(job).await?;
    refused(node.detach_volume(job, "data", SOON).await, "wrong_state")?;
    node.resume(job).await?;
    ensure!(
        !volume(&node, "data").await?.leases.is_empty(),
        "its lease is gone"
    );
    unchanged(&node, job).await?;

    // As many layers as may be.
    let mut spoilt = Spoilt::over(&root)?;
    for n in 1..MAX_DEPTH {
        node.snapshot_volume(&all(), "data", &format!("s{n}"))
            .await?;
        spoilt.spoil()?;
    }
    let last = node.snapshot_volume(&all(), "data", "last").await;
    let why = last
        .as_ref()
        .map_or_else(ToString::to_string, |_| String::new());
    ensure!(why.contains("not merged: "), "{why}");
    refused(last, "volume_too_deep")?;
    refused(
        node.volume_image(&all(), "data", None).await.map(drop),
        "volume_too_deep",
    )?;
    // What it says to do works: whether what is in the way goes, or the job.
    spoilt.mend()?;
    node.snapshot_volume(&all(), "data", "last").await?;
    ensure!(node.kill(job, 9).await?.vm.is_none(), "it runs on");
    node.snapshot_volume(&all(), "data", "cold").await?;
    for name in ["last", "cold"] {
        image(&node, "data", Some(name)).await?;
    }

    // No slot: cold and hot.
    let mut names = Vec::new();
    let full = loop {
        let name: &'static str = format!("v{}", names.len()).leak();
        empty(&node, name, 4).await?;
        match node.attach_volume(job, name, how()).await {
            Ok(_) => names.push(name),
            Err(error) => break error,
        }
        ensure!(names.len() < 20, "there is always a slot");
    };
    ensure!(full.code() == "machine_slots", "{full}");
    // The slot of a network card that it has not is left.
    node.start(job).await?;
    guest.ready(&node).await?;
    for name in ["more", "busy"] {
        match node.attach_volume(job, name, how()).await {
            Ok(_) => continue,
            Err(error) => ensure!(error.code() == "machine_slots", "{error}"),
        }
    }
    let has = node.job(job)?.spec.volumes;
    let leased = volumes(&node, |v| Ok(v.list(&all(), false)?)).await?;
    for volume in leased.iter().filter(|volume| volume.name != root_disk) {
        let is_had = has.iter().any(|mount| mount.name == volume.name);
        ensure!(is_had != volume.leases.is_empty(), "{volume:?}");
    }
    node.detach_volume(job, names[0], LETS_GO).await?;

    node.destroy(job, true).await?;
    node.destroy(micro, true).await?;
    nothing_is_left(root.path(), &node).await?;
    node.shutdown().await;
    Ok(())
}

/// Layers that a QEMU which was broken into wrote to after they were covered: their headers name a file.
struct Spoilt {
    folder: PathBuf,
    others: BTreeSet<PathBuf>,
    heads: Vec<(File, [u8; 20])>,
}

impl Spoilt {
    /// None yet: the layers that there are stay as they are.
    fn over(root: &TestRoot) -> Result<Self> {
        let mut spoilt = Self {
            folder: root.path().join("volumes/layers"),
            others: BTreeSet::new(),
            heads: Vec::new(),
        };
        spoilt.others = spoilt.layers()?;
        Ok(spoilt)
    }

    fn layers(&self) -> Result<BTreeSet<PathBuf>> {
        let layers = std::fs::read_dir(&self.folder)?;
        layers.map(|entry| Ok(entry?.path())).collect()
    }

    /// Spoils each layer that there is since, but for the newest, which a guest writes to.
    fn spoil(&mut self) -> Result<()> {
        let mut layers = self.layers()?;
        layers.pop_last();
        for path in layers {
            if self.others.insert(path.clone()) {
                let file = File::options().read(true).write(true).open(path)?;
                let mut head = [0; 20];
                file.read_exact_at(&mut head, 0)?;
                file.write_all_at(&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11], 8)?;
                self.heads.push((file, head));
            }
        }
        Ok(())
    }

    fn mend(self) -> Result<()> {
        for (file, head) in self.heads {
            file.write_all_at(&head, 0)?;
        }
        Ok(())
    }
}

/// Checks that the job has the one volume that it had.
async fn unchanged(node: &Node, job: JobId) -> Result<()> {
    let has = node.job(job)?.spec.volumes;
    ensure!(has.len() == 1 && has[0].name == "data", "{has:?}");
    ensure!(
        volume(node, "more").await?.leases.is_empty(),
        "a lease stays"
    );
    Ok(())
}
