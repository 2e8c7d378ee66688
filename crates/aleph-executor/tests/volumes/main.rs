//! Volumes on real files, with the real `qemu-img` and `mke2fs`: each back end, hostile images, leases,
//! locks, quotas, a full disk; random operations against a model; a crash in every step; backups of them.

mod contract;
mod crash;
mod encrypted;
mod filesystems;
mod live;
mod merge;
mod model;
mod reading;
mod support;

use aleph_executor::node::Scope;
use aleph_executor::volumes::{
    BackendChoice, Import, MAX_DEPTH, NewVolume, Owner, Source, VolumeQuota, Volumes, VolumesConfig,
};
use aleph_types::{
    Classify, DiskImageFormat, ErrorClass, Filesystem, MiB, Timestamp, VolumeAccess, VolumeState,
};
use anyhow::{Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{BACKENDS, code, config, empty, named, owner, qemu_io, reads, write};

#[test]
fn what_nobody_has_seen_is_gone_unless_it_is_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Auto))?;
    let make = |volumes: &Volumes| volumes.create_unseen(named("data"), MiB(8), Filesystem::Ext4);
    let files = || fs::read_dir(dir.path().join("volumes/layers")).map(Iterator::count);
    let unseen = make(&volumes)?;
    ensure!(volumes.list(&Scope::All, true)?.is_empty(), "it is seen");
    assert_eq!(code(volumes.named("a", "data")), "no_volume");
    // Its name is taken and its file there, until it comes to nothing.
    assert_eq!(code(make(&volumes)), "name_taken");
    assert_eq!(files()?, 1);
    drop(unseen);
    assert_eq!(files()?, 0);
    // So it does where a crash comes before it is shown: what is on the disk then is opened elsewhere.
    let unseen = make(&volumes)?;
    let crashed = tempfile::tempdir()?;
    let (from, to) = (dir.path().join("volumes"), crashed.path());
    run("cp", &["-r", text(&from), text(to)])?;
    drop(unseen);
    let volumes = Volumes::open(to, config(BackendChoice::Auto))?;
    let files = || fs::read_dir(to.join("volumes/layers")).map(Iterator::count);
    assert_eq!(files()?, 0);
    let shown = make(&volumes)?.show()?;
    assert_eq!(volumes.named("a", "data")?.id, shown.id);
    assert_eq!(files()?, 1);
    Ok(())
}

#[test]
fn states_are_kept_copied_and_had_back() -> Result<()> {
    for backend in BACKENDS {
        for encrypt in [false, true] {
            contract::states(tempfile::tempdir()?.path(), backend, encrypt)?;
        }
    }
    Ok(())
}

/// A qcow2 file of a disk with a partition table's mark and `hello` further on.
fn qcow2(dir: &Path) -> Result<std::path::PathBuf> {
    let raw = dir.join("disk.raw");
    let file = File::create(&raw)?;
    file.set_len(24 << 20)?;
    file.write_all_at(b"\x55\xaa", 510)?;
    file.write_all_at(b"hello", 20 << 20)?;
    let path = dir.join("disk.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&path)],
    )?;
    Ok(path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}

#[test]
fn images_come_in_and_go_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(&dir.path().join("node"), config(BackendChoice::Qcow2))?;
    let image = File::open(qcow2(dir.path())?)?;
    let disk = volumes.import(named("disk"), &image, Import::default())?;
    assert_eq!((disk.size, disk.filesystem), (MiB(24), Filesystem::None));
    ensure!(disk.stored < 1 << 20, "holes stay holes: {}", disk.stored);
    let larger = Import {
        size: Some(MiB(64)),
        ..Import::default()
    };
    let raw = File::open(dir.path().join("disk.raw"))?;
    assert_eq!(volumes.import(named("larger"), &raw, larger)?.size, MiB(64));
    // Out of a chain and out of one file, as either.
    volumes.snapshot(disk.id, "s")?;
    write(&volumes, "disk", 9, 7)?;
    for (snapshot, sector) in [(None, [7; 512]), (Some("s"), [0; 512])] {
        for format in [DiskImageFormat::Raw, DiskImageFormat::Qcow2] {
            let mut exported = volumes.export(disk.id, snapshot, format)?;
            let out = dir.path().join("out");
            let mut file = File::create(&out)?;
            let length = exported.length;
            let copied = std::io::copy(&mut exported, &mut file)?;
            assert_eq!(copied, length);
            let back = dir.path().join("back");
            let name = format.to_string();
            run(
                "qemu-img",
                &["convert", "-f", &name, "-O", "raw", text(&out), text(&back)],
            )?;
            let back = File::open(back)?;
            assert_eq!(back.metadata()?.len(), 24 << 20);
            let (mut hello, mut found) = ([0; 5], [1; 512]);
            back.read_exact_at(&mut hello, 20 << 20)?;
            back.read_exact_at(&mut found, 9 * 512)?;
            assert_eq!((&hello, found), (b"hello", sector), "{snapshot:?} {format}");
        }
    }
    Ok(())
}

