//! Encrypted volumes: what is on the host's disk, whose key opens it, and what becomes of keys.

use crate::support::{
    BACKENDS, code, config, empty, named, owner, qemu_io, qemu_io_with, reads, write,
};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{
    BackendChoice, Import, NewVolume, Passphrase, Source, Volumes, VolumesConfig,
};
use aleph_types::{DiskImageFormat, Filesystem, MiB, VolumeAccess};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// What is written, over 64 KiB.
const BYTE: u8 = 0xa7;

fn encrypted(backend: BackendChoice) -> VolumesConfig {
    VolumesConfig {
        encrypt: true,
        ..config(backend)
    }
}

/// Whether any file below a folder has these bytes.
fn is_below(folder: &Path, bytes: &[u8]) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = match path.is_dir() {
            true => is_below(&path, bytes)?,
            false => fs::read(&path)?
                .windows(bytes.len())
                .any(|some| some == bytes),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn fill(volumes: &Volumes, name: &str, at: u64) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    qemu_io(&attached.layers, &[format!("write -P {BYTE} {at} 64k")])?;
    drop(attached);
    Ok(volumes.release(&owner, true)?)
}

/// The text of the key that a volume's top has.
fn key_of(volumes: &Volumes, name: &str) -> Result<Vec<u8>> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::ReadOnly)?;
    let key = attached.layers.key.as_ref().context("it has no key")?;
    let file = key.file()?;
    let mut text = Vec::new();
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.read_to_end(&mut text)?;
    volumes.release(&owner, true)?;
    Ok(text)
}

#[test]
fn nothing_that_is_written_is_on_the_disk_in_the_clear() -> Result<()> {
    for backend in BACKENDS {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("volumes");
        let volumes = Volumes::open(dir.path(), encrypted(backend))?;
        let data = volumes.create(named("data"), MiB(64), Filesystem::Ext4)?;
        assert!(data.encrypted);
        ensure!(data.stored < 16 << 20, "holes stay holes: {}", data.stored);
        let plain = NewVolume {
            encrypted: Some(false),
            ..named("plain")
        };
        assert!(!volumes.create(plain, MiB(64), Filesystem::None)?.encrypted);
        // In the lowest layer, in those over it, in a copy and in what it grew by.
        fill(&volumes, "data", 40 << 20)?;
        volumes.snapshot(data.id, "one")?;
        fill(&volumes, "data", 41 << 20)?;
        let source = Source::Volume(data.id);
        assert!(volumes.clone_of(named("copy"), source, None)?.encrypted);
        fill(&volumes, "copy", 42 << 20)?;
        volumes.resize(data.id, MiB(80))?;
        fill(&volumes, "data", 70 << 20)?;
        reads(&volumes, "data", (41 << 20) / 512, BYTE)?;
        reads(&volumes, "data", (70 << 20) / 512, BYTE)?;
        reads(&volumes, "data", (75 << 20) / 512, 0)?;
        reads(&volumes, "copy", (42 << 20) / 512, BYTE)?;
        let pattern = [BYTE; 64];
        assert!(!is_below(&folder, &pattern)?, "{backend:?}");
        // Nor is what opens it, or the name of what is on it.
        let key = key_of(&volumes, "data")?;
        assert_eq!(key.len(), 64);
        assert!(!is_below(&folder, &key)?);
        let owner = owner();
        let attached = volumes.attach("a", "data", &owner, VolumeAccess::ReadOnly)?;
        let said = qemu_io(&attached.layers, &["read -v 1024 1024".into()])?;
        ensure!(said.contains("53 ef"), "there is an ext4 on it: {said}");
        drop(attached);
        volumes.release(&owner, true)?;
        // It would be found.
        fill(&volumes, "plain", 40 << 20)?;
        assert!(is_below(&folder, &pattern)?);
    }
    Ok(())
}

#[test]
fn another_key_opens_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), encrypted(BackendChoice::Qcow2))?;
    empty(&volumes, "one", 8)?;
    empty(&volumes, "other", 8)?;
    write(&volumes, "one", 3, 5)?;
    let (owner, owner_of_other) = (owner(), owner());
    let access = VolumeAccess::Exclusive;
    let one = volumes.attach("a", "one", &owner, access)?.layers;
    let other = volumes
        .attach("a", "other", &owner_of_other, access)?
        .layers;
    let line = ["read -P 5 1536 512".to_owned()];
    qemu_io(&one, &line)?;
    let wrong = other.key.as_ref().map(Passphrase::file).transpose()?;
    let refused = qemu_io_with(&one, &[wrong], &line).unwrap_err().to_string();
    ensure!(refused.contains("Invalid password"), "{refused}");
    let refused = qemu_io_with(&one, &[None], &line).unwrap_err().to_string();
    ensure!(refused.contains("encrypt.key-secret"), "{refused}");
    Ok(())
}

