//! A volume of 4 GiB into a folder, and again after a tenth of its data changed, beside restic: ours encrypted,
//! as restic's always is, and once in the clear.
//!
//! The volume is a sparse file with 1.5 GiB of data: half of it noise, half of it text that compresses, in
//! turns of 4 MiB. A change is 10% of the data, overwritten with noise in random places of 4 to 64 KiB.

use crate::Bench;
use crate::row::Row;
use aleph_backup::{
    BackupRequest, Dirty, FileSource, Id, Key, Location, Parent, Repository, Snapshot,
};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

const SIZE: u64 = 4 << 30;
const DATA: u64 = 3 << 29;
const TURN: usize = 4 << 20;
const CHANGES: usize = 2;
const MIB: f64 = (1 << 20) as f64;

pub(crate) fn backup(bench: &Bench) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir_in(bench.root.path())?;
    let volume = folder.path().join("volume");
    let mut random = Random(0x5eed);
    write(&volume, &mut random)?;
    let theirs = Restic::new(folder.path())?;
    let key = Key::new(&[b'k'; 64]).map_err(anyhow::Error::msg)?;
    let new = |name: &str, key| {
        let folder = folder.path().join(name);
        bench.runtime.block_on(Ours::new(folder, key))
    };
    let (ours, clear) = (new("ours", Some(&key))?, new("clear", None)?);

    let (mut first, mut first_bytes) = (Pair::default(), Pair::default());
    let (mut again, mut again_bytes) = (Pair::default(), Pair::default());
    let mut unrecorded = Pair::default();
    let (mut in_clear, mut clear_bytes) = (Vec::new(), Vec::new());
    // What is written once is not sent to the disk while another is measured.
    rustix::fs::sync();
    clear.take(bench, &volume, None, (&mut in_clear, &mut clear_bytes))?;
    rustix::fs::sync();
    let mut last = ours.take(
        bench,
        &volume,
        None,
        (&mut first.ours, &mut first_bytes.ours),
    )?;
    theirs.take(&volume, false, &mut first.theirs, &mut first_bytes.theirs)?;
    for _ in 0..CHANGES {
        let ranges = change(&volume, &mut random)?;
        let dirty = Dirty {
            since: last.id,
            ranges,
        };
        last = ours.take(
            bench,
            &volume,
            Some(dirty),
            (&mut again.ours, &mut again_bytes.ours),
        )?;
        theirs.take(&volume, false, &mut again.theirs, &mut again_bytes.theirs)?;
        // Without a record of what changed both read all of it: restic would go by the file's times.
        let mut no_bytes = Vec::new();
        ours.take(bench, &volume, None, (&mut unrecorded.ours, &mut no_bytes))?;
        theirs.take(&volume, true, &mut unrecorded.theirs, &mut no_bytes)?;
    }
    ours.check(bench, last.id, &volume)?;
    let row = |name: &str, unit, pair: &Pair| {
        Row::new(name, unit, &pair.ours)
            .against("restic", &pair.theirs)
            .at_most_times(1.0)
    };
    Ok(vec![
        row(
            "backup of a volume of 4 GiB with 1.5 GiB of data",
            "s",
            &first,
        ),
        row("what it takes in the store", "MiB", &first_bytes),
        Row::new("the same backup, not encrypted", "s", &in_clear)
            .against("encrypted", &first.ours)
            .at_most_times(1.0),
        row(
            "backup after 10% of the data changed, with a record of changes",
            "s",
            &again,
        ),
        row("what that adds to the store", "MiB", &again_bytes),
        row(
            "backup of what is there already, without a record",
            "s",
            &unrecorded,
        ),
    ])
}

#[derive(Default)]
struct Pair {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// A xorshift generator: the same data in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            word.copy_from_slice(bytes.get(..word.len()).unwrap_or_default());
        }
    }
}