#[test]
fn hostile_images_are_refused_and_leave_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(&dir.path().join("node"), config(BackendChoice::Qcow2))?;
    let good = qcow2(dir.path())?;
    let make = |name: &str, options: &[&str]| -> Result<std::path::PathBuf> {
        let path = dir.path().join(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(options);
        arguments.extend([text(&path), "24M"]);
        run("qemu-img", &arguments)?;
        Ok(path)
    };
    let spoilt = |name: &str, spoil: &dyn Fn(&mut Vec<u8>)| -> Result<std::path::PathBuf> {
        let mut bytes = fs::read(&good)?;
        spoil(&mut bytes);
        let path = dir.path().join(name);
        fs::write(&path, bytes)?;
        Ok(path)
    };
    let data = format!("data_file={}/data,data_file_raw=on", dir.path().display());
    let cases = [
        (
            "bad_qcow2",
            make("backing", &["-u", "-b", "/etc/shadow", "-F", "raw"])?,
        ),
        ("bad_qcow2", make("data-file", &["-o", &data])?),
        ("bad_volume_size", make("huge", &[])?),
        ("bad_qcow2", spoilt("cut", &|bytes| bytes.truncate(100))?),
        (
            "bad_qcow2",
            spoilt("tables", &|bytes| bytes.truncate(0x1_0000))?,
        ),
        (
            "bad_qcow2",
            spoilt("l1", &|bytes| bytes[40..48].fill(0xff))?,
        ),
        // The header is in order, and the clusters that it leads to are not there.
        (
            "not_an_image",
            spoilt("clusters", &|bytes| {
                let l1 = usize::from(bytes[45]) << 16;
                bytes[l1..l1 + 8].copy_from_slice(&0x8000_0000_7fff_0000_u64.to_be_bytes());
            })?,
        ),
        (
            "not_an_image",
            spoilt("end", &|bytes| bytes.truncate(bytes.len() - 0x1_0000))?,
        ),
        (
            "not_an_image",
            spoilt("text", &|bytes| *bytes = b"hello, this is text".to_vec())?,
        ),
        ("not_an_image", spoilt("empty", &|bytes| bytes.clear())?),
        ("not_an_image", spoilt("zeros", &|bytes| bytes.fill(0))?),
        (
            "not_an_image",
            spoilt("gzip", &|bytes| bytes[..3].copy_from_slice(b"\x1f\x8b\x08"))?,
        ),
    ];
    // A disk of 60 TiB in 200 KiB.
    run(
        "qemu-img",
        &["resize", "-q", text(&dir.path().join("huge")), "60T"],
    )?;
    for (wanted, path) in cases {
        let image = File::open(&path)?;
        let refused = volumes.import(named("x"), &image, Import::default());
        assert_eq!(code(refused), wanted, "{}", path.display());
        assert_eq!(
            fs::read_dir(dir.path().join("node/volumes/layers"))?.count(),
            0
        );
    }
    assert!(volumes.list(&Scope::All, true)?.is_empty());
    // A cluster that nothing uses does no harm; what does is told.
    let leaky = spoilt("leaky", &|bytes| {
        let block = usize::from(bytes[0x1_0005]) << 16;
        let last = bytes.len() / 0x1_0000;
        bytes[block + 2 * last + 1] = 1;
        bytes.resize((last + 1) * 0x1_0000, 0);
    })?;
    let leaky = volumes.import(named("leaky"), &File::open(leaky)?, Import::default())?;
    volumes.remove(leaky.id, true)?;
    let cut = File::open(dir.path().join("end"))?;
    let refused = volumes.import(named("x"), &cut, Import::default());
    let said = refused.unwrap_err().to_string();
    ensure!(said.len() > 60, "it says why: {said}");
    // What is named as qcow2 is read as such, and zeros are a disk where somebody says so.
    let zeros = File::open(dir.path().join("zeros"))?;
    for (format, wanted) in [
        (DiskImageFormat::Qcow2, "bad_qcow2"),
        (DiskImageFormat::Raw, "none"),
    ] {
        let how = Import {
            format: Some(format),
            size: None,
        };
        assert_eq!(code(volumes.import(named("x"), &zeros, how)), wanted);
    }
    Ok(())
}

