//! What jobs wrote.
//!
//! Each start of a job writes files of its own into the job's folder, `STATE/logs/JOB/`. They
//! hold pieces of output as they came, each with its time. The guest keeps what it was not told
//! to be stored, so the node, after a crash, goes on at exactly the byte that the last whole
//! piece ends with: nothing is lost, and nothing comes twice.
//!
//! # Limits
//! A file that is full is followed by the next, and the oldest goes ([`LogLimits`]). A full disk
//! stops the reading of output, and with it the command, until there is room.

mod reader;
mod segment;
mod writer;

pub(crate) use reader::Begin;
pub use reader::LogReader;
pub(crate) use writer::LogWriter;

use aleph_types::{Incarnation, LogStream, Timestamp};
use segment::Segment;
use std::fs;
use std::io;
use std::path::Path;

/// How long logs may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of one file; then the next begins.
    pub segment_bytes: u64,
    /// Files of one job; the oldest goes.
    pub segments: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            segment_bytes: 10 * 1024 * 1024,
            segments: 5,
        }
    }
}

/// Which part of a log to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Go on with what is written later, until the job ended for good.
    pub follow: bool,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// The last so many lines of what there is.
    pub tail: Option<u64>,
    /// Only this output.
    pub stream: Option<LogStream>,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// When the node got it.
    pub time: Timestamp,
    /// Which output.
    pub stream: LogStream,
    /// The bytes: whatever arrived at once, not a line.
    pub bytes: Vec<u8>,
}

/// What followers of a log are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tell {
    /// Grows with each piece.
    pub(crate) pieces: u64,
    /// Whether nothing follows, since the job has ended for good.
    pub(crate) over: bool,
}

/// Removes what there is of a job's log but for this start of it, and gives the bytes (which
/// would go, for a dry run).
pub(crate) fn remove_before(
    dir: &Path,
    kept: Option<Incarnation>,
    dry_run: bool,
) -> io::Result<u64> {
    let mut freed = 0;
    for segment in Segment::all(dir)? {
        if Some(segment.incarnation) == kept {
            continue;
        }
        let path = segment.path(dir);
        freed += fs::metadata(&path).map_or(0, |m| m.len());
        if !dry_run {
            fs::remove_file(&path)?;
        }
    }
    Ok(freed)
}

/// Removes a job's log as a whole.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::sync::watch;

    fn now() -> Timestamp {
        Timestamp::now()
    }

    async fn all(mut reader: LogReader) -> String {
        let mut text = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            text.extend(entry.bytes);
        }
        String::from_utf8(text).unwrap()
    }

    fn read(dir: &Path, query: LogQuery, begin: Begin) -> LogReader {
        let (_, tell) = watch::channel(Tell::default());
        LogReader::open(dir.to_owned(), query, begin, tell).unwrap()
    }

    fn tail(lines: u64) -> LogQuery {
        LogQuery {
            tail: Some(lines),
            ..LogQuery::default()
        }
    }

    #[tokio::test]
    async fn a_log_goes_on_after_a_crash_in_the_middle_of_a_piece() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, limits) = (dir.path().join("log"), LogLimits::default());
        let first = Incarnation::default();
        let mut log = LogWriter::open(&dir, (first, 0), limits).unwrap();
        log.append(LogStream::Stdout, now(), b"one\n").unwrap();
        log.append(LogStream::Stderr, now(), b"two\n").unwrap();
        let path = Segment::all(&dir).unwrap()[0].path(&dir);
        let size = fs::metadata(&path).unwrap().len();
        for cut in [1, 5, segment::HEADER + 2] {
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            let torn = [&segment::header(LogStream::Stdout, now(), 4)[..], b"half"].concat();
            file.write_all(&torn[..cut]).unwrap();
            let log = LogWriter::open(&dir, (first, 0), limits).unwrap();
            assert_eq!(log.position(), 8);
            assert_eq!(fs::metadata(&path).unwrap().len(), size);
        }
        let mut log = LogWriter::open(&dir, (first, 0), limits).unwrap();
        log.append(LogStream::Stdout, now(), b"three\n").unwrap();
        let text = all(read(&dir, LogQuery::default(), Begin::Oldest)).await;
        assert_eq!(text, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn tails_count_lines_over_pieces_files_and_starts() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            segment_bytes: 40,
            segments: 100,
        };
        for start in 0..2 {
            let incarnation = Incarnation::from_count(start);
            let mut log = LogWriter::open(dir.path(), (incarnation, 0), limits).unwrap();
            for piece in ["a", "b\nc", "\nd\n", "e"] {
                log.append(LogStream::Stdout, now(), piece.as_bytes())
                    .unwrap();
            }
        }
        for (lines, text) in [
            (0, ""),
            (1, "e"),
            (2, "d\ne"),
            (4, "eab\nc\nd\ne"),
            (99, "ab\nc\nd\neab\nc\nd\ne"),
        ] {
            assert_eq!(
                all(read(dir.path(), tail(lines), Begin::Oldest)).await,
                text,
                "{lines}"
            );
        }
        let mut log = LogWriter::open(dir.path(), (Incarnation::from_count(1), 0), limits).unwrap();
        log.append(LogStream::Stderr, now(), b"bad\n").unwrap();
        let of_output = LogQuery {
            stream: Some(LogStream::Stdout),
            ..tail(2)
        };
        assert_eq!(
            all(read(dir.path(), of_output, Begin::Oldest)).await,
            "d\ne"
        );
        let second = Begin::Incarnation(Incarnation::from_count(1));
        let text = all(read(dir.path(), LogQuery::default(), second)).await;
        assert_eq!(text, "ab\nc\nd\nebad\n");
        assert_eq!(
            all(read(dir.path(), LogQuery::default(), Begin::Now)).await,
            ""
        );
    }

    #[tokio::test]
    async fn the_oldest_file_goes_and_positions_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            segment_bytes: 100,
            segments: 3,
        };
        let first = Incarnation::default();
        let mut log = LogWriter::open(dir.path(), (first, 0), limits).unwrap();
        for n in 0..100_u32 {
            let line = format!("{n:09}\n");
            log.append(LogStream::Stdout, now(), line.as_bytes())
                .unwrap();
        }
        assert_eq!(log.position(), 1000);
        assert_eq!(Segment::all(dir.path()).unwrap().len(), 3);
        let again = LogWriter::open(dir.path(), (first, 0), limits).unwrap();
        assert_eq!(again.position(), 1000);
        let text = all(read(dir.path(), LogQuery::default(), Begin::Oldest)).await;
        assert!(text.ends_with("000000098\n000000099\n"));
        assert!(text.len() < 200);
    }

    #[tokio::test]
    async fn a_follower_hears_of_new_pieces_and_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, told) = watch::channel(Tell::default());
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let reader = LogReader::open(dir.path().to_owned(), query, Begin::Oldest, told).unwrap();
        let follower = tokio::spawn(all(reader));
        let first = Incarnation::default();
        let mut log = LogWriter::open(dir.path(), (first, 0), LogLimits::default()).unwrap();
        for _ in 0..10 {
            log.append(LogStream::Stdout, now(), b"x").unwrap();
            tell.send_modify(|t| t.pieces += 1);
            tokio::task::yield_now().await;
        }
        log.append(LogStream::Stdout, now(), b"y").unwrap();
        tell.send_modify(|t| t.over = true);
        assert_eq!(follower.await.unwrap(), "xxxxxxxxxxy");
    }
}
