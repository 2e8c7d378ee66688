//! Backups of a volume, made and brought back as a node does for its API.

use crate::guest::{ACCOUNT, all, check, image, new, open, volumes};
use aleph_backup::{BackupRequest, Id, Location, ProgressSink, Repository, Source};
use aleph_executor::Node;
use aleph_executor::volumes::{BackendChoice, Contents, Import, Reading};
use aleph_testkit::TestRoot;
use aleph_types::{DiskImageFormat, Filesystem, VolumeConsistency};
use anyhow::{Result, ensure};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A volume as a backup reads it, and what is done whenever it does.
struct Image<F> {
    reading: Reading,
    meanwhile: F,
}

impl<F: Fn() + Send + Sync + 'static> Source for Image<F> {
    fn size(&self) -> u64 {
        self.reading.size()
    }

    fn allocated(&self) -> std::io::Result<Vec<Range<u64>>> {
        self.reading.allocated()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        (self.meanwhile)();
        self.reading.read_at(offset, buffer)
    }
}

pub(crate) async fn repository(store: &Path) -> Result<Repository> {
    let location = Location::parse(&format!("file://{}", store.display()))?;
    Ok(Repository::open_or_create(&location, None).await?)
}

/// Backs `data` up, to which a guest writes.
pub(crate) async fn back_up(node: &Node, store: &Path) -> Result<Id> {
    let (id, consistency) = back_up_meanwhile(node, store, ProgressSink::default(), || ()).await?;
    ensure!(consistency.is_some(), "nobody writes to it");
    Ok(id)
}

/// Backs `data` up, tells how far it is, and does something whenever it reads.
pub(crate) async fn back_up_meanwhile(
    node: &Node,
    store: &Path,
    progress: ProgressSink,
    meanwhile: impl Fn() + Send + Sync + 'static,
) -> Result<(Id, Option<VolumeConsistency>)> {
    let repository = repository(store).await?;
    repository.ensure_ready().await?;
    let image = node.volume_image(&all(), "data", None).await?;
    let source = Image {
        reading: image.image,
        meanwhile,
    };
    let request = BackupRequest {
        volume: image.volume.to_string(),
        progress,
        ..BackupRequest::default()
    };
    let made = repository.backup(Arc::new(source), request).await?;
    Ok((made.id, image.consistency))
}

/// Makes a volume of a backup.
pub(crate) async fn bring_back(
    node: &Node,
    store: &Path,
    id: Id,
    name: &'static str,
    progress: ProgressSink,
) -> Result<()> {
    let repository = repository(store).await?;
    let snapshot = repository.snapshot(&id.to_string()).await?;
    let staged = volumes(node, move |v| {
        Ok(v.stage_for(new(ACCOUNT, name), snapshot.size)?)
    })
    .await?;
    let into = staged.file().try_clone()?;
    repository
        .restore_into(id, into, staged.room(), progress)
        .await?;
    volumes(node, move |v| {
        let how = Import {
            format: Some(DiskImageFormat::Raw),
            size: None,
        };
        let contents = Contents {
            filesystem: Some(Filesystem::None),
            unclean: true,
        };
        v.import_with(new(ACCOUNT, name), staged.file(), (how, contents))?;
        Ok(())
    })
    .await
}

/// Checks that a backup can be had on another node, with all that was durable before it was made.
pub(crate) async fn is_good(store: &Path, id: Id, durable: u64) -> Result<()> {
    let root = TestRoot::new()?;
    let node = open(&root, BackendChoice::Auto).await?;
    bring_back(&node, store, id, "data", ProgressSink::default()).await?;
    check(&image(&node, "data", None).await?, "data", durable)?;
    node.shutdown().await;
    Ok(())
}
