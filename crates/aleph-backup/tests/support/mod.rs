//! Volumes and stores for the tests of backups.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aleph_backup::{Dirty, Id, Source};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Pseudo-random bytes, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A volume in memory, whose zero pages are holes.
pub(crate) struct Volume {
    pub(crate) bytes: Vec<u8>,
    pub(crate) dirty: Option<Dirty>,
    /// How many bytes were read.
    pub(crate) read: Arc<AtomicU64>,
}

impl Volume {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            dirty: None,
            read: Arc::default(),
        }
    }

    pub(crate) fn since(mut self, since: Id, ranges: Vec<Range<u64>>) -> Self {
        self.dirty = Some(Dirty { since, ranges });
        self
    }
}

impl Source for Volume {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        let pages = self.bytes.chunks(4096).enumerate();
        Ok(pages
            .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            .map(|(at, page)| at as u64 * 4096..at as u64 * 4096 + page.len() as u64)
            .collect())
    }

    fn dirty(&self) -> Option<Dirty> {
        self.dirty.clone()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self
            .bytes
            .get(start..start + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// What happens at the write where a store breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// Nothing was written.
    Before,
    /// It was written, and nobody learns of it.
    After,
    /// Nothing was written, and the next write is fine again.
    Once,
    /// There is no space left, from then on.
    Full,
    /// Writes are forbidden, from then on.
    Denied,
}

/// A store that breaks at a write, and stays broken until it is mended.
#[derive(Debug)]
pub(crate) struct Breaking {
    pub(crate) inner: Arc<InMemory>,
    how: Mutex<Break>,
    /// Writes and deletions until it breaks.
    left: AtomicUsize,
    /// As many as there were of these.
    after: usize,
    calls: AtomicUsize,
    reads: AtomicUsize,
}

impl Breaking {
    pub(crate) fn new(inner: Arc<InMemory>, how: Break, after: usize) -> Self {
        Self {
            inner,
            how: Mutex::new(how),
            left: AtomicUsize::new(after),
            after,
            calls: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        }
    }

    /// How many objects and parts of them were read.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    /// How many writes and deletions there were.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Counts a write; says whether this one is the last that does something.
    fn count(&self) -> Result<bool, object_store::Error> {
        let how = *self.how.lock().unwrap();
        let earlier = self.calls.fetch_add(1, Ordering::SeqCst);
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(left.saturating_sub(1))
            })
            .unwrap_or(0);
        match (before, how) {
            (0, Break::Once) if earlier > self.after => Ok(false),
            (0, _) => Err(self.error()),
            (1, Break::After) => Ok(true),
            _ => Ok(false),
        }
    }

    fn broken(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    fn error(&self) -> object_store::Error {
        let source: Box<dyn std::error::Error + Send + Sync> = match *self.how.lock().unwrap() {
            Break::Full => Box::new(io::Error::from_raw_os_error(28)),
            _ => "the store is broken".into(),
        };
        match *self.how.lock().unwrap() {
            Break::Denied => object_store::Error::PermissionDenied {
                path: "x".to_owned(),
                source,
            },
            _ => object_store::Error::Generic {
                store: "breaking",
                source,
            },
        }
    }
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaking")
    }
}

/// As this crate's stores do, by name and not by the trait's own sugar.
type Outcome<T> = Result<T, object_store::Error>;

#[async_trait::async_trait]
impl ObjectStore for Breaking {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Outcome<PutResult> {
        let unheard = self.count()?;
        let put = self.inner.put_opts(location, payload, options).await?;
        if unheard { Err(self.error()) } else { Ok(put) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Outcome<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Outcome<GetResult> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        // A store that is full or refuses writes can still be read.
        let how = *self.how.lock().unwrap();
        let writes_alone = matches!(how, Break::Once | Break::Full | Break::Denied);
        if self.broken() && !writes_alone {
            return Err(self.error());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Outcome<Path>>,
    ) -> BoxStream<'static, Outcome<Path>> {
        match self.count() {
            Ok(_) => self.inner.delete_stream(locations),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Outcome<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Outcome<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Outcome<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// All objects below a folder.
pub(crate) async fn objects(store: &dyn ObjectStore, folder: &str) -> Vec<ObjectMeta> {
    let mut all: Vec<ObjectMeta> = store
        .list(Some(&Path::from(folder)))
        .try_collect()
        .await
        .unwrap();
    all.sort_by(|a, b| a.location.cmp(&b.location));
    all
}

/// The bytes of all packs.
pub(crate) async fn packed(store: &dyn ObjectStore) -> u64 {
    objects(store, "packs")
        .await
        .iter()
        .map(|meta| meta.size)
        .sum()
}

/// A store with the same objects.
pub(crate) async fn copy_of(store: &InMemory) -> Arc<InMemory> {
    let copy = InMemory::new();
    for meta in objects(store, "").await {
        let bytes = store
            .get(&meta.location)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        copy.put(&meta.location, PutPayload::from_bytes(bytes))
            .await
            .unwrap();
    }
    Arc::new(copy)
}

/// Writes other bytes in an object's place.
pub(crate) async fn overwrite(store: &dyn ObjectStore, location: &Path, bytes: impl Into<Bytes>) {
    store
        .put(location, PutPayload::from_bytes(bytes.into()))
        .await
        .unwrap();
}
