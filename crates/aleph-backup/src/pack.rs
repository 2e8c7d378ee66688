//! Packs: blobs one after another, and a trailer that lists them (pure).
//!
//! ```text
//! blob … blob  entry … entry  count: u32  "alephpk1"
//! entry = kind: u8, codec: u8, stored: u32, raw: u32, id: 32 bytes
//! ```

use crate::blob::{Blob, Codec, Kind, LARGEST};
use crate::id::Id;
use crate::wire::{Cut, Reader, count};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"alephpk1";

/// Bytes of an entry, in a trailer and in an index.
pub(crate) const ENTRY: usize = 42;

/// Bytes of the trailer's end.
pub(crate) const FOOTER: usize = 12;

/// A pack is sent once it has so many bytes.
pub(crate) const TARGET: usize = 16 << 20;

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
        if usize::try_from(raw).map_err(|_| Cut)? > LARGEST {
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
    if reader.array()? != *MAGIC {
        return Err(Cut);
    }
    reader.end()?;
    Ok(u64::from(count) * 42 + 12)
}

/// What a whole trailer lists.
pub(crate) fn read_trailer(trailer: &[u8]) -> Result<Vec<Entry>, Cut> {
    let at = trailer.len().checked_sub(FOOTER).ok_or(Cut)?;
    let (list, footer) = trailer.split_at_checked(at).ok_or(Cut)?;
    trailer_length(footer)?;
    let count = Reader::new(footer).u32()?;
    let mut reader = Reader::new(list);
    let entries = entries(&mut reader, count)?;
    reader.end()?;
    Ok(entries)
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
        self.blobs.len() >= TARGET
    }

    /// The pack and its record; it hashes the whole pack.
    pub(crate) fn finish(mut self) -> (PackRecord, Bytes) {
        let mut trailer = Vec::with_capacity(self.entries.len() * ENTRY + FOOTER);
        for entry in &self.entries {
            entry.encode(&mut trailer);
        }
        trailer.extend(count(self.entries.len()).to_le_bytes());
        trailer.extend(MAGIC);
        self.blobs.extend_from_slice(&trailer);
        let pack = self.blobs.freeze();
        let record = PackRecord {
            id: Id::of(&pack),
            size: u64::from(count(pack.len())),
            entries: self.entries,
        };
        (record, pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trailer_says_what_was_added() {
        let mut builder = PackBuilder::default();
        for byte in 0..5u8 {
            let raw = vec![byte; 1000];
            let kind = if byte % 2 == 0 {
                Kind::Chunk
            } else {
                Kind::Node
            };
            builder.add(&Blob::encode(Id::of(&raw), kind, &raw));
        }
        let (record, pack) = builder.finish();
        let footer = &pack[pack.len() - FOOTER..];
        let length = usize::try_from(trailer_length(footer).unwrap()).unwrap();
        let read = read_trailer(&pack[pack.len() - length..]).unwrap();
        assert_eq!(read, record.entries);
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(
            PackRecord::decode(&mut Reader::new(&bytes)).unwrap(),
            record
        );
    }

    proptest! {
        #[test]
        fn hostile_trailers_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut trailer = bytes;
            trailer.extend(MAGIC);
            let _ = read_trailer(&trailer);
            let _ = PackRecord::decode(&mut Reader::new(&trailer));
        }
    }
}
