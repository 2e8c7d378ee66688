//! The tree of a snapshot: which chunk is where in a volume.
//!
//! ```text
//! leaf  = "L" 1: u8, count: u32, (length: u32, id: 32 bytes) …      an id of zeros means zeros
//! inner = "N" 1: u8, count: u32, id …                               an id of zeros: all below is zeros
//! ```

use crate::error::BackupError;
use crate::id::Id;
use crate::index::SharedIndex;
use crate::repository::Repository;
use crate::wire::{Cut, Reader, count};
use std::ops::Range;

/// Bytes of a volume that a leaf lists.
pub(crate) const LEAF: u64 = 8 << 20;

/// Children of an inner node.
pub(crate) const FAN_OUT: usize = 256;

/// The largest volume, 1 EiB: four levels above the leaves.
pub(crate) const LARGEST_VOLUME: u64 = 1 << 60;

const NOTHING: [u8; 32] = [0; 32];

/// Some bytes of a leaf: a chunk, or zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) length: u32,
    /// `None` are zeros.
    pub(crate) chunk: Option<Id>,
}

/// How many leaves a volume of this size has.
pub(crate) const fn leaves(size: u64) -> u64 {
    size.div_ceil(LEAF)
}

/// How many levels of inner nodes are above the leaves.
pub(crate) fn levels(size: u64) -> u32 {
    let mut levels = 0;
    let mut nodes = leaves(size);
    while nodes > 1 {
        nodes = nodes.div_ceil(256);
        levels += 1;
    }
    levels
}

/// Which bytes a leaf lists.
pub(crate) fn leaf_range(leaf: u64, size: u64) -> Range<u64> {
    let start = leaf * LEAF;
    start..(start + LEAF).min(size)
}

pub(crate) fn encode_leaf(spans: &[Span]) -> Vec<u8> {
    let mut out = vec![b'L', 1];
    out.extend(count(spans.len()).to_le_bytes());
    for span in spans {
        out.extend(span.length.to_le_bytes());
        out.extend(span.chunk.as_ref().map_or(&NOTHING, Id::as_bytes));
    }
    out
}

/// The spans of a leaf, which together are `length` bytes.
pub(crate) fn decode_leaf(bytes: &[u8], length: u64, id: &Id) -> Result<Vec<Span>, BackupError> {
    let spans = decode_leaf_anywhere(bytes, id)?;
    let sum: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
    if sum == length {
        Ok(spans)
    } else {
        Err(BackupError::damaged(
            format_args!("leaf {id}"),
            "it is no leaf for its place",
        ))
    }
}

/// The spans of a leaf, wherever in a volume it is.
pub(crate) fn decode_leaf_anywhere(bytes: &[u8], id: &Id) -> Result<Vec<Span>, BackupError> {
    let parse = || {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *b"L\x01" {
            return Err(Cut);
        }
        let count = reader.u32()?;
        let mut spans = Vec::new();
        for _ in 0..count {
            let span = Span {
                length: reader.u32()?,
                chunk: some(reader.array()?),
            };
            if span.length == 0 {
                return Err(Cut);
            }
            spans.push(span);
        }
        reader.end()?;
        Ok(spans)
    };
    parse().map_err(|Cut| BackupError::damaged(format_args!("leaf {id}"), "it is no leaf"))
}

pub(crate) fn encode_inner(children: &[Option<Id>]) -> Vec<u8> {
    let mut out = vec![b'N', 1];
    out.extend(count(children.len()).to_le_bytes());
    for child in children {
        out.extend(child.as_ref().map_or(&NOTHING, Id::as_bytes));
    }
    out
}

pub(crate) fn decode_inner(bytes: &[u8], id: &Id) -> Result<Vec<Option<Id>>, BackupError> {
    let parse = || {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *b"N\x01" {
            return Err(Cut);
        }
        let count = reader.u32()?;
        let mut children = Vec::new();
        for _ in 0..count {
            if children.len() == FAN_OUT {
                return Err(Cut);
            }
            children.push(some(reader.array()?));
        }
        reader.end()?;
        Ok(children)
    };
    parse().map_err(|Cut| BackupError::damaged(format_args!("node {id}"), "it is no inner node"))
}

fn some(id: [u8; 32]) -> Option<Id> {
    (id != NOTHING).then(|| Id::from_bytes(id))
}

/// Puts leaves together, from the first to the last (pure). Whoever uses it stores the nodes.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    /// Children that have no parent yet, from the level of the leaves up.
    levels: Vec<Vec<Option<Id>>>,
}

