//! A disk of which a part fails below the layers of volumes, while their records are on another one. What needs
//! that part is refused and says which disk it is; all else goes on, and what was written before is there.

use crate::faulty_disk::FaultyDisk;
use crate::merge;
use crate::support::{config, empty, layers, named, owner, qemu_io};
use aleph_backup::{BackupError, BackupRequest, Id, Location, ProgressSink, Repository};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{
    BackendChoice, Import, LayerFormat, Reading, Source, VolumeError, Volumes,
};
use aleph_types::{Classify, DiskImageFormat, ErrorClass, Filesystem, MiB, VolumeAccess, VolumeId};
use anyhow::{Context, Result, ensure};
use rustix::mount::mount_bind;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A node's state folder.
pub(crate) const NODE: &str = "/state/node";

pub(crate) const MIB: u64 = 1 << 20;

/// Which bytes of a disk are what; all else are zeros.
type Model = Vec<(Range<u64>, u8)>;

/// Checks that something was refused since the disk fails, and says so.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, VolumeError>) -> Result<()> {
    let error = result.err().context("it is done all the same")?;
    let is_told = (error.class(), error.code()) == (ErrorClass::Unavailable, "disk_failing");
    ensure!(is_told, "{}: {error:?}", error.code());
    let advice = error.advice().context("no advice")?;
    ensure!(advice.contains("kernel log"), "{advice}");
    Ok(())
}

/// The same of what is read or written piece by piece.
pub(crate) fn is_a_fault(result: std::io::Result<()>) -> Result<()> {
    let error = result.err().context("it is done all the same")?;
    ensure!(error.raw_os_error() == Some(5), "{error:?}");
    Ok(())
}

/// Writes to a part of a volume, as its VMM does, and has that be durable.
pub(crate) fn fill(volumes: &Volumes, name: &str, part: &Range<u64>, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    let length = part.end - part.start;
    let written = match attached.layers.format {
        LayerFormat::Raw => {
            let (top, bytes) = (&attached.layers.top, vec![byte; usize::try_from(length)?]);
            let written = top.write_all_at(&bytes, part.start);
            written.and_then(|()| top.sync_all()).map_err(Into::into)
        }
        LayerFormat::Qcow2 => {
            let line = format!("write -P {byte} {} {length}", part.start);
            qemu_io(&attached.layers, &[line, "flush".into()]).map(drop)
        }
    };
    drop(attached);
    volumes.release(&owner, true)?;
    written
}

/// Checks each byte of a volume, or of a snapshot of it.
pub(crate) fn holds(
    volumes: &Volumes,
    id: VolumeId,
    snapshot: Option<&str>,
    model: &[(Range<u64>, u8)],
) -> Result<()> {
    const PIECE: u64 = 64 << 10;
    let image = volumes.read(id, snapshot)?;
    let mut piece = vec![0; usize::try_from(PIECE)?];
    for at in (0..image.size()).step_by(usize::try_from(PIECE)?) {
        image.read_at(at, &mut piece)?;
        let wanted = model.iter().find(|(part, _)| part.contains(&at));
        let wanted = wanted.map_or(0, |(_, byte)| *byte);
        ensure!(
            piece.iter().all(|byte| *byte == wanted),
            "{snapshot:?} at {at}: {} and not {wanted}",
            piece[0]
        );
    }
    Ok(())
}

/// What is on the disk of layers.
struct World {
    disk: FaultyDisk,
}

impl World {
    /// A node whose layers and scratch files are on a disk that can fail.
    fn new() -> Result<Self> {
        const AT: &str = "/state/mounted";
        let disk = FaultyDisk::new(MiB(192))?;
        disk.format()?;
        disk.mount(AT)?;
        for folder in ["layers", "work"] {
            let (from, to) = (Path::new(AT).join(folder), Self::folder(folder));
            fs::create_dir_all(&from)?;
            fs::create_dir_all(&to)?;
            mount_bind(&from, &to).context("cannot bind a folder")?;
        }
        Ok(Self { disk })
    }

