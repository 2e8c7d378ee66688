//! Any bytes, cut anywhere, from either side: the decoder ends in messages or in an error, and
//! what it takes for a message encodes to the very bytes that it came from. And whatever a host
//! had sent when it vanished, within a frame or not, the next one's first words are heard.

#![no_main]

use aleph_guest_proto::{Decoder, Frame, HEADER, Item, MARK, ToGuest, ToHost, Versions};
use libfuzzer_sys::fuzz_target;

const NONCE: [u8; 16] = *b"a host's nonce..";

fuzz_target!(|input: (u8, &[u8])| {
    let (chunk, wire) = input;
    let chunk = usize::from(chunk).max(1);
    // From a guest, which may send anything after the nonce.
    let _ = feed(
        &mut Decoder::for_host(NONCE),
        &[&NONCE, wire].concat(),
        chunk,
    );
    // To a guest, which does not know where a connection begins, and has to hear the next one.
    let mut guest = Decoder::for_guest();
    if feed(&mut guest, &[&MARK, wire].concat(), chunk).is_ok() {
        let mut next = MARK.to_vec();
        let hello = ToGuest::Hello {
            versions: Versions::OURS,
            nonce: NONCE,
        };
        hello.encode(0, &mut next).unwrap();
        assert_eq!(
            feed(&mut guest, &next, chunk),
            Ok((true, true)),
            "the next host is not heard"
        );
    }
    // What is data to a host is no mark to its guest.
    let mut sent = MARK.to_vec();
    for part in wire.chunks(60_000) {
        ToGuest::Data(part).encode(1, &mut sent).unwrap();
    }
    let mut decoder = Decoder::for_guest();
    let mut got = Vec::new();
    for piece in sent.chunks(chunk) {
        put(&mut decoder, piece);
        while let Some(item) = decoder.next_item().unwrap() {
            if let Item::Frame(frame) = item {
                got.extend_from_slice(frame.payload);
            }
        }
    }
    assert_eq!(got, wire);
});

fn put(decoder: &mut Decoder, piece: &[u8]) {
    let space = decoder.space();
    assert!(space.len() >= piece.len(), "a drained decoder has space");
    space[..piece.len()].copy_from_slice(piece);
    decoder.filled(piece.len());
}

/// Whether there was a mark, and whether the last thing was a greeting.
fn feed(decoder: &mut Decoder, wire: &[u8], chunk: usize) -> Result<(bool, bool), ()> {
    let (mut marked, mut greeted) = (false, false);
    for piece in wire.chunks(chunk) {
        put(decoder, piece);
        loop {
            match decoder.next_item() {
                Ok(Some(Item::Mark)) => (marked, greeted) = (true, false),
                Ok(Some(Item::Frame(frame))) => {
                    greeted = matches!(ToGuest::decode(&frame), Ok(ToGuest::Hello { .. }));
                    check(&frame);
                }
                Ok(None) => break,
                Err(_) => return Err(()),
            }
        }
    }
    Ok((marked, greeted))
}

fn check(frame: &Frame<'_>) {
    let mut again = Vec::new();
    // A host does not send what has a mark in it.
    if let Ok(message) = ToGuest::decode(frame)
        && message.encode(frame.stream, &mut again).is_ok()
    {
        assert_eq!(&again[HEADER..again.len() - 1], frame.payload);
    }
    again.clear();
    if let Ok(message) = ToHost::decode(frame) {
        message.encode(frame.stream, &mut again).unwrap();
        assert_eq!(&again[HEADER..again.len() - 1], frame.payload);
    }
}
