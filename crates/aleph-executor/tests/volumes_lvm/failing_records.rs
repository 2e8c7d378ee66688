//! A disk that fails below the records of volumes: whatever of a change could be written down, whoever opens the
//! volumes next finds what there was before it, or after it, with each byte that was durable.

use crate::failing::{MIB, NODE, fill, holds, refused};
use crate::faulty_disk::FaultyDisk;
use crate::support::{config, empty, layers, named};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{BackendChoice, Source, VolumeError, Volumes};
use aleph_types::{Classify, DiskImageFormat, ErrorClass, Filesystem, MiB, VolumeId};
use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Copies, so that what is below is never more than what has a name.
const BACKEND: BackendChoice = BackendChoice::Files;

/// How much of the records' log has its place from the beginning: more than any change takes.
const LOG: u64 = 256 << 10;

/// What is written of it at a time.
const BLOCK: u64 = 4096;

const MODEL: [(Range<u64>, u8); 1] = [(0..2 * MIB, 7)];

fn open() -> Result<Volumes> {
    Ok(Volumes::open(Path::new(NODE), config(BACKEND))?)
}

/// A node whose whole state is on a disk that can fail, with one volume.
fn node() -> Result<(FaultyDisk, VolumeId)> {
    let disk = FaultyDisk::new(MiB(192))?;
    disk.format()?;
    disk.mount(NODE)?;
    let volumes = open()?;
    let id = empty(&volumes, "data", 4)?.id;
    fill(&volumes, "data", &MODEL[0].0, 7)?;
    Ok((disk, id))
}

/// A change, and how it is taken back. It makes one layer.
type Change = (
    fn(&Volumes, VolumeId) -> Result<(), VolumeError>,
    fn(&Volumes, VolumeId) -> Result<(), VolumeError>,
);

const CHANGES: [Change; 2] = [
    (
        |volumes, id| volumes.snapshot(id, "kept").map(drop),
        |volumes, id| volumes.remove_snapshot(id, "kept"),
    ),
    (
        |volumes, id| {
            let copied = volumes.clone_of(named("copy"), Source::Volume(id), None);
            copied.map(drop)
        },
        |volumes, _| volumes.remove(volumes.find(&Scope::All, "copy")?.id, true),
    ),
];

/// Whether a change is there: all of it, or nothing.
fn is_there(volumes: &Volumes, id: VolumeId) -> Result<bool> {
    let all = volumes.list(&Scope::All, true)?;
    let states: usize = all.iter().map(|volume| 1 + volume.snapshots.len()).sum();
    for volume in &all {
        holds(volumes, volume.id, None, &MODEL)?;
        for snapshot in &volume.snapshots {
            holds(volumes, volume.id, Some(&snapshot.name), &MODEL)?;
        }
    }
    let left = layers(Path::new(NODE), BACKEND)?;
    ensure!(left == states, "{left} layers of {states} states");
    ensure!(all.iter().any(|volume| volume.id == id), "it is gone");
    Ok(states > 1)
}

pub(crate) fn records_that_cannot_be_written_leave_one_state_or_the_other() -> Result<()> {
    let (disk, id) = node()?;
    for (change, undo) in CHANGES {
        let (mut refusals, mut is_done) = (0, false);
        while !is_done {
            let volumes = open()?;
            // From one place of their log on, which is one further each time.
            let log = Path::new(NODE).join("volumes/volumes.db-wal");
            let file = File::options().write(true).open(&log)?;
            let begun = file.metadata()?.len().next_multiple_of(BLOCK);
            fallocate(&file, FallocateFlags::KEEP_SIZE, 0, LOG)?;
            file.sync_all()?;
            let begin = begun + refusals * BLOCK;
            ensure!(begin < LOG, "it is never done");
            disk.fails(&disk.parts_of(&log, &(begin..LOG))?)?;
            match change(&volumes, id) {
                Ok(()) => is_done = true,
                failed => refused(failed)?,
            }
            holds(&volumes, id, None, &MODEL)?;
            drop(volumes);
            // What was told not to be written down may be there all the same, or not.
            match refusals % 2 {
                0 => disk.works()?,
                _ => disk.works_and_is_read()?,
            }
            let volumes = open()?;
            let is_there = is_there(&volumes, id)
                .with_context(|| format!("after {refusals} blocks of the log"))?;
            ensure!(is_there || !is_done, "it was done, and is gone");
            if is_there {
                undo(&volumes, id)?;
            }
            refusals += u64::from(!is_done);
        }
        ensure!(refusals > 2, "{refusals}: it was hardly ever refused");
    }
    Ok(())
}

pub(crate) fn a_disk_that_fails_whole_is_told_and_has_what_it_had() -> Result<()> {
    let (disk, id) = node()?;
    let volumes = open()?;
    volumes.snapshot(id, "first")?;
    disk.fails_whole()?;
    for (change, _) in CHANGES {
        refused(change(&volumes, id))?;
    }
    let none = Filesystem::None;
    refused(volumes.create(named("made"), MiB(4), none))?;
    refused(volumes.resize(id, MiB(8)))?;
    refused(volumes.restore(id, "first"))?;
    refused(volumes.remove_snapshot(id, "first"))?;
    refused(volumes.remove(id, true))?;
    refused(volumes.export(id, None, DiskImageFormat::Qcow2))?;
    drop(volumes);
    // Nor can they be opened; whoever tries is told.
    let error = Volumes::open(Path::new(NODE), config(BACKEND)).err();
    let error = error.context("they are opened all the same")?;
    ensure!(error.class() == ErrorClass::Unavailable, "{error:?}");

    disk.works()?;
    disk.mount_again(NODE)?;
    let volumes = open()?;
    ensure!(is_there(&volumes, id)?, "the snapshot is gone");
    let found = volumes.get(id)?;
    ensure!(found.size == MiB(4), "{found:?}");
    ensure!(found.snapshots.len() == 1, "{found:?}");
    volumes.remove_snapshot(id, "first")?;
    for (change, undo) in CHANGES {
        change(&volumes, id)?;
        ensure!(is_there(&volumes, id)?, "it is not there");
        undo(&volumes, id)?;
    }
    volumes.remove(id, true)?;
    ensure!(layers(Path::new(NODE), BACKEND)? == 0, "a layer stays");
    Ok(())
}
