//! Volumes as thin volumes of LVM: in a VM with Debian's kernel, since the host that runs the tests need have no
//! device-mapper. The pool is on a loop device over a file in the guest's memory. With device-mapper a disk can
//! fail, too, whichever way volumes are kept on it.

#[path = "../volumes/contract.rs"]
mod contract;
#[path = "../volumes/crash.rs"]
#[allow(dead_code, unused_imports)]
mod crash;
#[path = "../volumes/merge.rs"]
#[allow(dead_code, unused_imports)]
mod merge;
#[path = "../volumes/model.rs"]
#[allow(dead_code, unused_imports)]
mod model;
#[path = "../volumes/support.rs"]
#[allow(dead_code)]
mod support;

mod failing;
mod failing_pool;
mod failing_records;
mod faulty_disk;

use aleph_executor::node::Scope;
use aleph_executor::volumes::{
    BackendChoice, Import, Layers, Owner, Source, VolumeError, VolumeQuota, Volumes, VolumesConfig,
};
use aleph_testkit::{Case, PciHost};
use aleph_types::{Classify, DiskImageFormat, ErrorClass, Filesystem, MiB, VolumeAccess};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use support::{code, config, empty, layers, named, owner, qemu_io, reads, write};

const CASES: &[Case] = &[
    (
        "states_are_kept_copied_and_had_back",
        states_are_kept_copied_and_had_back,
    ),
    ("encrypted_ones_are_kept_too", encrypted_ones_are_kept_too),
    (
        "images_come_in_and_filesystems_are_made",
        images_come_in_and_filesystems_are_made,
    ),
    (
        "disks_grow_while_they_are_written",
        disks_grow_while_they_are_written,
    ),
    (
        "a_growth_that_breaks_off_has_its_place",
        a_growth_that_breaks_off_has_its_place,
    ),
    ("layers_are_closed_and_locked", layers_are_closed_and_locked),
    (
        "a_full_pool_fails_writes_and_loses_none",
        a_full_pool_fails_writes_and_loses_none,
    ),
    (
        "a_pool_that_does_not_do_is_refused",
        a_pool_that_does_not_do_is_refused,
    ),
    (
        "a_node_with_another_back_end_goes_on",
        a_node_with_another_back_end_goes_on,
    ),
    ("operations_against_a_model", operations_against_a_model),
    (
        "layers_are_merged_while_written",
        layers_are_merged_while_written,
    ),
    (
        "a_crash_while_layers_are_made",
        a_crash_while_layers_are_made,
    ),
    ("a_crash_while_layers_change", a_crash_while_layers_change),
    (
        "files_that_cannot_be_read_lose_nothing_else",
        failing::files_that_cannot_be_read_lose_nothing_else,
    ),
    (
        "chains_that_cannot_be_read_lose_nothing_else",
        failing::chains_that_cannot_be_read_lose_nothing_else,
    ),
    (
        "what_cannot_be_written_leaves_nothing",
        failing::what_cannot_be_written_leaves_nothing,
    ),
    (
        "layers_that_cannot_be_read_are_not_merged",
        failing::layers_that_cannot_be_read_are_not_merged,
    ),
    (
        "records_that_cannot_be_written_leave_one_state_or_the_other",
        failing_records::records_that_cannot_be_written_leave_one_state_or_the_other,
    ),
    (
        "a_disk_that_fails_whole_is_told_and_has_what_it_had",
        failing_records::a_disk_that_fails_whole_is_told_and_has_what_it_had,
    ),
    (
        "a_pool_that_cannot_be_read_loses_nothing_else",
        failing_pool::a_pool_that_cannot_be_read_loses_nothing_else,
    ),
];

const THIN: BackendChoice = BackendChoice::LvmThin;