/// A VMM that was broken into writes into its own top what it likes.
#[test]
fn a_disk_that_its_vmm_spoilt_leads_nowhere() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let secret = dir.path().join("secret");
    fs::write(&secret, vec![b'S'; 1 << 20])?;
    let volumes = Volumes::open(&dir.path().join("node"), config(BackendChoice::Qcow2))?;
    let disk = empty(&volumes, "disk", 8)?;
    volumes.snapshot(disk.id, "s")?;
    let owner = owner();
    let attached = volumes.attach("a", "disk", &owner, VolumeAccess::Exclusive)?;
    assert_eq!(attached.layers.backing.len(), 1);
    // The backing file's name goes where nothing else is.
    let name = text(&secret).as_bytes();
    attached.layers.top.write_all_at(name, 0x8000)?;
    attached
        .layers
        .top
        .write_all_at(&0x8000_u64.to_be_bytes(), 8)?;
    let length = u32::try_from(name.len())?;
    attached
        .layers
        .top
        .write_all_at(&length.to_be_bytes(), 16)?;
    drop(attached);
    volumes.release(&owner, false)?;
    for format in [DiskImageFormat::Raw, DiskImageFormat::Qcow2] {
        assert_eq!(code(volumes.export(disk.id, None, format)), "bad_qcow2");
    }
    assert_eq!(code(volumes.resize(disk.id, MiB(16))), "bad_qcow2");
    assert_eq!(volumes.get(disk.id)?.size, MiB(8));
    // The state that was kept before is there.
    volumes.restore(disk.id, "s")?;
    reads(&volumes, "disk", 0, 0)
}

