//! Takes the two programs out of a release's archive, and nothing else.
//!
//! Whatever the archive says, exactly two files are made, with names of our own. Entries that are
//! neither are read over; one whose path leads out of the archive, a program that is a link or
//! comes twice, and more than a release has, are refused.

use super::error::{ReleaseError, fault};
use super::{PROGRAMS, Version};
use crate::disk::Doing;
use flate2::read::GzDecoder;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};
use tar::{Archive, EntryType};

/// A program is some 3 MB, 10 MB in older releases.
const MOST_PROGRAM: u64 = 64 << 20;
/// All that a release unpacks to, debugging symbols included, is some 100 MB.
const MOST_UNPACKED: u64 = 1 << 30;
const MOST_ENTRIES: usize = 1000;

/// Unpacks the programs of `version` for `arch` into an empty folder.
pub(super) fn unpack(
    archive: &Path,
    version: Version,
    arch: &str,
    into: &Path,
) -> Result<(), ReleaseError> {
    let file = File::open(archive).doing("open", archive)?;
    let bad = |why: String| ReleaseError::Archive { version, why };
    let mut plain = Bounded {
        inner: GzDecoder::new(file),
        left: MOST_UNPACKED,
    };
    let wanted = |name: &str| format!("release-v{version}-{arch}/{name}-v{version}-{arch}");
    let mut found = [false; PROGRAMS.len()];
    {
        let mut entries = Archive::new(&mut plain);
        let entries = entries.entries().map_err(fault(version))?;
        for (n, entry) in entries.enumerate() {
            let mut entry = entry.map_err(fault(version))?;
            if n == MOST_ENTRIES {
                return Err(bad(format!("it has more than {MOST_ENTRIES} entries")));
            }
            let path = entry.path().map_err(fault(version))?.into_owned();
            let inward = |c| matches!(c, Component::Normal(_) | Component::CurDir);
            if !path.components().all(inward) {
                return Err(bad(format!("{path:?} leads out of it")));
            }
            // Compared as it is written: `./x` is not `x` to a path that is joined with another.
            let clean: std::path::PathBuf = path
                .components()
                .filter(|c| *c != Component::CurDir)
                .collect();
            let is = |name: &&str| clean == Path::new(&wanted(name));
            let Some(which) = PROGRAMS.iter().position(is) else {
                continue;
            };
            let name = PROGRAMS[which];
            if !matches!(
                entry.header().entry_type(),
                EntryType::Regular | EntryType::Continuous
            ) {
                return Err(bad(format!("{name} is no regular file")));
            }
            if std::mem::replace(&mut found[which], true) {
                return Err(bad(format!("{name} is in it twice")));
            }
            let size = entry.size();
            if size > MOST_PROGRAM {
                return Err(bad(format!("{name} is larger than {MOST_PROGRAM} bytes")));
            }
            let target = into.join(name);
            let mut to = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&target)
                .doing("create", &target)?;
            // Told apart: a damaged archive, and a full disk.
            let mut buffer = vec![0; 1 << 16];
            let mut copied = 0;
            loop {
                let n = entry.read(&mut buffer).map_err(fault(version))?;
                if n == 0 {
                    break;
                }
                io::Write::write_all(&mut to, &buffer[..n]).doing("write", &target)?;
                copied += n as u64;
            }
            if copied != size || size == 0 {
                return Err(bad(format!("{name} ends too early")));
            }
        }
    }
    // The checksum at the end of the archive is only looked at there.
    io::copy(&mut plain, &mut io::sink()).map_err(fault(version))?;
    match PROGRAMS.iter().zip(found).find(|(_, found)| !found) {
        Some((name, _)) => Err(bad(format!("it has no {}", wanted(name)))),
        None => Ok(()),
    }
}

/// Reads so many bytes at most; more are an error.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than {MOST_UNPACKED} bytes"))
        })?;
        Ok(n)
    }
}
