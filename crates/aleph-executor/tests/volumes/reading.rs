//! Volumes that are read where they lie, and increments of backups that go on from snapshots.

use crate::support::{config, empty, memory, owner, qemu_io, write};
use aleph_backup::{
    BackupRequest, Depth, Dirty, Location, ProgressSink, Repository, RestoreRequest, Snapshot,
    Source,
};
use aleph_executor::volumes::{BackendChoice, Reading, Volumes};
use aleph_types::{DiskImageFormat, MiB, VolumeAccess, VolumeId};
use anyhow::{Context, Result, ensure};
use proptest::prelude::*;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A volume as a node gives it to a backup.
struct AsSource(Reading, Option<Dirty>);

impl Source for AsSource {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        self.0.allocated()
    }
    fn dirty(&self) -> Option<Dirty> {
        self.1.clone()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

fn all(reading: &Reading) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(reading.size())?];
    reading.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn exported(volumes: &Volumes, id: VolumeId, snapshot: Option<&str>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut image = volumes.export(id, snapshot, DiskImageFormat::Raw)?;
    image.read_to_end(&mut bytes)?;
    Ok(bytes)
}

struct Place {
    runtime: tokio::runtime::Runtime,
    repository: Repository,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let folder = memory()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let url = format!("file://{}", folder.path().join("store").display());
        let location = Location::parse(&url)?;
        let repository = runtime.block_on(Repository::open_or_create(&location, None))?;
        Ok(Self {
            runtime,
            repository,
            folder,
        })
    }

    /// Makes a backup as a node does: on what an earlier one was of, where that is known.
    fn back_up(&self, id: VolumeId, reading: Reading) -> Result<(Snapshot, bool)> {
        let earlier = self.runtime.block_on(self.repository.snapshots())?;
        let dirty = earlier.iter().rev().find_map(|backup| {
            Some(Dirty {
                since: backup.id,
                ranges: reading.changed_since(backup.state.as_deref()?)?,
            })
        });
        let is_increment = dirty.is_some();
        let request = BackupRequest {
            volume: id.to_string(),
            state: reading.state().map(str::to_owned),
            ..BackupRequest::default()
        };
        let source = Arc::new(AsSource(reading, dirty));
        let backup = self.repository.backup(source, request);
        Ok((self.runtime.block_on(backup)?, is_increment))
    }

    fn restored(&self, backup: &Snapshot) -> Result<Vec<u8>> {
        let target = self.folder.path().join("restored");
        let restore = self.repository.restore(RestoreRequest {
            snapshot: backup.id,
            target: target.clone(),
            progress: ProgressSink::default(),
        });
        self.runtime.block_on(restore)?;
        let bytes = std::fs::read(&target)?;
        std::fs::remove_file(target)?;
        Ok(bytes)
    }
}

fn run(volumes: &Volumes, lines: &[String]) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", "data", &owner, VolumeAccess::Exclusive)?;
    qemu_io(&attached.layers, lines)?;
    drop(attached);
    volumes.release(&owner, true)?;
    Ok(())
}