fn main() -> ExitCode {
    // The process of a case that is to die in it.
    if std::env::var_os(crash::ROOT).is_some() {
        return match crash::die() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::var_os(GROWS).is_some() {
        return match grows() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let host = PciHost {
        memory: MiB(2048),
        modules: &["dm-mod", "dm-thin-pool", "dm-snapshot", "loop"],
        devices: &[],
        files: &[
            "/usr/sbin/lvm",
            "/usr/sbin/thin_check",
            "/usr/sbin/losetup",
            "/usr/sbin/dmsetup",
            "/usr/sbin/filefrag",
            "/usr/sbin/dumpe2fs",
            "/usr/bin/qemu-img",
            "/usr/bin/qemu-io",
            "/usr/sbin/mke2fs",
            "/usr/sbin/e2fsck",
        ],
        node: None,
        numa_nodes: 1,
    };
    host.main(CASES)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn lvm(arguments: &[&str]) -> Result<String> {
    // Nobody has udev here.
    let without = "activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } \
                   devices { obtain_device_list_from_udev=0 }";
    let (word, rest) = arguments.split_first().context("no word")?;
    run(
        "/usr/sbin/lvm",
        &[&[word, "--config", without], rest].concat(),
    )
}

/// Makes a pool of so many MiB, in a group whose extents are of `extent` MiB.
fn pool(size: u32, extent: u32) -> Result<()> {
    let disk = File::create("/state/disk")?;
    disk.set_len(u64::from(size + 64) << 20)?;
    let device = run("/usr/sbin/losetup", &["--find", "--show", "/state/disk"])?;
    pool_on(&device, size, extent)
}

/// The same on a device that has room for it, and for 64 MiB more.
fn pool_on(device: &str, size: u32, extent: u32) -> Result<()> {
    for folder in ["/run/lock/lvm", "/run/lvm", "/etc/lvm", "/var/tmp"] {
        fs::create_dir_all(folder)?;
    }
    lvm(&["pvcreate", "-qq", device])?;
    let extent = format!("{extent}m");
    lvm(&["vgcreate", "-qq", "-s", &extent, "group-1", device])?;
    let size = format!("{size}m");
    let arguments = ["--type", "thin-pool", "--poolmetadatasize", "8m"];
    let named = ["--size", &size, "--name", "pool", "group-1"];
    let rest = ["--chunksize", "64k"];
    let all = [&["lvcreate", "-qq", "--yes"][..], &arguments, &rest, &named];
    lvm(&all.concat())?;
    lvm(&["lvchange", "-qq", "--errorwhenfull", "y", "group-1/pool"]).map(drop)
}

fn states_are_kept_copied_and_had_back() -> Result<()> {
    pool(256, 1)?;
    contract::states(tempfile::tempdir()?.path(), THIN, false)
}

fn encrypted_ones_are_kept_too() -> Result<()> {
    pool(256, 4)?;
    let dir = tempfile::tempdir()?;
    let encrypted = VolumesConfig {
        encrypt: true,
        ..config(THIN)
    };
    let volumes = Volumes::open(dir.path(), encrypted)?;
    let data = empty(&volumes, "data", 16)?;
    assert!(data.encrypted);
    write(&volumes, "data", 7, 0xa7)?;
    volumes.snapshot(data.id, "one")?;
    write(&volumes, "data", 7, 2)?;
    volumes.resize(data.id, MiB(24))?;
    reads(&volumes, "data", 7, 2)?;
    reads(&volumes, "data", 45_000, 0)?;
    volumes.restore(data.id, "one")?;
    reads(&volumes, "data", 7, 0xa7)?;
    // It is on no device in the clear: the pool's own has all of them.
    run("sync", &[]).ok();
    let mut disk = File::open("/state/disk")?;
    let mut piece = vec![0; 1 << 20];
    while let Ok(read @ 1..) = disk.read(&mut piece) {
        let found = piece[..read].windows(64).any(|some| some == [0xa7; 64]);
        ensure!(!found, "it is on the disk in the clear");
    }
    volumes.remove(data.id, true)?;
    assert_eq!(layers(dir.path(), THIN)?, 0);
    Ok(())
}

fn layers_are_merged_while_written() -> Result<()> {
    pool(256, 1)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    let id = merge::are_merged(&volumes)?;
    // A device that its VMM still had open goes when they are opened next.
    drop(volumes);
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    volumes.remove(id, true)?;
    assert_eq!(layers(dir.path(), THIN)?, 0);
    Ok(())
}

fn images_come_in_and_filesystems_are_made() -> Result<()> {
    // Extents of 4 MiB: sizes are whole ones.
    pool(256, 4)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(&dir.path().join("node"), config(THIN))?;
    assert_eq!(volumes.backend(), "lvm-thin");
    let raw = dir.path().join("raw");
    let file = File::create(&raw)?;
    file.set_len(9 << 20)?;
    file.write_all_at(b"\x55\xaa", 510)?;
    file.write_all_at(&[7; 512], 8 << 20)?;
    let packed = dir.path().join("packed");
    let paths = [
        raw.to_str().context("no path")?,
        packed.to_str().context("no path")?,
    ];
    run(
        "qemu-img",
        &[&["convert", "-f", "raw", "-O", "qcow2"][..], &paths].concat(),
    )?;
    let mut wanted = fs::read(&raw)?;
    wanted.resize(12 << 20, 0);
    for (name, path) in ["raw", "packed"].into_iter().zip(paths) {
        let disk = volumes.import(named(name), &File::open(path)?, Import::default())?;
        assert_eq!(disk.size, MiB(12));
        ensure!(disk.stored < 1 << 20, "holes take nothing: {}", disk.stored);
        let mut exported = volumes.export(disk.id, None, DiskImageFormat::Raw)?;
        let mut found = Vec::new();
        exported.read_to_end(&mut found)?;
        assert!(found == wanted, "{name}: it differs");
    }
    let out = volumes.export(
        volumes.find(&Scope::All, "raw")?.id,
        None,
        DiskImageFormat::Qcow2,
    )?;
    let mut magic = [0; 4];
    out.read_exact_at(&mut magic, 0)?;
    assert_eq!(&magic, b"QFI\xfb");
    // A filesystem, and its check where its writer did not end in order.
    let made = volumes.create(named("ext4"), MiB(30), Filesystem::Ext4)?;
    assert_eq!(made.size, MiB(32));
    let who = owner();
    drop(volumes.attach("a", "ext4", &who, VolumeAccess::Exclusive)?);
    volumes.release(&who, false)?;
    assert!(volumes.get(made.id)?.unclean);
    let who = owner();
    let attached = volumes.attach("a", "ext4", &who, VolumeAccess::ReadOnly)?;
    assert!(!attached.volume.unclean);
    let mut magic = [0; 2];
    attached.layers.top.read_exact_at(&mut magic, 1080)?;
    assert_eq!(&magic, b"\x53\xef");
    Ok(())
}

/// What the VMM asks for before it makes the disk itself larger; QEMU's own resize does the rest here.
fn disks_grow_while_they_are_written() -> Result<()> {
    pool(256, 4)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    let disk = empty(&volumes, "disk", 8)?;
    let who = owner();
    let held = volumes.attach("a", "disk", &who, VolumeAccess::Exclusive)?;
    held.layers.top.write_all_at(b"before", 0)?;
    let growth = volumes.grow_record(disk.id, &who, MiB(13))?;
    assert_eq!((growth.before, growth.size), (MiB(8), MiB(16)));
    assert_eq!(volumes.get(disk.id)?.size, MiB(16));
    let fd = held.layers.top.as_raw_fd();
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    let size = (16_u32 << 20).to_string();
    run("qemu-img", &["resize", "-f", "raw", &path, &size])?;
    held.layers.top.write_all_at(b"behind", (16 << 20) - 6)?;
    held.layers.top.sync_all()?;
    // Smaller it does not get.
    let smaller = volumes.grow_record(disk.id, &who, MiB(4));
    assert_eq!(code(smaller), "bad_volume_size");
    drop(held);
    volumes.release(&who, true)?;
    let mut exported = volumes.export(disk.id, None, DiskImageFormat::Raw)?;
    let mut found = Vec::new();
    exported.read_to_end(&mut found)?;
    assert_eq!(found.len(), 16 << 20);
    ensure!(found.starts_with(b"before") && found.ends_with(b"behind"));
    Ok(())
}

const GROWS: &str = "ALEPH_LVM_TEST_GROWS";
const JOB: &str = "ALEPH_LVM_TEST_JOB";
const SIZE: &str = "ALEPH_LVM_TEST_SIZE";

/// The process that is killed while it has a volume grow.
fn grows() -> Result<()> {
    let volumes = Volumes::open(Path::new(&std::env::var(GROWS)?), config(THIN))?;
    let disk = volumes.find(&Scope::All, "disk")?;
    let who = Owner {
        job: std::env::var(JOB)?.parse()?,
        ..owner()
    };
    volumes
        .grow_record(disk.id, &who, MiB(std::env::var(SIZE)?.parse()?))
        .map(drop)?;
    Ok(())
}

/// Has a process record that a disk is larger, and die.
fn dies_as_it_grows(root: &Path, who: &Owner, size: u32) -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .env(GROWS, root)
        .env(JOB, who.job.to_string())
        .env(SIZE, size.to_string())
        .env("ALEPH_FAILPOINT", "volume.grow_live:after")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.signal() == Some(9),
        "{}: {said}",
        output.status
    );
    Ok(())
}

/// Bytes of a disk's device.
fn length(layers: &Layers) -> Result<u64> {
    let mut top = &layers.top;
    Ok(top.seek(SeekFrom::End(0))?)
}

/// The record says how large a disk is before its device is: whoever finds it so makes the place, beside a VMM that
/// lives and after its end.
fn a_growth_that_breaks_off_has_its_place() -> Result<()> {
    pool(256, 4)?;
    for encrypt in [false, true] {
        let dir = tempfile::tempdir()?;
        let open = || {
            let bytes = Some(MiB(100).bytes());
            let quota = VolumeQuota {
                bytes,
                ..VolumeQuota::default()
            };
            let config = VolumesConfig {
                encrypt,
                quota,
                ..config(THIN)
            };
            Volumes::open(dir.path(), config)
        };
        let (volumes, who) = (open()?, owner());
        let disk = empty(&volumes, "disk", 8)?;
        let attach = |volumes: &Volumes| volumes.attach("a", "disk", &who, VolumeAccess::Exclusive);
        let held = attach(&volumes)?;
        // Its VMM refuses: what is a disk of the new size keeps it, and only an image that says so is one.
        let growth = volumes.grow_record(disk.id, &who, MiB(16))?;
        volumes.undo_growth(disk.id, growth);
        let size = if encrypt { 8 } else { 16 };
        assert_eq!(volumes.get(disk.id)?.size, MiB(size), "{encrypt}");
        let more = volumes.create(named("more"), MiB(88), Filesystem::None);
        match encrypt {
            true => volumes.remove(more?.id, true)?,
            false => assert_eq!(code(more), "volume_quota"),
        }
        // Nobody is told that there is place before there is.
        let all = volumes.grow_record(disk.id, &who, MiB(u32::MAX));
        assert_eq!(code(all), "bad_volume_size");
        drop(volumes);

        dies_as_it_grows(dir.path(), &who, 40)?;
        let volumes = open()?;
        assert_eq!(volumes.get(disk.id)?.size, MiB(40));
        ensure!(length(&held.layers)? < MiB(40).bytes(), "it has its place");
        volumes.make_room(disk.id, &who)?;
        let has = length(&held.layers)?;
        ensure!(has >= MiB(40).bytes(), "{encrypt}: {has} bytes");
        qemu_io(&held.layers, &["truncate 40M".into()])?;
        drop(volumes);

        dies_as_it_grows(dir.path(), &who, 80)?;
        if encrypt {
            // What its VMM was told by a node that asked for no place.
            qemu_io(&held.layers, &["truncate 80M".into()])?;
        }
        let volumes = open()?;
        ensure!(length(&held.layers)? < MiB(80).bytes(), "it has its place");
        drop(held);
        volumes.release(&who, true)?;
        let held = attach(&volumes)?;
        let has = length(&held.layers)?;
        ensure!(has >= MiB(80).bytes(), "{encrypt}: {has} bytes");
        let line = format!("write -P 9 {} 512", MiB(80).bytes() - 512);
        qemu_io(&held.layers, &[line])?;
        drop(held);
        volumes.release(&who, true)?;
        reads(&volumes, "disk", MiB(80).bytes() / 512 - 1, 9)?;
        volumes.remove(disk.id, true)?;
    }
    Ok(())
}

fn layers_are_closed_and_locked() -> Result<()> {
    pool(256, 1)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    let disk = empty(&volumes, "disk", 8)?;
    let (one, other) = (owner(), owner());
    let attach = |who, access| volumes.attach("a", "disk", who, access);
    let held = attach(&one, VolumeAccess::Exclusive)?;
    assert!(held.layers.top.metadata()?.file_type().is_block_device());
    assert_eq!(
        code(attach(&other, VolumeAccess::Exclusive)),
        "volume_attached"
    );
    // Whatever the records say, the lock holds.
    volumes.release(&one, true)?;
    assert_eq!(
        code(attach(&other, VolumeAccess::Exclusive)),
        "volume_locked"
    );
    assert_eq!(code(volumes.remove(disk.id, true)), "volume_locked");
    drop(held);
    // One that is no device any more is made one by whoever opens it.
    volumes.snapshot(disk.id, "s")?;
    drop(volumes);
    let names = lvm(&["lvs", "--noheadings", "-o", "lv_name", "-S", "tags=aleph"])?;
    let names: Vec<&str> = names.split_whitespace().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        lvm(&["lvchange", "-an", &format!("group-1/{name}")])?;
    }
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    write(&volumes, "disk", 3, 3)?;
    volumes.restore(disk.id, "s")?;
    reads(&volumes, "disk", 3, 0)?;
    // Nodes are in a closed folder, and belong to the node.
    let folders = fs::read_dir("/dev")?.flatten();
    let mut folders =
        folders.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"aleph_"));
    let folder = folders.next().context("no folder of nodes")?.path();
    assert_eq!(fs::metadata(&folder)?.permissions().mode() & 0o777, 0o700);
    for node in fs::read_dir(&folder)? {
        assert_eq!(node?.metadata()?.uid(), 0);
    }
    // What nobody writes any more cannot be written.
    let kept = lvm(&[
        "lvs",
        "--noheadings",
        "-o",
        "lv_permissions",
        "-S",
        "tags=aleph",
    ])?;
    assert!(
        kept.contains("read-only") && kept.contains("writeable"),
        "{kept}"
    );
    // A volume with our tag and without a row is left alone.
    let tag = lvm(&["lvs", "--noheadings", "-o", "lv_tags", "-S", "tags=aleph"])?;
    let tag = tag
        .split([',', ' ', '\n'])
        .find(|tag| tag.starts_with("aleph_"));
    let tag = tag.context("no tag")?.to_owned();
    drop(volumes);
    lvm(&[
        "lvcreate",
        "-qq",
        "-V",
        "4m",
        "--thinpool",
        "group-1/pool",
        "-n",
        "stray",
        "--addtag",
        &tag,
    ])?;
    drop(Volumes::open(dir.path(), config(THIN))?);
    lvm(&["lvs", "group-1/stray"])?;
    Ok(())
}

