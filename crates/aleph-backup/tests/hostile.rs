//! Stores that somebody else writes to, and what broken writes leave in them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use aleph_backup::{
    BackupError, BackupRequest, ChunkBounds, Depth, Id, Location, ProgressSink, PruneOptions,
    Repository, RestoreRequest, Snapshot,
};
use aleph_types::Classify;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use support::{Volume, noise, objects, overwrite, packed};

const MIB: usize = 1 << 20;

const NOW: PruneOptions = PruneOptions {
    grace: Duration::ZERO,
    unused_percent: 20,
};

async fn in_memory() -> (Arc<InMemory>, Repository) {
    let store = Arc::new(InMemory::new());
    let chunks = ChunkBounds::default();
    let repository = Repository::create_in(store.clone(), chunks, None).await;
    (store, repository.unwrap())
}

async fn back_up(repository: &Repository, bytes: Vec<u8>) -> Result<Snapshot, BackupError> {
    let request = BackupRequest {
        volume: "data".to_owned(),
        ..BackupRequest::default()
    };
    repository
        .backup(Arc::new(Volume::new(bytes)), request)
        .await
}

async fn restored(repository: &Repository, snapshot: Id) -> Result<Vec<u8>, BackupError> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("volume");
    let request = RestoreRequest {
        snapshot,
        target: target.clone(),
        progress: ProgressSink::default(),
    };
    repository.restore(request).await?;
    Ok(fs::read(target).unwrap())
}

async fn prune(repository: &Repository, options: PruneOptions) -> aleph_backup::PruneReport {
    let pruned = repository.prune(options, &ProgressSink::default()).await;
    pruned.unwrap()
}

