//! What is backed up.

use crate::id::Id;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A volume that does not change while it is read. All of it blocks.
pub trait Source: Send + Sync + 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The extents outside of which all bytes are zero, in order and without overlap.
    ///
    /// # Errors
    /// Where they cannot be told.
    fn allocated(&self) -> io::Result<Vec<Range<u64>>>;

    /// The extents that changed since a snapshot, where somebody recorded them; a dirty bitmap is one
    /// such record. `None`: nobody did, all allocated extents are read.
    fn dirty(&self) -> Option<Dirty> {
        None
    }

    /// Fills a buffer with what is at this offset; never beyond the size.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// What changed since a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    /// The snapshot that the record began with. With any other parent the record is of no use, and is
    /// not used.
    pub since: Id,
    /// All that changed, in any order; more is allowed. Bytes that became zero count.
    pub ranges: Vec<Range<u64>>,
}

/// A file or a block device. Holes of files are found by `SEEK_DATA` and `SEEK_HOLE`; where the
/// filesystem does not know them, all of it is data.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    size: u64,
    dirty: Option<Dirty>,
}

impl FileSource {
    /// A file that nobody writes while it is read. Its size is what it has now.
    ///
    /// # Errors
    /// Where its size cannot be told.
    pub fn new(mut file: File) -> io::Result<Self> {
        // The end, not the metadata: a block device has no size there.
        let size = file.seek(io::SeekFrom::End(0))?;
        Ok(Self {
            file,
            size,
            dirty: None,
        })
    }

    /// The same with a record of what changed.
    #[must_use]
    pub fn with_dirty(mut self, dirty: Dirty) -> Self {
        self.dirty = Some(dirty);
        self
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        let mut extents = Vec::new();
        let mut at = 0;
        while at < self.size {
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // Nothing but a hole follows.
                Err(Errno::NXIO) => break,
                // Block devices and some filesystems know no holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    extents.push(at..self.size);
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let end = seek(&self.file, SeekFrom::Hole(start))?.min(self.size);
            if end <= start {
                return Err(io::Error::other("the file changes while it is read"));
            }
            extents.push(start..end);
            at = end;
        }
        Ok(extents)
    }

    fn dirty(&self) -> Option<Dirty> {
        self.dirty.clone()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// Ranges that do not overlap, in order.
pub(crate) fn normalized(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of normalized ranges that are within this one.
pub(crate) fn within(ranges: &[Range<u64>], window: &Range<u64>) -> Vec<Range<u64>> {
    let first = ranges.partition_point(|range| range.end <= window.start);
    ranges
        .iter()
        .skip(first)
        .take_while(|range| range.start < window.end)
        .map(|range| range.start.max(window.start)..range.end.min(window.end))
        .collect()
}
