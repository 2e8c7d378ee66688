//! Reading a log, and following it.

use super::segment::{Piece, Pieces, Segment};
use super::{LogEntry, LogQuery, Tell};
use aleph_types::{Incarnation, LogStream};
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the oldest there is.
    Oldest,
    /// With the first of this start of the job.
    Incarnation(Incarnation),
    /// With what is written from now on.
    Now,
}

/// Reads a log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    query: LogQuery,
    /// The file that is read, and what of it.
    current: Option<(Segment, Pieces)>,
    /// Bytes to leave out of the first piece: the end of a line that is not wanted.
    skip: usize,
    /// Nothing before this start of the job.
    from: Incarnation,
    tell: watch::Receiver<Tell>,
}

impl LogReader {
    pub(crate) fn open(
        dir: PathBuf,
        query: LogQuery,
        begin: Begin,
        tell: watch::Receiver<Tell>,
    ) -> io::Result<Self> {
        let from = match begin {
            Begin::Incarnation(incarnation) => incarnation,
            Begin::Oldest | Begin::Now => Incarnation::default(),
        };
        let mut reader = Self {
            dir,
            query,
            current: None,
            skip: 0,
            from,
            tell,
        };
        let start = match (begin, reader.query.tail) {
            (Begin::Now, _) => end(&reader.dir)?,
            (_, Some(lines)) => last_lines(&reader.dir, from, lines, reader.query.stream)?,
            (_, None) => None,
        };
        if let Some(Start { segment, at, skip }) = start {
            match Pieces::open(&segment.path(&reader.dir), at) {
                Ok(pieces) => (reader.current, reader.skip) = (Some((segment, pieces)), skip),
                // Rotated away in between: what is left is read from its beginning.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(reader)
    }

    /// The next piece; `None` at the end. What follows is waited for where the query says so:
    /// until the job has ended for good. Can be cancelled and called again.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, io::Error> {
        loop {
            // Seen first, so that what is written after the last look wakes us.
            let over = self.tell.borrow_and_update().over;
            while let Some(piece) = self.piece()? {
                if let Some(entry) = self.wanted(piece) {
                    return Ok(Some(entry));
                }
            }
            if !self.query.follow || over || self.tell.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn wanted(&mut self, piece: Piece) -> Option<LogEntry> {
        let Piece {
            time,
            stream,
            mut bytes,
        } = piece;
        let skip = std::mem::take(&mut self.skip).min(bytes.len());
        bytes.drain(..skip);
        let old = self.query.since.is_some_and(|since| time < since);
        let other = self.query.stream.is_some_and(|wanted| wanted != stream);
        (!bytes.is_empty() && !old && !other).then_some(LogEntry {
            time,
            stream,
            bytes,
        })
    }

    fn piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some((_, pieces)) = &mut self.current
                && let Some(piece) = pieces.next()?
            {
                return Ok(Some(piece));
            }
            let after = self.current.as_ref().map(|(segment, _)| *segment);
            let next = Segment::all(&self.dir)?
                .into_iter()
                .find(|s| s.incarnation >= self.from && Some(*s) > after);
            let Some(next) = next else { return Ok(None) };
            // A writer makes the next file only when this one is complete; look once more.
            if let Some((_, pieces)) = &mut self.current
                && let Some(piece) = pieces.next()?
            {
                return Ok(Some(piece));
            }
            match Pieces::open(&next.path(&self.dir), 0) {
                Ok(pieces) => self.current = Some((next, pieces)),
                // Rotated away in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A place in a log.
#[derive(Debug, Clone, Copy)]
struct Start {
    segment: Segment,
    at: u64,
    skip: usize,
}

/// Behind all that is there.
fn end(dir: &Path) -> io::Result<Option<Start>> {
    let Some(segment) = Segment::all(dir)?.pop() else {
        return Ok(None);
    };
    let mut pieces = Pieces::open(&segment.path(dir), 0)?;
    while pieces.next()?.is_some() {}
    let (at, skip) = (pieces.at(), 0);
    Ok(Some(Start { segment, at, skip }))
}

/// Where the last so many lines begin; behind everything for none. All is read twice, since
/// there may be more beginnings of lines than memory to remember them.
fn last_lines(
    dir: &Path,
    from: Incarnation,
    lines: u64,
    stream: Option<LogStream>,
) -> io::Result<Option<Start>> {
    if lines == 0 {
        return end(dir);
    }
    let mut total = 0_u64;
    for_each_line(dir, from, stream, |_| {
        total += 1;
        false
    })?;
    let (mut wanted, mut left) = (None, total.saturating_sub(lines));
    for_each_line(dir, from, stream, |start| {
        let found = left == 0;
        left = left.saturating_sub(1);
        if found {
            wanted = Some(start);
        }
        found
    })?;
    Ok(wanted)
}

/// Tells where each line begins, until `done` says so.
fn for_each_line(
    dir: &Path,
    from: Incarnation,
    stream: Option<LogStream>,
    mut done: impl FnMut(Start) -> bool,
) -> io::Result<()> {
    let mut begins = true;
    for segment in Segment::all(dir)? {
        if segment.incarnation < from {
            continue;
        }
        let mut pieces = match Pieces::open(&segment.path(dir), 0) {
            // Rotated away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            pieces => pieces?,
        };
        loop {
            let at = pieces.at();
            let Some(piece) = pieces.next()? else { break };
            if stream.is_some_and(|wanted| wanted != piece.stream) {
                continue;
            }
            for (skip, byte) in piece.bytes.iter().enumerate() {
                if begins && done(Start { segment, at, skip }) {
                    return Ok(());
                }
                begins = *byte == b'\n';
            }
        }
    }
    Ok(())
}
