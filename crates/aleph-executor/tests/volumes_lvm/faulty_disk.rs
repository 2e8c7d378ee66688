//! A disk of which any part can fail: a device of device-mapper over a loop device, whose table has errors.

use crate::run;
use aleph_types::MiB;
use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount, unmount};
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

const NAME: &str = "faulty";

/// Where it begins on what is below it, in sectors: so LVM finds its own marks on this device alone.
const BEGIN: u64 = 2048;

/// What a device's places are counted in.
const SECTOR: u64 = 512;

#[derive(Debug)]
pub(crate) struct FaultyDisk {
    below: String,
    sectors: u64,
}

impl FaultyDisk {
    pub(crate) const PATH: &str = "/dev/mapper/faulty";

    /// One that works, without anything on it.
    pub(crate) fn new(size: MiB) -> Result<Self> {
        const FILE: &str = "/state/faulty";
        let sectors = size.bytes() / SECTOR;
        File::create(FILE)?.set_len((BEGIN + sectors) * SECTOR)?;
        let below = run("/usr/sbin/losetup", &["--find", "--show", FILE])?;
        let disk = Self { below, sectors };
        dmsetup(&["create", NAME, &disk.table(&[])?])?;
        Ok(disk)
    }

    /// Makes an ext4 filesystem on it, all of which is written at once.
    pub(crate) fn format(&self) -> Result<()> {
        let made = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        // A checksum of metadata would take a module more.
        let features = ["-b", "4096", "-O", "^metadata_csum", "-E", made];
        let words = ["-q", "-F", "-t", "ext4"];
        run(
            "/usr/sbin/mke2fs",
            &[&words[..], &features, &[Self::PATH]].concat(),
        )
        .map(drop)
    }

    pub(crate) fn mount(&self, at: &str) -> Result<()> {
        fs::create_dir_all(at)?;
        mount(Self::PATH, at, "ext4", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount it at {at}"))
    }

    /// Mounts its filesystem anew, which replays its journal.
    pub(crate) fn mount_again(&self, at: &str) -> Result<()> {
        unmount(at, rustix::mount::UnmountFlags::empty()).context("cannot unmount it")?;
        self.mount(at)
    }

    /// From now on these parts of it can be neither read nor written. What was written before is on it, and what
    /// was read before is forgotten.
    pub(crate) fn fails(&self, parts: &[Range<u64>]) -> Result<()> {
        rustix::fs::sync();
        self.has(parts)?;
        forget()
    }

    /// From now on all of it fails.
    pub(crate) fn fails_whole(&self) -> Result<()> {
        let whole = 0..self.sectors;
        self.fails(&[whole])
    }

    /// It does what it should again. What could not be written may be remembered still.
    pub(crate) fn works(&self) -> Result<()> {
        self.has(&[])
    }

    /// The same, and all that is read from now on is on it.
    pub(crate) fn works_and_is_read(&self) -> Result<()> {
        self.works()?;
        forget()
    }

    fn has(&self, failing: &[Range<u64>]) -> Result<()> {
        dmsetup(&["load", NAME, &self.table(failing)?])?;
        // A filesystem that has seen it fail cannot be frozen.
        dmsetup(&["suspend", "--nolockfs", NAME])?;
        dmsetup(&["resume", NAME])
    }

    /// The file with its table.
    fn table(&self, failing: &[Range<u64>]) -> Result<String> {
        let mut failing = failing.to_vec();
        failing.sort_by_key(|part| part.start);
        let (mut lines, mut at) = (String::new(), 0);
        let mut part = |range: Range<u64>, fails: bool| {
            if range.is_empty() {
                return;
            }
            let length = range.end - range.start;
            let target = match fails {
                true => "error".to_owned(),
                false => format!("linear {} {}", self.below, BEGIN + range.start),
            };
            lines += &format!("{} {length} {target}\n", range.start);
        };
        for range in failing {
            let range = range.start.max(at)..range.end.min(self.sectors);
            if range.is_empty() {
                continue;
            }
            part(at..range.start, false);
            at = range.end;
            part(range, true);
        }
        part(at..self.sectors, false);
        let path = "/state/table";
        fs::write(path, lines)?;
        Ok(path.to_owned())
    }

    /// Where these bytes of a file of its filesystem are on it.
    pub(crate) fn parts_of(&self, path: &Path, bytes: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let path = path.to_str().context("no path")?;
        let told = run("/usr/sbin/filefrag", &["-s", "-v", "-b512", path])?;
        let wanted = bytes.start / SECTOR..bytes.end.div_ceil(SECTOR);
        let mut parts = Vec::new();
        for line in told.lines() {
            // `0:        0..    8191:      16385..     24576:   8192:   last,unwritten,eof`
            let mut fields = line.split(':').map(str::trim);
            if fields.next().is_none_or(|n| n.parse::<u64>().is_err()) {
                continue;
            }
            let mut range = || {
                let (start, end) = fields.next()?.split_once("..")?;
                Some(start.trim().parse::<u64>().ok()?..end.trim().parse::<u64>().ok()? + 1)
            };
            let (Some(logical), Some(physical)) = (range(), range()) else {
                continue;
            };
            let start = logical.start.max(wanted.start);
            let end = logical.end.min(wanted.end);
            if start < end {
                let at = physical.start + (start - logical.start);
                parts.push(at..at + (end - start));
            }
        }
        ensure!(!parts.is_empty(), "{path} has nothing at {bytes:?}: {told}");
        Ok(parts)
    }

    /// What of its filesystem nothing uses.
    pub(crate) fn free(&self) -> Result<Vec<Range<u64>>> {
        rustix::fs::sync();
        let told = run("/usr/sbin/dumpe2fs", &[Self::PATH])?;
        let mut parts = Vec::new();
        // The line of the superblock, which has their number alone, begins at once.
        for line in told.lines().filter(|line| line.starts_with(' ')) {
            let Some(blocks) = line.trim().strip_prefix("Free blocks: ") else {
                continue;
            };
            for range in blocks.split(", ") {
                let (start, end) = range.split_once('-').unwrap_or((range, range));
                let (start, end): (u64, u64) = (start.parse()?, end.parse()?);
                parts.push(start * 8..(end + 1) * 8);
            }
        }
        ensure!(!parts.is_empty(), "nothing is free: {told}");
        Ok(parts)
    }
}

/// Has the kernel forget what it has read and what is written out.
fn forget() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop what is cached")
}

fn dmsetup(arguments: &[&str]) -> Result<()> {
    let output = Command::new("/usr/sbin/dmsetup")
        .args(arguments)
        // Nobody else makes nodes here.
        .env("DM_DISABLE_UDEV", "1")
        .output()
        .context("cannot run dmsetup")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "dmsetup {arguments:?}: {said}");
    Ok(())
}
