//! A thin pool on a disk of which a part fails.

use crate::failing::{MIB, back_up, fill, holds, is_a_fault, refused, unreadable};
use crate::faulty_disk::FaultyDisk;
use crate::support::{POOL, config, empty, layers, named, owner};
use crate::{THIN, lvm, pool_on, run};
use aleph_executor::volumes::{Source, Volumes};
use aleph_types::{DiskImageFormat, MiB, VolumeAccess};
use anyhow::{Result, ensure};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What of the disk these bytes of the pool's data are, in sectors.
fn parts_of(bytes: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let table = run("/usr/sbin/dmsetup", &["table", "group--1-pool_tdata"])?;
    // `0 524288 linear 253:0 20480`
    let fields: Vec<&str> = table.split_whitespace().collect();
    ensure!(
        fields.len() == 5 && fields[2] == "linear",
        "it is in pieces: {table}"
    );
    let begin: u64 = fields[4].parse()?;
    let part = begin + bytes.start / 512..begin + bytes.end / 512;
    Ok(vec![part])
}

pub(crate) fn a_pool_that_cannot_be_read_loses_nothing_else() -> Result<()> {
    let disk = FaultyDisk::new(MiB(320))?;
    pool_on(FaultyDisk::PATH, 256, 1)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    let id = empty(&volumes, "data", 16)?.id;
    let before = [(0..4 * MIB, 7)];
    let now = [(0..4 * MIB, 7), (4 * MIB..6 * MIB, 8)];
    fill(&volumes, "data", &before[0].0, 7)?;
    volumes.snapshot(id, "before")?;
    fill(&volumes, "data", &now[1].0, 8)?;
    // The first that were written are the pool's first.
    disk.fails(&parts_of(&(MIB..2 * MIB))?)?;

    // What reads it is refused.
    let mut piece = vec![0; 4096];
    let image = volumes.read(id, None)?;
    image.read_at(5 * MIB, &mut piece)?;
    ensure!(piece.iter().all(|byte| *byte == 8), "{}", piece[0]);
    is_a_fault(image.read_at(MIB, &mut piece))?;
    drop(image);
    refused(volumes.export(id, None, DiskImageFormat::Qcow2))?;
    let image = volumes.export(id, None, DiskImageFormat::Raw)?;
    is_a_fault(image.read_exact_at(&mut piece, MIB))?;
    drop(image);
    unreadable(back_up(&volumes, id)?)?;
    ensure!(layers(dir.path(), THIN)? == 2, "layers stay");

    // What shares it does not read it: all of that goes on.
    volumes.resize(id, MiB(20))?;
    volumes.snapshot(id, "after")?;
    let copy = volumes
        .clone_of(named("copy"), Source::Snapshot(id, "before"), None)?
        .id;
    // Where a part of what is shared is written, the rest is read: that is not acknowledged.
    let who = owner();
    let held = volumes.attach("a", "copy", &who, VolumeAccess::Exclusive)?;
    let (top, part) = (&held.layers.top, vec![9; 4096]);
    is_a_fault(top.write_all_at(&part, MIB).and_then(|()| top.sync_all()))?;
    top.write_all_at(&part, 3 * MIB)?;
    top.sync_all()?;
    drop(held);
    volumes.release(&who, true)?;
    refused(volumes.export(copy, None, DiskImageFormat::Qcow2))?;
    volumes.remove(copy, true)?;
    ensure!(layers(dir.path(), THIN)? == 3, "layers stay");

    // Once it works, all is there.
    disk.works_and_is_read()?;
    drop(volumes);
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    holds(&volumes, id, None, &now)?;
    holds(&volumes, id, Some("after"), &now)?;
    holds(&volumes, id, Some("before"), &before)?;
    back_up(&volumes, id)??;
    volumes.restore(id, "before")?;
    holds(&volumes, id, None, &before)?;
    volumes.remove(id, true)?;
    ensure!(layers(dir.path(), THIN)? == 0, "layers stay");
    lvm(&["lvs", POOL]).map(drop)
}