/// An index object of one pack, as the format has it.
fn index_of(pack: Id, size: u64, entries: &[(u32, u32)]) -> Vec<u8> {
    let mut plain = b"alephix1".to_vec();
    plain.extend(pack.as_bytes());
    plain.extend(size.to_le_bytes());
    plain.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
    for (stored, raw) in entries {
        plain.extend([0, 1]);
        plain.extend(stored.to_le_bytes());
        plain.extend(raw.to_le_bytes());
        plain.extend([7; 32]);
    }
    zstd::bulk::compress(&plain, 3).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_any_of_its_kind_is_not_read() {
    let (store, repository) = in_memory().await;
    let bytes = noise(1, 2 * MIB);
    let snapshot = back_up(&repository, bytes.clone()).await.unwrap();
    let put = async |folder: &str, content: Vec<u8>| {
        let path = Path::from(format!("{folder}/{}", Id::of(&content)));
        overwrite(&*store, &path, content).await;
        path
    };
    // A snapshot, an index that unpacks to half a gigabyte, one that names more than its pack has room for,
    // and one whose blobs are stored longer than they are.
    let mut bomb = b"alephix1".to_vec();
    bomb.resize(512 * MIB, 0);
    let bomb = zstd::bulk::compress(&bomb, 3).unwrap();
    let pack = objects(&*store, "packs").await.remove(0);
    let id: Id = pack.location.filename().unwrap().parse().unwrap();
    for (folder, content, why) in [
        (
            "snapshots",
            vec![b' '; 100 << 10],
            "none of its kind has more",
        ),
        ("index", bomb, "larger than any"),
        (
            "index",
            index_of(id, 100, &[(1, 5); 1000]),
            "too early or too late",
        ),
        (
            "index",
            index_of(id, pack.size, &[(1 << 20, 1)]),
            "too early or too late",
        ),
        (
            "index",
            index_of(id, 1 << 40, &[(1, 5)]),
            "too early or too late",
        ),
    ] {
        let path = put(folder, content).await;
        let report = repository
            .verify(Depth::Structure, &ProgressSink::default())
            .await;
        let report = report.unwrap();
        let told = report.damage.iter().any(|damage| damage.what.contains(why));
        assert!(told, "{folder}: {report:?}");
        store.delete(&path).await.unwrap();
    }
    assert!(restored(&repository, snapshot.id).await.unwrap() == bytes);

    // A lock that cannot be read holds; a configuration of a megabyte is none.
    let lock = put("locks", vec![b'x'; 100 << 10]).await;
    assert!(back_up(&repository, bytes.clone()).await.is_err());
    store.delete(&lock).await.unwrap();
    overwrite(&*store, &Path::from("config"), vec![b' '; MIB]).await;
    let opened = Repository::create_in(store.clone(), ChunkBounds::default(), None).await;
    assert_eq!(opened.unwrap_err().code(), "backup_object_damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_anew_is_found_before_what_is_damaged() {
    let (store, repository) = in_memory().await;
    let bytes = noise(2, 3 * MIB);
    back_up(&repository, bytes.clone()).await.unwrap();
    let pack = objects(&*store, "packs").await;
    let pack = pack.iter().max_by_key(|meta| meta.size).unwrap();
    let content = store
        .get(&pack.location)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let mut flipped = content.to_vec();
    flipped[1000] ^= 1;
    overwrite(&*store, &pack.location, flipped).await;
    let verify = async || {
        let report = repository
            .verify(Depth::Full, &ProgressSink::default())
            .await;
        report.unwrap().damage
    };
    assert!(!verify().await.is_empty());
    // More than before, so that no pack is the very same again.
    let mut more = noise(3, MIB);
    more.extend(&bytes);
    let second = back_up(&repository, more.clone()).await.unwrap();
    assert!(store.get(&pack.location).await.is_ok());
    assert!(restored(&repository, second.id).await.unwrap() == more);
    // It goes, with the mark.
    for _ in 0..2 {
        let first = repository.snapshots().await.unwrap();
        let others: Vec<Id> = first
            .iter()
            .map(|s| s.id)
            .filter(|id| *id != second.id)
            .collect();
        repository.forget(&others).await.unwrap();
        prune(&repository, NOW).await;
    }
    assert_eq!(verify().await, []);
    assert_eq!(objects(&*store, "damaged").await, []);
    assert!(restored(&repository, second.id).await.unwrap() == more);
}

/// What was put in the trash and is written again has its grace anew: a backup that lost its lock may be
/// about to refer to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_again_leaves_the_trash() {
    let (store, repository) = in_memory().await;
    let bytes = noise(4, 2 * MIB);
    let snapshot = back_up(&repository, bytes.clone()).await.unwrap();
    repository.forget(&[snapshot.id]).await.unwrap();
    assert!(prune(&repository, NOW).await.trashed > 0);
    let again = back_up(&repository, bytes.clone()).await.unwrap();
    repository.forget(&[again.id]).await.unwrap();
    let before = packed(&*store).await;
    let report = prune(&repository, NOW).await;
    assert_eq!((report.deleted, packed(&*store).await), (0, before));
    assert!(report.trashed > 0);
    assert_eq!(prune(&repository, NOW).await.freed, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_written_files_go_with_a_prune() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::parse(&format!("file://{}", folder.path().display())).unwrap();
    let repository = Repository::open_or_create(&location, None).await.unwrap();
    let bytes = noise(5, MIB);
    let snapshot = back_up(&repository, bytes.clone()).await.unwrap();
    let pack = fs::read_dir(folder.path().join("packs"))
        .unwrap()
        .next()
        .unwrap();
    let packs = pack.unwrap().path();
    // As a store leaves them whose process dies: beside what they were to become, under a number.
    let whole = fs::read_dir(&packs)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let beside = |number: &str| {
        let mut name = whole.clone().into_os_string();
        name.push(number);
        std::path::PathBuf::from(name)
    };
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for number in ["#1", "#22", "#3"] {
        fs::write(beside(number), b"half").unwrap();
        if number != "#3" {
            let file = File::options().write(true).open(beside(number)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
    }
    let file = File::options().write(true).open(&whole).unwrap();
    file.set_modified(long_ago).unwrap();
    prune(&repository, NOW).await;
    assert!(!beside("#1").exists() && !beside("#22").exists());
    assert!(beside("#3").exists(), "somebody may be writing it now");
    assert!(restored(&repository, snapshot.id).await.unwrap() == bytes);
    let report = repository
        .verify(Depth::Full, &ProgressSink::default())
        .await;
    assert_eq!(report.unwrap().damage, []);
}

/// A volume that a store makes larger than anybody said: one chunk again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_writes_no_more_than_it_may() {
    let (_, repository) = in_memory().await;
    let bytes = noise(7, MIB).repeat(24);
    let snapshot = back_up(&repository, bytes.clone()).await.unwrap();
    assert!(snapshot.stats.stored < 3 * MIB as u64);
    let restore = async |most: usize| {
        let file = tempfile::tempfile().unwrap();
        let into = file.try_clone().unwrap();
        let progress = ProgressSink::default();
        let done = repository.restore_into(snapshot.id, into, most as u64, progress);
        (done.await, file)
    };
    let (done, file) = restore(5 * MIB).await;
    let error = done.unwrap_err();
    assert_eq!(error.code(), "backup_target_failed");
    assert_eq!(error.class(), aleph_types::ErrorClass::Capacity, "{error}");
    let taken = file.metadata().unwrap().blocks() * 512;
    assert!(taken <= 6 * MIB as u64, "{taken} bytes were taken");
    let (done, file) = restore(24 * MIB).await;
    assert_eq!(done.unwrap().written, 24 * MIB as u64);
    let mut back = Vec::new();
    let mut file = file;
    file.rewind().unwrap();
    file.read_to_end(&mut back).unwrap();
    assert!(back == bytes);
}
