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
//! Without a base all of the memory is written.

use std::fs::File;
use std::io;
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

    /// How much memory it is, where that is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Template => None,
            Self::File { offset, length, .. } => Some(length.saturating_sub(*offset)),
        }
    }

    /// Whether it is there still as it was, and is not what is written now.
    fn stands(&self, to: &File) -> io::Result<bool> {
        let Self::File { file, length, .. } = self else {
            return Ok(true);
        };
        let (meta, to) = (file.metadata()?, to.metadata()?);
        let is_other = (meta.dev(), meta.ino()) != (to.dev(), to.ino());
        Ok(is_other && meta.len() == *length)
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
        let base = base.filter(|base| base.stands(to).unwrap_or(false));
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
