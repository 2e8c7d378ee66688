//! Reading and cutting one leaf of a volume.

use crate::blob::{Blob, Kind};
use crate::chunker::{self, Piece};
use crate::error::BackupError;
use crate::id::Id;
use crate::index::SharedIndex;
use crate::repository::Repository;
use crate::source::{Source, within};
use crate::tree::{Span, encode_leaf};
use crate::wire::count;
use std::ops::Range;
use std::sync::Arc;

/// A leaf that is done.
#[derive(Default)]
pub(crate) struct Leaf {
    pub(crate) node: Option<Id>,
    pub(crate) length: u64,
    /// What the repository lacked of it.
    pub(crate) blobs: Vec<Blob>,
    pub(crate) read: u64,
    pub(crate) new_chunks: u64,
}

/// Reads and cuts one leaf. All of it blocks.
pub(crate) struct Cutter {
    pub(crate) repository: Repository,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) index: SharedIndex,
    pub(crate) allocated: Vec<Range<u64>>,
    pub(crate) dirty: Vec<Range<u64>>,
    pub(crate) spans: Vec<Span>,
    pub(crate) leaf: Leaf,
}

impl Cutter {
    /// Does what was planned: takes the parent's spans but where they changed, or reads all of it.
    pub(crate) fn cut(
        mut self,
        range: Range<u64>,
        parent: Option<Vec<Span>>,
    ) -> Result<Leaf, BackupError> {
        self.leaf.length = range.end - range.start;
        match parent {
            None => self.read(range)?,
            Some(spans) => self.change(range.start, &spans)?,
        }
        if self.spans.iter().any(|span| span.chunk.is_some()) {
            let node = encode_leaf(&self.spans);
            let id = self.repository.keys.id(Kind::Node, &node);
            if self.index.claim(&id) {
                let blob = self.encode(id, Kind::Node, &node)?;
                self.leaf.blobs.push(blob);
            }
            self.leaf.node = Some(id);
        }
        Ok(self.leaf)
    }

    /// Takes the parent's spans but where they changed. What changed is read from the start to the end
    /// of the chunks that it touches, so most cuts fall where they were.
    fn change(&mut self, start: u64, spans: &[Span]) -> Result<(), BackupError> {
        let mut at = start;
        let mut run = start..start;
        for span in spans {
            let range = at..at + u64::from(span.length);
            at = range.end;
            let changed = within(&self.dirty, &range);
            let lost = span.chunk.is_some_and(|chunk| !self.index.has(&chunk));
            let parts = match span.chunk {
                // Of zeros only what was written is read.
                None => changed,
                Some(_) if changed.is_empty() && !lost => Vec::new(),
                Some(_) => vec![range.clone()],
            };
            let mut kept = range.start;
            for part in parts {
                if part.start > kept {
                    self.read(std::mem::replace(&mut run, part.start..part.start))?;
                    self.keep(span, kept..part.start);
                } else if run.is_empty() {
                    run = part.start..part.start;
                }
                run.end = part.end;
                kept = part.end;
            }
            if kept < range.end {
                self.read(std::mem::replace(&mut run, range.end..range.end))?;
                self.keep(span, kept..range.end);
            }
        }
        self.read(run)
    }

    fn keep(&mut self, span: &Span, range: Range<u64>) {
        match span.chunk {
            Some(chunk) => self.spans.push(Span {
                length: span.length,
                chunk: Some(chunk),
            }),
            None => self.zeros(range.end - range.start),
        }
    }

    fn zeros(&mut self, length: u64) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        match self.spans.last_mut() {
            Some(Span {
                length: before,
                chunk: None,
            }) => *before += length,
            _ => self.spans.push(Span {
                length,
                chunk: None,
            }),
        }
    }

    /// Reads and cuts a part of the leaf.
    fn read(&mut self, range: Range<u64>) -> Result<(), BackupError> {
        let data = within(&self.allocated, &range);
        if data.is_empty() {
            if !range.is_empty() {
                self.zeros(range.end - range.start);
            }
            return Ok(());
        }
        let index = |at: u64| usize::try_from(at - range.start).unwrap_or(usize::MAX);
        let mut buffer = vec![0; index(range.end)];
        for extent in data {
            let part = buffer
                .get_mut(index(extent.start)..index(extent.end))
                .unwrap_or_default();
            self.leaf.read += extent.end - extent.start;
            self.source
                .read_at(extent.start, part)
                .map_err(|source| BackupError::Source {
                    offset: extent.start,
                    source,
                })?;
        }
        let how = (&self.repository.config.chunks, self.repository.cuts);
        for piece in chunker::cut(&buffer, how) {
            match piece {
                Piece::Zeros(zeros) => self.zeros(u64::from(count(zeros.len()))),
                Piece::Data(data) => self.chunk(buffer.get(data).unwrap_or_default())?,
            }
        }
        Ok(())
    }

    fn encode(&self, id: Id, kind: Kind, raw: &[u8]) -> Result<Blob, BackupError> {
        Blob::encode(id, kind, raw, &self.repository.objects.seal)
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let id = self.repository.keys.id(Kind::Chunk, bytes);
        if self.index.claim(&id) {
            let blob = self.encode(id, Kind::Chunk, bytes)?;
            self.leaf.blobs.push(blob);
            self.leaf.new_chunks += 1;
        }
        self.spans.push(Span {
            length: count(bytes.len()),
            chunk: Some(id),
        });
        Ok(())
    }
}