#[test]
fn an_increment_reads_what_changed_since_a_snapshot() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Qcow2))?;
    let place = Place::new()?;
    let id = empty(&volumes, "data", 64)?.id;
    run(&volumes, &["write -P 1 0 20M".into()])?;
    ensure!(
        volumes.read(id, None)?.state().is_none(),
        "what can still be written to has no name"
    );
    volumes.snapshot(id, "one")?;
    let (first, _) = place.back_up(id, volumes.read(id, Some("one"))?)?;
    ensure!(first.state.is_some() && first.stats.read >= 20 << 20);
    // Nothing was written since: it is the same state.
    let now = volumes.read(id, None)?;
    assert_eq!(now.state(), first.state.as_deref());
    let (same, is_increment) = place.back_up(id, now)?;
    assert_eq!((is_increment, same.root), (true, first.root));
    assert_eq!(same.stats.read, 0);

    run(
        &volumes,
        &[
            "write -P 2 5M 4k".into(),
            "write -z 8M 1M".into(),
            "write -P 3 40M 64k".into(),
        ],
    )?;
    volumes.snapshot(id, "two")?;
    let (second, is_increment) = place.back_up(id, volumes.read(id, Some("two"))?)?;
    ensure!(is_increment && second.parent == Some(same.id));
    let read = second.stats.read;
    ensure!(read < 2 << 20, "{read} bytes were read");
    ensure!(place.restored(&second)? == exported(&volumes, id, Some("two"))?);
    // The older snapshot may go: its layer is there for as long as others are over it.
    volumes.remove_snapshot(id, "one")?;
    write(&volumes, "data", 1000, 9)?;
    let (third, is_increment) = place.back_up(id, volumes.read(id, None)?)?;
    ensure!(is_increment && third.parent == Some(second.id) && third.state.is_none());
    ensure!(place.restored(&third)? == exported(&volumes, id, None)?);
    // What goes on from an older state is read anew from there on.
    volumes.restore(id, "two")?;
    write(&volumes, "data", 2000, 8)?;
    let (fourth, _) = place.back_up(id, volumes.read(id, None)?)?;
    ensure!(place.restored(&fourth)? == exported(&volumes, id, None)?);
    let report = place.runtime.block_on(
        place
            .repository
            .verify(Depth::Full, &ProgressSink::default()),
    )?;
    assert_eq!(report.damage, []);
    Ok(())
}

#[test]
fn a_layer_that_was_touched_has_another_name() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Qcow2))?;
    let id = empty(&volumes, "data", 64)?.id;
    write(&volumes, "data", 7, 1)?;
    volumes.snapshot(id, "one")?;
    let state = volumes.read(id, Some("one"))?.state().map(str::to_owned);
    let state = state.context("a name")?;
    write(&volumes, "data", 8, 2)?;
    ensure!(volumes.read(id, None)?.changed_since(&state).is_some());
    let layers = dir.path().join("volumes/layers");
    let touch = |path: &Path| -> Result<()> {
        let file = std::fs::File::options().write(true).open(path)?;
        Ok(file.set_modified(std::time::SystemTime::now())?)
    };
    touch(&layers.join("00000001.raw"))?;
    ensure!(volumes.read(id, None)?.changed_since(&state).is_none());
    // So it is with one that was put back from elsewhere.
    let again = volumes.read(id, Some("one"))?.state().map(str::to_owned);
    let path = layers.join("00000001.raw");
    let modified = path.metadata()?.modified()?;
    std::fs::copy(&path, layers.join("copy"))?;
    std::fs::rename(layers.join("copy"), &path)?;
    let file = std::fs::File::options().write(true).open(&path)?;
    file.set_modified(modified)?;
    let again = again.context("a name")?;
    ensure!(volumes.read(id, None)?.changed_since(&again).is_none());
    Ok(())
}

#[test]
fn what_is_being_read_is_not_written_to() -> Result<()> {
    for backend in crate::support::BACKENDS {
        let dir = memory()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let id = empty(&volumes, "data", 16)?.id;
        write(&volumes, "data", 7, 1)?;
        volumes.snapshot(id, "one")?;
        write(&volumes, "data", 8, 1)?;
        let reading = volumes.read(id, None)?;
        let attached = volumes.attach("a", "data", &owner(), VolumeAccess::Exclusive);
        ensure!(attached.is_err(), "{backend:?}: it is being read");
        drop(reading);
        // A snapshot can be read while the volume is written to, and after it is gone.
        let before = exported(&volumes, id, Some("one"))?;
        let reading = volumes.read(id, Some("one"))?;
        write(&volumes, "data", 7, 9)?;
        volumes.remove(id, true)?;
        ensure!(all(&reading)? == before, "{backend:?}");
    }
    Ok(())
}