    fn folder(name: &str) -> PathBuf {
        Path::new(NODE).join("volumes").join(name)
    }

    /// The files of layers, by their numbers.
    fn files() -> Result<Vec<PathBuf>> {
        let files = fs::read_dir(Self::folder("layers"))?;
        let mut files = files
            .map(|file| Ok(file?.path()))
            .collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    /// From now on these bytes of these files cannot be read.
    fn loses(&self, files: &[PathBuf], bytes: &Range<u64>) -> Result<()> {
        let mut parts = Vec::new();
        for file in files {
            parts.extend(self.disk.parts_of(file, bytes)?);
        }
        self.disk.fails(&parts)
    }

    /// Checks that nothing of what failed is there.
    fn has(volumes: &Volumes, names: &[&str], count: usize) -> Result<()> {
        let all = volumes.list(&Scope::All, true)?;
        let found: Vec<&str> = all.iter().map(|volume| volume.name.as_str()).collect();
        ensure!(found == names, "{found:?}");
        let left = layers(Path::new(NODE), BackendChoice::Files)?;
        ensure!(left == count, "{left} layers and not {count}");
        let left = fs::read_dir(Self::folder("work"))?.count();
        ensure!(left == 0, "{left} scratch files stay");
        Ok(())
    }
}

/// A volume as a backup reads it.
struct Image(Reading);

impl aleph_backup::Source for Image {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn allocated(&self) -> std::io::Result<Vec<Range<u64>>> {
        self.0.allocated()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

/// Does something with the repository of a folder that works.
fn with_backups<T>(
    work: impl AsyncFnOnce(Repository) -> Result<T, BackupError>,
) -> Result<Result<T, BackupError>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let location = Location::parse("file:///state/backups")?;
        let repository = Repository::open_or_create(&location, None).await?;
        Ok(work(repository).await)
    })
}

pub(crate) fn back_up(volumes: &Volumes, id: VolumeId) -> Result<Result<Id, BackupError>> {
    let source = Arc::new(Image(volumes.read(id, None)?));
    let request = BackupRequest {
        volume: id.to_string(),
        ..BackupRequest::default()
    };
    with_backups(async |repository| Ok(repository.backup(source, request).await?.id))
}

/// Checks that a backup was not made since its volume cannot be read.
pub(crate) fn unreadable(backup: Result<Id, BackupError>) -> Result<()> {
    let error = backup.err().context("it is made all the same")?;
    let is_told = (error.class(), error.code());
    let wanted = (ErrorClass::Unavailable, "backup_source_unreadable");
    ensure!(is_told == wanted, "{error:?}");
    let made = with_backups(async |repository| repository.snapshots().await)??;
    ensure!(made.is_empty(), "half a backup is there: {made:?}");
    Ok(())
}

pub(crate) fn files_that_cannot_be_read_lose_nothing_else() -> Result<()> {
    cannot_be_read(BackendChoice::Files)
}

pub(crate) fn chains_that_cannot_be_read_lose_nothing_else() -> Result<()> {
    cannot_be_read(BackendChoice::Qcow2)
}

