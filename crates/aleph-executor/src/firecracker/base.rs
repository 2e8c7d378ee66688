//! What a guest's memory is told apart from, where KVM notes which pages it writes to.
//!
//! ```text
//! began with a file ─▶ base ── begin: taken ─▶ written down ── written ─▶ base: that file
//! ```
//! Firecracker begins to note anew with each snapshot that it makes. So a base is taken by whoever begins
//! to write the guest down, and what was written is the next base only where nobody has begun since: one
//! that was given up may come to its end behind the next.
//!
//! # Failure cases
//! Without a base all of the memory is written; so it is where the file has gone.

use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a guest's memory was when KVM began to note what is written to.
#[derive(Debug)]
pub(super) enum Base {
    /// As the template's file has it, which Firecracker writes itself.
    Template,
    /// As a file of that length has it from there on.
    File {
        file: File,
        offset: u64,
        length: u64,
    },
    /// The same of one that others may take away: so it is not held open, which would keep as much
    /// of the disk as a guest has memory.
    Named {
        /// The folder, whatever its name is by then.
        folder: OwnedFd,
        name: OsString,
        /// Which device and which file of it.
        id: (u64, u64),
        offset: u64,
        length: u64,
    },
}

impl Base {
    pub(super) fn of(file: File, offset: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::File {
            file,
            offset,
            length,
        })
    }

    /// By the name that an open file has now.
    pub(super) fn named(file: &File, offset: u64) -> io::Result<Self> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let meta = file.metadata()?;
        Ok(Self::Named {
            folder: rustix::fs::open(folder, flags, Mode::empty())?,
            name: name.to_owned(),
            id: (meta.dev(), meta.ino()),
            offset,
            length: meta.len(),
        })
    }

    /// How much memory it is, where that is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Template => None,
            Self::File { offset, length, .. } | Self::Named { offset, length, .. } => {
                Some(length.saturating_sub(*offset))
            }
        }
    }

    /// It, open, if it is there still as it was, and is not what is written now.
    fn standing(self, to: &File) -> io::Result<Option<Self>> {
        let (file, id, offset, length) = match self {
            Self::Template => return Ok(Some(self)),
            Self::File {
                file,
                offset,
                length,
            } => (file, None, offset, length),
            Self::Named {
                folder,
                name,
                id,
                offset,
                length,
            } => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                (file.into(), Some(id), offset, length)
            }
        };
        let (meta, to) = (file.metadata()?, to.metadata()?);
        let found = (meta.dev(), meta.ino());
        let is_it = id.is_none_or(|id| id == found) && meta.len() == length;
        let is_other = found != (to.dev(), to.ino());
        Ok((is_it && is_other).then_some(Self::File {
            file,
            offset,
            length,
        }))
    }
}

/// The base that a VM has, if any, and how often its guest was begun to be written down.
#[derive(Debug, Default)]
pub(super) struct Bases(Mutex<(u64, Option<Base>)>);

/// One time that a guest is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn(u64);

impl Bases {
    fn lock(&self) -> MutexGuard<'_, (u64, Option<Base>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted now is what has changed since its memory was that.
    pub(super) fn set(&self, base: Base) {
        self.lock().1 = Some(base);
    }

    /// Begins to write the guest down to a file: takes what it can be written as a difference from.
    pub(super) fn begin(&self, to: &File) -> (Turn, Option<Base>) {
        let mut bases = self.lock();
        bases.0 += 1;
        let base = bases.1.take();
        let base = base.and_then(|base| base.standing(to).ok().flatten());
        (Turn(bases.0), base)
    }

    /// The guest was written down as this; of no matter where another has begun since.
    pub(super) fn written(&self, turn: Turn, base: Base) {
        let mut bases = self.lock();
        if bases.0 == turn.0 {
            bases.1 = Some(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    fn length(base: Option<Base>) -> Option<u64> {
        base.and_then(|base| base.size())
    }

    #[test]
    fn what_was_given_up_is_no_base_behind_the_next() {
        let (bases, to) = (Bases::default(), file(0));
        bases.set(Base::of(file(5), 0).unwrap());
        let (first, base) = bases.begin(&to);
        assert_eq!(length(base), Some(5));
        // It is given up, and goes on packing; the next one has nothing to differ from.
        let (second, base) = bases.begin(&to);
        assert_eq!(length(base), None);
        bases.written(second, Base::of(file(7), 0).unwrap());
        bases.written(first, Base::of(file(6), 0).unwrap());
        assert_eq!(length(bases.begin(&to).1), Some(7));
        // And not before the next is at its end either.
        let (third, _) = bases.begin(&to);
        let _fourth = bases.begin(&to);
        bases.written(third, Base::of(file(8), 0).unwrap());
        assert_eq!(length(bases.begin(&to).1), None);
    }

    #[test]
    fn a_file_that_is_taken_away_is_not_kept() {
        let (bases, to) = (Bases::default(), file(0));
        let dir = tempfile::tempdir().unwrap();
        // What is being made has another name.
        let begun = dir.path().join("begun");
        std::fs::create_dir(&begun).unwrap();
        let first = File::create(begun.join("memory")).unwrap();
        first.set_len(7).unwrap();
        bases.set(Base::named(&first, 2).unwrap());
        let made = dir.path().join("made");
        std::fs::rename(begun, &made).unwrap();
        let path = made.join("memory");
        let make = || {
            let file = File::create(&path).unwrap();
            file.set_len(7).unwrap();
            file
        };
        assert_eq!(length(bases.begin(&to).1), Some(5));
        bases.set(Base::named(&make(), 0).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(length(bases.begin(&to).1), None, "it has gone");
        let first = make();
        bases.set(Base::named(&first, 0).unwrap());
        std::fs::remove_file(&path).unwrap();
        make();
        assert_eq!(length(bases.begin(&to).1), None, "it is another");
    }

    #[test]
    fn a_base_that_has_changed_or_is_written_to_is_none() {
        let bases = Bases::default();
        let other = file(0);
        let one = file(5);
        bases.set(Base::of(one.try_clone().unwrap(), 0).unwrap());
        assert_eq!(length(bases.begin(&one).1), None, "onto itself");
        bases.set(Base::of(one.try_clone().unwrap(), 0).unwrap());
        one.set_len(4).unwrap();
        assert_eq!(length(bases.begin(&other).1), None, "it was cut");
        bases.set(Base::of(one, 1).unwrap());
        assert_eq!(length(bases.begin(&other).1), Some(3));
    }
}