#[test]
fn one_writes_or_many_read() -> Result<()> {
    for backend in BACKENDS {
        let dir = tempfile::tempdir()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let disk = empty(&volumes, "disk", 8)?;
        let (one, other) = (owner(), owner());
        let exclusive = VolumeAccess::Exclusive;
        let attach = |who: &Owner, access| volumes.attach("a", "disk", who, access);
        let held = attach(&one, exclusive)?;
        assert!(
            held.volume.unclean,
            "until it is told that it ended in order"
        );
        assert_eq!(code(attach(&other, exclusive)), "volume_attached");
        assert_eq!(
            code(attach(&other, VolumeAccess::ReadOnly)),
            "volume_attached"
        );
        let refused = [
            code(volumes.resize(disk.id, MiB(9))),
            code(volumes.snapshot(disk.id, "s")),
            code(volumes.remove(disk.id, true)),
            code(volumes.export(disk.id, None, DiskImageFormat::Raw)),
            code(volumes.clone_of(named("c"), Source::Volume(disk.id), None)),
        ];
        assert_eq!(refused, ["volume_attached"; 5]);
        // The next start of the same job has to wait for the VMM of this one.
        let next = Owner {
            incarnation: one.incarnation.next(),
            ..one
        };
        assert_eq!(code(attach(&next, exclusive)), "volume_locked");
        // A node that starts finds the job gone, and its VMM alive: hands off.
        assert!(volumes.recover(|_| false)?.is_empty());
        assert_eq!(code(attach(&other, exclusive)), "volume_attached");
        drop(held);
        let held = attach(&next, exclusive)?;
        // What an earlier start still releases is not this one's.
        volumes.release(&one, true)?;
        assert_eq!(volumes.get(disk.id)?.leases.len(), 1);
        drop(held);
        assert_eq!(volumes.recover(|_| true)?, []);
        assert_eq!(volumes.recover(|_| false)?, [disk.id]);
        assert!(volumes.get(disk.id)?.leases.is_empty());
        // Readers share it, and its state can be kept meanwhile.
        let readers = [owner(), owner(), owner()];
        let held: Vec<_> = readers
            .iter()
            .map(|who| attach(who, VolumeAccess::ReadOnly))
            .collect::<Result<_, _>>()?;
        assert!(held.iter().all(|held| held.layers.read_only));
        assert!(held[0].layers.top.write_at(b"x", 0).is_err());
        assert_eq!(code(attach(&other, exclusive)), "volume_attached");
        volumes.snapshot(disk.id, "s")?;
        assert_eq!(code(volumes.restore(disk.id, "s")), "volume_attached");
        drop(held);
        readers
            .iter()
            .try_for_each(|who| volumes.release(who, true))?;
        let held = attach(&other, exclusive)?;
        drop(held);
        volumes.release(&other, true)?;
        assert!(!volumes.get(disk.id)?.unclean);
        let second = Volumes::open(dir.path(), config(backend));
        assert_eq!(code(second), "volumes_in_use");
    }
    Ok(())
}

#[test]
fn a_process_with_the_file_keeps_others_out_whatever_the_records_say() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Files))?;
    let disk = empty(&volumes, "disk", 8)?;
    let gone = owner();
    let held = volumes.attach("a", "disk", &gone, VolumeAccess::Exclusive)?;
    // As after a record was lost, or put back from a backup.
    volumes.release(&gone, true)?;
    let attach = || volumes.attach("a", "disk", &owner(), VolumeAccess::Exclusive);
    assert_eq!(code(attach()), "volume_locked");
    assert_eq!(code(volumes.resize(disk.id, MiB(16))), "volume_locked");
    assert_eq!(code(volumes.snapshot(disk.id, "s")), "volume_locked");
    assert_eq!(code(volumes.remove(disk.id, true)), "volume_locked");
    // The lock is the descriptor's, which a VMM has from us.
    let inherited = held.layers.top.try_clone()?;
    drop(held);
    assert_eq!(code(attach()), "volume_locked");
    drop(inherited);
    attach()?;
    Ok(())
}

