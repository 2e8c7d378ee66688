//! Repositories that are encrypted: what a store sees of them, and what it can do to them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use aleph_backup::{
    BackupError, BackupRequest, ChunkBounds, Depth, Id, Key, Location, ProgressSink, PruneOptions,
    Repository, RestoreRequest, Snapshot,
};
use aleph_types::Classify;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use support::{Volume, copy_of, noise, objects, overwrite};

const MIB: usize = 1 << 20;
const SECRET: &[u8] = b"a line of a diary that nobody else is to read\n";

fn key(byte: u8) -> Key {
    Key::new(&[byte; 32]).unwrap()
}

async fn open(store: &Arc<InMemory>, key: Option<&Key>) -> Result<Repository, BackupError> {
    Repository::create_in(store.clone(), ChunkBounds::default(), key).await
}

async fn back_up(repository: &Repository, volume: &str, bytes: &[u8]) -> Snapshot {
    let request = BackupRequest {
        volume: volume.to_owned(),
        name: "a name that tells something".to_owned(),
        ..BackupRequest::default()
    };
    let source = Arc::new(Volume::new(bytes.to_vec()));
    repository.backup(source, request).await.unwrap()
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

/// Text, noise and zeros.
fn diary() -> Vec<u8> {
    let mut bytes = SECRET.repeat(40_000);
    bytes.extend(noise(1, MIB));
    bytes.resize(12 * MIB, 0);
    bytes
}

async fn contents(store: &InMemory) -> Vec<(Path, Vec<u8>)> {
    let mut all = Vec::new();
    for meta in objects(store, "").await {
        let content = store.get(&meta.location).await.unwrap();
        all.push((meta.location, content.bytes().await.unwrap().to_vec()));
    }
    all
}

fn holds(content: &[u8], what: &[u8]) -> bool {
    content.windows(what.len()).any(|window| window == what)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_life_of_a_repository_with_a_key() {
    let store = Arc::new(InMemory::new());
    let repository = open(&store, Some(&key(1))).await.unwrap();
    assert!(repository.is_encrypted());
    let mut bytes = diary();
    let first = back_up(&repository, "diary", &bytes).await;
    let again = back_up(&repository, "diary", &bytes).await;
    assert_eq!((again.root, again.stats.stored), (first.root, 0));
    bytes[5000..5100].fill(7);
    let second = back_up(&repository, "diary", &bytes).await;
    assert!(second.stats.stored < MIB as u64, "{:?}", second.stats);

    // Another one that opens it finds all of it.
    let other = open(&store, Some(&key(1))).await.unwrap();
    assert_eq!(
        other.snapshots().await.unwrap(),
        [first.clone(), again.clone(), second.clone()]
    );
    assert!(restored(&other, first.id).await.unwrap() == diary());
    assert!(restored(&other, second.id).await.unwrap() == bytes);
    other.forget(&[first.id, again.id]).await.unwrap();
    let now = PruneOptions {
        grace: Duration::ZERO,
        unused_percent: 0,
    };
    let progress = ProgressSink::default();
    other.prune(now, &progress).await.unwrap();
    assert!(other.prune(now, &progress).await.unwrap().deleted > 0);
    assert!(restored(&repository, second.id).await.unwrap() == bytes);
    let report = repository.verify(Depth::Full, &progress).await.unwrap();
    assert_eq!(report.damage, []);
    assert!(report.read > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_reads_nothing_and_learns_no_ids() {
    let (plain, sealed) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
    let bytes = diary();
    for (store, key) in [(&plain, None), (&sealed, Some(&key(1)))] {
        let repository = open(store, key).await.unwrap();
        let root = back_up(&repository, "diary", &bytes).await.root.unwrap();
        // Where all ids of blobs are told, that of the root is.
        let told = contents(store).await;
        let told = told.iter().any(|(_, content)| {
            holds(content, root.as_bytes()) || holds(content, root.to_string().as_bytes())
        });
        assert_eq!(told, !repository.is_encrypted());
    }
    let noise = noise(1, MIB);
    let telling: [&[u8]; 4] = [
        b"diary",
        b"a name that tells",
        b"volume",
        &noise[MIB / 2..][..64],
    ];
    for what in telling {
        let found = |all: &[(Path, Vec<u8>)]| all.iter().any(|(_, content)| holds(content, what));
        // What is looked for would be found.
        assert!(found(&contents(&plain).await));
        assert!(
            !found(&contents(&sealed).await),
            "{:?}",
            String::from_utf8_lossy(what)
        );
    }
    // Two of the same content with the same key have nothing in common.
    let twin = Arc::new(InMemory::new());
    back_up(&open(&twin, Some(&key(1))).await.unwrap(), "diary", &bytes).await;
    let names = |all: Vec<(Path, Vec<u8>)>| -> Vec<Path> {
        let mut names: Vec<_> = all.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| name.as_ref() != "config");
        names
    };
    let (one, two) = (names(contents(&sealed).await), names(contents(&twin).await));
    assert!(one.iter().all(|name| !two.contains(name)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_key_and_none_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| {
        let path = folder.path().join(name);
        Location::parse(&format!("file://{}", path.display())).unwrap()
    };
    let (sealed, plain) = (url("sealed"), url("plain"));
    Repository::open_or_create(&sealed, Some(&key(1)))
        .await
        .unwrap();
    Repository::open_or_create(&plain, None).await.unwrap();
    for (location, key, code) in [
        (&sealed, Some(key(1)), "opens"),
        (&sealed, Some(key(2)), "backup_key_wrong"),
        (&sealed, None, "backup_key_needed"),
        (&plain, None, "opens"),
        (&plain, Some(key(1)), "backup_not_encrypted"),
    ] {
        for opened in [
            Repository::open(location, key.as_ref()).await,
            Repository::open_or_create(location, key.as_ref()).await,
        ] {
            let told = opened.map_or_else(|error| error.code(), |_| "opens");
            assert_eq!(told, code, "{location}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_writes_to_the_store_makes_up_nothing() {
    let store = Arc::new(InMemory::new());
    let repository = open(&store, Some(&key(1))).await.unwrap();
    let bytes = diary();
    let snapshot = back_up(&repository, "diary", &bytes).await;
    let other = Arc::new(InMemory::new());
    let theirs = open(&other, Some(&key(2))).await.unwrap();
    back_up(&theirs, "forged", &noise(5, MIB)).await;

    // Objects of another repository are damage, and none of them is believed.
    let forged = copy_of(&store).await;
    for (name, content) in contents(&other).await {
        if name.as_ref() != "config" {
            overwrite(&*forged, &name, content).await;
        }
    }
    let opened = open(&forged, Some(&key(1))).await.unwrap();
    let listed = opened.snapshots().await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&snapshot));
    let report = opened
        .verify(Depth::Structure, &ProgressSink::default())
        .await
        .unwrap();
    let not_ours = |what: &str| what.contains("not encrypted with the key of this repository");
    assert!(
        report.damage.iter().any(|damage| not_ours(&damage.what)),
        "{report:?}"
    );

    // A configuration that says to encrypt nothing, or with a key of its own, gets no backup.
    for config in ["plain", "theirs"] {
        let store = copy_of(&store).await;
        let replaced = match config {
            "plain" => {
                let plain = Arc::new(InMemory::new());
                open(&plain, None).await.unwrap();
                contents(&plain).await
            }
            _ => contents(&other).await,
        };
        let content = replaced
            .into_iter()
            .find(|(name, _)| name.as_ref() == "config");
        overwrite(&*store, &Path::from("config"), content.unwrap().1).await;
        let code = open(&store, Some(&key(1))).await.unwrap_err().code();
        assert!(
            matches!(code, "backup_not_encrypted" | "backup_key_wrong"),
            "{code}"
        );
    }

    // Each bit of a pack counts, and one pack stands for no other.
    let pack = objects(&*store, "packs").await.remove(0).location;
    let content = store.get(&pack).await.unwrap().bytes().await.unwrap();
    for place in [0, content.len() / 3, content.len() / 2] {
        let mut changed = content.to_vec();
        changed[place] ^= 1;
        overwrite(&*store, &pack, changed).await;
        let report = repository
            .verify(Depth::Full, &ProgressSink::default())
            .await
            .unwrap();
        assert!(!report.damage.is_empty(), "byte {place}");
        match restored(&repository, snapshot.id).await {
            Ok(back) => assert!(back == bytes),
            Err(error) => assert_eq!(error.code(), "backup_object_damaged"),
        }
        overwrite(&*store, &pack, content.clone()).await;
    }
    assert!(restored(&repository, snapshot.id).await.unwrap() == bytes);
}
