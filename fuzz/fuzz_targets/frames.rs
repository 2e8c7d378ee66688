//! Any bytes, cut anywhere, from either side: the decoder ends in messages or in an error, and
//! what it takes for a message encodes to the very bytes that it came from.

#![no_main]

use aleph_guest_proto::{Decoder, Frame, HEADER, ToGuest, ToHost};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (chunk, wire) = input;
    let mut decoder = Decoder::new();
    for piece in wire.chunks(usize::from(chunk).max(1)) {
        let space = decoder.space();
        assert!(space.len() >= piece.len() || !space.is_empty());
        let n = piece.len().min(space.len());
        space[..n].copy_from_slice(&piece[..n]);
        decoder.filled(n);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => check(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

fn check(frame: &Frame<'_>) {
    let mut again = Vec::new();
    if let Ok(message) = ToGuest::decode(frame) {
        message.encode(frame.stream, &mut again).unwrap();
        assert_eq!(&again[HEADER..], frame.payload);
    }
    again.clear();
    if let Ok(message) = ToHost::decode(frame) {
        message.encode(frame.stream, &mut again).unwrap();
        assert_eq!(&again[HEADER..], frame.payload);
    }
}