#[test]
fn removed_volumes_can_be_had_back_for_a_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let grace = Duration::from_secs(3600);
    let config = VolumesConfig {
        grace,
        ..config(BackendChoice::Qcow2)
    };
    let volumes = Volumes::open(dir.path(), config)?;
    let old = empty(&volumes, "data", 8)?;
    write(&volumes, "data", 3, 5)?;
    volumes.remove(old.id, false)?;
    assert_eq!(code(volumes.remove(old.id, false)), "volume_deleted");
    assert_eq!(
        code(volumes.attach("a", "data", &owner(), VolumeAccess::ReadOnly)),
        "no_volume"
    );
    let listed = |deleted| -> Result<usize> { Ok(volumes.list(&Scope::All, deleted)?.len()) };
    assert_eq!((listed(false)?, listed(true)?), (0, 1));
    assert_eq!(
        volumes.find(&Scope::All, "data")?.state,
        VolumeState::Deleted
    );
    // Its name is free for another, which is meant by it from then on.
    let new = empty(&volumes, "data", 8)?;
    assert_eq!(volumes.find(&Scope::All, "data")?.id, new.id);
    assert_eq!(volumes.find(&Scope::All, &old.id.short())?.id, old.id);
    assert_eq!(code(volumes.undelete(old.id, None)), "name_taken");
    volumes.undelete(old.id, Some("back"))?;
    assert_eq!(code(volumes.undelete(old.id, None)), "volume_not_deleted");
    reads(&volumes, "back", 3, 5)?;
    volumes.remove(old.id, false)?;
    let now = Timestamp::now();
    assert_eq!(volumes.purge_due(now)?, 0);
    assert_eq!(volumes.purge_due(now + grace + Duration::from_secs(1))?, 1);
    assert_eq!(code(volumes.undelete(old.id, None)), "no_volume");
    assert_eq!(fs::read_dir(dir.path().join("volumes/layers"))?.count(), 1);
    // Accounts do not see each other's, and may use the same names.
    let theirs = Scope::Account("b".into());
    assert_eq!(code(volumes.find(&theirs, "data")), "no_volume");
    assert_eq!(
        code(volumes.find(&theirs, &new.id.to_string())),
        "no_volume"
    );
    let other = NewVolume {
        account: "b",
        ..named("data")
    };
    volumes.create(other, MiB(8), Filesystem::None)?;
    assert_eq!(code(volumes.find(&Scope::All, "data")), "ambiguous");
    let again = volumes.create(named("data"), MiB(8), Filesystem::None);
    assert_eq!(code(again), "name_taken");
    Ok(())
}

#[test]
fn accounts_have_quotas() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let quota = VolumeQuota {
        count: Some(3),
        bytes: Some(64 << 20),
    };
    let config = VolumesConfig {
        quota,
        ..config(BackendChoice::Qcow2)
    };
    let volumes = Volumes::open(dir.path(), config)?;
    let create = |name, size| volumes.create(named(name), MiB(size), Filesystem::None);
    assert_eq!(code(create("large", 65)), "volume_quota");
    let disk = create("disk", 40)?;
    assert_eq!(code(create("other", 25)), "volume_quota");
    assert_eq!(code(volumes.resize(disk.id, MiB(65))), "volume_quota");
    assert_eq!(volumes.get(disk.id)?.size, MiB(40));
    create("other", 8)?;
    create("third", 8)?;
    let refused = create("fourth", 1).unwrap_err();
    assert_eq!(
        (refused.code(), refused.class()),
        ("volume_quota", ErrorClass::Capacity)
    );
    ensure!(refused.to_string().contains("3 of volumes"), "{refused}");
    volumes.remove(volumes.find(&Scope::All, "third")?.id, true)?;
    // What was written counts beside what can still be: two states of 10 MiB are too many.
    let fill = |byte: u8| -> Result<()> {
        let owner = owner();
        let attached = volumes.attach("a", "disk", &owner, VolumeAccess::Exclusive)?;
        qemu_io(&attached.layers, &[format!("write -P {byte} 0 10M")])?;
        drop(attached);
        Ok(volumes.release(&owner, true)?)
    };
    fill(1)?;
    volumes.snapshot(disk.id, "one")?;
    fill(2)?;
    assert_eq!(code(volumes.snapshot(disk.id, "two")), "volume_quota");
    volumes.remove_snapshot(disk.id, "one")?;
    // Another account has its own.
    let other = NewVolume {
        account: "b",
        ..named("disk")
    };
    volumes.create(other, MiB(64), Filesystem::None)?;
    Ok(())
}

