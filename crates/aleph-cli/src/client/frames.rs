//! The raw form of logs: docker's multiplexed stream.

use super::{Answer, ClientError};
use aleph_types::LogStream;
use bytes::{Buf, Bytes, BytesMut};

/// A frame is never longer than this.
const MOST: usize = 16 * 1024 * 1024;
const HEADER: usize = 8;

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) stream: LogStream,
    pub(crate) bytes: Bytes,
}

/// An answer, frame by frame.
#[derive(Debug)]
pub(crate) struct Frames {
    answer: Answer,
    pending: BytesMut,
}

impl Frames {
    pub(super) fn new(answer: Answer) -> Self {
        Self {
            answer,
            pending: BytesMut::new(),
        }
    }

    /// The next frame; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            if let Some(frame) = cut(&mut self.pending)? {
                return Ok(Some(frame));
            }
            match self.answer.next().await? {
                Some(bytes) => self.pending.extend_from_slice(&bytes),
                None if self.pending.is_empty() => return Ok(None),
                None => return Err(strange("with a frame that was cut off")),
            }
        }
    }
}

/// Takes the first frame, once it is complete.
fn cut(pending: &mut BytesMut) -> Result<Option<Frame>, ClientError> {
    let Some(header) = pending.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [stream, _, _, _, length @ ..] = *header;
    let stream = match stream {
        1 => LogStream::Stdout,
        2 => LogStream::Stderr,
        _ => return Err(strange("with a frame of no known stream")),
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MOST {
        return Err(strange("with a frame that is too long"));
    }
    if pending.len() - HEADER < length {
        return Ok(None);
    }
    pending.advance(HEADER);
    let bytes = pending.split_to(length).freeze();
    Ok(Some(Frame { stream, bytes }))
}

fn strange(what: &str) -> ClientError {
    ClientError::Strange { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_and_in_order() {
        let all = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01x";
        let mut pending = BytesMut::new();
        let mut frames = Vec::new();
        for byte in all {
            pending.extend_from_slice(&[*byte]);
            while let Some(frame) = cut(&mut pending).unwrap() {
                frames.push((frame.stream, frame.bytes));
            }
        }
        let expected = [
            (LogStream::Stdout, Bytes::from_static(b"hi")),
            (LogStream::Stderr, Bytes::new()),
            (LogStream::Stderr, Bytes::from_static(b"x")),
        ];
        assert_eq!(frames, expected);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for wrong in [&b"\x03\0\0\0\0\0\0\x01x"[..], b"\x01\0\0\0\xff\0\0\0"] {
            assert!(cut(&mut BytesMut::from(wrong)).is_err());
        }
    }
}
