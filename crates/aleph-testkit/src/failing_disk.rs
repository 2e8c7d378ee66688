//! A disk whose end can fail, on the machine that runs the tests, which need have no device-mapper for it.
//!
//! It is the only partition of a loop device, with an ext4 filesystem. The kernel lets a partition be made smaller
//! while it is mounted: what is behind its end then is still there, and can be neither read nor written (`EIO`) until
//! it has its size back.

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: u64 = 512;

/// The programs that it takes.
const PROGRAMS: [&str; 6] = [
    "/usr/sbin/losetup",
    "/usr/bin/addpart",
    "/usr/bin/resizepart",
    "/usr/bin/delpart",
    "/usr/sbin/mke2fs",
    "/usr/sbin/filefrag",
];

/// A mounted disk with one file, of which a part can fail. It goes with this.
#[derive(Debug)]
pub struct FailingDisk {
    device: String,
    sectors: u64,
    at: PathBuf,
    file: PathBuf,
}

impl FailingDisk {
    /// Why there can be none here, if so.
    #[must_use]
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root".into());
        }
        let files = PROGRAMS.into_iter().chain(["/dev/loop-control"]);
        let mut missing = files.filter(|path| !Path::new(path).exists());
        missing.next().map(|path| format!("needs {path}"))
    }

    /// Makes one in a folder, with a file of so many bytes, each of which has its place.
    ///
    /// # Errors
    /// Where a step of it fails.
    pub fn with_file(folder: &Path, bytes: u64) -> Result<Self> {
        let (image, at) = (folder.join("failing-disk"), folder.join("failing"));
        // The filesystem's own is before the file.
        let sectors = (2 * bytes + (64 << 20)) / SECTOR;
        File::create_new(&image)?.set_len(sectors * SECTOR)?;
        let path = image.to_str().context("no path")?;
        let device = run("/usr/sbin/losetup", &["--find", "--show", path])?;
        std::fs::remove_file(&image)?;
        let disk = Self {
            device,
            sectors,
            file: at.join("file"),
            at,
        };
        run(
            "/usr/bin/addpart",
            &[&disk.device, "1", "0", &sectors.to_string()],
        )?;
        let partition = format!("{}p1", disk.device);
        let made = "packed_meta_blocks=1,lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let words = [
            "-q", "-F", "-t", "ext4", "-b", "4096", "-E", made, &partition,
        ];
        run("/usr/sbin/mke2fs", &words)?;
        std::fs::create_dir(&disk.at)?;
        mount(&partition, &disk.at, "ext4", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {partition}"))?;
        let file = File::create_new(&disk.file)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        // In one piece, and written once, so that its filesystem has nothing to note when it is written again.
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        std::io::copy(&mut std::io::repeat(0).take(bytes), &mut &file)?;
        file.sync_all()?;
        Ok(disk)
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// From now on the file can be neither read nor written from this byte on. What was written before is on the
    /// disk.
    ///
    /// # Errors
    /// Where it cannot be told where that byte is.
    pub fn fails_from(&self, byte: u64) -> Result<()> {
        let file = File::open(&self.file)?;
        file.sync_all()?;
        let path = self.file.to_str().context("no path")?;
        let told = run("/usr/sbin/filefrag", &["-s", "-v", "-b512", path])?;
        let place = place_of(&told, byte / SECTOR).context(told)?;
        self.resize(place)?;
        // Nobody is to have it from memory.
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    }

    /// It does what it should again.
    ///
    /// # Errors
    /// Where the partition does not get its size back.
    pub fn works(&self) -> Result<()> {
        self.resize(self.sectors)?;
        let file = File::open(&self.file)?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    }

    fn resize(&self, sectors: u64) -> Result<()> {
        let words = [&self.device, "1", &sectors.to_string()];
        run("/usr/bin/resizepart", &words).map(drop)
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let gone = self
            .resize(self.sectors)
            // Somebody may have it open still, where a test failed.
            .and_then(|()| Ok(unmount(&self.at, UnmountFlags::DETACH)?))
            .and_then(|()| run("/usr/bin/delpart", &[&self.device, "1"]))
            .and_then(|_| run("/usr/sbin/losetup", &["--detach", &self.device]));
        if let Err(error) = gone {
            eprintln!("a disk stays: {error:#}");
        }
    }
}

/// Where a file's sector is on the disk, by what `filefrag -v` says of the file. What comes after that in the file is
/// behind it on the disk, too: the file was made at once.
fn place_of(told: &str, sector: u64) -> Option<u64> {
    told.lines().find_map(|line| {
        // `0:        0..    8191:      16385..     24576:   8192:   last,unwritten,eof`
        let mut fields = line.split(':').map(str::trim);
        fields.next()?.parse::<u64>().ok()?;
        let (first, last) = fields.next()?.split_once("..")?;
        let (begin, _) = fields.next()?.split_once("..")?;
        let first: u64 = first.trim().parse().ok()?;
        let last: u64 = last.trim().parse().ok()?;
        let begin: u64 = begin.trim().parse().ok()?;
        (first..=last)
            .contains(&sector)
            .then_some(begin + (sector - first))
    })
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        said.trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_where_filefrag_says() {
        let told = "Filesystem type is: ef53\n\
             File size of layer is 41943040 (81920 blocks of 512 bytes)\n \
             ext:     logical_offset:        physical_offset: length:   expected: flags:\n   \
             0:        0..   16383:      32770..     49153:  16384:             unwritten\n   \
             1:    16384..   81919:      53250..    118785:  65536:      49154: last,unwritten,eof\n\
             layer: 2 extents found";
        assert_eq!(place_of(told, 0), Some(32770));
        assert_eq!(place_of(told, 16384), Some(53250));
        assert_eq!(place_of(told, 81920), None);
    }
}