#[test]
fn chains_have_a_bound_and_copies_of_one_image_share_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(BackendChoice::Qcow2))?;
    let disk = empty(&volumes, "disk", 8)?;
    let rounds = u8::try_from(MAX_DEPTH + 4)?;
    for round in 1..=rounds {
        write(&volumes, "disk", u64::from(round), round)?;
        volumes.snapshot(disk.id, &format!("s{round}"))?;
        let depth = volumes.depth(disk.id)?;
        ensure!(depth <= MAX_DEPTH, "{depth} layers");
    }
    for round in 1..=rounds {
        reads(&volumes, "disk", u64::from(round), round)?;
    }
    volumes.restore(disk.id, "s3")?;
    reads(&volumes, "disk", 3, 3)?;
    reads(&volumes, "disk", 4, 0)?;
    // An image that nobody writes to is copied any number of times, and no chain gets longer.
    let image = empty(&volumes, "image", 8)?;
    for round in 0..MAX_DEPTH + 4 {
        let name = format!("copy{round}");
        let copy = volumes.clone_of(named(&name), Source::Volume(image.id), None)?;
        assert_eq!(volumes.depth(copy.id)?, 2);
    }
    assert_eq!(volumes.depth(image.id)?, 2);
    Ok(())
}

/// A filesystem of 24 MiB of the test's own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount() -> Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let path = text(dir.path());
        let arguments = ["-t", "tmpfs", "-o", "size=24m", "small", path];
        let mounted = Command::new("mount").args(arguments).output()?;
        Ok(mounted.status.success().then_some(Self(dir)))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn what_does_not_fit_is_not_copied_for_its_readers() -> Result<()> {
    let Some(small) = SmallDisk::mount()? else {
        eprintln!("skipped: only root may mount");
        return Ok(());
    };
    let volumes = Volumes::open(small.0.path(), config(BackendChoice::Qcow2))?;
    let (id, owner) = (empty(&volumes, "disk", 16)?.id, owner());
    let attached = volumes.attach("a", "disk", &owner, VolumeAccess::Exclusive)?;
    let mut layers = attached.layers;
    for (name, line) in [("low", "write -P 1 0 512"), ("high", "write -P 7 0 14M")] {
        qemu_io(&layers, &[line.into()])?;
        let cover = volumes.begin_cover(id, &owner, Some(name))?;
        volumes.arm_cover(id, &owner)?;
        layers = layers.covered(cover);
        volumes.finish_cover(id, &owner)?;
    }
    // Its VMM may still write to it, and there is no room for a copy.
    assert_eq!(code(volumes.read(id, Some("high"))), "disk_full");
    let format = DiskImageFormat::Raw;
    assert_eq!(code(volumes.export(id, Some("high"), format)), "disk_full");
    // Its guest has what is free.
    qemu_io(&layers, &["write -P 8 0 4M".into()])?;
    drop(layers);
    volumes.release(&owner, true)?;
    volumes.read(id, Some("high"))?;
    reads(&volumes, "disk", 0, 8)
}

#[test]
fn a_full_disk_leaves_what_there_was() -> Result<()> {
    let Some(small) = SmallDisk::mount()? else {
        eprintln!("skipped: only root may mount");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(small.0.path(), config(BackendChoice::Files))?;
    let disk = empty(&volumes, "disk", 16)?;
    let owner = owner();
    let attached = volumes.attach("a", "disk", &owner, VolumeAccess::Exclusive)?;
    qemu_io(&attached.layers, &["write -P 7 0 14M".into()])?;
    drop(attached);
    volumes.release(&owner, true)?;
    // A copy does not fit, whatever makes it.
    let refused = volumes.clone_of(named("copy"), Source::Volume(disk.id), None);
    let error = refused.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("disk_full", ErrorClass::Capacity)
    );
    assert_eq!(code(volumes.snapshot(disk.id, "s")), "disk_full");
    let full = dir.path().join("full.raw");
    fs::write(&full, vec![0x55; 14 << 20])?;
    File::options()
        .write(true)
        .open(&full)?
        .write_all_at(b"\x55\xaa", 510)?;
    let packed = dir.path().join("full.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&full), text(&packed)],
    )?;
    for path in [&full, &packed] {
        let refused = volumes.import(named("image"), &File::open(path)?, Import::default());
        assert_eq!(code(refused), "disk_full", "{}", path.display());
    }
    assert_eq!(
        fs::read_dir(small.0.path().join("volumes/layers"))?.count(),
        1
    );
    assert_eq!(volumes.list(&Scope::All, true)?.len(), 1);
    reads(&volumes, "disk", 20_000, 7)
}
