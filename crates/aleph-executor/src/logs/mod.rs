//! What jobs wrote.

use aleph_types::{LogStream, Timestamp};

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

/// Reads a log.
#[derive(Debug)]
pub struct LogReader {
    _p: (),
}

impl LogReader {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, std::io::Error> {
        Ok(None)
    }
}
