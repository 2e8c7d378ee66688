//! Volumes as files that share their blocks: on an XFS that this host's kernel mounts where nobody else sees it.
//! And what that kernel leaves on a volume with an XFS of its own, as a guest's does.

#[path = "../volumes/contract.rs"]
mod contract;
#[path = "../volumes/model.rs"]
#[allow(dead_code, unused_imports)]
mod model;
#[path = "../volumes/support.rs"]
#[allow(dead_code)]
mod support;

use aleph_executor::volumes::{BackendChoice, NewVolume, Source, Volumes};
use aleph_testkit::{LoopMount, wait_until};
use aleph_types::{Filesystem, MiB, VolumeAccess};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{config, memory, named, owner, qemu_io, reads};

/// Has this program mount something, and wait for its end.
const VICTIM: &str = "ALEPH_XFS_TEST_VICTIM";
const LIMIT: Duration = Duration::from_secs(60);
const FILES: BackendChoice = BackendChoice::Files;

type Case = fn() -> Result<()>;

fn main() {
    if std::env::var_os(VICTIM).is_some() {
        let mounted = LoopMount::xfs(MiB(300));
        println!("{mounted:?}");
        // Until it is killed, or whoever would do that is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        return;
    }
    let cases: [(_, Case); 5] = [
        (
            "states_are_kept_copied_and_had_back",
            states_are_kept_copied_and_had_back,
        ),
        (
            "operations_on_files_that_share_blocks",
            operations_on_files_that_share_blocks,
        ),
        (
            "copies_share_their_blocks_however_many_there_are",
            copies_share_their_blocks_however_many_there_are,
        ),
        (
            "a_log_that_is_not_empty_is_left_to_the_guest",
            a_log_that_is_not_empty_is_left_to_the_guest,
        ),
        (
            "whoever_is_killed_leaves_no_mount",
            whoever_is_killed_leaves_no_mount,
        ),
    ];
    let lacking = LoopMount::lacking();
    let trials = cases.map(|(name, case)| {
        let trial = Trial::test(name, move || {
            case().map_err(|error| format!("{error:?}").into())
        });
        match lacking {
            None => trial,
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn states_are_kept_copied_and_had_back() -> Result<()> {
    let disk = LoopMount::xfs(MiB(512))?;
    for backend in [FILES, BackendChoice::Auto] {
        for encrypt in [false, true] {
            let state = disk.path().join(format!("{backend}-{encrypt}"));
            contract::states(&state, backend, encrypt)?;
        }
    }
    Ok(())
}

fn operations_on_files_that_share_blocks() -> Result<()> {
    let disk = LoopMount::xfs(MiB(1024))?;
    model::operations(&disk.path().join("files"), (FILES, false), 6, 200)?;
    let auto = (BackendChoice::Auto, true);
    model::operations(&disk.path().join("auto"), auto, 7, 20)
}

/// What `filefrag` says of the extents of a file, in order: whether another file has each, too.
fn shared(file: &Path) -> Result<Vec<bool>> {
    let listed = Command::new("/usr/sbin/filefrag")
        .arg("-v")
        .arg(file)
        .output()?;
    ensure!(listed.status.success(), "filefrag: {listed:?}");
    let listed = String::from_utf8(listed.stdout)?;
    // `0: 0.. 2047: 84.. 2131: 2048: last,shared,eof`, below two lines of heads. What has its place and
    // was never written is not copied.
    let extents = listed.lines().filter(|line| {
        line.trim_start().starts_with(|c: char| c.is_ascii_digit()) && !line.contains("unwritten")
    });
    Ok(extents
        .map(|line| {
            line.rsplit(':')
                .next()
                .unwrap_or_default()
                .contains("shared")
        })
        .collect())
}

/// The files of all layers.
fn layers(state: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(state.join("volumes/layers"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Copies of a disk cost what is known of them, and not what is on it: each of two disks has as many, and
/// those of one are of more than all of the filesystem holds.
fn copies_share_their_blocks_however_many_there_are() -> Result<()> {
    const COPIES: u32 = 8;
    const MOST: u64 = 8 << 20;
    for (encrypted, sizes) in [(false, [2, 96]), (true, [2, 64])] {
        let disk = LoopMount::xfs(MiB(512))?;
        let volumes = Volumes::open(disk.path(), config(BackendChoice::Auto))?;
        assert_eq!(volumes.backend(), "files");
        for written in sizes {
            let name = format!("disk-{written}");
            let new = NewVolume {
                encrypted: Some(encrypted),
                ..named(&name)
            };
            let id = volumes.create(new, MiB(256), Filesystem::None)?.id;
            fill(&volumes, &name, &format!("write -P 7 0 {written}M"))?;
            let before = disk.free()?;
            for n in 0..COPIES {
                volumes.snapshot(id, &format!("s{n}"))?;
                let copy = format!("{name}-{n}");
                volumes.clone_of(named(&copy), Source::Volume(id), None)?;
            }
            let cost = before.saturating_sub(disk.free()?);
            ensure!(cost < MOST, "{name}: {cost} bytes, encrypted: {encrypted}");
        }
        let files = layers(disk.path())?;
        ensure!(files.len() > 2 * COPIES as usize, "{files:?}");
        for file in &files {
            let shared = shared(file)?;
            ensure!(
                !shared.is_empty() && shared.iter().all(|shared| *shared),
                "{}: {shared:?}",
                file.display()
            );
        }
        // What is written to a copy is its own from then on, and nothing else is.
        let [_, written] = sizes;
        let (name, copy) = (format!("disk-{written}"), format!("disk-{written}-3"));
        let before = disk.free()?;
        fill(&volumes, &copy, "write -P 9 1M 1M")?;
        let cost = before.saturating_sub(disk.free()?);
        ensure!(cost < MOST, "{cost} bytes for one MiB");
        let own = files.iter().map(|file| shared(file));
        let own = own.collect::<Result<Vec<_>>>()?;
        let changed = own.iter().filter(|file| file.contains(&false));
        assert_eq!(changed.count(), 1, "{own:?}");
        reads(&volumes, &copy, 2048, 9)?;
        reads(&volumes, &copy, 4096, 7)?;
        reads(&volumes, &name, 2048, 7)?;
    }
    // Elsewhere they cannot.
    let elsewhere = memory()?;
    let volumes = Volumes::open(elsewhere.path(), config(BackendChoice::Auto))?;
    let can = Command::new("cp")
        .arg("--reflink=always")
        .arg(elsewhere.path().join("volumes/volumes.db"))
        .arg(elsewhere.path().join("copy"))
        .output()?;
    let wanted = if can.status.success() {
        "files"
    } else {
        "qcow2"
    };
    assert_eq!(volumes.backend(), wanted);
    Ok(())
}

/// Writes to a disk as its VMM does.
fn fill(volumes: &Volumes, name: &str, line: &str) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    qemu_io(&attached.layers, &[line.into()])?;
    drop(attached);
    Ok(volumes.release(&owner, true)?)
}

fn a_log_that_is_not_empty_is_left_to_the_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let volumes = Volumes::open(dir.path(), config(FILES))?;
    let id = volumes.create(named("data"), MiB(300), Filesystem::Xfs)?.id;
    let [file] = layers(dir.path())?
        .try_into()
        .map_err(|_| anyhow::anyhow!("not one layer"))?;
    let attach = |access| -> Result<_> {
        let owner = owner();
        let attached = volumes.attach("a", "data", &owner, access)?;
        Ok((owner, attached))
    };
    // Its writer is told that it is there, and has no power any more.
    let (writer, attached) = attach(VolumeAccess::Exclusive)?;
    let guest = LoopMount::of(&file)?;
    for n in 0..200 {
        fs::create_dir(guest.path().join(n.to_string()))?;
    }
    let kept = fs::File::create(guest.path().join("199/kept"))?;
    kept.sync_all()?;
    drop(kept);
    guest.lose_power()?;
    drop(attached);
    volumes.release(&writer, false)?;

    // Readers, several at a time, find it as it is, and it is still to be replayed.
    let before = fs::metadata(&file)?.modified()?;
    let readers = [
        attach(VolumeAccess::ReadOnly)?,
        attach(VolumeAccess::ReadOnly)?,
    ];
    assert_eq!(
        fs::metadata(&file)?.modified()?,
        before,
        "it was written to"
    );
    assert!(volumes.get(id)?.unclean, "its log is not empty");
    for (reader, attached) in readers {
        drop(attached);
        volumes.release(&reader, true)?;
    }
    // The next guest replays it, and ends no better: now there is something to be looked at.
    let (writer, attached) = attach(VolumeAccess::Exclusive)?;
    let guest = LoopMount::of(&file)?;
    ensure!(guest.path().join("199/kept").exists(), "it lost a write");
    drop(guest);
    drop(attached);
    volumes.release(&writer, false)?;
    assert!(volumes.get(id)?.unclean);
    let (_, attached) = attach(VolumeAccess::ReadOnly)?;
    assert!(!attached.volume.unclean, "it was not checked");
    Ok(())
}

/// The loop devices of this host that have a file below a folder, or had.
fn devices(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let of = |device: &PathBuf| {
        let file = fs::read_to_string(device.join("loop/backing_file"));
        file.is_ok_and(|file| Path::new(file.trim_end()).starts_with(folder))
    };
    entries.map(|entry| entry.path()).filter(of).collect()
}

fn whoever_is_killed_leaves_no_mount() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = Command::new(std::env::current_exe()?)
        .env(VICTIM, "1")
        .env("TMPDIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    let output = victim.stdout.take().context("no output")?;
    BufReader::new(output).read_line(&mut said)?;
    let (mounted, seen) = (
        devices(dir.path()),
        fs::read_to_string("/proc/self/mounts")?,
    );
    victim.kill()?;
    victim.wait()?;
    ensure!(said.starts_with("Ok("), "{said}");
    assert_eq!(mounted.len(), 1, "{mounted:?}");
    let folder = dir.path().to_str().context("a path")?;
    ensure!(!seen.contains(folder), "others see the mount: {seen}");
    wait_until("the loop device to be gone", LIMIT, || {
        devices(dir.path()).is_empty().then_some(())
    });
    // One that is dropped in order is gone, too.
    let disk = LoopMount::xfs(MiB(300))?;
    let path = disk.path().to_owned();
    fs::write(path.join("file"), "here")?;
    drop(disk);
    ensure!(!path.exists(), "{} stays", path.display());
    Ok(())
}
