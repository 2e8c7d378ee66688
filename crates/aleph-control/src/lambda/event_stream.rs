//! Frames of a streamed response: `application/vnd.amazon.eventstream`.
//!
//! ```text
//! total length (4) | headers' length (4) | CRC-32 of these (4) | headers | payload | CRC-32 of all (4)
//! ```
//! A header is its name's length (1), its name, the type 7, its value's length (2) and its
//! value (<https://smithy.io/2.0/aws/amazon-eventstream.html>).

use bytes::{BufMut, Bytes, BytesMut};

/// The type of a response that is made of frames.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// The type of a header whose value is text.
const TEXT: u8 = 7;
/// The most bytes of a piece of payload.
pub(crate) const PIECE: usize = 64 * 1024;

/// A frame with an event of this type. The payload is at most [`PIECE`] bytes, or a small JSON.
pub(crate) fn frame(event: &str, content: &str, payload: &[u8]) -> Bytes {
    let mut headers = BytesMut::new();
    for (name, value) in [
        (":event-type", event),
        (":content-type", content),
        (":message-type", "event"),
    ] {
        // Both are short texts of ours.
        headers.put_u8(u8::try_from(name.len()).unwrap_or(0));
        headers.put_slice(name.as_bytes());
        headers.put_u8(TEXT);
        headers.put_u16(u16::try_from(value.len()).unwrap_or(0));
        headers.put_slice(value.as_bytes());
    }
    let total = 12 + headers.len() + payload.len() + 4;
    let mut frame = BytesMut::with_capacity(total);
    frame.put_u32(u32::try_from(total).unwrap_or(0));
    frame.put_u32(u32::try_from(headers.len()).unwrap_or(0));
    frame.put_u32(crc32fast::hash(&frame));
    frame.put_slice(&headers);
    frame.put_slice(payload);
    frame.put_u32(crc32fast::hash(&frame));
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_lengths_and_sums() {
        let made = frame("PayloadChunk", "application/octet-stream", b"hello");
        let word = |at: usize| u32::from_be_bytes(made[at..at + 4].try_into().unwrap());
        assert_eq!(usize::try_from(word(0)).unwrap(), made.len());
        let headers = usize::try_from(word(4)).unwrap();
        assert_eq!(word(8), crc32fast::hash(&made[..8]));
        assert_eq!(&made[12 + headers..made.len() - 4], b"hello");
        assert_eq!(
            word(made.len() - 4),
            crc32fast::hash(&made[..made.len() - 4])
        );
        assert_eq!(&made[12..25], b"\x0b:event-type\x07");
    }
}
