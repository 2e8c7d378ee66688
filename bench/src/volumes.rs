//! Snapshots and copies of volumes as overlays: of one of 64 GiB beside one of 1 GiB.
//!
//! Each has a page of data in every MiB, so what is kept of where its data is grows with it. A snapshot comes
//! after a job had the volume for writing: of one that nobody wrote to, it would be a row alone.

use crate::Bench;
use crate::row::Row;
use aleph_executor::volumes::{
    BackendChoice, Import, NewVolume, Owner, Source, Volumes, VolumesConfig,
};
use aleph_types::{DiskImageFormat, Incarnation, JobId, VolumeAccess, VolumeId};
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// How many of each: the chain stays below its bound, at which a disk is copied.
const ROUNDS: usize = 10;
const MILLI: f64 = 1e3;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const REFERENCE: &str = "the same of a volume of 1 GiB";

pub(crate) fn volumes(bench: &Bench) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir_in(bench.root.path())?;
    let config = VolumesConfig {
        backend: BackendChoice::Qcow2,
        ..VolumesConfig::default()
    };
    let volumes = Volumes::open(folder.path(), config)?;
    let disks = [
        Disk::new(&volumes, folder.path(), "small", GIB)?,
        Disk::new(&volumes, folder.path(), "large", 64 * GIB)?,
    ];
    let [mut small, mut large] = [Samples::default(), Samples::default()];
    for round in 0..ROUNDS {
        disks[0].measure(&volumes, round, &mut small)?;
        disks[1].measure(&volumes, round, &mut large)?;
    }
    let row = |name: &str, large: &[f64], small: &[f64]| {
        Row::new(name, "ms", large)
            .against(REFERENCE, small)
            .at_most_times(1.3)
    };
    Ok(vec![
        row(
            "snapshot of a volume of 64 GiB",
            &large.snapshot,
            &small.snapshot,
        ),
        row("copy of such a snapshot", &large.copy, &small.copy),
    ])
}

#[derive(Default)]
struct Samples {
    snapshot: Vec<f64>,
    copy: Vec<f64>,
}

struct Disk {
    name: &'static str,
    id: VolumeId,
}

impl Disk {
    fn new(
        volumes: &Volumes,
        folder: &std::path::Path,
        name: &'static str,
        size: u64,
    ) -> Result<Self> {
        let image = folder.join("image");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&image)?;
        file.set_len(size)?;
        for place in 0..size / MIB {
            file.write_all_at(&[1; 4096], place * MIB)?;
        }
        let how = Import {
            format: Some(DiskImageFormat::Raw),
            size: None,
        };
        let new = NewVolume {
            account: "a",
            name,
            encrypted: None,
        };
        let id = volumes.import(new, &file, how)?.id;
        std::fs::remove_file(image)?;
        Ok(Self { name, id })
    }

    fn measure(&self, volumes: &Volumes, round: usize, samples: &mut Samples) -> Result<()> {
        let owner = Owner {
            job: JobId::random(),
            incarnation: Incarnation::default(),
        };
        drop(volumes.attach("a", self.name, &owner, VolumeAccess::Exclusive)?);
        volumes.release(&owner, true)?;
        let name = format!("s{round}");
        let began = Instant::now();
        volumes.snapshot(self.id, &name)?;
        samples.snapshot.push(began.elapsed().as_secs_f64() * MILLI);
        let copy = format!("{}-{round}", self.name);
        let new = NewVolume {
            account: "a",
            name: &copy,
            encrypted: None,
        };
        let began = Instant::now();
        let copy = volumes.clone_of(new, Source::Snapshot(self.id, &name), None)?;
        samples.copy.push(began.elapsed().as_secs_f64() * MILLI);
        volumes.remove(copy.id, true)?;
        Ok(())
    }
}
