//! Blobs: what an id stands for, and how it is stored.

use crate::error::BackupError;
use crate::id::Id;
use crate::seal::Seal;
use bytes::Bytes;

/// The largest blob before compression. Chunks and nodes are far smaller.
pub(crate) const LARGEST: usize = 4 << 20;

/// The level of zstd: its default, the best ratio that keeps up with disks on one core.
const LEVEL: i32 = 3;

/// What a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of a volume.
    Chunk,
    /// A node of a tree.
    Node,
}

impl Kind {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Chunk => 0,
            Self::Node => 1,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Chunk),
            1 => Some(Self::Node),
            _ => None,
        }
    }
}

/// How the bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// As they are.
    Plain,
    /// A frame of zstd.
    Zstd,
}

impl Codec {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Zstd => 1,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Plain),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The keys of ids, one for each kind of blob.
#[derive(Clone)]
pub(crate) struct Keys {
    chunk: [u8; 32],
    node: [u8; 32],
}

impl Keys {
    pub(crate) fn of_repository(key: &Id) -> Self {
        Self {
            chunk: blake3::derive_key("aleph-backup 2026-11-29 id of a chunk", key.as_bytes()),
            node: blake3::derive_key("aleph-backup 2026-11-29 id of a node", key.as_bytes()),
        }
    }

    pub(crate) fn id(&self, kind: Kind, raw: &[u8]) -> Id {
        let key = match kind {
            Kind::Chunk => &self.chunk,
            Kind::Node => &self.node,
        };
        Id::from_bytes(*blake3::keyed_hash(key, raw).as_bytes())
    }
}

/// A blob as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    /// Its length before compression.
    pub(crate) raw: usize,
    pub(crate) stored: Bytes,
}

impl Blob {
    /// Compresses and seals a blob whose id is known. It blocks for as long as that takes.
    pub(crate) fn encode(id: Id, kind: Kind, raw: &[u8], seal: &Seal) -> Result<Self, BackupError> {
        let (codec, small) = match zstd::bulk::compress(raw, LEVEL) {
            Ok(small) if small.len() < raw.len() => (Codec::Zstd, small),
            _ => (Codec::Plain, raw.to_vec()),
        };
        Ok(Self {
            id,
            kind,
            codec,
            raw: raw.len(),
            stored: seal.seal(&purpose(kind, codec, &id), small)?.into(),
        })
    }
}

/// What a blob is sealed for: it opens as nothing else.
fn purpose(kind: Kind, codec: Codec, id: &Id) -> Vec<u8> {
    [b"blob", &[kind.code(), codec.code()][..], id.as_bytes()].concat()
}

/// A blob's bytes as they came out of a pack.
pub(crate) struct Stored<'a> {
    pub(crate) codec: Codec,
    /// The length before compression that the index tells.
    pub(crate) raw: usize,
    pub(crate) bytes: &'a [u8],
    /// The pack.
    pub(crate) object: &'a str,
}

/// The bytes that a stored blob stands for, checked against its id.
///
/// # Errors
/// [`BackupError::Damaged`] naming `object`, where they are something else.
pub(crate) fn decode(
    (keys, seal): (&Keys, &Seal),
    kind: Kind,
    id: &Id,
    blob: &Stored<'_>,
) -> Result<Vec<u8>, BackupError> {
    let Stored {
        codec,
        raw,
        bytes: stored,
        object,
    } = *blob;
    let named = || format!("{object} (blob {id})");
    if raw > LARGEST {
        return Err(BackupError::damaged(
            named(),
            "it says to be larger than any",
        ));
    }
    let opened = seal
        .open(&purpose(kind, codec, id), stored)
        .map_err(|error| BackupError::damaged(named(), error))?;
    let bytes = match codec {
        Codec::Plain => opened.into_owned(),
        Codec::Zstd => zstd::bulk::decompress(&opened, raw)
            .map_err(|error| BackupError::damaged(named(), error))?,
    };
    if bytes.len() != raw || keys.id(kind, &bytes) != *id {
        return Err(BackupError::damaged(
            named(),
            "its content has another hash",
        ));
    }
    Ok(bytes)
}
