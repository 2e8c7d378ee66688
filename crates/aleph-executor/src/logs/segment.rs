//! One file of a log.

use aleph_types::{Incarnation, LogStream, Timestamp};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Before each piece of output: its length, which output, nothing, and when it came (nanoseconds
/// since 1970); numbers are little-endian.
pub(super) const HEADER: usize = 16;

/// The longest piece that a file may hold. Frames from a guest are shorter.
const LONGEST: usize = 1024 * 1024;

/// A file of a log: of which start of the job, and how many bytes of that start's output come
/// before it. Its name says both, so that files sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) incarnation: Incarnation,
    pub(super) base: u64,
}

impl Segment {
    pub(super) fn path(self, dir: &Path) -> PathBuf {
        let (incarnation, base) = (self.incarnation.get(), self.base);
        dir.join(format!("{incarnation:08}-{base:020}.log"))
    }

    fn parse(name: &str) -> Option<Self> {
        let (incarnation, base) = name.strip_suffix(".log")?.split_once('-')?;
        Some(Self {
            incarnation: Incarnation::from_count(incarnation.parse().ok()?),
            base: base.parse().ok()?,
        })
    }

    /// The files of a log, the oldest first. A folder that is not there has none.
    pub(super) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(entry?.file_name().to_str().and_then(Self::parse));
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// A piece of output in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) time: Timestamp,
    pub(super) stream: LogStream,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn header(stream: LogStream, time: Timestamp, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4] = match stream {
        LogStream::Stdout => 1,
        LogStream::Stderr => 2,
    };
    let nanos = u64::try_from(time.as_nanosecond()).unwrap_or(0);
    header[8..].copy_from_slice(&nanos.to_le_bytes());
    header
}

/// Reads pieces one by one. What is not whole yet counts as not there: the next read tries it
/// again.
#[derive(Debug)]
pub(super) struct Pieces {
    file: File,
    /// Where the next piece begins.
    at: u64,
}

impl Pieces {
    pub(super) fn open(path: &Path, at: u64) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            at,
        })
    }

    /// Where the next piece begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next whole piece; `None` where there is none (yet).
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        self.file.seek(SeekFrom::Start(self.at))?;
        let mut header = [0; HEADER];
        if !fill(&mut self.file, &mut header)? {
            return Ok(None);
        }
        let field = |range: std::ops::Range<usize>| {
            let mut number = [0; 8];
            number[..range.len()].copy_from_slice(&header[range]);
            u64::from_le_bytes(number)
        };
        let length = usize::try_from(field(0..4)).unwrap_or(usize::MAX);
        let stream = match header[4] {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            _ => return Ok(None),
        };
        if length > LONGEST {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        if !fill(&mut self.file, &mut bytes)? {
            return Ok(None);
        }
        self.at += u64::try_from(HEADER + length).unwrap_or(0);
        let time =
            Timestamp::from_nanosecond(i128::from(field(8..16))).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Some(Piece {
            time,
            stream,
            bytes,
        }))
    }
}

/// Reads exactly so much; `false` where the file ends first.
fn fill(file: &mut File, mut space: &mut [u8]) -> io::Result<bool> {
    while !space.is_empty() {
        match file.read(space) {
            Ok(0) => return Ok(false),
            Ok(n) => space = &mut space[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
