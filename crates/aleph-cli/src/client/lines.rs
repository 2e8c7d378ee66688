//! Answers of one JSON value for each line, and server-sent events.

use super::{Answer, ClientError};
use serde::de::DeserializeOwned;

/// A line is never longer than this.
const MOST: usize = 16 * 1024 * 1024;

/// An answer, line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    answer: Answer,
    cut: Cut,
}

impl Lines {
    pub(super) fn new(answer: Answer) -> Self {
        Self {
            answer,
            cut: Cut::default(),
        }
    }

    /// The next line without its end; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(line) = self.cut.line() {
                return text(line).map(Some);
            }
            if self.cut.pending.len() > MOST {
                return Err(ClientError::Strange {
                    what: "with a line that does not end".into(),
                });
            }
            match self.answer.next().await? {
                Some(bytes) => self.cut.pending.extend_from_slice(&bytes),
                None => return self.cut.rest().map(text).transpose(),
            }
        }
    }

    /// The next line that is not empty, as JSON.
    pub(crate) async fn next_json<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, ClientError> {
        while let Some(line) = self.next().await? {
            if !line.trim().is_empty() {
                return json(&line).map(Some);
            }
        }
        Ok(None)
    }
}

fn text(line: Vec<u8>) -> Result<String, ClientError> {
    String::from_utf8(line).map_err(|_| ClientError::Strange {
        what: "with a line that is not UTF-8".into(),
    })
}

fn json<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    serde_json::from_str(line).map_err(|error| ClientError::Strange {
        what: format!("with a line that this program cannot read: {error}"),
    })
}

/// An answer of server-sent events. Only their data is used: it names kind and id as well.
#[derive(Debug)]
pub(crate) struct ServerSent(Lines);

impl ServerSent {
    pub(super) fn new(answer: Answer) -> Self {
        Self(Lines::new(answer))
    }

    /// The data of the next event as JSON; `None` once the node has closed the stream.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let mut data: Option<String> = None;
        while let Some(line) = self.0.next().await? {
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                if let Some(data) = data.take() {
                    return json(&data).map(Some);
                }
            } else if let Some(more) = line.strip_prefix("data:") {
                let more = more.strip_prefix(' ').unwrap_or(more);
                match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(more);
                    }
                    None => data = Some(more.to_owned()),
                }
            }
        }
        // An event that was cut off is none.
        Ok(None)
    }
}

/// Bytes cut into lines, each byte looked at once.
#[derive(Debug, Default)]
struct Cut {
    pending: Vec<u8>,
    searched: usize,
}

impl Cut {
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.pending[self.searched..]
            .iter()
            .position(|b| *b == b'\n');
        let Some(end) = end.map(|at| at + self.searched) else {
            self.searched = self.pending.len();
            return None;
        };
        let mut line: Vec<u8> = self.pending.drain(..=end).collect();
        line.pop();
        self.searched = 0;
        Some(line)
    }

    fn rest(&mut self) -> Option<Vec<u8>> {
        self.searched = 0;
        Some(std::mem::take(&mut self.pending)).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_bytes_are() {
        let all = b"one\n\ntwo\nlast";
        for at in 0..all.len() {
            let mut cut = Cut::default();
            let mut lines = Vec::new();
            for piece in [&all[..at], &all[at..]] {
                cut.pending.extend_from_slice(piece);
                lines.extend(std::iter::from_fn(|| cut.line()));
            }
            lines.extend(cut.rest());
            assert_eq!(lines, [&b"one"[..], b"", b"two", b"last"], "cut at {at}");
        }
    }
}
