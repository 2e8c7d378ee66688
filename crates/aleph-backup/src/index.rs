//! The index: which blobs are in which packs.

use crate::blob::Codec;
use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{DAMAGED, INDEX, Objects, PACKS, id_of, name};
use crate::pack::{Entry, PackRecord};
use crate::seal::Seal;
use crate::wire::{Reader, wide};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const MAGIC: &[u8; 8] = b"alephix1";

/// The largest index object, before compression and after: what checkpoints and prunes write is far smaller.
const LARGEST: usize = 256 << 20;

/// What an index object is sealed for.
const PURPOSE: &[u8] = b"index";

/// A prune begins a new index object after so many entries.
const ENTRIES: usize = 1 << 20;

/// How many index objects are read at a time.
const READS: usize = 4;

/// The first half of an id. Ids are keyed hashes, so 128 bits identify a blob; whoever reads one
/// checks the whole id against its content.
type Short = [u8; 16];

fn short(id: &Id) -> Short {
    id.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Where a blob is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) pack: Id,
    pub(crate) codec: Codec,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) raw: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    pack: u32,
    offset: u32,
    stored: u32,
    raw: u32,
    codec: Codec,
}

/// All blobs of a repository that index objects name.
#[derive(Default)]
pub(crate) struct Index {
    packs: Vec<Id>,
    slots: HashMap<Short, Slot>,
    /// Blobs that this operation will store.
    pending: HashSet<Short>,
    /// Packs that were found lost after their records were read.
    lost: HashSet<Id>,
}

impl Index {
    /// The index of these packs. A blob that several have is looked up in the first.
    pub(crate) fn of(records: &[PackRecord]) -> Self {
        let mut index = Self::default();
        for record in records {
            index.add(record);
        }
        index
    }

    pub(crate) fn add(&mut self, record: &PackRecord) {
        let pack = crate::wire::count(self.packs.len());
        self.packs.push(record.id);
        for entry in &record.entries {
            self.slots.entry(short(&entry.id)).or_insert(Slot {
                pack,
                offset: entry.offset,
                stored: entry.stored,
                raw: entry.raw,
                codec: entry.codec,
            });
        }
    }

    pub(crate) fn place(&self, id: &Id) -> Option<Place> {
        let slot = self.slots.get(&short(id))?;
        let pack = *self.packs.get(usize::try_from(slot.pack).ok()?)?;
        Some(Place {
            pack,
            codec: slot.codec,
            offset: slot.offset,
            stored: slot.stored,
            raw: slot.raw,
        })
    }

    /// Whether the repository has this blob.
    pub(crate) fn has(&self, id: &Id) -> bool {
        self.slots.contains_key(&short(id))
    }

    /// Whether the caller has to store this blob: nobody has, and nobody else was told to.
    pub(crate) fn claim(&mut self, id: &Id) -> bool {
        !self.has(id) && self.pending.insert(short(id))
    }

    /// Forgets all that a pack has: what is met of it again is stored anew. Says whether it was known.
    fn forget_pack(&mut self, pack: Id) -> bool {
        if !self.lost.insert(pack) {
            return false;
        }
        let Some(at) = self.packs.iter().position(|known| *known == pack) else {
            return false;
        };
        let at = crate::wire::count(at);
        self.slots.retain(|_, slot| slot.pack != at);
        true
    }
}

/// An index that several tasks use.
#[derive(Clone)]
pub(crate) struct SharedIndex(Arc<Mutex<Index>>);

impl SharedIndex {
    pub(crate) fn of(records: &[PackRecord]) -> Self {
        Self(Arc::new(Mutex::new(Index::of(records))))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, id: &Id) -> bool {
        self.lock().has(id)
    }

    pub(crate) fn claim(&self, id: &Id) -> bool {
        self.lock().claim(id)
    }

    /// As [`Index::forget_pack`].
    pub(crate) fn forget_pack(&self, pack: Id) -> bool {
        self.lock().forget_pack(pack)
    }

    /// The packs that were forgotten.
    pub(crate) fn lost(&self) -> HashSet<Id> {
        self.lock().lost.clone()
    }

    /// Where a blob is, where it is known.
    pub(crate) fn place(&self, id: &Id) -> Option<Place> {
        self.lock().place(id)
    }

    /// Where a blob is that something refers to.
    pub(crate) fn require(&self, id: &Id) -> Result<Place, BackupError> {
        self.lock().place(id).ok_or_else(|| BackupError::Missing {
            object: format!("blob {id}: no index names it, or its pack is gone"),
        })
    }

    /// Whether the index leads to this entry for its blob: what several packs have counts in one.
    pub(crate) fn is_at(&self, record: &PackRecord, entry: &Entry) -> bool {
        self.lock()
            .place(&entry.id)
            .is_some_and(|place| place.pack == record.id && place.offset == entry.offset)
    }
}

/// All pack records of a repository, and the index objects that they are in.
pub(crate) struct Records {
    pub(crate) packs: Vec<PackRecord>,
    pub(crate) objects: Vec<Id>,
}

impl Records {
    /// Leaves out packs that are not there, or not whole; says whether there are none.
    pub(crate) fn retain_present(&mut self, present: &HashMap<Id, u64>) -> bool {
        let named = self.packs.len();
        self.packs
            .retain(|record| present.get(&record.id) == Some(&record.size));
        self.packs.len() == named
    }

