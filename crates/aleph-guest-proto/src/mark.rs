//! Where a connection begins in a byte stream that is older than the connection.
//!
//! A virtio-serial port is one byte stream to the guest, whoever is connected to the VMM's end
//! of it. A host that is killed leaves half a frame in it, and the next host's bytes follow
//! without a gap; what the guest has under way to the old one reaches the new one. So each
//! direction has bytes that can only be the beginning of a connection, and that a [`Decoder`]
//! finds wherever they stand:
//!
//! | direction | mark | why it can be nothing else |
//! | --- | --- | --- |
//! | to the guest | [`MARK`] | the host takes it apart where data has it ([`ToGuest::encode`]), and it cannot reach over a header or a trailer, since it has neither `0x00` nor `0xEF` |
//! | to the host | the nonce of its `Hello` | it is 128 random bits of this very connection |
//!
//! A frame into which a mark was spliced never counts as whole: a header with a byte of
//! [`MARK`] in it is wrong, since flags and the length's highest byte are 0, and so is a
//! [`TRAILER`]. The decoder holds such an error back while what it has ends in the beginning of
//! a mark, so that it does not matter how the bytes are cut.
//!
//! [`Decoder`]: crate::Decoder
//! [`ToGuest::encode`]: crate::ToGuest::encode
//! [`TRAILER`]: crate::frame::TRAILER

/// Bytes of a mark.
pub const MARK_SIZE: usize = 16;

/// What begins a connection to the guest, before `Hello`. No text has it: it is not UTF-8.
pub const MARK: [u8; MARK_SIZE] = *b"\xF1aleph\r\nnow\xF5\xF6\xF7\xF8\xF9";

pub(crate) static GUEST: Needle = Needle::new(MARK);

/// Bytes to look for, with how far to go on where they are not (Horspool's table).
#[derive(Debug, Clone)]
pub(crate) struct Needle {
    bytes: [u8; MARK_SIZE],
    skips: [u8; 256],
}

impl Needle {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a place in sixteen bytes fits one, and a constant function has no conversions"
    )]
    pub(crate) const fn new(bytes: [u8; MARK_SIZE]) -> Self {
        let mut skips = [MARK_SIZE as u8; 256];
        let mut at = 0;
        while at < MARK_SIZE - 1 {
            skips[bytes[at] as usize] = (MARK_SIZE - 1 - at) as u8;
            at += 1;
        }
        Self { bytes, skips }
    }

    /// Where the bytes first stand.
    pub(crate) fn find(&self, hay: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(window) = hay.get(at..at + MARK_SIZE) {
            let last = window[MARK_SIZE - 1];
            if last == self.bytes[MARK_SIZE - 1] && window == self.bytes {
                return Some(at);
            }
            at += usize::from(self.skips[usize::from(last)]);
        }
        None
    }

    /// Whether more bytes could make the end of these a mark.
    pub(crate) fn may_end(&self, hay: &[u8]) -> bool {
        (1..MARK_SIZE).any(|n| hay.ends_with(&self.bytes[..n]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn marks_are_found_as_a_search_finds_them(
            needle in prop::array::uniform16(0_u8..3),
            pieces in prop::collection::vec(
                prop_oneof![Just(None), prop::collection::vec(0_u8..3, 0..20).prop_map(Some)], 0..6),
        ) {
            let hay: Vec<u8> = pieces
                .into_iter()
                .flat_map(|piece| piece.unwrap_or_else(|| needle.to_vec()))
                .collect();
            let want = hay.windows(MARK_SIZE).position(|window| window == needle);
            prop_assert_eq!(Needle::new(needle).find(&hay), want);
        }
    }

    #[test]
    fn a_mark_has_no_byte_that_headers_and_trailers_must_have() {
        assert!(!MARK.contains(&0) && !MARK.contains(&0xef));
        assert!(core::str::from_utf8(&MARK).is_err());
    }
}