fn cannot_be_read(backend: BackendChoice) -> Result<()> {
    let world = World::new()?;
    let volumes = Volumes::open(Path::new(NODE), config(backend))?;
    let id = empty(&volumes, "data", 16)?.id;
    let before: Model = vec![(0..4 * MIB, 7)];
    let now: Model = vec![(0..4 * MIB, 7), (4 * MIB..6 * MIB, 8)];
    fill(&volumes, "data", &before[0].0, 7)?;
    volumes.snapshot(id, "before")?;
    fill(&volumes, "data", &now[1].0, 8)?;
    let files = World::files()?;
    let count = files.len();
    ensure!(count == 2, "{files:?}");
    let is_raw = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "raw");
    let raw: Vec<_> = files.iter().filter(is_raw).cloned().collect();
    world.loses(&raw, &(MIB..2 * MIB))?;

    // All but that part.
    let image = volumes.read(id, None)?;
    let mut piece = vec![0; 4096];
    image.read_at(5 * MIB, &mut piece)?;
    ensure!(piece.iter().all(|byte| *byte == 8), "{}", piece[0]);
    is_a_fault(image.read_at(MIB, &mut piece))?;
    drop(image);
    fill(&volumes, "data", &(2 * MIB..3 * MIB), 7)?;

    // What reads it is refused, and nothing of that is left.
    refused(volumes.export(id, None, DiskImageFormat::Qcow2))?;
    unreadable(back_up(&volumes, id)?)?;
    let (current, kept) = (Source::Volume(id), Source::Snapshot(id, "before"));
    match backend {
        BackendChoice::Files => {
            // As it lies.
            let image = volumes.export(id, None, DiskImageFormat::Raw)?;
            is_a_fault(image.read_exact_at(&mut piece, MIB))?;
            drop(image);
            refused(volumes.snapshot(id, "after"))?;
            refused(volumes.clone_of(named("copy"), current, None))?;
            refused(volumes.clone_of(named("copy"), kept, None))?;
            refused(volumes.restore(id, "before"))?;
        }
        // What is put over it does not read it.
        _ => {
            refused(volumes.export(id, None, DiskImageFormat::Raw))?;
            let copy = volumes.clone_of(named("copy"), kept, None)?.id;
            refused(volumes.export(copy, None, DiskImageFormat::Raw))?;
            volumes.remove(copy, true)?;
        }
    }
    World::has(&volumes, &["data"], count)?;
    let found = volumes.get(id)?;
    ensure!(found.snapshots.len() == 1, "{found:?}");
    volumes.resize(id, MiB(20))?;

    // A chain whose top cannot be opened, either.
    let last = files.last().context("no layer")?.clone();
    world.loses(&[last], &(0..4096))?;
    match backend {
        BackendChoice::Files => {
            refused(volumes.snapshot(id, "after"))?;
        }
        _ => {
            refused(volumes.snapshot(id, "after"))?;
            refused(volumes.resize(id, MiB(24)))?;
            refused(volumes.read(id, None))?;
            let attached = volumes.attach("a", "data", &owner(), VolumeAccess::Exclusive);
            refused(attached)?;
        }
    }
    let found = volumes.get(id)?;
    ensure!(found.size == MiB(20), "{found:?}");
    ensure!(found.leases.is_empty(), "{found:?}");
    World::has(&volumes, &["data"], count)?;

    // Once it works, all is there, and all can be done.
    world.disk.works_and_is_read()?;
    holds(&volumes, id, None, &now)?;
    holds(&volumes, id, Some("before"), &before)?;
    volumes.snapshot(id, "after")?;
    let copy = volumes.clone_of(named("copy"), current, None)?.id;
    volumes.restore(id, "before")?;
    holds(&volumes, id, None, &before)?;
    holds(&volumes, copy, None, &now)?;
    back_up(&volumes, copy)??;
    for id in [id, copy] {
        volumes.remove(id, true)?;
    }
    World::has(&volumes, &[], 0)
}

