//! Headers, and the decoder that cuts a byte stream into frames.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | magic `0xA1EF` |
//! | 2 | 1 | kind; which kinds there are depends on the direction |
//! | 3 | 1 | flags, 0 in version 2 |
//! | 4 | 4 | stream |
//! | 8 | 4 | length of the payload, at most [`MAX_PAYLOAD`] |
//!
//! The payload follows, and one byte [`TRAILER`], which tells a whole frame from one that
//! another connection's bytes filled up ([`crate::mark`]).

use crate::mark::{self, MARK_SIZE, Needle};
use alloc::{boxed::Box, vec};
use core::fmt;

/// Size of a header in bytes.
pub const HEADER: usize = 12;

/// The most bytes that a payload has.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What follows a payload.
pub const TRAILER: u8 = 0;

/// What a frame has beside its payload, in bytes.
pub const OVERHEAD: usize = HEADER + 1;

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
    /// A frame that does not end in [`TRAILER`].
    Trailer(u8),
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
            Self::Trailer(byte) => write!(f, "a frame ends with {byte:#04x}, not {TRAILER:#04x}"),
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

/// What a [`Decoder`] cuts out of a byte stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A connection begins here; what came before it is over, and may have ended within a frame.
    Mark,
    /// A frame.
    Frame(Frame<'a>),
}

/// Cuts a byte stream into frames. Its one buffer holds a largest frame and never grows.
///
/// Until the first mark it passes over everything: what comes then was not meant for it.
///
/// ```
/// # use aleph_guest_proto::{Decoder, Item, ToHost};
/// let nonce = [7; 16];
/// let mut wire = b"the rest of a frame for somebody else".to_vec();
/// wire.extend(nonce);
/// ToHost::Pong(7).encode(0, &mut wire).unwrap();
/// let mut decoder = Decoder::for_host(nonce);
/// for byte in wire {
///     decoder.space()[0] = byte;
///     decoder.filled(1);
///     match decoder.next_item().unwrap() {
///         Some(Item::Frame(frame)) => assert_eq!(ToHost::decode(&frame), Ok(ToHost::Pong(7))),
///         Some(Item::Mark) | None => {}
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    mark: Needle,
    /// Whether there can be a mark after the first.
    repeats: bool,
    /// Whether nothing means anything before a mark.
    is_lost: bool,
    /// No mark begins before here, but for what was handed out.
    searched: usize,
    /// Where the first mark begins that was not handed out.
    mark_at: Option<usize>,
}

impl Decoder {
    /// The guest's: each connection begins with [`crate::MARK`].
    #[must_use]
    pub fn for_guest() -> Self {
        Self::new(mark::GUEST.clone(), true)
    }

    /// The host's: the connection begins with the nonce of its `Hello`.
    #[must_use]
    pub fn for_host(nonce: [u8; MARK_SIZE]) -> Self {
        Self::new(Needle::new(nonce), false)
    }

    fn new(mark: Needle, repeats: bool) -> Self {
        // Behind a largest frame there is room for a mark that tells that it is none.
        let size = HEADER + MAX_PAYLOAD + 1 + MARK_SIZE;
        Self {
            buffer: vec![0; size].into_boxed_slice(),
            start: 0,
            end: 0,
            mark,
            repeats,
            is_lost: true,
            searched: 0,
            mark_at: None,
        }
    }

    /// Where the next bytes from the channel go. It is empty only while something whole waits
    /// in [`Decoder::next_item`].
    pub fn space(&mut self) -> &mut [u8] {
        let shift = self.start;
        if shift > 0 {
            self.buffer.copy_within(shift..self.end, 0);
            self.start = 0;
            self.end -= shift;
            self.searched = self.searched.saturating_sub(shift);
            self.mark_at = self.mark_at.map(|at| at.saturating_sub(shift));
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `n` bytes of [`Decoder::space`] are filled; more than it has count as all.
    pub fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.buffer.len());
    }

