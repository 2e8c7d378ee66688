//! Packs: blobs one after another, and a trailer that lists them (pure, but for nonces).
//!
//! ```text
//! blob … blob  entry … entry           count: u32  "alephpk1"
//! blob … blob  sealed(entry … entry)   count: u32  "alephpk2"     each blob is sealed, too
//! entry = kind: u8, codec: u8, stored: u32, raw: u32, id: 32 bytes
//! ```
//!
//! A blob is never stored longer than it is, so what a hostile list of entries makes anybody read is no more
//! than what it says to be of the volume.

use crate::blob::{Blob, Codec, Kind, LARGEST};
use crate::error::BackupError;
use crate::id::Id;
use crate::objects::LARGEST_PACK;
use crate::seal::{OVERHEAD, Seal};
use crate::wire::{Cut, Reader, count};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"alephpk1";
const MAGIC_SEALED: &[u8; 8] = b"alephpk2";

/// What the list of a pack's entries is sealed for.
const PURPOSE: &[u8] = b"pack";

/// Bytes of an entry, in a trailer and in an index.
pub(crate) const ENTRY: usize = 42;

/// Bytes of the trailer's end.
pub(crate) const FOOTER: usize = 12;

/// A pack is sent once it has so many bytes.
pub(crate) const TARGET: usize = 16 << 20;

/// Or so many blobs.
const ENTRIES: usize = 1 << 18;

/// Which part of a pack a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) raw: u32,
}

impl Entry {
    pub(crate) fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.stored)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind.code());
        out.push(self.codec.code());
        out.extend(self.stored.to_le_bytes());
        out.extend(self.raw.to_le_bytes());
        out.extend(self.id.as_bytes());
    }
}

/// A pack that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackRecord {
    pub(crate) id: Id,
    /// Bytes of the whole object.
    pub(crate) size: u64,
    pub(crate) entries: Vec<Entry>,
}

impl PackRecord {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.id.as_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(count(self.entries.len()).to_le_bytes());
        for entry in &self.entries {
            entry.encode(out);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Cut> {
        let id = Id::from_bytes(reader.array()?);
        let size = reader.u64()?;
        let count = reader.u32()?;
        let entries = entries(reader, count)?;
        // Whoever names a pack of the store cannot name more in it than it has room for.
        let least =
            entries.last().map_or(0, |entry| entry.range().end) + u64::from(count) * 42 + 12;
        if !(least..=LARGEST_PACK).contains(&size) {
            return Err(Cut);
        }
        Ok(Self { id, size, entries })
    }
}

/// Entries as they follow each other; offsets are sums.
fn entries(reader: &mut Reader<'_>, count: u32) -> Result<Vec<Entry>, Cut> {
    let count = usize::try_from(count).map_err(|_| Cut)?;
    // A count is believed only as far as there are bytes for it.
    if count > reader.len() / ENTRY {
        return Err(Cut);
    }
    let mut offset = 0u32;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = Kind::from_code(reader.u8()?).ok_or(Cut)?;
        let codec = Codec::from_code(reader.u8()?).ok_or(Cut)?;
        let stored = reader.u32()?;
        let raw = reader.u32()?;
        let id = Id::from_bytes(reader.array()?);
        let (least, most) = (u64::from(raw), u64::from(raw) + crate::wire::wide(OVERHEAD));
        let fits =
            u64::from(stored) <= most && (codec == Codec::Zstd || u64::from(stored) >= least);
        if usize::try_from(raw).map_err(|_| Cut)? > LARGEST || !fits {
            return Err(Cut);
        }
        entries.push(Entry {
            id,
            kind,
            codec,
            offset,
            stored,
            raw,
        });
        offset = offset.checked_add(stored).ok_or(Cut)?;
    }
    Ok(entries)
}

/// How long the trailer with this end is, the end included.
pub(crate) fn trailer_length(footer: &[u8]) -> Result<u64, Cut> {
    let mut reader = Reader::new(footer);
    let count = reader.u32()?;
    let more = match &reader.array()? {
        MAGIC => 0,
        MAGIC_SEALED => crate::wire::wide(OVERHEAD),
        _ => return Err(Cut),
    };
    reader.end()?;
    Ok(u64::from(count) * 42 + more + 12)
}