pub(crate) fn what_cannot_be_written_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let images = tempfile::tempdir()?;
    let (raw, packed) = (images.path().join("raw"), images.path().join("packed"));
    let file = File::create(&raw)?;
    file.set_len(4 * MIB)?;
    file.write_all_at(&vec![6; 1 << 20], 0)?;
    file.write_all_at(b"\x55\xaa", 510)?;
    let paths = [&raw, &packed].map(|path| path.to_str().unwrap_or_default());
    let words = ["convert", "-f", "raw", "-O", "qcow2"];
    crate::run("qemu-img", &[&words[..], &paths].concat())?;

    let volumes = Volumes::open(Path::new(NODE), config(BackendChoice::Files))?;
    let id = empty(&volumes, "data", 16)?.id;
    let model: Model = vec![(0..4 * MIB, 7)];
    fill(&volumes, "data", &model[0].0, 7)?;
    let kept = back_up(&volumes, id)??;
    drop(volumes);
    for backend in [BackendChoice::Files, BackendChoice::Qcow2] {
        let volumes = Volumes::open(Path::new(NODE), config(backend))?;
        world.disk.fails(&world.disk.free()?)?;
        refused(volumes.snapshot(id, "kept"))?;
        refused(volumes.clone_of(named("copy"), Source::Volume(id), None))?;
        refused(volumes.create(named("made"), MiB(16), Filesystem::Ext4))?;
        for path in [&raw, &packed] {
            let image = File::open(path)?;
            refused(volumes.import(named("image"), &image, Import::default()))?;
        }
        refused(volumes.export(id, None, DiskImageFormat::Qcow2))?;
        // A backup that comes back, and an image that comes in.
        let staged = volumes.stage(named("back"))?;
        let (file, room) = (staged.file().try_clone()?, staged.room());
        let done = with_backups(async |repository| {
            let told = ProgressSink::default();
            repository.restore_into(kept, file, room, told).await
        })?;
        let error = done.err().context("it is written all the same")?;
        let is_told = (error.class(), error.code());
        let wanted = (ErrorClass::Unavailable, "backup_target_failed");
        ensure!(is_told == wanted, "{error:?}");
        drop(staged);
        let mut staged = volumes.stage(named("back"))?;
        let gathered = std::io::copy(&mut File::open(&raw)?, &mut staged);
        let gathered = gathered.and_then(|_| staged.finish());
        refused(gathered.map_err(Volumes::staging_error))?;

        World::has(&volumes, &["data"], 1).with_context(|| format!("{backend:?}"))?;
        holds(&volumes, id, None, &model)?;
        // What has its place can be written still.
        fill(&volumes, "data", &(MIB..2 * MIB), 7)?;

        world.disk.works_and_is_read()?;
        holds(&volumes, id, None, &model)?;
        let copy = volumes
            .clone_of(named("copy"), Source::Volume(id), None)?
            .id;
        let image = volumes.import(named("image"), &File::open(&packed)?, Import::default())?;
        holds(&volumes, copy, None, &model)?;
        for id in [copy, image.id] {
            volumes.remove(id, true)?;
        }
    }
    let volumes = Volumes::open(Path::new(NODE), config(BackendChoice::Files))?;
    holds(&volumes, id, None, &model)?;
    volumes.remove(id, true)?;
    World::has(&volumes, &[], 0)
}

pub(crate) fn layers_that_cannot_be_read_are_not_merged() -> Result<()> {
    let world = World::new()?;
    let volumes = Volumes::open(Path::new(NODE), config(BackendChoice::Qcow2))?;
    let refuse = |merge: &dyn Fn() -> Result<bool, VolumeError>| {
        // Neither what is read, nor what would be written.
        let files = World::files()?;
        let overlays = files.iter().skip(1).take(files.len().saturating_sub(2));
        let overlays: Vec<PathBuf> = overlays.cloned().collect();
        for is_read in [true, false] {
            match is_read {
                true => world.loses(&overlays, &(0..u64::MAX / 2))?,
                false => world.disk.fails(&world.disk.free()?)?,
            }
            refused(merge())?;
            let left = World::files()?;
            ensure!(left == files, "{left:?} and not {files:?}");
            ensure!(volumes.merging()?.is_empty(), "it is not over");
            world.disk.works_and_is_read()?;
        }
        Ok(())
    };
    let id = merge::is_refused_first(&volumes, refuse)?;
    volumes.remove(id, true)?;
    World::has(&volumes, &[], 0)
}
