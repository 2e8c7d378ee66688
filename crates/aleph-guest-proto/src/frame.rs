//! Headers, and the decoder that cuts a byte stream into frames.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | magic `0xA1EF` |
//! | 2 | 1 | kind; which kinds there are depends on the direction |
//! | 3 | 1 | flags, 0 in version 1 |
//! | 4 | 4 | stream |
//! | 8 | 4 | length of the payload, at most [`MAX_PAYLOAD`] |

use alloc::{boxed::Box, vec};
use core::fmt;

/// Size of a header in bytes.
pub const HEADER: usize = 12;

/// The most bytes that a payload has.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const MAGIC: u16 = 0xA1EF;

/// Bytes that are not of the protocol. Nothing can be read from a channel after one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// A header that does not begin with the magic number.
    Magic(u16),
    /// Flags that this version does not have.
    Flags(u8),
    /// A payload over [`MAX_PAYLOAD`], by its length field or by what was to be sent.
    Oversized(u32),
    /// A kind that this direction does not have.
    Kind(u8),
    /// A kind on a stream where it has no meaning.
    Stream(u8, u32),
    /// A payload that is not of its kind's form; the text says where.
    Malformed(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "a frame begins with {magic:#06x}, not {MAGIC:#06x}"),
            Self::Flags(flags) => write!(f, "a frame has unknown flags {flags:#04x}"),
            Self::Oversized(n) => {
                write!(f, "a frame of {n} bytes, over the limit of {MAX_PAYLOAD}")
            }
            Self::Kind(kind) => write!(f, "a frame of unknown kind {kind:#04x}"),
            Self::Stream(kind, stream) => {
                write!(
                    f,
                    "a frame of kind {kind:#04x} on stream {stream}, where it means nothing"
                )
            }
            Self::Malformed(what) => write!(f, "a frame's payload is malformed: {what}"),
        }
    }
}

impl core::error::Error for ProtocolError {}

/// One frame as cut out of the stream; its payload is not looked at yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its kind.
    pub kind: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: &'a [u8],
}

/// The header of a frame with so many bytes of payload.
pub(crate) fn header(kind: u8, stream: u32, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&MAGIC.to_le_bytes());
    header[2] = kind;
    header[4..8].copy_from_slice(&stream.to_le_bytes());
    header[8..].copy_from_slice(&length.to_le_bytes());
    header
}

/// Cuts a byte stream into frames. Its one buffer holds a largest frame and never grows.
///
/// ```
/// # use aleph_guest_proto::{Decoder, ToHost};
/// let mut wire = Vec::new();
/// ToHost::Pong(7).encode(0, &mut wire).unwrap();
/// let mut decoder = Decoder::new();
/// for byte in wire {
///     decoder.space()[0] = byte;
///     decoder.filled(1);
/// }
/// let frame = decoder.next_frame().unwrap().unwrap();
/// assert_eq!(ToHost::decode(&frame), Ok(ToHost::Pong(7)));
/// ```
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: vec![0; HEADER + MAX_PAYLOAD].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where the next bytes from the channel go. It is empty only while a whole frame waits in
    /// [`Decoder::next_frame`].
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `n` bytes of [`Decoder::space`] are filled; more than it has count as all.
    pub fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.buffer.len());
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// A [`ProtocolError`] as soon as a header is seen to be wrong, before its payload arrives.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let begun = &self.buffer[self.start..self.end];
        // Looked at before the rest of the header is there: whatever speaks another language
        // may never send that many bytes.
        if let Some(first) = begun.first_chunk::<2>() {
            let magic = u16::from_le_bytes(*first);
            if magic != MAGIC {
                return Err(ProtocolError::Magic(magic));
            }
        }
        let Some(header) = begun.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [_, _, kind, flags, s0, s1, s2, s3, l0, l1, l2, l3] = *header;
        if flags != 0 {
            return Err(ProtocolError::Flags(flags));
        }
        let claimed = u32::from_le_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(claimed)
            .ok()
            .filter(|n| *n <= MAX_PAYLOAD)
            .ok_or(ProtocolError::Oversized(claimed))?;
        let payload = self.start + HEADER;
        if self.end < payload + length {
            return Ok(None);
        }
        self.start = payload + length;
        Ok(Some(Frame {
            kind,
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            payload: &self.buffer[payload..payload + length],
        }))
    }

    /// Whether a frame has begun and not ended: whoever sees it so for long may give up.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.start != self.end
    }

    /// Forgets a half frame, for a new connection on the same channel.
    pub fn reset(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ToHost;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn decode_all(wire: &[u8], chunk: usize) -> Result<Vec<(u8, u32, Vec<u8>)>, ProtocolError> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for piece in wire.chunks(chunk) {
            let mut piece = piece;
            while !piece.is_empty() {
                let space = decoder.space();
                let n = piece.len().min(space.len());
                assert!(n > 0, "a decoder that was drained has space");
                space[..n].copy_from_slice(&piece[..n]);
                decoder.filled(n);
                piece = &piece[n..];
                while let Some(frame) = decoder.next_frame()? {
                    frames.push((frame.kind, frame.stream, frame.payload.to_vec()));
                }
            }
        }
        assert!(!decoder.is_mid_frame());
        Ok(frames)
    }

    #[test]
    fn a_wrong_header_is_refused_before_its_payload_arrives() {
        let good = header(1, 2, 3);
        let spoilt = |at: usize, byte: u8| {
            let mut wrong = good;
            wrong[at] = byte;
            decode_all(&wrong, HEADER).unwrap_err()
        };
        assert!(matches!(spoilt(0, 0), ProtocolError::Magic(_)));
        assert_eq!(spoilt(3, 1), ProtocolError::Flags(1));
        assert_eq!(spoilt(11, 0xff), ProtocolError::Oversized(0xff00_0003));
    }

    #[test]
    fn the_largest_frame_passes_and_one_byte_more_does_not() {
        let mut wire = Vec::new();
        ToHost::Data(&[7; MAX_PAYLOAD])
            .encode(1, &mut wire)
            .unwrap();
        assert_eq!(decode_all(&wire, 4096).unwrap()[0].2.len(), MAX_PAYLOAD);
        let refused = ToHost::Data(&[7; MAX_PAYLOAD + 1]).encode(1, &mut wire);
        assert!(matches!(refused, Err(ProtocolError::Oversized(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            frames in prop::collection::vec(
                (any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            chunk in 1_usize..500,
        ) {
            let mut wire = Vec::new();
            for (kind, stream, payload) in &frames {
                wire.extend_from_slice(&header(*kind, *stream, u32::try_from(payload.len()).unwrap()));
                wire.extend_from_slice(payload);
            }
            prop_assert_eq!(decode_all(&wire, chunk).unwrap(), frames);
        }
    }
}
