//! Filesystems on volumes: made, and checked where a writer did not end in order.

use crate::support::{code, config, named, owner};
use crate::{run, text};
use aleph_executor::volumes::{BackendChoice, Import, Owner, VolumeError, Volumes};
use aleph_types::{Classify, Filesystem, MiB, VolumeAccess};
use anyhow::{Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

#[test]
fn filesystems_are_made_and_checked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Qcow2))?;
    let ext4 = volumes.create(named("ext4"), MiB(64), Filesystem::Ext4)?;
    volumes.create(named("xfs"), MiB(300), Filesystem::Xfs)?;
    let small = volumes.create(named("small"), MiB(299), Filesystem::Xfs);
    assert_eq!(code(small), "bad_volume_size");
    let top = |name: &str, access| -> Result<(Owner, File)> {
        let owner = owner();
        let attached = volumes.attach("a", name, &owner, access)?;
        Ok((owner, attached.layers.top))
    };
    let (_, xfs) = top("xfs", VolumeAccess::ReadOnly)?;
    let mut magic = [0; 4];
    xfs.read_exact_at(&mut magic, 0)?;
    assert_eq!(&magic, b"XFSB");
    // Its first writer does not end in order, and leaves a free count that is wrong.
    let (owner, disk) = top("ext4", VolumeAccess::Exclusive)?;
    let path = dir.path().join("volumes/layers/00000001.raw");
    let wrong = ["-w", "-R", "ssv free_blocks_count 7", text(&path)];
    run("debugfs", &wrong)?;
    drop(disk);
    volumes.release(&owner, false)?;
    assert!(volumes.get(ext4.id)?.unclean);
    let (owner, disk) = top("ext4", VolumeAccess::ReadOnly)?;
    let mut free = [0; 4];
    disk.read_exact_at(&mut free, 1024 + 12)?;
    ensure!(u32::from_le_bytes(free) > 7, "the check has mended it");
    assert!(!volumes.get(ext4.id)?.unclean);
    drop(disk);
    volumes.release(&owner, true)?;
    // Whoever reads it meanwhile does so undisturbed: a check writes.
    let (owner, disk) = top("ext4", VolumeAccess::Exclusive)?;
    run("debugfs", &wrong)?;
    drop(disk);
    volumes.release(&owner, false)?;
    let reading = volumes.read(ext4.id, None)?;
    let before = fs::read(&path)?;
    let refused = top("ext4", VolumeAccess::ReadOnly).unwrap_err();
    let refused = refused.downcast_ref::<VolumeError>().map(Classify::code);
    assert_eq!(refused, Some("volume_locked"));
    ensure!(before == fs::read(&path)?, "it was written to");
    drop(reading);
    let (owner, disk) = top("ext4", VolumeAccess::ReadOnly)?;
    disk.read_exact_at(&mut free, 1024 + 12)?;
    ensure!(u32::from_le_bytes(free) > 7, "the check has not mended it");
    assert!(!volumes.get(ext4.id)?.unclean);
    // It is one of any number that read.
    let (second, same) = top("ext4", VolumeAccess::ReadOnly)?;
    volumes.release(&second, true)?;
    drop((disk, same));
    volumes.release(&owner, true)?;
    // The next one leaves what nobody can mend without asking.
    let (owner, disk) = top("ext4", VolumeAccess::Exclusive)?;
    disk.write_all_at(&vec![0xa5; 4 << 20], 1 << 16)?;
    drop(disk);
    volumes.release(&owner, false)?;
    let damaged = top("ext4", VolumeAccess::Exclusive).unwrap_err();
    let damaged = damaged.downcast_ref::<VolumeError>().map(Classify::code);
    assert_eq!(damaged, Some("volume_damaged"));
    Ok(())
}

/// What a kernel leaves in a log is in the tests that mount one.
#[test]
fn an_xfs_is_checked_and_not_mended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Files))?;
    let xfs = volumes.create(named("xfs"), MiB(300), Filesystem::Xfs)?;
    let written = |at: u64, bytes: &[u8]| -> Result<()> {
        let owner = owner();
        let attached = volumes.attach("a", "xfs", &owner, VolumeAccess::Exclusive)?;
        attached.layers.top.write_all_at(bytes, at)?;
        drop(attached);
        volumes.release(&owner, false)?;
        assert!(volumes.get(xfs.id)?.unclean);
        Ok(())
    };
    let path = dir.path().join("volumes/layers/00000001.raw");
    let read_only = |owner: &Owner| volumes.attach("a", "xfs", owner, VolumeAccess::ReadOnly);
    // All is in order behind a writer that was not. Whoever reads it meanwhile need not wait: nothing is written.
    written(0, b"XFSB")?;
    let reading = volumes.read(xfs.id, None)?;
    let before = fs::read(&path)?;
    let reader = owner();
    drop(read_only(&reader)?);
    volumes.release(&reader, true)?;
    assert!(!volumes.get(xfs.id)?.unclean);
    drop(reading);
    ensure!(before == fs::read(&path)?, "it was written to");
    // Its free space and its inodes.
    written(4096, &[0xa5; 1 << 16])?;
    let damaged = read_only(&owner()).unwrap_err();
    assert_eq!(damaged.code(), "volume_damaged");
    ensure!(
        damaged
            .advice()
            .is_some_and(|advice| advice.contains("xfs_repair"))
    );
    assert!(volumes.get(xfs.id)?.unclean);
    // It is none any more.
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&[0; 4], 0)?;
    drop(read_only(&reader)?);
    assert!(!volumes.get(xfs.id)?.unclean);
    Ok(())
}

#[test]
fn an_xfs_whose_log_is_elsewhere_is_left_to_its_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [disk, log] = ["disk", "log"].map(|name| dir.path().join(name));
    File::create(&disk)?.set_len(512 << 20)?;
    File::create(&log)?.set_len(64 << 20)?;
    let log = format!("logdev={},size=64m", log.display());
    run("mkfs.xfs", &["-q", "-l", &log, text(&disk)])?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Files))?;
    let how = Import::default();
    let xfs = volumes.import(named("xfs"), &File::open(&disk)?, how)?;
    assert_eq!(xfs.filesystem, Filesystem::Xfs);
    let owner = owner();
    drop(volumes.attach("a", "xfs", &owner, VolumeAccess::Exclusive)?);
    volumes.release(&owner, false)?;
    // Its writer goes on; nobody knows whether all is in order.
    drop(volumes.attach("a", "xfs", &owner, VolumeAccess::Exclusive)?);
    assert!(volumes.get(xfs.id)?.unclean);
    Ok(())
}
