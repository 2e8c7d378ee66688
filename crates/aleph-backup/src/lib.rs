//! Incremental backups of block devices in a directory or an S3-compatible store.
//!
//! Start at [`Location::parse`], [`Repository::open_or_create`], then [`Repository::backup`],
//! [`Repository::restore`], [`Repository::verify`], [`Repository::forget`] and
//! [`Repository::prune`]. What is read is a [`Source`]: a size, the extents that have data, and,
//! where somebody recorded it, the extents that changed since a snapshot.
//!
//! The crate owns the format and the order of writes. It knows no volumes, jobs or nodes, and it
//! does not make what it reads consistent: the caller hands in a source that does not change while
//! it is read (a snapshot of the volume).
//!
//! # The repository
//!
//! A repository is a set of objects below one prefix. Only `config` has a name that was chosen;
//! the others are named after a hash of their content, or drawn at random, and **no object ever
//! changes**.
//!
//! | object | content |
//! | --- | --- |
//! | `config` | JSON: format version, id, bounds of chunks, the key of ids or, sealed, that of all |
//! | `packs/ab/abcd…` | blobs one after another, then a trailer that lists them; the name is the BLAKE3 hash of the whole object |
//! | `index/…` | which blobs are in which packs (zstd); the name is the hash of the object |
//! | `snapshots/…` | JSON: volume, which state of it, what it is to its owner, name, time, size, parent, root of the tree; the name is the hash of the object and is the snapshot's id |
//! | `locks/…` | JSON: who works in the repository, shared or exclusive; random name |
//! | `trash/…` | JSON: packs that nothing referred to when it was written |
//! | `damaged/…` | nothing; named after a pack that was found damaged |
//!
//! A **blob** is a chunk of a volume or a node of a tree. Its id is the keyed BLAKE3 hash of its
//! uncompressed bytes, under a key of the repository's own and of the kind of blob: who stores a
//! known file cannot tell from ids or sizes of other repositories that it is there. A blob is stored
//! with zstd where that makes it smaller, else as it is.
//!
//! **Chunks** are cut by their content (FastCDC, 16 KiB to 256 KiB, 64 KiB on average), beginning
//! anew at each leaf. Runs of zeros of 32 KiB and more are no chunks: they cost an entry in a leaf,
//! and a leaf of zeros alone does not exist.
//!
//! The **tree** has a leaf for each 8 MiB of the volume, which lists (length, chunk or zeros), and
//! inner nodes of 256 children each. Equal nodes are one blob, so an increment stores the leaves
//! that changed and the path above them, never the whole list.
//!
//! # Order of writes
//!
//! A backup writes packs, then index objects that name only packs that are there, then the
//! snapshot. A crash at any point leaves objects that no snapshot refers to. Index objects are also
//! written on the way (each [`CHECKPOINT`] packs, and when a backup fails), so the next run finds
//! what was sent and does not send it again.
//!
//! A verification, and a backup that reads its parent's tree, mark packs whose content is not what it was. What backups
//! then store anew is preferred to them.
//!
//! Pruning writes new packs with what is still needed of sparsely used ones, then a complete index,
//! then a trash object that lists the packs nobody needs, then deletes the old index objects. Packs
//! are deleted by a *later* prune, when their trash object is older than the grace period and still no
//! index names them; one that an index or a snapshot came to need in the meantime stays. Locks
//! keep prunes and backups apart; the grace period covers whoever lost a lock without
//! noticing, since a lock of another host counts as left behind after half an hour without a sign of its holder. Ages are
//! measured by the store's own clock.
//!
//! # Bounds
//!
//! A backup holds at most [`WORKERS`] leaves and [`UPLOADS`] packs of 16 MiB at a time, some 100 MiB, and
//! at its peak about 150 bytes of index for each blob of the repository (2.5 GiB for 1 TiB of distinct data).
//!
//! Whoever can write to the store is not believed. No object is read that is larger than any of its kind is
//! ([`BackupError::Damaged`] tells its name); an index names no more in a pack than that has room for; no blob is
//! stored longer than it is, and none is larger than 4 MiB. So a hostile store costs memory in proportion to what
//! it holds, and at most 1 GiB for each of four index objects that are unpacked at a time. Listings are held whole, some
//! 300 bytes for each object that there is, and have no other bound.
//!
//! # Encryption
//!
//! A repository that is made with a [`Key`] has format 2 and is encrypted: packs with their lists of blobs, index
//! objects, snapshots and locks. It has a random key of its own, which `config` has sealed with a key that is
//! derived from its owner's and the repository's id; from the repository's own are derived that of ids, that
//! of encryption and the seed of the chunker (BLAKE3's key derivation). The cipher is XChaCha20-Poly1305 with random
//! nonces. What an object is, and for a blob its kind and id, is authenticated with it:
//!
//! ```text
//! config          {"version": 2, "id": …, "chunks": …, "encryption": {"cipher": "xchacha20-poly1305", "key": HEX}}
//! sealed          nonce: 24 bytes, ciphertext, tag: 16 bytes
//! authenticated   "blob" kind codec id, "pack", "index", "snapshot", "lock", or "config" id min average max
//! ```
//!
//! Who reads the store learns how many packs there are, how large they are and when they came, how many blobs a
//! pack has, how many snapshots there are, and who watches learns which parts of packs are read. Ids of blobs are
//! keyed and told to nobody, and chunks are cut where nobody else would cut. Who writes to the store can take
//! objects away, or put old ones back that were forgotten, and can make up none. One that is not encrypted is not
//! opened with a key: a store could else have the next backup sent in the clear.
//!
//! # What fails, and how
//!
//! Every error names the object. What is missing or damaged is [`BackupError::Missing`] or
//! [`BackupError::Damaged`], and never data: each blob is checked against its id before it is used, each
//! index and snapshot against its name. A store that is full or refuses is
//! [`BackupError::Store`] with a [`Refusal`]. An index entry whose pack is gone, or was found
//! damaged, is ignored by backups, which therefore store the chunk anew. An index object or a list of trash that is
//! damaged counts as not there, for backups and for prunes; a snapshot's record that is damaged keeps prunes from
//! deleting what it may need, until it is forgotten.
//!
//! Deliberately absent: passwords (a key is a file with random bytes), more than one key for a repository, and
//! encryption of one that was made without. There the key of ids lies beside the data, so who can read the
//! store can read the volumes.

mod backup;
mod blob;
mod chunker;
mod config;
mod cutter;
mod error;
mod id;
mod index;
mod key;
mod location;
mod lock;
mod mark;
mod objects;
mod pack;
mod packer;
mod process;
mod progress;
mod prune;
mod repository;
mod restore;
mod retention;
mod seal;
mod snapshot;
mod source;
mod staged;
mod tree;
mod verify;
mod wire;

pub use backup::{BackupRequest, Parent, WORKERS};
pub use config::ChunkBounds;
pub use error::{BackupError, Refusal};
pub use id::Id;
pub use key::Key;
pub use location::Location;
pub use packer::{CHECKPOINT, UPLOADS};
pub use progress::{Progress, ProgressSink};
pub use prune::{PruneOptions, PruneReport};
pub use repository::Repository;
pub use restore::{RestoreReport, RestoreRequest};
pub use retention::Retention;
pub use snapshot::{About, Snapshot, SnapshotStats};
pub use source::{Dirty, FileSource, Source};
pub use verify::{Damage, Depth, VerifyReport};
