//! Backups, increments, restores, damage and pruning, in a store in memory and in a folder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use aleph_backup::{
    BackupError, BackupRequest, ChunkBounds, Depth, FileSource, Id, Location, Parent, Progress,
    ProgressSink, PruneOptions, Refusal, Repository, RestoreRequest, Snapshot,
};
use aleph_types::Classify;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use proptest::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Break, Breaking, Volume, copy_of, noise, objects, overwrite, packed};
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

/// A prune that deletes whatever an earlier one found.
const NOW: PruneOptions = PruneOptions {
    grace: Duration::ZERO,
    unused_percent: 20,
};

async fn in_memory() -> (Arc<InMemory>, Repository) {
    let store = Arc::new(InMemory::new());
    let repository = Repository::create_in(store.clone(), ChunkBounds::default(), None)
        .await
        .unwrap();
    (store, repository)
}

async fn back_up(repository: &Repository, volume: Volume) -> Result<Snapshot, BackupError> {
    let request = BackupRequest {
        volume: "data".to_owned(),
        ..BackupRequest::default()
    };
    repository.backup(Arc::new(volume), request).await
}

async fn restored(repository: &Repository, snapshot: Id) -> Result<Vec<u8>, BackupError> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("volume");
    restore_to(repository, snapshot, &target).await?;
    Ok(fs::read(target).unwrap())
}

async fn restore_to(
    repository: &Repository,
    snapshot: Id,
    target: &Path,
) -> Result<aleph_backup::RestoreReport, BackupError> {
    repository
        .restore(RestoreRequest {
            snapshot,
            target: target.to_owned(),
            progress: ProgressSink::default(),
        })
        .await
}

async fn assert_whole(repository: &Repository) {
    let report = repository
        .verify(Depth::Full, &ProgressSink::default())
        .await
        .unwrap();
    assert_eq!(report.damage, [], "{report:?}");
}