/// What a whole trailer lists.
pub(crate) fn read_trailer(trailer: &[u8], seal: &Seal) -> Result<Vec<Entry>, Cut> {
    let at = trailer.len().checked_sub(FOOTER).ok_or(Cut)?;
    let (list, footer) = trailer.split_at_checked(at).ok_or(Cut)?;
    if footer.get(4..) != Some(magic(seal)) {
        return Err(Cut);
    }
    let count = Reader::new(footer).u32()?;
    let list = seal.open(PURPOSE, list).map_err(|_| Cut)?;
    let mut reader = Reader::new(&list);
    let entries = entries(&mut reader, count)?;
    reader.end()?;
    Ok(entries)
}

fn magic(seal: &Seal) -> &'static [u8] {
    if seal.is_some() { MAGIC_SEALED } else { MAGIC }
}

/// A pack that is being filled.
#[derive(Debug, Default)]
pub(crate) struct PackBuilder {
    blobs: BytesMut,
    entries: Vec<Entry>,
}

impl PackBuilder {
    pub(crate) fn add(&mut self, blob: &Blob) {
        self.entries.push(Entry {
            id: blob.id,
            kind: blob.kind,
            codec: blob.codec,
            offset: count(self.blobs.len()),
            stored: count(blob.stored.len()),
            raw: count(blob.raw),
        });
        self.blobs.extend_from_slice(&blob.stored);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.blobs.len() >= TARGET || self.entries.len() >= ENTRIES
    }

    /// The pack and its record; it hashes the whole pack.
    pub(crate) fn finish(mut self, seal: &Seal) -> Result<(PackRecord, Bytes), BackupError> {
        let mut list = Vec::with_capacity(self.entries.len() * ENTRY + FOOTER);
        for entry in &self.entries {
            entry.encode(&mut list);
        }
        let mut trailer = seal.seal(PURPOSE, list)?;
        trailer.extend(count(self.entries.len()).to_le_bytes());
        trailer.extend(magic(seal));
        self.blobs.extend_from_slice(&trailer);
        let pack = self.blobs.freeze();
        let record = PackRecord {
            id: Id::of(&pack),
            size: u64::from(count(pack.len())),
            entries: self.entries,
        };
        Ok((record, pack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trailer_says_what_was_added() {
        for seal in [Seal::default(), Seal::with_key(&[3; 32])] {
            let mut builder = PackBuilder::default();
            for byte in 0..5u8 {
                let mut raw = vec![byte; 1000];
                // One that does not become smaller.
                raw.truncate(if byte == 3 { 1 } else { 1000 });
                let kind = if byte % 2 == 0 {
                    Kind::Chunk
                } else {
                    Kind::Node
                };
                builder.add(&Blob::encode(Id::of(&raw), kind, &raw, &seal).unwrap());
            }
            let (record, pack) = builder.finish(&seal).unwrap();
            let footer = &pack[pack.len() - FOOTER..];
            let length = usize::try_from(trailer_length(footer).unwrap()).unwrap();
            let trailer = &pack[pack.len() - length..];
            assert_eq!(read_trailer(trailer, &seal).unwrap(), record.entries);
            let other = Seal::with_key(&[4; 32]);
            assert!(read_trailer(trailer, &other).is_err(), "of another key");
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(
                PackRecord::decode(&mut Reader::new(&bytes)).unwrap(),
                record
            );
            // More than the pack has room for.
            let small = PackRecord {
                size: record.size - 1 - crate::wire::wide(seal.overhead()),
                ..record
            };
            let mut bytes = Vec::new();
            small.encode(&mut bytes);
            assert!(PackRecord::decode(&mut Reader::new(&bytes)).is_err());
        }
    }

    #[test]
    fn no_blob_is_stored_longer_than_it_is() {
        for (codec, stored, raw, taken) in [
            (Codec::Plain, 100, 100, true),
            (Codec::Plain, 140, 100, true),
            (Codec::Plain, 99, 100, false),
            (Codec::Plain, 141, 100, false),
            (Codec::Zstd, 20, 100, true),
            (Codec::Zstd, 141, 100, false),
            (Codec::Zstd, 9, count(LARGEST) + 1, false),
        ] {
            let entry = Entry {
                id: Id::of(b"x"),
                kind: Kind::Chunk,
                codec,
                offset: 0,
                stored,
                raw,
            };
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            let read = entries(&mut Reader::new(&bytes), 1);
            assert_eq!(read.is_ok(), taken, "{codec:?} {stored} {raw}");
        }
    }

    proptest! {
        #[test]
        fn hostile_trailers_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut trailer = bytes;
            trailer.extend(MAGIC);
            let _ = read_trailer(&trailer, &Seal::default());
            let _ = PackRecord::decode(&mut Reader::new(&trailer));
        }
    }
}