    /// Whether all packs that are there are named, or in the trash: no index object was lost then.
    pub(crate) fn name_all(&self, present: &HashMap<Id, u64>, trash: &HashSet<Id>) -> bool {
        let named: HashSet<&Id> = self.packs.iter().map(|record| &record.id).collect();
        let mut there = present.keys();
        there.all(|pack| named.contains(pack) || trash.contains(pack))
    }

    /// Puts packs that are damaged behind the others: what was stored anew is found there, and what only
    /// they have still is.
    pub(crate) fn prefer_whole(&mut self, damaged: &HashSet<Id>) {
        self.packs
            .sort_by_key(|record| damaged.contains(&record.id));
    }
}

/// Packs that a verification or a backup found damaged.
pub(crate) async fn damaged(objects: &Objects) -> Result<HashSet<Id>, BackupError> {
    let listed = objects.list(DAMAGED).await?;
    Ok(listed.iter().filter_map(id_of).collect())
}

/// Marks a pack as damaged: backups store anew what it has, and restores look elsewhere first.
pub(crate) async fn mark_damaged(objects: &Objects, pack: &Id) -> Result<(), BackupError> {
    objects.put(&name(DAMAGED, pack), Bytes::new()).await
}

/// Which packs are in the store, and their sizes.
pub(crate) async fn present(objects: &Objects) -> Result<HashMap<Id, u64>, BackupError> {
    let listed = objects.list(PACKS).await?;
    Ok(listed
        .iter()
        .filter_map(|meta| Some((id_of(meta)?, meta.size)))
        .collect())
}

/// Reads all index objects. A pack that several name is there once. One that is damaged counts as not there,
/// but for its name: backups store anew what it named, and the next prune writes another in its place.
pub(crate) async fn read(objects: &Objects) -> Result<Records, BackupError> {
    let (records, errors) = read_what_can_be(objects).await?;
    for error in errors {
        if !error.is_loss() {
            return Err(error);
        }
        tracing::warn!(%error, "an index object of a repository is left out");
    }
    Ok(records)
}

/// Reads the index objects that can be read, and says why the others cannot.
pub(crate) async fn read_what_can_be(
    objects: &Objects,
) -> Result<(Records, Vec<BackupError>), BackupError> {
    let names = objects.list(INDEX).await?;
    let ids: Vec<Id> = names.iter().filter_map(id_of).collect();
    let mut reads = stream::iter(ids.clone())
        .map(|id| read_object(objects, id))
        .buffered(READS);
    let mut seen = HashSet::new();
    let mut packs = Vec::new();
    let mut errors = Vec::new();
    while let Some(read) = reads.next().await {
        match read {
            Ok(records) => {
                packs.extend(records.into_iter().filter(|record| seen.insert(record.id)));
            }
            Err(error) => errors.push(error),
        }
    }
    drop(reads);
    let records = Records {
        packs,
        objects: ids,
    };
    Ok((records, errors))
}

async fn read_object(objects: &Objects, id: Id) -> Result<Vec<PackRecord>, BackupError> {
    let object = name(INDEX, &id);
    let bytes = objects.get(&object, wide(LARGEST)).await?;
    let seal = objects.seal.clone();
    let read = tokio::task::spawn_blocking(move || decode(id, &bytes, &seal)).await;
    read.map_err(|_| BackupError::Stopped)?
        .map_err(|why| BackupError::damaged(object, why))
}

fn decode(id: Id, bytes: &[u8], seal: &Seal) -> Result<Vec<PackRecord>, String> {
    if Id::of(bytes) != id {
        return Err("its content has another hash".to_owned());
    }
    let opened = seal
        .open(PURPOSE, bytes)
        .map_err(|error| error.to_string())?;
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(opened.as_ref())
        .and_then(|decoder| decoder.take(wide(LARGEST) + 1).read_to_end(&mut plain))
        .map_err(|error| error.to_string())?;
    if plain.len() > LARGEST {
        return Err("it is larger than any".to_owned());
    }
    let mut reader = Reader::new(&plain);
    let mut parse = || {
        if reader.array()? != *MAGIC {
            return Err(crate::wire::Cut);
        }
        let mut records = Vec::new();
        while reader.len() > 0 {
            records.push(PackRecord::decode(&mut reader)?);
        }
        Ok(records)
    };
    parse().map_err(|cut| cut.to_string())
}

/// Writes what these packs hold as one index object.
pub(crate) async fn write(objects: &Objects, records: &[PackRecord]) -> Result<Id, BackupError> {
    let mut plain = MAGIC.to_vec();
    for record in records {
        record.encode(&mut plain);
    }
    let seal = objects.seal.clone();
    let pack = move || {
        let packed =
            zstd::bulk::compress(&plain, 3).map_err(|error| BackupError::damaged(INDEX, error))?;
        seal.seal(PURPOSE, packed)
    };
    let packed = tokio::task::spawn_blocking(pack)
        .await
        .map_err(|_| BackupError::Stopped)??;
    let id = Id::of(&packed);
    objects.put(&name(INDEX, &id), Bytes::from(packed)).await?;
    Ok(id)
}

/// Writes an index of all these packs, in objects of a bounded size.
pub(crate) async fn write_all(
    objects: &Objects,
    records: &[PackRecord],
) -> Result<Vec<Id>, BackupError> {
    let mut written = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let mut entries = 0;
        let fitting = rest
            .iter()
            .take_while(|record| {
                entries += record.entries.len();
                entries <= ENTRIES
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(fitting);
        written.push(write(objects, now).await?);
        rest = later;
    }
    Ok(written)
}
