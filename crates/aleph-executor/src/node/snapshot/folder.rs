//! A snapshot's folder, from the first file to its removal. All of it blocks.

use super::SnapshotError;
use crate::guest::MainPosition;
use crate::journal::RunRecord;
use crate::paths::Paths;
use aleph_types::{JobSpec, Snapshot, SnapshotId};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The form of what is written. One of another form is not gone on from.
const FORM: u32 = 1;

/// Marks a folder that is not whole, or not any more.
const UNFINISHED: &str = ".tmp-";

/// What is written beside a guest's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct Record {
    pub(super) form: u32,
    /// What is told of it.
    pub(in crate::node) snapshot: Snapshot,
    /// What was asked for: what a restart of a job that goes on from it boots.
    pub(in crate::node) spec: JobSpec,
    /// What it ran as.
    pub(in crate::node) run: RunRecord,
    /// What its VMM's guests depend on.
    pub(super) compatible_with: String,
    /// Whether the guest has a network device.
    pub(super) connected: bool,
    main_stream: u32,
    main_received: u64,
}

impl Record {
    pub(super) fn new(snapshot: Snapshot, spec: JobSpec, run: RunRecord) -> Self {
        Self {
            form: FORM,
            snapshot,
            spec,
            run,
            compatible_with: String::new(),
            connected: false,
            main_stream: 0,
            main_received: 0,
        }
    }

    /// How far its main command's output is stored.
    pub(in crate::node) fn main(&self) -> MainPosition {
        MainPosition {
            stream: self.main_stream,
            received: self.main_received,
        }
    }

    pub(super) fn stands_at(&mut self, main: MainPosition) {
        (self.main_stream, self.main_received) = (main.stream, main.received);
        self.run.log_base = main.received;
    }
}

/// The folder with all snapshots.
pub(super) fn all(paths: &Paths) -> PathBuf {
    paths.state().join("snapshots")
}

fn name(id: SnapshotId) -> String {
    id.to_string().trim_start_matches("0x").to_owned()
}

/// A snapshot's folder, once it is whole.
pub(super) fn folder(paths: &Paths, id: SnapshotId) -> PathBuf {
    all(paths).join(name(id))
}

/// The file with a guest's devices and memory.
pub(in crate::node) fn state(paths: &Paths, id: SnapshotId) -> PathBuf {
    folder(paths, id).join("state")
}

/// The file with a guest's scratch disk.
pub(in crate::node) fn scratch(paths: &Paths, id: SnapshotId) -> PathBuf {
    folder(paths, id).join("scratch.img")
}

/// A folder in which a snapshot is made. It goes where the snapshot does not come to be.
#[derive(Debug)]
pub(super) struct Work {
    path: PathBuf,
    whole: PathBuf,
}

impl Work {
    pub(super) fn begin(paths: &Paths, id: SnapshotId) -> Result<Self, SnapshotError> {
        let path = all(paths).join(format!("{UNFINISHED}{}", name(id)));
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&path)
            .map_err(SnapshotError::at("make", &path))?;
        let whole = folder(paths, id);
        Ok(Self { path, whole })
    }

    /// Opens the file that the state is written to.
    pub(super) fn state(&self) -> Result<File, SnapshotError> {
        let path = self.path.join("state");
        File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(SnapshotError::at("make", &path))
    }

    /// Where the guest's disk is copied to.
    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join("scratch.img")
    }

    /// Whether hardly anything more can be written.
    pub(super) fn is_on_a_full_disk(&self) -> bool {
        const HARDLY: u64 = 1 << 20;
        rustix::fs::statvfs(&self.path)
            .is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < HARDLY)
    }

    /// Makes it durable, and then a snapshot.
    pub(super) fn finish(self, mut record: Record) -> Result<Record, SnapshotError> {
        record.snapshot.size = size(&self.path);
        let path = self.path.join("snapshot.json");
        let json = serde_json::to_vec_pretty(&record).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json))
            .map_err(SnapshotError::at("write", &path))?;
        let files = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let files = files.map_err(SnapshotError::at("read", &self.path))?;
        let paths = files.iter().map(fs::DirEntry::path);
        for path in paths.chain([self.path.clone()]) {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(SnapshotError::at("write out", &path))?;
        }
        crate::failpoint::pass("snapshot.name", "before");
        fs::rename(&self.path, &self.whole).map_err(SnapshotError::at("name", &self.whole))?;
        crate::failpoint::pass("snapshot.name", "after");
        let parent = self.whole.parent().unwrap_or(&self.whole);
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(SnapshotError::at("write out", parent))?;
        Ok(record)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Where it became a snapshot there is nothing of this name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Copies the disk of a guest that stands still.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let original = File::open(from).map_err(SnapshotError::at("open", from))?;
    crate::place::copy_sparse(&original, to)
        .map(drop)
        .map_err(SnapshotError::at("copy the disk to", to))
}

/// Bytes that the files of a folder take on disk.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let blocks = entries.filter_map(|entry| entry.metadata().ok().map(|meta| meta.blocks()));
    blocks.sum::<u64>().saturating_mul(512)
}

/// Reads what is written beside a guest's state; none where it is not there, or of another form.
pub(super) fn read(paths: &Paths, id: SnapshotId) -> Option<Record> {
    let text = fs::read(folder(paths, id).join("snapshot.json")).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    (record.form == FORM && record.snapshot.id == id).then_some(record)
}

/// Removes a snapshot's folder. Whoever goes on from it has its files open.
pub(super) fn remove(paths: &Paths, id: SnapshotId) -> Result<(), SnapshotError> {
    let (whole, path) = (
        folder(paths, id),
        all(paths).join(format!("{UNFINISHED}{}", name(id))),
    );
    // Renamed first: half a folder is never taken for a snapshot.
    match fs::rename(&whole, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(SnapshotError::at("remove", &whole))?,
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(SnapshotError::at("remove", &path)),
    }
}

/// Removes all folders but those of these snapshots: what a crash left.
pub(super) fn remove_strays(paths: &Paths, known: &[SnapshotId]) {
    let known: Vec<_> = known.iter().map(|id| folder(paths, *id)).collect();
    for entry in fs::read_dir(all(paths)).into_iter().flatten().flatten() {
        if !known.contains(&entry.path())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a half-made snapshot stays");
        }
    }
}