/// A volume of noise, text and zeros.
fn mixed(seed: u64) -> Vec<u8> {
    let mut bytes = noise(seed, 3 * MIB);
    bytes.extend(b"a line that says the same again\n".repeat(20_000));
    bytes.resize(20 * MIB + 1234, 0);
    bytes[17 * MIB..18 * MIB].copy_from_slice(&noise(seed + 1, MIB));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_back_and_its_zeros_cost_nothing() {
    let (store, repository) = in_memory().await;
    let bytes = mixed(1);
    let snapshot = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    assert_eq!(snapshot.size, bytes.len() as u64);
    assert_eq!(restored(&repository, snapshot.id).await.unwrap(), bytes);
    assert_whole(&repository).await;
    let stored = packed(&*store).await;
    assert!(
        stored < 4 * MIB as u64 + 100_000,
        "{stored} bytes for 4 MiB of noise and text"
    );

    // A hundred gigabytes of nothing are one small record.
    struct Hole;
    impl aleph_backup::Source for Hole {
        fn size(&self) -> u64 {
            100 << 30
        }
        fn allocated(&self) -> std::io::Result<Vec<std::ops::Range<u64>>> {
            Ok(Vec::new())
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }
    let request = BackupRequest::default();
    let hole = repository.backup(Arc::new(Hole), request).await.unwrap();
    assert_eq!(hole.root, None);
    assert_eq!(packed(&*store).await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_reads_and_stores_what_changed_alone() {
    let (store, repository) = in_memory().await;
    let mut bytes = mixed(2);
    let first = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let before = packed(&*store).await;

    let at = 2 * MIB + 777;
    bytes[at..at + 5000].copy_from_slice(&noise(9, 5000));
    // Written where zeros were, and zeros where something was.
    bytes[10 * MIB..10 * MIB + 100].fill(7);
    bytes[17 * MIB..17 * MIB + 512 * 1024].fill(0);
    let changes = vec![
        at as u64..at as u64 + 5000,
        10 << 20..(10 << 20) + 4096,
        17 << 20..(17 << 20) + 512 * 1024,
    ];
    let volume = Volume::new(bytes.clone()).since(first.id, changes);
    let read = volume.read.clone();
    let second = back_up(&repository, volume).await.unwrap();
    assert_eq!(second.parent, Some(first.id));
    assert_eq!(restored(&repository, second.id).await.unwrap(), bytes);
    let read = read.load(Ordering::Relaxed);
    assert!(
        read < 2 * MIB as u64,
        "{read} bytes were read for 0.5 MiB of changes"
    );
    let grown = packed(&*store).await - before;
    assert!(
        grown < 700 * 1024,
        "{grown} bytes were stored for 5 KB of noise"
    );

    // A record of changes since another snapshot is not believed.
    let bytes: Vec<u8> = noise(77, bytes.len());
    let volume = Volume::new(bytes.clone()).since(Id::from_bytes([1; 32]), vec![]);
    let third = back_up(&repository, volume).await.unwrap();
    assert_eq!(restored(&repository, third.id).await.unwrap(), bytes);
    assert_whole(&repository).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_volume_with_the_same_content_costs_its_tree_at_most() {
    let (store, repository) = in_memory().await;
    let bytes = mixed(3);
    back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let before = packed(&*store).await;
    let request = BackupRequest {
        volume: "other".to_owned(),
        parent: Parent::Nothing,
        ..BackupRequest::default()
    };
    let other = repository
        .backup(Arc::new(Volume::new(bytes)), request)
        .await
        .unwrap();
    assert_eq!(packed(&*store).await, before);
    assert_eq!(other.stats.new_chunks, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_grow_and_shrink_come_back() {
    let (_, repository) = in_memory().await;
    let mut last: Option<Snapshot> = None;
    let base = noise(4, 19 * MIB);
    for size in [0, 1, 8 * MIB, 8 * MIB + 1, 19 * MIB, 5 * MIB] {
        let mut volume = Volume::new(base[..size].to_vec());
        if let Some(last) = &last {
            // Beyond the old size all is new, whatever the record of changes says.
            volume = volume.since(last.id, vec![]);
        }
        let snapshot = back_up(&repository, volume).await.unwrap();
        let back = restored(&repository, snapshot.id).await.unwrap();
        assert!(back == base[..size], "{size} bytes");
        last = Some(snapshot);
    }
    assert_whole(&repository).await;
}

#[derive(Debug, Clone)]
enum Change {
    Noise {
        at: usize,
        length: usize,
        seed: u64,
    },
    Zeros {
        at: usize,
        length: usize,
    },
    Copy {
        from: usize,
        to: usize,
        length: usize,
    },
}

fn change(size: usize) -> impl Strategy<Value = Change> {
    let length = 1..300_000usize;
    prop_oneof![
        (0..size, length.clone(), any::<u64>()).prop_map(|(at, length, seed)| Change::Noise {
            at,
            length,
            seed
        }),
        (0..size, length.clone()).prop_map(|(at, length)| Change::Zeros { at, length }),
        (0..size, 0..size, length).prop_map(|(from, to, length)| Change::Copy { from, to, length }),
    ]
}

fn apply(bytes: &mut [u8], change: &Change) -> std::ops::Range<u64> {
    let size = bytes.len();
    let range = match *change {
        Change::Noise { at, length, seed } => {
            let range = at..(at + length).min(size);
            bytes[range.clone()].copy_from_slice(&noise(seed, range.len()));
            range
        }
        Change::Zeros { at, length } => {
            let range = at..(at + length).min(size);
            bytes[range.clone()].fill(0);
            range
        }
        Change::Copy { from, to, length } => {
            let length = length.min(size - from).min(size - to);
            bytes.copy_within(from..from + length, to);
            to..to + length
        }
    };
    range.start as u64..range.end as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Any images and changes, with a record of what changed and without: each snapshot restores
    /// to what was there, also after others were forgotten and pruned.
    #[test]
    fn any_history_comes_back(
        size in 1..17 * MIB,
        generations in proptest::collection::vec(
            (proptest::collection::vec(change(17 * MIB), 0..6), any::<bool>(), any::<bool>()), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (_, repository) = in_memory().await;
            let mut bytes = vec![0; size];
            let mut history: Vec<(Snapshot, Vec<u8>, bool)> = Vec::new();
            for (changes, record, keep) in generations {
                let mut dirty = Vec::new();
                for change in &changes {
                    let change = match change.clone() {
                        Change::Noise { at, length, seed } => Change::Noise { at: at % size, length, seed },
                        Change::Zeros { at, length } => Change::Zeros { at: at % size, length },
                        Change::Copy { from, to, length } => Change::Copy { from: from % size, to: to % size, length },
                    };
                    dirty.push(apply(&mut bytes, &change));
                }
                let volume = Volume::new(bytes.clone());
                let volume = match history.last() {
                    Some((last, _, _)) if record => volume.since(last.id, dirty.clone()),
                    _ => volume,
                };
                let snapshot = back_up(&repository, volume).await.unwrap();
                if record && !history.is_empty() {
                    // What is stored is bounded by the chunks that changes touch, and the tree.
                    let changed: u64 = dirty.iter().map(|range| range.end - range.start).sum();
                    let bound = changed + dirty.len() as u64 * (512 << 10) + 300_000;
                    assert!(snapshot.stats.stored <= bound, "{:?} > {bound}", snapshot.stats);
                }
                history.push((snapshot, bytes.clone(), keep));
            }
            for (snapshot, bytes, _) in &history {
                assert!(restored(&repository, snapshot.id).await.unwrap() == *bytes);
            }
            let gone: Vec<Id> = history.iter().filter(|(_, _, keep)| !keep).map(|(s, _, _)| s.id).collect();
            repository.forget(&gone).await.unwrap();
            repository.prune(NOW, &ProgressSink::default()).await.unwrap();
            repository.prune(NOW, &ProgressSink::default()).await.unwrap();
            assert_whole(&repository).await;
            for (snapshot, bytes, keep) in &history {
                if *keep {
                    assert!(restored(&repository, snapshot.id).await.unwrap() == *bytes);
                } else {
                    let error = restored(&repository, snapshot.id).await.unwrap_err();
                    assert_eq!(error.code(), "backup_no_snapshot");
                }
            }
        });
    }
}

/// The whole life of a repository with a store that breaks at each write in turn: whatever was
/// acknowledged is there, what was not leaves nothing that counts, and the next run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_break_at_every_write_of_a_backup_leaves_a_whole_repository() {
    let (store, repository) = in_memory().await;
    let old = mixed(5);
    let first = back_up(&repository, Volume::new(old.clone()))
        .await
        .unwrap();
    // Enough noise for several packs and so for uploads that are under way when it breaks.
    let mut new = old.clone();
    new.extend(noise(6, 40 * MIB));
    let mut writes = 0;
    for how in [Break::Before, Break::After] {
        for at in 1.. {
            assert!(at < 50, "a backup has few writes");
            let copy = copy_of(&store).await;
            let breaking = Arc::new(Breaking::new(copy.clone(), how, at));
            let repository = Repository::create_in(breaking.clone(), ChunkBounds::default(), None)
                .await
                .unwrap();
            let done = back_up(&repository, Volume::new(new.clone())).await;
            let mended = Repository::create_in(copy.clone(), ChunkBounds::default(), None)
                .await
                .unwrap();
            assert_whole(&mended).await;
            assert!(restored(&mended, first.id).await.unwrap() == old);
            let whole = done.is_ok();
            if let Ok(snapshot) = done {
                assert!(restored(&mended, snapshot.id).await.unwrap() == new);
            }
            let sent = packed(&*copy).await;
            let resumed = back_up(&mended, Volume::new(new.clone())).await.unwrap();
            assert!(restored(&mended, resumed.id).await.unwrap() == new);
            if how == Break::Before && at > 3 {
                assert!(sent > 0 && resumed.stats.stored < 45 * MIB as u64);
            }
            if whole && breaking.calls() < at {
                writes = at;
                break;
            }
        }
    }
    assert!(writes > 6, "lock, packs, index, snapshot, unlock: {writes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_backup_does_not_send_again_what_was_sent() {
    let (store, _) = in_memory().await;
    let bytes = noise(8, 200 * MIB);
    // The lock, eleven packs of 16 MiB and a checkpoint, which is written before the twelfth is sent: of
    // what is under way beside it, it may be the last.
    let breaking = Arc::new(Breaking::new(store.clone(), Break::Before, 13));
    let repository = Repository::create_in(breaking, ChunkBounds::default(), None)
        .await
        .unwrap();
    back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap_err();
    let mended = Repository::create_in(store.clone(), ChunkBounds::default(), None)
        .await
        .unwrap();
    let resumed = back_up(&mended, Volume::new(bytes)).await.unwrap();
    let again = resumed.stats.stored;
    assert!(
        again < 80 * MIB as u64,
        "{again} bytes of 200 MiB were sent after a checkpoint at 128 MiB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_fails_at_its_last_pack_keeps_the_others() {
    let (store, _) = in_memory().await;
    let bytes = noise(24, 40 * MIB);
    // The lock, and three of two packs of 16 MiB, one of the rest of the chunks and one of nodes.
    let breaking = Arc::new(Breaking::new(store.clone(), Break::Once, 4));
    let repository = Repository::create_in(breaking, ChunkBounds::default(), None)
        .await
        .unwrap();
    back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap_err();
    let sent = packed(&*store).await;
    assert!(sent > 20 * MIB as u64, "{sent}");
    let resumed = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let again = resumed.stats.stored;
    assert!(
        again < 20 * MIB as u64,
        "{again} bytes of 40 MiB were sent again"
    );
    assert!(restored(&repository, resumed.id).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_stopped_keeps_what_was_sent_and_its_lock_no_longer() {
    let (_, repository) = in_memory().await;
    let bytes = noise(9, 100 * MIB);
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    let request = BackupRequest {
        volume: "v".to_owned(),
        // Three packs of 16 MiB were sent by then, and no checkpoint was due.
        progress: ProgressSink::new(move |step| {
            if step.done >= 60 * MIB as u64 {
                stopper.cancel();
            }
        }),
        stop,
        ..BackupRequest::default()
    };
    let source = Arc::new(Volume::new(bytes.clone()));
    let stopped = repository.backup(source, request).await.unwrap_err();
    assert_eq!(stopped.code(), "backup_stopped");
    assert!(repository.snapshots().await.unwrap().is_empty());
    assert_eq!(repository.unlock().await.unwrap(), 0);
    // A prune meanwhile leaves it what it sent.
    let pruned = repository
        .prune(PruneOptions::default(), &ProgressSink::default())
        .await;
    assert!(pruned.unwrap().kept > 0);
    let resumed = back_up(&repository, Volume::new(bytes)).await.unwrap();
    let again = resumed.stats.stored;
    assert!(
        again < 60 * MIB as u64,
        "{again} bytes of 100 MiB were sent after 48 MiB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_at_every_write_of_a_prune_loses_nothing() {
    let (store, repository) = in_memory().await;
    let old = mixed(10);
    let first = back_up(&repository, Volume::new(old.clone()))
        .await
        .unwrap();
    let mut new = old.clone();
    new[MIB..2 * MIB].copy_from_slice(&noise(11, MIB));
    let second = back_up(&repository, Volume::new(new.clone()))
        .await
        .unwrap();
    repository.forget(&[first.id]).await.unwrap();
    let before = packed(&*store).await;
    for how in [Break::Before, Break::After] {
        for at in 1.. {
            assert!(at < 50, "a prune has few writes");
            let copy = copy_of(&store).await;
            let breaking = Arc::new(Breaking::new(copy.clone(), how, at));
            let repository = Repository::create_in(breaking.clone(), ChunkBounds::default(), None)
                .await
                .unwrap();
            // Both phases, with a break in the one or the other.
            let done = match repository.prune(NOW, &ProgressSink::default()).await {
                Ok(_) => repository.prune(NOW, &ProgressSink::default()).await,
                failed => failed,
            };
            let mended = Repository::create_in(copy.clone(), ChunkBounds::default(), None)
                .await
                .unwrap();
            // What was left behind by a prune keeps others out for a while.
            mended.unlock().await.unwrap();
            assert_whole(&mended).await;
            assert!(restored(&mended, second.id).await.unwrap() == new);
            for _ in 0..3 {
                mended.prune(NOW, &ProgressSink::default()).await.unwrap();
            }
            assert_whole(&mended).await;
            assert!(restored(&mended, second.id).await.unwrap() == new);
            let after = packed(&*copy).await;
            assert!(
                after < before - 900_000,
                "{after} of {before} bytes are left"
            );
            assert_eq!(objects(&*copy, "trash").await.len(), 0);
            if done.is_ok() && breaking.calls() < at {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_waits_for_its_grace() {
    let (store, repository) = in_memory().await;
    let snapshot = back_up(&repository, Volume::new(mixed(12))).await.unwrap();
    repository.forget(&[snapshot.id]).await.unwrap();
    let before = packed(&*store).await;
    let prune = async |options| {
        let done = repository.prune(options, &ProgressSink::default()).await;
        done.unwrap()
    };
    // What came lately is left as it is; what is in the trash waits there.
    let (found, later) = (prune(PruneOptions::default()).await, prune(NOW).await);
    assert_eq!((found.trashed, found.kept), (0, later.trashed));
    assert!(found.kept > 0);
    let waits = prune(PruneOptions::default()).await;
    assert_eq!((waits.trashed, waits.kept, waits.deleted), (0, 0, 0));
    assert_eq!(packed(&*store).await, before);
    let report = prune(NOW).await;
    assert_eq!(report.freed, before);
    assert_eq!(packed(&*store).await, 0);
}

/// A backup that lost its lock without noticing refers to what a prune put in the trash.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_to_be_needed_again_comes_out_of_the_trash() {
    let (store, repository) = in_memory().await;
    let bytes = mixed(13);
    let snapshot = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let record = objects(&*store, "snapshots").await.remove(0).location;
    let content = store.get(&record).await.unwrap().bytes().await.unwrap();
    repository.forget(&[snapshot.id]).await.unwrap();
    let trashed = repository
        .prune(NOW, &ProgressSink::default())
        .await
        .unwrap();
    assert!(trashed.trashed > 0);
    overwrite(&*store, &record, content).await;
    let report = repository
        .prune(NOW, &ProgressSink::default())
        .await
        .unwrap();
    assert_eq!(report.deleted, 0);
    assert_eq!(restored(&repository, snapshot.id).await.unwrap(), bytes);
    assert_whole(&repository).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backups_at_once_both_count() {
    let (_, repository) = in_memory().await;
    let (one, other) = (mixed(14), mixed(15));
    let (first, second) = tokio::join!(
        back_up(&repository, Volume::new(one.clone())),
        back_up(&repository, Volume::new(other.clone())),
    );
    assert_eq!(restored(&repository, first.unwrap().id).await.unwrap(), one);
    assert_eq!(
        restored(&repository, second.unwrap().id).await.unwrap(),
        other
    );
    assert_whole(&repository).await;
}

/// A source that lets a test act while a backup reads it.
struct Meeting(
    Volume,
    Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
    Mutex<std::sync::mpsc::Receiver<()>>,
);

impl aleph_backup::Source for Meeting {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn allocated(&self) -> std::io::Result<Vec<std::ops::Range<u64>>> {
        self.0.allocated()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        if let Some(began) = self.1.lock().unwrap().take() {
            began.send(()).unwrap();
            self.2.lock().unwrap().recv().unwrap();
        }
        self.0.read_at(offset, buffer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_is_refused_beside_a_backup_which_notices_a_lost_lock() {
    let (_, repository) = in_memory().await;
    for lose in [false, true] {
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let (go, wait) = std::sync::mpsc::channel();
        let bytes = mixed(16 + u64::from(lose));
        let source = Meeting(
            Volume::new(bytes.clone()),
            Mutex::new(Some(began)),
            Mutex::new(wait),
        );
        let worker = repository.clone();
        let running = tokio::spawn(async move {
            let request = BackupRequest {
                volume: "slow".to_owned(),
                ..BackupRequest::default()
            };
            worker.backup(Arc::new(source), request).await
        });
        has_begun.await.unwrap();
        let error = repository
            .prune(NOW, &ProgressSink::default())
            .await
            .unwrap_err();
        assert_eq!(error.code(), "backup_locked");
        assert!(error.to_string().contains("backup of slow"), "{error}");
        // Others go on beside it, and leave nothing.
        repository.ensure_ready().await.unwrap();
        if lose {
            assert_eq!(repository.unlock().await.unwrap(), 1);
            repository
                .prune(NOW, &ProgressSink::default())
                .await
                .unwrap();
        }
        go.send(()).unwrap();
        let done = running.await.unwrap();
        if lose {
            assert_eq!(done.unwrap_err().code(), "backup_lock_lost");
        } else {
            assert_eq!(
                restored(&repository, done.unwrap().id).await.unwrap(),
                bytes
            );
        }
        assert_whole(&repository).await;
        repository
            .prune(NOW, &ProgressSink::default())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_by_name_and_never_becomes_data() {
    let (store, repository) = in_memory().await;
    let bytes = mixed(20);
    let snapshot = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    for folder in ["packs", "index", "snapshots"] {
        for meta in objects(&*store, folder).await {
            let content = store
                .get(&meta.location)
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
            let middle = content.len() / 2;
            let mut flipped = content.to_vec();
            flipped[middle] ^= 1;
            for (what, damaged) in [
                ("flipped", Some(flipped)),
                ("truncated", Some(content[..middle].to_vec())),
                ("empty", Some(Vec::new())),
                ("missing", None),
            ] {
                match damaged {
                    Some(bytes) => overwrite(&*store, &meta.location, bytes).await,
                    None => store.delete(&meta.location).await.unwrap(),
                }
                let case = format!("{what} {}", meta.location);
                let report = repository
                    .verify(Depth::Full, &ProgressSink::default())
                    .await
                    .unwrap();
                let named = meta.location.filename().unwrap();
                if folder == "snapshots" && what == "missing" {
                    assert_eq!(
                        report.damage,
                        [],
                        "{case}: nobody can tell that there was one"
                    );
                } else if folder == "index" && what == "missing" {
                    assert_eq!(report.damage[0].snapshot, Some(snapshot.id), "{case}");
                } else {
                    let told = report
                        .damage
                        .iter()
                        .any(|damage| damage.what.contains(named));
                    assert!(told, "{case}: {report:?}");
                }
                // The blob that was hit is needed, or is the trailer of a pack.
                match restored(&repository, snapshot.id).await {
                    Ok(back) => {
                        assert!(folder == "packs" && what == "flipped", "{case}");
                        assert!(back == bytes, "{case}");
                    }
                    Err(BackupError::NoSnapshot { .. }) => assert_eq!(folder, "snapshots"),
                    Err(BackupError::Missing { .. } | BackupError::Damaged { .. }) => {}
                    Err(error) => panic!("{case}: {error}"),
                }
                overwrite(&*store, &meta.location, content.clone()).await;
            }
        }
    }
    // A backup stores anew what a lost pack had.
    let pack = objects(&*store, "packs").await.remove(0).location;
    store.delete(&pack).await.unwrap();
    let again = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    assert_eq!(restored(&repository, again.id).await.unwrap(), bytes);
    assert_whole(&repository).await;
    // And an increment does not trust a parent whose chunks are gone: all of it, the chunks alone, or
    // where the nodes alone are there no more.
    let mut last = again;
    for which in [|_: u64| true, |size| size > 1 << 20, |size| size < 1 << 20] {
        for meta in objects(&*store, "packs").await {
            if which(meta.size) {
                store.delete(&meta.location).await.unwrap();
            }
        }
        let volume = Volume::new(bytes.clone()).since(last.id, vec![]);
        last = back_up(&repository, volume).await.unwrap();
        assert_eq!(restored(&repository, last.id).await.unwrap(), bytes);
        assert_whole(&repository).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_damaged_is_stored_anew_and_breaks_all_that_need_it() {
    let (store, repository) = in_memory().await;
    let bytes = mixed(40);
    let first = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let second = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let other = back_up(&repository, Volume::new(vec![7; MIB]))
        .await
        .unwrap();
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
    // Nobody knows yet. Then somebody looks.
    let mut broken = repository
        .verify(Depth::Full, &ProgressSink::default())
        .await
        .unwrap()
        .broken;
    broken.sort();
    let mut expected = vec![first.id, second.id];
    expected.sort();
    assert_eq!(broken, expected, "not {}", other.id);
    let volume = Volume::new(bytes.clone()).since(second.id, vec![]);
    let third = back_up(&repository, volume).await.unwrap();
    assert!(third.stats.new_chunks > 0);
    assert_eq!(restored(&repository, third.id).await.unwrap(), bytes);
    let fourth = back_up(&repository, Volume::new(bytes)).await.unwrap();
    assert_eq!(fourth.stats.new_chunks, 0, "it is whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_or_refuses_is_told_as_such() {
    for (how, refusal, code) in [
        (Break::Full, Refusal::Full, "backup_store_full"),
        (Break::Denied, Refusal::Denied, "backup_store_denied"),
    ] {
        let (store, _) = in_memory().await;
        // The lock is written, the first pack is not.
        let breaking = Arc::new(Breaking::new(store, how, 1));
        let repository = Repository::create_in(breaking, ChunkBounds::default(), None)
            .await
            .unwrap();
        let error = back_up(&repository, Volume::new(mixed(21)))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code);
        let BackupError::Store {
            refusal: told,
            object,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(told, refusal);
        assert!(object.starts_with("packs/"), "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_keep_their_holes_and_restores_go_on_where_they_ended() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&source)
        .unwrap();
    file.set_len(300 << 20).unwrap();
    file.write_all_at(&noise(30, 20 * MIB), 50 << 20).unwrap();
    file.write_all_at(b"the end", (300 << 20) - 7).unwrap();
    let location =
        Location::parse(&format!("file://{}", folder.path().join("b/r").display())).unwrap();
    assert_eq!(
        Repository::open(&location, None).await.unwrap_err().code(),
        "backup_no_repository"
    );
    assert!(!folder.path().join("b").exists());
    let repository = Repository::open_or_create(&location, None).await.unwrap();
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let sink = Arc::clone(&told);
    let request = BackupRequest {
        volume: "data".to_owned(),
        name: "before".to_owned(),
        progress: ProgressSink::new(move |step| sink.lock().unwrap().push(step)),
        ..BackupRequest::default()
    };
    let snapshot = repository
        .backup(Arc::new(FileSource::new(file).unwrap()), request)
        .await
        .unwrap();
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.is_sorted_by_key(|step| step.done));
    assert_eq!(told.last().unwrap().done, 300 << 20);
    assert!(
        snapshot.stats.read < 21 << 20,
        "holes were read: {:?}",
        snapshot.stats
    );
    let again = Repository::open(&location, None).await.unwrap();
    assert_eq!(
        again.snapshots().await.unwrap(),
        std::slice::from_ref(&snapshot)
    );
    let prefix = &snapshot.id.to_string()[..8];
    assert_eq!(again.snapshot(prefix).await.unwrap().name, "before");

    // One that broke off: half is there, a chunk of it is wrong, and where holes belong is garbage.
    let target = folder.path().join("target");
    let partial = File::create_new(folder.path().join("target.partial")).unwrap();
    let mut half = noise(30, 20 * MIB);
    half.truncate(10 * MIB);
    half[MIB] ^= 1;
    partial.write_all_at(&half, 50 << 20).unwrap();
    partial
        .write_all_at(&noise(31, 3 * MIB), 200 << 20)
        .unwrap();
    let report = restore_to(&repository, snapshot.id, &target).await.unwrap();
    assert!(report.reused > 9 << 20, "{report:?}");
    assert!(report.written < 11 << 20, "{report:?}");
    assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
    let (taken, needed) = (
        target.metadata().unwrap().blocks(),
        source.metadata().unwrap().blocks(),
    );
    assert!(taken <= needed + 200, "{taken} blocks instead of {needed}");
    assert!(!folder.path().join("target.partial").exists());
    let error = restore_to(&repository, snapshot.id, &target)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "backup_target_exists");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_in_a_folder_that_was_there_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("backups");
    fs::create_dir(&place).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&place, open).unwrap();
    let location = Location::parse(&format!("file://{}", place.display())).unwrap();
    let repository = Repository::open_or_create(&location, None).await.unwrap();
    back_up(&repository, Volume::new(noise(60, MIB)))
        .await
        .unwrap();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&place), 0o755, "it is whose it was");
    let mut seen = 0;
    for entry in fs::read_dir(&place).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        seen += 1;
    }
    // Six folders and the configuration.
    assert_eq!(seen, 7);
}

/// After each prune something is in the trash for a day.
#[tokio::test(flavor = "multi_thread")]
async fn an_increment_reads_no_more_of_its_parent_while_there_is_trash() {
    let (store, _) = in_memory().await;
    let store = Arc::new(Breaking::new(store, Break::Once, usize::MAX));
    let repository = Repository::create_in(store.clone(), ChunkBounds::default(), None)
        .await
        .unwrap();
    // Twenty leaves.
    let mut bytes = vec![0; 160 * MIB];
    for (leaf, part) in (1..).zip(bytes.chunks_mut(8 * MIB)) {
        part[..4096].copy_from_slice(&noise(70 + leaf, 4096));
    }
    let last = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let increment = async |since: Id| {
        let before = store.reads();
        let volume = Volume::new(bytes.clone()).since(since, vec![]);
        let made = back_up(&repository, volume).await.unwrap();
        (made.id, store.reads() - before)
    };
    let (last, reads) = increment(last.id).await;
    let request = BackupRequest {
        volume: "other".to_owned(),
        ..BackupRequest::default()
    };
    let other = Arc::new(Volume::new(noise(69, MIB)));
    let other = repository.backup(other, request).await.unwrap();
    repository.forget(&[other.id]).await.unwrap();
    let pruned = repository.prune(NOW, &ProgressSink::default()).await;
    assert!(pruned.unwrap().trashed > 0);
    let (last, later) = increment(last).await;
    assert!(later < reads + 10, "{later} reads, and {reads} before");
    assert!(restored(&repository, last).await.unwrap() == bytes);
}