    /// The next whole frame, or the next mark, if there is one.
    ///
    /// # Errors
    /// A [`ProtocolError`] as soon as a header is seen to be wrong, before its payload arrives.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, ProtocolError> {
        self.search();
        if self.is_lost {
            if self.mark_at.is_none() {
                self.start = self.searched;
                return Ok(None);
            }
            return Ok(self.take_mark());
        }
        let whole = match self.whole_frame() {
            // An old connection's bytes end where a mark begins, as far as they got.
            Ok(None) | Err(_) if self.mark_at.is_some() => return Ok(self.take_mark()),
            // It may be one that is about to be seen.
            Err(_) if self.repeats && self.mark.may_end(&self.buffer[self.start..self.end]) => None,
            other => other?,
        };
        let Some(length) = whole else { return Ok(None) };
        let begin = self.start;
        self.start = begin + HEADER + length + 1;
        let frame = &self.buffer[begin..self.start];
        Ok(Some(Item::Frame(Frame {
            kind: frame[2],
            stream: u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]),
            payload: &frame[HEADER..HEADER + length],
        })))
    }

    /// Looks for a mark in what was not looked at.
    fn search(&mut self) {
        if self.mark_at.is_some() || !self.is_lost && !self.repeats {
            return;
        }
        let from = self.searched.max(self.start);
        self.mark_at = self
            .mark
            .find(&self.buffer[from..self.end])
            .map(|at| from + at);
        self.searched = from.max((self.end + 1).saturating_sub(MARK_SIZE));
    }

    fn take_mark(&mut self) -> Option<Item<'static>> {
        self.start = self.mark_at.take()? + MARK_SIZE;
        self.searched = self.start;
        self.is_lost = false;
        Some(Item::Mark)
    }

    /// The length of the payload of the frame that begins what there is, once all of it is
    /// there.
    fn whole_frame(&self) -> Result<Option<usize>, ProtocolError> {
        let begun = &self.buffer[self.start..self.mark_at.unwrap_or(self.end)];
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
        let [_, _, _, flags, _, _, _, _, l0, l1, l2, l3] = *header;
        if flags != 0 {
            return Err(ProtocolError::Flags(flags));
        }
        let claimed = u32::from_le_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(claimed)
            .ok()
            .filter(|n| *n <= MAX_PAYLOAD)
            .ok_or(ProtocolError::Oversized(claimed))?;
        match begun.get(HEADER + length) {
            None => Ok(None),
            Some(&TRAILER) => Ok(Some(length)),
            Some(&other) => Err(ProtocolError::Trailer(other)),
        }
    }

    /// Whether a frame has begun and not ended: whoever sees it so for long may give up.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        !self.is_lost && self.start != self.end
    }

    /// Forgets a half frame, and passes over everything before the next mark.
    pub fn reset(&mut self) {
        (self.start, self.end, self.searched) = (0, 0, 0);
        self.mark_at = None;
        self.is_lost = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MARK, ToGuest, ToHost, Versions};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Mark,
        Frame(u8, u32, Vec<u8>),
    }

    fn raw(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut wire = header(kind, stream, u32::try_from(payload.len()).unwrap()).to_vec();
        wire.extend_from_slice(payload);
        wire.push(TRAILER);
        wire
    }

    fn decode_all(
        decoder: &mut Decoder,
        wire: &[u8],
        chunk: usize,
    ) -> Result<Vec<Seen>, ProtocolError> {
        let mut seen = Vec::new();
        for piece in wire.chunks(chunk) {
            let mut piece = piece;
            while !piece.is_empty() {
                let space = decoder.space();
                let n = piece.len().min(space.len());
                assert!(n > 0, "a decoder that was drained has space");
                space[..n].copy_from_slice(&piece[..n]);
                decoder.filled(n);
                piece = &piece[n..];
                while let Some(item) = decoder.next_item()? {
                    seen.push(match item {
                        Item::Mark => Seen::Mark,
                        Item::Frame(f) => Seen::Frame(f.kind, f.stream, f.payload.to_vec()),
                    });
                }
            }
        }
        Ok(seen)
    }

    fn marked(wire: &[u8]) -> Vec<u8> {
        [&MARK[..], wire].concat()
    }

    #[test]
    fn a_wrong_header_is_refused_before_its_payload_arrives() {
        let good = header(1, 2, 3);
        let spoilt = |at: usize, byte: u8| {
            let mut wrong = good;
            wrong[at] = byte;
            let wire = marked(&wrong);
            decode_all(&mut Decoder::for_guest(), &wire, wire.len()).unwrap_err()
        };
        assert!(matches!(spoilt(0, 0), ProtocolError::Magic(_)));
        assert_eq!(spoilt(3, 1), ProtocolError::Flags(1));
        assert_eq!(spoilt(11, 0xff), ProtocolError::Oversized(0xff00_0003));
        let mut wire = marked(&raw(1, 2, b"abc"));
        *wire.last_mut().unwrap() = 9;
        let seen = decode_all(&mut Decoder::for_guest(), &wire, 7);
        assert_eq!(seen, Err(ProtocolError::Trailer(9)));
    }

    #[test]
    fn the_largest_frame_passes_and_one_byte_more_does_not() {
        let mut wire = [8; MARK_SIZE].to_vec();
        ToHost::Data(&[7; MAX_PAYLOAD])
            .encode(1, &mut wire)
            .unwrap();
        let mut decoder = Decoder::for_host([8; MARK_SIZE]);
        let seen = decode_all(&mut decoder, &wire, 4096).unwrap();
        assert!(matches!(&seen[1], Seen::Frame(_, 1, payload) if payload.len() == MAX_PAYLOAD));
        assert!(!decoder.is_mid_frame());
        let refused = ToHost::Data(&[7; MAX_PAYLOAD + 1]).encode(1, &mut wire);
        assert!(matches!(refused, Err(ProtocolError::Oversized(_))));
    }

    /// A largest frame that was cut by any few bytes, where the buffer has the least room.
    #[test]
    fn a_mark_in_place_of_a_largest_frames_end_is_seen() {
        let whole = raw(9, 9, &[7; MAX_PAYLOAD]);
        for missing in 1..40 {
            let wire = [
                &MARK,
                &whole[..whole.len() - missing],
                &MARK,
                &raw(1, 0, b"x"),
            ]
            .concat();
            for chunk in [1000, wire.len()] {
                let seen = decode_all(&mut Decoder::for_guest(), &wire, chunk).unwrap();
                let want = [Seen::Mark, Seen::Mark, Seen::Frame(1, 0, b"x".to_vec())];
                assert_eq!(seen, want, "{missing} bytes are missing");
            }
        }
    }

    /// Frames as the host makes them, with marks in their data.
    fn frames() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
        let piece = prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..40),
            2 => Just(MARK.to_vec()),
            1 => (0..MARK_SIZE).prop_map(|n| MARK[n..].to_vec()),
            1 => (0..MARK_SIZE).prop_map(|n| MARK[..n].to_vec()),
        ];
        let data = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
        prop::collection::vec((1_u32.., data), 0..8)
    }

    fn encode(frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (stream, data) in frames {
            ToGuest::Data(data).encode(*stream, &mut wire).unwrap();
        }
        wire
    }

    /// Data by stream and order: where the host cut it does not matter.
    fn data_of(seen: &[Seen]) -> Vec<(u32, Vec<u8>)> {
        let mut all: Vec<(u32, Vec<u8>)> = Vec::new();
        for item in seen {
            if let Seen::Frame(_, stream, payload) = item {
                match all.last_mut() {
                    Some((last, data)) if last == stream => data.extend_from_slice(payload),
                    _ => all.push((*stream, payload.clone())),
                }
            }
        }
        all.retain(|(_, data)| !data.is_empty());
        all
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            frames in prop::collection::vec(
                (any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            before in prop::collection::vec(any::<u8>(), 0..100),
            nonce in any::<[u8; MARK_SIZE]>(),
            chunk in 1_usize..500,
        ) {
            let mut wire = before;
            wire.extend_from_slice(&nonce);
            let mut want = Vec::from([Seen::Mark]);
            for (kind, stream, payload) in &frames {
                wire.extend(raw(*kind, *stream, payload));
                want.push(Seen::Frame(*kind, *stream, payload.clone()));
            }
            let mut decoder = Decoder::for_host(nonce);
            prop_assert_eq!(decode_all(&mut decoder, &wire, chunk).unwrap(), want);
            prop_assert!(!decoder.is_mid_frame());
        }

        /// Hosts that are cut off at any byte: all that each one sent whole arrives, nothing of
        /// what it did not, and nothing is ever taken for a broken rule.
        #[test]
        fn a_new_connection_is_seen_wherever_the_old_one_ended(
            hosts in prop::collection::vec((frames(), any::<prop::sample::Index>()), 1..5),
            chunk in 1_usize..70,
        ) {
            let (mut wire, mut want) = (Vec::new(), Vec::new());
            for (frames, cut) in &hosts {
                let sent = marked(&encode(frames));
                let cut = cut.index(sent.len() + 1);
                wire.extend_from_slice(&sent[..cut]);
                if cut >= MARK_SIZE {
                    want.push(Seen::Mark);
                    let mut alone = Decoder::for_guest();
                    want.extend(decode_all(&mut alone, &sent[..cut], 1).unwrap().split_off(1));
                }
            }
            ToGuest::Hello { versions: Versions::OURS, nonce: [5; 16] }
                .encode(0, { wire.extend_from_slice(&MARK); &mut wire })
                .unwrap();
            let mut seen = decode_all(&mut Decoder::for_guest(), &wire, chunk).unwrap();
            prop_assert!(matches!(seen.pop(), Some(Seen::Frame(1, 0, _))));
            prop_assert_eq!(seen.pop(), Some(Seen::Mark));
            prop_assert_eq!(seen, want);
        }

        #[test]
        fn data_with_marks_in_it_arrives_unchanged(frames in frames(), chunk in 1_usize..70) {
            let wire = marked(&encode(&frames));
            let seen = decode_all(&mut Decoder::for_guest(), &wire, chunk).unwrap();
            prop_assert_eq!(seen.iter().filter(|item| **item == Seen::Mark).count(), 1);
            let sent: Vec<_> = frames
                .iter()
                .map(|(stream, data)| Seen::Frame(0, *stream, data.clone()))
                .collect();
            prop_assert_eq!(data_of(&seen), data_of(&sent));
        }
    }
}