fn a_full_pool_fails_writes_and_loses_none() -> Result<()> {
    pool(32, 1)?;
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(THIN))?;
    let disk = empty(&volumes, "disk", 64)?;
    let who = owner();
    let held = volumes.attach("a", "disk", &who, VolumeAccess::Exclusive)?;
    // Each piece is acknowledged, or not written.
    let mut acknowledged = 0_u8;
    let failed = loop {
        let (top, at) = (&held.layers.top, u64::from(acknowledged) << 20);
        let piece = vec![acknowledged + 1; 1 << 20];
        match top.write_all_at(&piece, at).and_then(|()| top.sync_all()) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        ensure!(acknowledged < 40, "the pool is never full");
    };
    ensure!(acknowledged > 20, "only {acknowledged} MiB: {failed}");
    drop(held);
    volumes.release(&who, true)?;
    let full = volumes.snapshot(disk.id, "s");
    let full = full.err().context("a full pool has room")?;
    assert_eq!(
        (full.code(), full.class()),
        ("disk_full", ErrorClass::Capacity)
    );
    assert!(matches!(full, VolumeError::PoolFull { .. }), "{full:?}");
    assert_eq!(
        code(volumes.create(named("x"), MiB(1), Filesystem::None)),
        "disk_full"
    );
    let copy = volumes.clone_of(named("x"), Source::Volume(disk.id), None);
    assert_eq!(code(copy), "disk_full");
    assert_eq!(volumes.list(&Scope::All, true)?.len(), 1);
    assert_eq!(layers(dir.path(), THIN)?, 1);
    for n in 0..acknowledged {
        reads(&volumes, "disk", u64::from(n) * 2048, n + 1)?;
    }
    // With room it goes on.
    lvm(&["lvextend", "-qq", "-L", "64m", "group-1/pool"])?;
    volumes.snapshot(disk.id, "s")?;
    write(&volumes, "disk", u64::from(acknowledged) * 2048, 9)?;
    reads(&volumes, "disk", 0, 1)
}