#[test]
fn what_has_no_key_file_says_so_and_can_be_removed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key_file = dir.path().join("key");
    let config = VolumesConfig {
        key_file: Some(key_file.clone()),
        ..encrypted(BackendChoice::Qcow2)
    };
    let state = dir.path().join("node");
    let volumes = Volumes::open(&state, config.clone())?;
    let data = empty(&volumes, "data", 8)?;
    write(&volumes, "data", 1, 1)?;
    assert!(!state.join("volumes/key").exists());
    let attach = || volumes.attach("a", "data", &owner(), VolumeAccess::Exclusive);
    let text = fs::read(&key_file)?;
    fs::set_permissions(&key_file, Permissions::from_mode(0o640))?;
    assert_eq!(code(attach()), "volume_key_file");
    fs::remove_file(&key_file)?;
    assert_eq!(code(attach()), "no_volume_key_file");
    assert_eq!(code(empty_of(&volumes, "new")), "no_volume_key_file");
    assert!(!key_file.exists(), "it is not made anew");
    fs::write(&key_file, format!("{:064x}\n", 7))?;
    fs::set_permissions(&key_file, Permissions::from_mode(0o600))?;
    assert_eq!(code(attach()), "wrong_volume_key");
    assert_eq!(code(volumes.snapshot(data.id, "s")), "wrong_volume_key");
    let raw = DiskImageFormat::Raw;
    assert_eq!(code(volumes.export(data.id, None, raw)), "wrong_volume_key");
    // Who opens the volumes without it finds all that needs none.
    drop(volumes);
    let volumes = Volumes::open(&state, config)?;
    assert_eq!(volumes.list(&Scope::All, true)?.len(), 1);
    fs::write(&key_file, text)?;
    reads(&volumes, "data", 1, 1)?;
    fs::remove_file(&key_file)?;
    volumes.remove(data.id, true)?;
    assert_eq!(fs::read_dir(state.join("volumes/layers"))?.count(), 0);
    Ok(())
}

fn empty_of(
    volumes: &Volumes,
    name: &str,
) -> std::result::Result<aleph_types::Volume, aleph_executor::volumes::VolumeError> {
    volumes.create(named(name), MiB(8), Filesystem::None)
}

/// The keys that the records have, each as it is put down.
fn wrapped(state: &Path) -> Result<Vec<Vec<u8>>> {
    // The node alone opens them, so it is a copy that is looked into.
    let copy = tempfile::tempdir()?;
    for name in ["volumes.db", "volumes.db-wal"] {
        let from = state.join("volumes").join(name);
        if from.exists() {
            fs::copy(from, copy.path().join(name))?;
        }
    }
    let records = rusqlite::Connection::open(copy.path().join("volumes.db"))?;
    let mut keys = records.prepare("SELECT wrapped FROM keys")?;
    let keys = keys.query_map([], |row| row.get(0))?;
    Ok(keys.collect::<std::result::Result<_, _>>()?)
}

#[test]
fn a_key_goes_with_the_last_layer_that_has_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), encrypted(BackendChoice::Qcow2))?;
    let data = empty(&volumes, "data", 8)?;
    write(&volumes, "data", 1, 1)?;
    volumes.snapshot(data.id, "one")?;
    let source = Source::Snapshot(data.id, "one");
    let copy = volumes.clone_of(named("copy"), source, None)?;
    assert_eq!(key_of(&volumes, "data")?, key_of(&volumes, "copy")?);
    empty(&volumes, "other", 8)?;
    assert_ne!(key_of(&volumes, "data")?, key_of(&volumes, "other")?);
    let keys = wrapped(dir.path())?;
    assert_eq!(keys.len(), 2);
    volumes.remove(data.id, true)?;
    assert_eq!(wrapped(dir.path())?.len(), 2, "the copy has layers of it");
    reads(&volumes, "copy", 1, 1)?;
    volumes.remove(copy.id, true)?;
    let left = wrapped(dir.path())?;
    assert_eq!(left.len(), 1);
    // Its bytes are nowhere any more; that of the one that is there would be found.
    for key in keys {
        let is_there = is_below(&dir.path().join("volumes"), &key)?;
        assert_eq!(is_there, left.contains(&key));
    }
    Ok(())
}

