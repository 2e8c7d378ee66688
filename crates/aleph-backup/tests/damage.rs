//! What is lost or damaged in a repository, and what backups, prunes and verifications make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use aleph_backup::{
    BackupError, BackupRequest, ChunkBounds, Depth, Id, ProgressSink, PruneOptions, Repository,
    RestoreRequest, Snapshot,
};
use aleph_types::Classify;
use object_store::ObjectMeta;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{Break, Breaking, Volume, noise, objects, overwrite};

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
    let request = RestoreRequest {
        snapshot,
        target: target.clone(),
        progress: ProgressSink::default(),
    };
    repository.restore(request).await?;
    Ok(std::fs::read(target).unwrap())
}

/// The pack of the nodes: the smallest.
async fn node_pack(store: &InMemory) -> ObjectMeta {
    let packs = objects(store, "packs").await;
    packs.into_iter().min_by_key(|meta| meta.size).unwrap()
}

async fn content(store: &InMemory, location: &Path) -> Vec<u8> {
    let got = store.get(location).await.unwrap();
    got.bytes().await.unwrap().to_vec()
}

/// Changes a byte of an object.
async fn flip(store: &InMemory, location: &Path, at: usize) {
    let mut bytes = content(store, location).await;
    bytes[at] ^= 1;
    overwrite(store, location, bytes).await;
}