fn a_pool_that_does_not_do_is_refused() -> Result<()> {
    pool(64, 1)?;
    let dir = tempfile::tempdir()?;
    let open = |pool: &str| {
        let config = VolumesConfig {
            thin_pool: pool.parse().ok(),
            ..config(THIN)
        };
        Volumes::open(dir.path(), config)
    };
    assert_eq!(code(open("group-1/nosuch")), "volume_tool");
    assert_eq!(code(open("nosuch/pool")), "volume_tool");
    assert_eq!(code(open("")), "volume_pool");
    lvm(&["lvcreate", "-qq", "-L", "4m", "-n", "linear", "group-1"])?;
    assert_eq!(code(open("group-1/linear")), "volume_pool");
    lvm(&["lvchange", "-qq", "--zero", "n", "group-1/pool"])?;
    let shown = open("group-1/pool").err();
    let shown = shown.context("a pool that shows old data is taken")?;
    ensure!(shown.to_string().contains("what others wrote"), "{shown}");
    lvm(&["lvchange", "-qq", "--zero", "y", "group-1/pool"])?;
    open("group-1/pool")?;
    Ok(())
}

fn a_node_with_another_back_end_goes_on() -> Result<()> {
    pool(256, 1)?;
    let dir = tempfile::tempdir()?;
    let with = |backend| VolumesConfig {
        backend,
        ..config(THIN)
    };
    let volumes = Volumes::open(dir.path(), with(BackendChoice::Qcow2))?;
    let file = empty(&volumes, "file", 8)?;
    write(&volumes, "file", 1, 1)?;
    volumes.snapshot(file.id, "s")?;
    write(&volumes, "file", 1, 2)?;
    drop(volumes);
    // What is a chain of files goes on as a volume of the pool.
    let volumes = Volumes::open(dir.path(), with(THIN))?;
    reads(&volumes, "file", 1, 2)?;
    volumes.resize(file.id, MiB(10))?;
    volumes.snapshot(file.id, "t")?;
    write(&volumes, "file", 1, 3)?;
    let thin = empty(&volumes, "thin", 8)?;
    write(&volumes, "thin", 1, 4)?;
    drop(volumes);
    // And the other way round.
    let volumes = Volumes::open(dir.path(), with(BackendChoice::Qcow2))?;
    volumes.snapshot(thin.id, "u")?;
    write(&volumes, "thin", 1, 5)?;
    reads(&volumes, "thin", 1, 5)?;
    volumes.restore(thin.id, "u")?;
    reads(&volumes, "thin", 1, 4)?;
    reads(&volumes, "file", 1, 3)?;
    volumes.restore(file.id, "s")?;
    reads(&volumes, "file", 1, 1)?;
    drop(volumes);
    // Without its pool, what is in it is said to be there, and nothing is lost.
    let without = VolumesConfig {
        thin_pool: None,
        ..with(BackendChoice::Qcow2)
    };
    let volumes = Volumes::open(dir.path(), without)?;
    let attached = volumes.attach("a", "thin", &owner(), VolumeAccess::Exclusive);
    assert_eq!(code(attached), "volume_pool");
    assert_eq!(volumes.list(&Scope::All, true)?.len(), 2);
    drop(volumes);
    let volumes = Volumes::open(dir.path(), with(THIN))?;
    for volume in volumes.list(&Scope::All, true)? {
        volumes.remove(volume.id, true)?;
    }
    assert_eq!(layers(dir.path(), THIN)?, 0);
    Ok(())
}

fn operations_against_a_model() -> Result<()> {
    pool(256, 1)?;
    model::operations(tempfile::tempdir()?.path(), (THIN, false), 5, 60)
}

fn a_crash_while_layers_are_made() -> Result<()> {
    pool(256, 1)?;
    let places = ["layer.fill:made", "volume.freeze:before"];
    crash::at_places("lvm-thin", &places, (1, places.len()))
}

fn a_crash_while_layers_change() -> Result<()> {
    pool(256, 1)?;
    let places = ["volume.resize:after", "layers.remove:one"];
    crash::at_places("lvm-thin", &places, (1, places.len()))
}