#[test]
fn a_hostile_overlay_is_refused_or_read_as_its_own_bytes() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Qcow2))?;
    let id = empty(&volumes, "data", 16)?.id;
    write(&volumes, "data", 7, 1)?;
    volumes.snapshot(id, "one")?;
    write(&volumes, "data", 8, 2)?;
    let top = dir.path().join("volumes/layers/00000002.qcow2");
    let healthy = std::fs::read(&top)?;
    let mut backed = healthy.clone();
    // The place and the length of a backing file's name.
    backed[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11]);
    backed[512..523].copy_from_slice(b"/etc/shadow");
    std::fs::write(&top, &backed)?;
    let refused = volumes.read(id, None).map(|_| ());
    let refused = anyhow::Error::from(refused.err().context("it is refused")?);
    let said = format!("{refused:#}");
    ensure!(said.contains("backing file"), "{said}");
    // Tables of garbage: an error or bytes, and the node goes on.
    for seed in 1..12_usize {
        let mut garbled = healthy.clone();
        for (place, byte) in garbled.iter_mut().enumerate().skip(65_536) {
            if place % (97 * seed) == 0 {
                *byte ^= u8::try_from(seed * 19 % 255)?;
            }
        }
        std::fs::write(&top, &garbled)?;
        if let Ok(reading) = volumes.read(id, None) {
            let _ = all(&reading);
        }
    }
    std::fs::write(&top, &healthy)?;
    ensure!(all(&volumes.read(id, None)?)? == exported(&volumes, id, None)?);
    Ok(())
}

#[derive(Debug, Clone)]
enum Op {
    Write { at: u64, length: u64, byte: u8 },
    Zeros { at: u64, length: u64 },
    Snapshot,
    Restore(usize),
    Grow,
    BackUp { snapshot: bool },
}

fn op() -> impl Strategy<Value = Op> {
    // Blocks of 512 bytes, of 24 MiB.
    let place = (0..49_152_u64, 1..2_000_u64);
    prop_oneof![
        4 => (place.clone(), 1..=255_u8)
            .prop_map(|((at, length), byte)| Op::Write { at, length, byte }),
        2 => place.prop_map(|(at, length)| Op::Zeros { at, length }),
        3 => Just(Op::Snapshot),
        1 => (0..8_usize).prop_map(Op::Restore),
        1 => Just(Op::Grow),
        4 => any::<bool>().prop_map(|snapshot| Op::BackUp { snapshot }),
    ]
}

fn history(backend: BackendChoice, ops: &[Op]) -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let place = Place::new()?;
    let id = empty(&volumes, "data", 24)?.id;
    let mut snapshots: Vec<String> = Vec::new();
    let mut backups = Vec::new();
    let mut size = 24;
    let clip = |at: u64, length: u64| (at * 512, length.min(49_152 - at) * 512);
    for op in ops {
        match *op {
            Op::Write { at, length, byte } => {
                let (at, length) = clip(at, length);
                run(&volumes, &[format!("write -P {byte} {at} {length}")])?;
            }
            Op::Zeros { at, length } => {
                let (at, length) = clip(at, length);
                run(&volumes, &[format!("write -z {at} {length}")])?;
            }
            Op::Snapshot => {
                let name = format!("s{}", snapshots.len());
                volumes.snapshot(id, &name)?;
                snapshots.push(name);
            }
            Op::Restore(number) => {
                if let Some(name) = snapshots.get(number) {
                    size = volumes.restore(id, name)?.size.0;
                }
            }
            Op::Grow => {
                size += 3;
                volumes.resize(id, MiB(size))?;
            }
            Op::BackUp { snapshot } => {
                let of = snapshots.last().filter(|_| snapshot).map(String::as_str);
                let reading = volumes.read(id, of)?;
                let bytes = exported(&volumes, id, of)?;
                ensure!(
                    all(&reading)? == bytes,
                    "{op:?}: it reads as something else"
                );
                let (backup, _) = place.back_up(id, reading)?;
                backups.push((backup, bytes));
            }
        }
    }
    for (backup, bytes) in &backups {
        ensure!(
            place.restored(backup)? == *bytes,
            "{backup:?} holds something else"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Whatever was written, kept, restored and grown: each backup holds what the volume did, whether all
    /// of it was read or what changed alone.
    #[test]
    fn any_history_is_backed_up_as_it_was(
        mut ops in prop::collection::vec(op(), 4..16), is_qcow2 in prop::bool::weighted(0.8),
    ) {
        let backend = match is_qcow2 {
            true => BackendChoice::Qcow2,
            false => BackendChoice::Files,
        };
        ops.extend([Op::Snapshot, Op::BackUp { snapshot: true }, Op::BackUp { snapshot: false }]);
        if let Err(error) = history(backend, &ops) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}
