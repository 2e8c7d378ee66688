//! Writing a log.

use super::LogLimits;
use super::segment::{HEADER, Pieces, Segment, header};
use aleph_types::{Incarnation, LogStream, Timestamp};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Appends what one start of a job writes.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    limits: LogLimits,
    segment: Segment,
    file: File,
    size: u64,
    /// Bytes of output of this start so far.
    position: u64,
}

impl LogWriter {
    /// Goes on behind what is whole in this start's log; where it has none, begins it, with so
    /// many bytes before it that are in no log.
    pub(crate) fn open(
        dir: &Path,
        (incarnation, base): (Incarnation, u64),
        limits: LogLimits,
    ) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let last = Segment::all(dir)?
            .into_iter()
            .rfind(|segment| segment.incarnation == incarnation);
        let segment = last.unwrap_or(Segment { incarnation, base });
        let file = append_to(&segment.path(dir))?;
        let (size, bytes) = whole(&segment.path(dir))?;
        // A piece that a crash cut off comes again from the guest.
        file.set_len(size)?;
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            segment,
            file,
            size,
            position: segment.base + bytes,
        })
    }

    /// Bytes of output of this start that the log holds, or held.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Appends a piece. It has outlived the node's process when this returns; a host that loses
    /// power loses its guests too.
    pub(crate) fn append(
        &mut self,
        stream: LogStream,
        time: Timestamp,
        bytes: &[u8],
    ) -> io::Result<()> {
        if self.size >= self.limits.segment_bytes {
            self.rotate()?;
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut piece = Vec::with_capacity(HEADER + bytes.len());
        piece.extend_from_slice(&header(stream, time, length));
        piece.extend_from_slice(bytes);
        if let Err(error) = self.file.write_all(&piece) {
            // A full disk may have taken a part of it.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += u64::try_from(piece.len()).unwrap_or(0);
        self.position += u64::from(length);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = Segment {
            base: self.position,
            ..self.segment
        };
        let file = append_to(&next.path(&self.dir))?;
        (self.file, self.segment, self.size) = (file, next, 0);
        let all = Segment::all(&self.dir)?;
        let old = all.len().saturating_sub(self.limits.segments.max(1));
        for segment in &all[..old] {
            let _ = fs::remove_file(segment.path(&self.dir));
        }
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// How much of a file is whole pieces, and how many bytes of output these hold.
fn whole(path: &Path) -> io::Result<(u64, u64)> {
    let mut pieces = Pieces::open(path, 0)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next()? {
        bytes += u64::try_from(piece.bytes.len()).unwrap_or(0);
    }
    Ok((pieces.at(), bytes))
}