/// A pack that nobody knows: nothing is known to be whole any more, and all nodes of a parent are read.
async fn stray_pack(store: &InMemory) {
    let name = Path::from(format!("packs/ab/{}", Id::of(b"stray")));
    overwrite(store, &name, b"nothing".to_vec()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_node_of_the_parent_is_stored_anew() {
    // At its start are nodes of leaves; the root is the last one before the list of entries.
    for (what, is_stray) in [("leaf", true), ("root", true), ("root", false)] {
        let (store, repository) = in_memory().await;
        let bytes = noise(50, 20 * MIB);
        let mut last = back_up(&repository, Volume::new(bytes.clone()))
            .await
            .unwrap();
        let pack = node_pack(&store).await;
        // Three leaves and a root, each with an entry of 42 bytes, and the end of 12.
        let entries = 4 * 42 + 12;
        let at = match what {
            "leaf" => 100,
            _ => usize::try_from(pack.size).unwrap() - entries - 10,
        };
        flip(&store, &pack.location, at).await;
        if is_stray {
            stray_pack(&store).await;
        }
        let error = restored(&repository, last.id).await.unwrap_err();
        assert_eq!(error.code(), "backup_object_damaged", "{what}");
        for _ in 0..2 {
            let volume = Volume::new(bytes.clone()).since(last.id, vec![]);
            last = back_up(&repository, volume).await.unwrap();
            let back = restored(&repository, last.id).await;
            assert!(back.unwrap() == bytes, "{what}, {is_stray}");
        }
        // What is damaged goes, with its mark, where it was not written anew under its own name.
        let mut others = repository.snapshots().await.unwrap();
        others.retain(|snapshot| snapshot.id != last.id);
        let others: Vec<Id> = others.iter().map(|snapshot| snapshot.id).collect();
        repository.forget(&others).await.unwrap();
        for _ in 0..2 {
            repository
                .prune(NOW, &ProgressSink::default())
                .await
                .unwrap();
        }
        assert!(restored(&repository, last.id).await.unwrap() == bytes);
        assert_eq!(objects(&*store, "damaged").await, [], "{what}");
        let report = repository
            .verify(Depth::Full, &ProgressSink::default())
            .await
            .unwrap();
        assert_eq!(report.damage, [], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_node_is_stored_in_another_pack_where_the_rest_has_changed() {
    let (store, repository) = in_memory().await;
    let mut bytes = noise(51, 20 * MIB);
    let first = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let pack = node_pack(&store).await;
    flip(&store, &pack.location, 100).await;
    stray_pack(&store).await;
    bytes[10 * MIB] ^= 1;
    let at = 10 * MIB as u64;
    let volume = Volume::new(bytes.clone()).since(first.id, std::iter::once(at..at + 1).collect());
    let second = back_up(&repository, volume).await.unwrap();
    assert!(restored(&repository, second.id).await.unwrap() == bytes);
    let damaged = objects(&*store, "damaged").await;
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(damaged[0].location.filename(), pack.location.filename());
    // Nobody needs it any more but the first, and the second is all that is left then.
    repository.forget(&[first.id]).await.unwrap();
    for _ in 0..2 {
        repository
            .prune(NOW, &ProgressSink::default())
            .await
            .unwrap();
    }
    assert_eq!(objects(&*store, "damaged").await, []);
    assert!(restored(&repository, second.id).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_object_ends_neither_backups_nor_prunes() {
    for prune_first in [false, true] {
        let (store, repository) = in_memory().await;
        let bytes = noise(52, 20 * MIB);
        let first = back_up(&repository, Volume::new(bytes.clone()))
            .await
            .unwrap();
        let index = objects(&*store, "index").await.remove(0).location;
        flip(&store, &index, 50).await;
        let is_there = async || match store.get(&index).await {
            Ok(found) => Some(found.bytes().await.unwrap()),
            Err(_) => None,
        };
        let damaged = is_there().await;
        let prune = async || {
            repository
                .prune(NOW, &ProgressSink::default())
                .await
                .unwrap()
        };
        if prune_first {
            // A pack that nobody can read and nobody needs costs nothing, either.
            stray_pack(&store).await;
            prune().await;
            assert!(restored(&repository, first.id).await.unwrap() == bytes);
        }
        let volume = Volume::new(bytes.clone()).since(first.id, vec![]);
        let second = back_up(&repository, volume).await.unwrap();
        assert!(restored(&repository, second.id).await.unwrap() == bytes);
        for _ in 0..2 {
            prune().await;
        }
        // Where the same packs were written again, so was the same index.
        assert!(is_there().await != damaged, "it stays");
        for snapshot in [&first, &second] {
            assert!(restored(&repository, snapshot.id).await.unwrap() == bytes);
        }
        let report = repository
            .verify(Depth::Full, &ProgressSink::default())
            .await
            .unwrap();
        assert_eq!(report.damage, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_list_of_trash_costs_its_packs_their_grace_alone() {
    let (store, repository) = in_memory().await;
    let snapshot = back_up(&repository, Volume::new(noise(53, MIB)))
        .await
        .unwrap();
    repository.forget(&[snapshot.id]).await.unwrap();
    let prune = async || {
        repository
            .prune(NOW, &ProgressSink::default())
            .await
            .unwrap()
    };
    assert_eq!(prune().await.trashed, 2);
    let trash = objects(&*store, "trash").await.remove(0).location;
    overwrite(&*store, &trash, b"{".to_vec()).await;
    assert_eq!((prune().await.deleted, prune().await.deleted), (0, 2));
    assert_eq!(objects(&*store, "trash").await, []);
    assert_eq!(objects(&*store, "packs").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_deletes_nothing_that_a_damaged_snapshot_may_need() {
    let (store, repository) = in_memory().await;
    let bytes = noise(54, MIB);
    let snapshot = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let record = objects(&*store, "snapshots").await.remove(0).location;
    let whole = content(&store, &record).await;
    flip(&store, &record, 20).await;
    let error = repository
        .prune(NOW, &ProgressSink::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "backup_object_damaged");
    let advice = error.advice().unwrap();
    assert!(advice.contains("aleph volume forget"), "{advice}");
    overwrite(&*store, &record, whole).await;
    assert!(restored(&repository, snapshot.id).await.unwrap() == bytes);
    // Whoever does not need it any more forgets it, and prunes.
    flip(&store, &record, 20).await;
    let id = repository
        .snapshot_id(&snapshot.id.to_string())
        .await
        .unwrap();
    repository.forget(&[id]).await.unwrap();
    for _ in 0..2 {
        repository
            .prune(NOW, &ProgressSink::default())
            .await
            .unwrap();
    }
    assert_eq!(objects(&*store, "packs").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_of_the_structure_marks_what_it_reads_and_believes_what_was_stored_anew() {
    let (store, repository) = in_memory().await;
    let mut bytes = noise(55, 20 * MIB);
    let first = back_up(&repository, Volume::new(bytes.clone()))
        .await
        .unwrap();
    let pack = node_pack(&store).await;
    flip(&store, &pack.location, 100).await;
    let verify = async || {
        repository
            .verify(Depth::Structure, &ProgressSink::default())
            .await
            .unwrap()
    };
    let report = verify().await;
    assert_eq!(report.broken, [first.id], "{report:?}");
    let damaged = objects(&*store, "damaged").await;
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].location.filename(), pack.location.filename());
    // The node that is damaged comes into a pack with others than it was with.
    bytes[18 * MIB] ^= 1;
    let at = 18 * MIB as u64;
    let volume = Volume::new(bytes.clone()).since(first.id, std::iter::once(at..at + 1).collect());
    let second = back_up(&repository, volume).await.unwrap();
    assert!(restored(&repository, second.id).await.unwrap() == bytes);
    let report = verify().await;
    assert_eq!(report.broken, [], "{report:?}");
    assert_eq!(report.damage, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_no_damage() {
    let (store, repository) = in_memory().await;
    back_up(&repository, Volume::new(noise(56, MIB)))
        .await
        .unwrap();
    for depth in [Depth::Structure, Depth::Full] {
        // The lock is written; nothing can be read or written from then on.
        let breaking = Arc::new(Breaking::new(store.clone(), Break::Before, 1));
        let broken = Repository::create_in(breaking, ChunkBounds::default(), None)
            .await
            .unwrap();
        let error = broken.verify(depth, &ProgressSink::default()).await;
        assert_eq!(error.unwrap_err().code(), "backup_store_failed");
    }
    assert_eq!(objects(&*store, "damaged").await, []);
}