fn write(path: &Path, random: &mut Random) -> Result<()> {
    let file = File::create_new(path)?;
    file.set_len(SIZE)?;
    let mut turn = vec![0; TURN];
    let mut at = 0;
    for number in 0.. {
        if at >= DATA {
            break;
        }
        if number % 2 == 0 {
            random.fill(&mut turn);
        } else {
            for line in turn.chunks_mut(64) {
                let text = format!(
                    "{:016x} GET /index.html 200 in {:>6} us\n{:24}",
                    random.next(),
                    random.next() % 900_000,
                    ""
                );
                line.copy_from_slice(text.as_bytes().get(..line.len()).context("a short line")?);
            }
        }
        file.write_all_at(&turn, at)?;
        at += u64::try_from(TURN)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Overwrites a tenth of the data; says where.
fn change(path: &Path, random: &mut Random) -> Result<Vec<Range<u64>>> {
    let file = File::options().write(true).open(path)?;
    let mut ranges = Vec::new();
    let mut changed = 0;
    while changed < DATA / 10 {
        let pages = 1 + random.next() % 16;
        let at = random.next() % (DATA / 4096 - pages) * 4096;
        let mut bytes = vec![0; usize::try_from(pages * 4096)?];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, at)?;
        ranges.push(at..at + pages * 4096);
        changed += pages * 4096;
    }
    file.sync_all()?;
    Ok(ranges)
}

struct Ours {
    repository: Repository,
    folder: PathBuf,
}

impl Ours {
    async fn new(folder: PathBuf, key: Option<&Key>) -> Result<Self> {
        let location = Location::parse(&format!("file://{}", folder.display()))?;
        Ok(Self {
            repository: Repository::open_or_create(&location, key).await?,
            folder,
        })
    }

    fn take(
        &self,
        bench: &Bench,
        volume: &Path,
        dirty: Option<Dirty>,
        (seconds, mib): (&mut Vec<f64>, &mut Vec<f64>),
    ) -> Result<Snapshot> {
        let before = taken(&self.folder)?;
        let began = Instant::now();
        let mut source = FileSource::new(File::open(volume)?)?;
        if let Some(dirty) = dirty {
            source = source.with_dirty(dirty);
        }
        let request = BackupRequest {
            volume: "bench".to_owned(),
            parent: Parent::Latest,
            ..BackupRequest::default()
        };
        let backup = self.repository.backup(Arc::new(source), request);
        let snapshot = bench.runtime.block_on(backup)?;
        seconds.push(began.elapsed().as_secs_f64());
        mib.push(taken(&self.folder)? - before);
        Ok(snapshot)
    }

    /// A backup that cannot be restored is no backup.
    fn check(&self, bench: &Bench, snapshot: Id, volume: &Path) -> Result<()> {
        let target = volume.with_extension("restored");
        let restore = self.repository.restore(aleph_backup::RestoreRequest {
            snapshot,
            target: target.clone(),
            progress: aleph_backup::ProgressSink::default(),
        });
        bench.runtime.block_on(restore)?;
        let same = Command::new("cmp").arg(volume).arg(&target).status()?;
        ensure!(same.success(), "what was restored differs");
        std::fs::remove_file(target)?;
        Ok(())
    }
}

struct Restic {
    repository: PathBuf,
}

impl Restic {
    fn new(folder: &Path) -> Result<Self> {
        let restic = Self {
            repository: folder.join("restic"),
        };
        restic.run(&["init"])?;
        Ok(restic)
    }

    fn take(
        &self,
        volume: &Path,
        reads_all: bool,
        seconds: &mut Vec<f64>,
        mib: &mut Vec<f64>,
    ) -> Result<()> {
        let before = taken(&self.repository)?;
        let volume = volume.display().to_string();
        let again: &[&str] = if reads_all { &["--force"] } else { &[] };
        let began = Instant::now();
        self.run(&[&["backup", volume.as_str()], again].concat())?;
        seconds.push(began.elapsed().as_secs_f64());
        mib.push(taken(&self.repository)? - before);
        Ok(())
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("restic")
            .args(["--quiet", "--no-cache", "--repo"])
            .arg(&self.repository)
            .args(args)
            .env("RESTIC_PASSWORD", "bench")
            .stdin(Stdio::null())
            .output()
            .context("restic is not there: setup/packages installs it")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "restic {args:?}: {said}");
        Ok(())
    }
}

/// The MiB of all files below a folder.
#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn taken(folder: &Path) -> Result<f64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += metadata.len();
            }
        }
    }
    Ok(bytes as f64 / MIB)
}