#[test]
fn a_copy_of_a_plain_volume_can_be_encrypted() -> Result<()> {
    for backend in BACKENDS {
        let dir = tempfile::tempdir()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let plain = empty(&volumes, "plain", 8)?;
        assert!(!plain.encrypted);
        write(&volumes, "plain", 1, 1)?;
        let new = NewVolume {
            encrypted: Some(true),
            ..named("copy")
        };
        let copy = volumes.clone_of(new, Source::Volume(plain.id), Some(MiB(12)))?;
        assert!(copy.encrypted);
        reads(&volumes, "copy", 1, 1)?;
        reads(&volumes, "copy", 24_000, 0)?;
        fill(&volumes, "copy", 1 << 20)?;
        volumes.snapshot(copy.id, "s")?;
        fill(&volumes, "copy", 2 << 20)?;
        assert!(!is_below(&dir.path().join("volumes"), &[BYTE; 64])?);
        reads(&volumes, "copy", (2 << 20) / 512, BYTE)?;
        reads(&volumes, "copy", 1, 1)?;
    }
    Ok(())
}

#[test]
fn images_come_in_and_go_out_as_they_are() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let raw = dir.path().join("raw");
    let file = File::create(&raw)?;
    // More than is read at a time.
    file.set_len(70 << 20)?;
    file.write_all_at(b"\x55\xaa", 510)?;
    file.write_all_at(&[BYTE; 1 << 16], 5 << 20)?;
    file.write_all_at(&[BYTE; 1 << 16], (64 << 20) - 100)?;
    let packed = dir.path().join("packed");
    let converted = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &packed])
        .status()?;
    ensure!(converted.success(), "qemu-img: {converted}");
    let wanted = fs::read(&raw)?;
    for (backend, path) in BACKENDS.into_iter().zip([&raw, &packed]) {
        let state = tempfile::tempdir()?;
        let volumes = Volumes::open(state.path(), encrypted(backend))?;
        let image = File::open(path)?;
        let disk = volumes.import(named("disk"), &image, Import::default())?;
        assert!(disk.encrypted);
        ensure!(disk.stored < 8 << 20, "holes stay holes: {}", disk.stored);
        let folder = state.path().join("volumes");
        assert!(!is_below(&folder, &[BYTE; 64])?);
        volumes.snapshot(disk.id, "s")?;
        write(&volumes, "disk", 9, 7)?;
        for state in [None, Some("s")] {
            let mut exported = volumes.export(disk.id, state, DiskImageFormat::Raw)?;
            assert!(exported.file().is_none(), "it is in no file");
            assert_eq!(exported.length, 70 << 20);
            let mut found = Vec::new();
            exported.read_to_end(&mut found)?;
            let sector = if state.is_none() { 7 } else { 0 };
            assert!(found[9 * 512..10 * 512].iter().all(|byte| *byte == sector));
            found[9 * 512..10 * 512].fill(0);
            assert!(found == wanted, "{backend:?} {state:?}: it differs");
            // Nobody writes to it meanwhile.
            let attached = volumes.attach("a", "disk", &owner(), VolumeAccess::Exclusive);
            let held = if state.is_none() {
                "volume_locked"
            } else {
                "none"
            };
            assert_eq!(code(attached), held);
        }
        let refused = volumes.export(disk.id, None, DiskImageFormat::Qcow2);
        assert_eq!(code(refused), "volume_attached", "by the last attachment");
        volumes.recover(|_| false)?;
        let refused = volumes.export(disk.id, None, DiskImageFormat::Qcow2);
        assert_eq!(code(refused), "bad_volume_request");
        assert!(!is_below(&folder, &[BYTE; 64])?);
    }
    Ok(())
}

/// A VMM that was broken into says that its layer is not encrypted.
#[test]
fn a_header_that_says_otherwise_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), encrypted(BackendChoice::Files))?;
    let disk = empty(&volumes, "disk", 8)?;
    let owner = owner();
    let attached = volumes.attach("a", "disk", &owner, VolumeAccess::Exclusive)?;
    attached.layers.top.write_all_at(&[0; 4], 32)?;
    drop(attached);
    volumes.release(&owner, true)?;
    assert_eq!(code(volumes.resize(disk.id, MiB(16))), "bad_qcow2");
    let new = volumes.clone_of(named("copy"), Source::Volume(disk.id), None);
    assert_eq!(code(new), "bad_qcow2");
    Ok(())
}
