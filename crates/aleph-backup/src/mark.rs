//! Which blobs snapshots need.

use crate::error::BackupError;
use crate::id::Id;
use crate::index::SharedIndex;
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::tree::{decode_inner, decode_leaf_anywhere, levels};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::HashSet;

/// How many nodes are read at a time.
const READS: usize = 8;

/// What was found.
#[derive(Default)]
pub(crate) struct Marked {
    /// All blobs that are needed, nodes and chunks.
    pub(crate) used: HashSet<Id>,
    /// What could not be read, and the snapshot in which it was met first.
    pub(crate) errors: Vec<(Id, BackupError)>,
    /// Packs with nodes that are not what was written.
    pub(crate) damaged: HashSet<Id>,
}

/// Walks the trees of all these snapshots; equal subtrees are walked once.
pub(crate) async fn mark(
    repository: &Repository,
    index: &SharedIndex,
    snapshots: &[Snapshot],
) -> Marked {
    let mut marked = Marked::default();
    for snapshot in snapshots {
        let mut waiting: Vec<(Id, u32)> = Vec::new();
        let push = |waiting: &mut Vec<_>, used: &mut HashSet<Id>, id: Id, level| {
            if used.insert(id) {
                waiting.push((id, level));
            }
        };
        if let Some(root) = snapshot.root {
            push(&mut waiting, &mut marked.used, root, levels(snapshot.size));
        }
        let mut reads = FuturesUnordered::new();
        loop {
            while reads.len() < READS
                && let Some((id, level)) = waiting.pop()
            {
                reads.push(async move { (id, level, repository.read_node(index, &id).await) });
            }
            let Some((id, level, read)) = reads.next().await else {
                break;
            };
            if let (Err(BackupError::Damaged { .. }), Some(place)) = (&read, index.place(&id)) {
                marked.damaged.insert(place.pack);
            }
            let parsed = read.and_then(|bytes| {
                if level == 0 {
                    let spans = decode_leaf_anywhere(&bytes, &id)?;
                    Ok(spans.iter().filter_map(|span| span.chunk).collect())
                } else {
                    let children = decode_inner(&bytes, &id)?;
                    Ok(children.into_iter().flatten().collect::<Vec<Id>>())
                }
            });
            match parsed {
                Err(error) => marked.errors.push((snapshot.id, error)),
                Ok(children) if level > 0 => {
                    for child in children {
                        push(&mut waiting, &mut marked.used, child, level - 1);
                    }
                }
                Ok(chunks) => {
                    for chunk in chunks {
                        if marked.used.insert(chunk)
                            && let Err(error) = index.require(&chunk)
                        {
                            marked.errors.push((snapshot.id, error));
                        }
                    }
                }
            }
        }
    }
    marked
}
