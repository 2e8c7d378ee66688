//! The formats of a root filesystem, and the programs that write them.

use crate::disk::{DiskError, Doing, ensure_room};
use crate::error::ImageError;
use crate::program::{Program, ProgramError};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// The format of new images.
///
/// Whoever changes it changes nothing for images that exist: each records its own.
pub const FORMAT: Filesystem = Filesystem::Erofs;

/// Large images on a slow, busy host take minutes.
const WRITE_LIMIT: Duration = Duration::from_secs(1800);
/// Every image has the same UUID: it is part of the bytes, and equal input is an equal image.
const UUID: &str = "61cf8b4c-8b0b-4a41-9e7c-aa0b8b3f5c11";
/// Later than any time stamp that fits in 32 bits, so that clamping to it changes none.
const LATEST: &str = "4294967295";

/// The format of a root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// EROFS, uncompressed: made for read-only images, and needs a module in the guest.
    Erofs,
    /// SquashFS: compressed, and needs a module in the guest.
    Squashfs,
    /// ext4: built into most kernels. Used where a user brings one; not written here.
    Ext4,
}

/// What becomes of the files' modification times.
///
/// They matter: Python, for one, ignores its compiled modules when the time of the source is
/// not the one it recorded, and then compiles at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// Every file gets the time 0: for trees that a build has just made.
    Zero,
    /// Each file keeps its own: they are part of the input.
    Kept,
}

/// Who owns the files of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Who owns them in the tree.
    Kept,
    /// Root, whoever has made the tree.
    Root,
}

/// What an image takes of its tree beside names, modes and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) times: Times,
    pub(crate) owners: Owners,
}

impl From<Times> for Metadata {
    /// Owners are those of the tree.
    fn from(times: Times) -> Self {
        Self {
            times,
            owners: Owners::Kept,
        }
    }
}

/// What is in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Survey {
    /// Everything but directories.
    pub(crate) files: u64,
    /// Bytes of all regular files, hard links counted once.
    pub(crate) bytes: u64,
}

impl Filesystem {
    /// Its name: what `mount -t` takes, and the extension of the image's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Ext4 => "ext4",
        }
    }

    /// Where in a file its magic number is, and what it is.
    fn magic(self) -> (u64, &'static [u8]) {
        match self {
            // Superblock at 1024; `EROFS_SUPER_MAGIC_V1`, `SQUASHFS_MAGIC`, `EXT4_SUPER_MAGIC`.
            Self::Erofs => (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
            Self::Squashfs => (0, b"hsqs"),
            Self::Ext4 => (1024 + 0x38, &[0x53, 0xef]),
        }
    }

    /// Whether `file` begins like this format.
    pub(crate) fn is_in(self, file: &File) -> std::io::Result<bool> {
        let (offset, magic) = self.magic();
        let mut found = vec![0; magic.len()];
        match file.read_exact_at(&mut found, offset) {
            Ok(()) => Ok(found == magic),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes `tree` as an image into the new file `out`.
    pub(crate) fn write(
        self,
        tree: &Path,
        metadata: Metadata,
        out: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let survey = Survey::of(tree)?;
        let writer = match self {
            Self::Erofs => {
                ensure_room("write an image to", out, survey.bytes)?;
                erofs(tree, metadata, out)?
            }
            Self::Squashfs => squashfs(tree, metadata, out)?,
            Self::Ext4 => return Err(ImageError::NoWriter { filesystem: self }),
        };
        progress.begin(&format!("write {self}"), Some(survey.bytes));
        let mut seen = 0;
        let written = writer.run(|| {
            let now = out.metadata().map_or(0, |m| m.len()).min(survey.bytes);
            progress.advance(now.saturating_sub(seen));
            seen = seen.max(now);
        });
        written.map_err(|error| {
            if error.is_disk_full() {
                DiskError::full("write an image to", out, Some(survey.bytes)).into()
            } else {
                ImageError::from(error)
            }
        })?;
        progress.end();
        Ok(())
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn erofs(tree: &Path, metadata: Metadata, out: &Path) -> Result<Program, ProgramError> {
    let program =
        Program::find("mkfs.erofs", "erofs-utils", WRITE_LIMIT)?.args(["--quiet", "-U", UUID]);
    let program = match metadata.times {
        Times::Zero => program.arg("-T0"),
        // Version 1.5 takes the time of the build into the image unless it is given one, and
        // `-T` would replace every file's; this variable is an upper limit for both.
        Times::Kept => program.env("SOURCE_DATE_EPOCH", LATEST),
    };
    let program = match metadata.owners {
        Owners::Kept => program,
        Owners::Root => program.arg("--all-root"),
    };
    Ok(program.arg(out).arg(tree))
}

fn squashfs(tree: &Path, metadata: Metadata, out: &Path) -> Result<Program, ProgramError> {
    let program = Program::find("mksquashfs", "squashfs-tools", WRITE_LIMIT)?
        .arg(tree)
        .arg(out)
        .args(["-noappend", "-no-progress", "-quiet", "-reproducible"])
        .args(["-comp", "zstd", "-mkfs-time", "0"]);
    let program = match metadata.owners {
        Owners::Kept => program,
        Owners::Root => program.arg("-all-root"),
    };
    Ok(match metadata.times {
        Times::Zero => program.args(["-all-time", "0"]),
        Times::Kept => program,
    })
}

impl Survey {
    /// Walks a tree without following its symlinks.
    pub(crate) fn of(tree: &Path) -> Result<Self, DiskError> {
        let mut survey = Self::default();
        let mut linked = std::collections::HashSet::new();
        let mut left = vec![tree.to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(&dir).doing("list", &dir)? {
                let path = entry.doing("list", &dir)?.path();
                let metadata = fs::symlink_metadata(&path).doing("look at", &path)?;
                if metadata.is_dir() {
                    left.push(path);
                    continue;
                }
                survey.files += 1;
                let first =
                    metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino()));
                if metadata.is_file() && first {
                    survey.bytes += metadata.len();
                }
            }
        }
        Ok(survey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_knows_its_own_magic() {
        for format in [Filesystem::Erofs, Filesystem::Squashfs, Filesystem::Ext4] {
            let file = tempfile::NamedTempFile::new().unwrap();
            assert!(!format.is_in(file.as_file()).unwrap());
            let (offset, magic) = format.magic();
            file.as_file().write_all_at(magic, offset).unwrap();
            for other in [Filesystem::Erofs, Filesystem::Squashfs, Filesystem::Ext4] {
                assert_eq!(other.is_in(file.as_file()).unwrap(), other == format);
            }
        }
    }

    #[test]
    fn a_survey_counts_hard_links_once_and_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), "12345").unwrap();
        fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("c")).unwrap();
        assert_eq!(
            Survey::of(dir.path()).unwrap(),
            Survey { files: 3, bytes: 5 }
        );
    }
}