impl TreeBuilder {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            levels: (0..=levels(size)).map(|_| Vec::new()).collect(),
        }
    }

    /// Adds the next leaf; `store` takes the bytes of each inner node that is complete.
    pub(crate) fn push(&mut self, leaf: Option<Id>, store: &mut impl FnMut(Vec<u8>) -> Id) {
        self.put(0, leaf, store);
    }

    fn put(&mut self, level: usize, child: Option<Id>, store: &mut impl FnMut(Vec<u8>) -> Id) {
        let Some(children) = self.levels.get_mut(level) else {
            return;
        };
        children.push(child);
        if children.len() == FAN_OUT {
            let full = std::mem::take(children);
            self.put(level + 1, node(&full, store), store);
        }
    }

    /// The root, once all leaves were added.
    pub(crate) fn finish(mut self, store: &mut impl FnMut(Vec<u8>) -> Id) -> Option<Id> {
        let top = self.levels.len().saturating_sub(1);
        for level in 0..top {
            let rest = self.levels.get_mut(level).map(std::mem::take);
            if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
                self.put(level + 1, node(&rest, store), store);
            }
        }
        self.levels.pop()?.into_iter().next().flatten()
    }
}

fn node(children: &[Option<Id>], store: &mut impl FnMut(Vec<u8>) -> Id) -> Option<Id> {
    children
        .iter()
        .any(Option::is_some)
        .then(|| store(encode_inner(children)))
}

/// The leaves of a snapshot one after the other; it holds one node of each level.
pub(crate) struct LeafWalk<'a> {
    repository: &'a Repository,
    index: SharedIndex,
    root: Option<Id>,
    /// The node of each level above the leaves that was read last, from the lowest up.
    read: Vec<Option<(Id, Vec<Option<Id>>)>>,
    /// The node that could not be read last.
    unread: Option<Id>,
}

impl<'a> LeafWalk<'a> {
    pub(crate) fn new(
        repository: &'a Repository,
        index: SharedIndex,
        root: Option<Id>,
        size: u64,
    ) -> Self {
        Self {
            repository,
            index,
            root,
            read: (0..levels(size)).map(|_| None).collect(),
            unread: None,
        }
    }

    /// The node that the last error was of, where it could not be read.
    pub(crate) const fn unread(&self) -> Option<Id> {
        self.unread
    }

    /// The id of a leaf; `None` where it is nothing but zeros.
    pub(crate) async fn leaf(&mut self, leaf: u64) -> Result<Option<Id>, BackupError> {
        let mut node = self.root;
        let mut span = 1u64;
        for _ in 1..self.read.len() {
            span = span.saturating_mul(256);
        }
        for slot in self.read.iter_mut().rev() {
            let Some(id) = node else {
                return Ok(None);
            };
            let children = match slot {
                Some((read, children)) if *read == id => children,
                slot => {
                    self.unread = Some(id);
                    let bytes = self.repository.read_node(&self.index, &id).await?;
                    self.unread = None;
                    let children = decode_inner(&bytes, &id)?;
                    &mut slot.insert((id, children)).1
                }
            };
            let child = usize::try_from(leaf / span % 256).unwrap_or_default();
            node = children.get(child).copied().flatten();
            span /= 256;
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// All leaves below a node of a level, by descending.
    fn collect(
        nodes: &HashMap<Id, Vec<u8>>,
        node: Option<Id>,
        level: u32,
        out: &mut Vec<Option<Id>>,
    ) {
        if level == 0 {
            out.push(node);
            return;
        }
        let Some(id) = node else {
            out.extend(vec![None; 256usize.pow(level)]);
            return;
        };
        for child in decode_inner(&nodes[&id], &id).unwrap() {
            collect(nodes, child, level - 1, out);
        }
    }

    #[test]
    fn every_leaf_is_found_again_for_all_sizes() {
        for leaves in [0u64, 1, 2, 255, 256, 257, 65_536, 65_537] {
            let size = leaves * LEAF;
            let leaf = |at: u64| (!at.is_multiple_of(3)).then(|| Id::of(&at.to_le_bytes()));
            let mut nodes = HashMap::new();
            let mut store = |bytes: Vec<u8>| {
                let id = Id::of(&bytes);
                nodes.insert(id, bytes);
                id
            };
            let mut builder = TreeBuilder::new(size);
            for at in 0..leaves {
                builder.push(leaf(at), &mut store);
            }
            let root = builder.finish(&mut store);
            let mut found = Vec::new();
            collect(&nodes, root, levels(size), &mut found);
            found.truncate(usize::try_from(leaves).unwrap());
            let wanted: Vec<_> = (0..leaves).map(leaf).collect();
            assert_eq!(found, wanted, "{leaves} leaves");
        }
    }

    #[test]
    fn a_leaf_has_to_fit_its_place() {
        let id = Id::of(b"x");
        let spans = [
            Span {
                length: 5,
                chunk: Some(id),
            },
            Span {
                length: 3,
                chunk: None,
            },
        ];
        let bytes = encode_leaf(&spans);
        assert_eq!(decode_leaf(&bytes, 8, &id).unwrap(), spans);
        assert!(decode_leaf(&bytes, 9, &id).is_err());
        assert!(decode_leaf(&bytes[..bytes.len() - 1], 8, &id).is_err());
        assert!(decode_inner(&bytes, &id).is_err());
    }
}
