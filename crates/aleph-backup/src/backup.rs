//! Making a snapshot of a volume.
//!
//! Reading, cutting, hashing and compressing happen for several leaves at a time on threads for
//! blocking work; their blobs are put into packs in the volume's order, which keeps what is read together together.
//!
//! A node of the parent that is damaged, or whose pack has gone since packs were listed, costs its whole pack the
//! trust: it is marked as damaged, the index forgets it, and what it had is stored anew. Leaves that were done
//! before may refer to that pack, too, so all of them are gone through once more, in the index as it is by then.

use crate::blob::{Blob, Kind};
use crate::cutter::{Cutter, Leaf};
use crate::error::BackupError;
use crate::id::Id;
use crate::index::{self, SharedIndex};
use crate::lock::{Lock, Sharing};
use crate::objects::pack_name;
use crate::packer::Packer;
use crate::progress::{Progress, ProgressSink};
use crate::repository::Repository;
use crate::snapshot::{self, About, Snapshot, SnapshotStats};
use crate::source::{Source, normalized, within};
use crate::tree::{LARGEST_VOLUME, LeafWalk, Span, TreeBuilder, decode_leaf, leaf_range, leaves};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How many leaves are worked on at a time.
pub const WORKERS: usize = 3;

/// How often a backup goes through a volume at most, where it finds packs damaged. The second time reads all nodes
/// that it needs, so a third is for packs that are damaged just then.
const ROUNDS: usize = 4;

/// Which snapshot a backup is made on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parent {
    /// The one that the source's record of changes began with, else the volume's latest.
    #[default]
    Latest,
    /// This one.
    Snapshot(Id),
    /// None: all is read. What is there is still not sent again.
    Nothing,
}

/// What to back up as what.
#[derive(Debug, Clone, Default)]
pub struct BackupRequest {
    /// Which volume it is, as its owner identifies volumes.
    pub volume: String,
    /// Which state of it, as its owner identifies states that do not change. The snapshot keeps it, so that
    /// its owner can tell later what changed since.
    pub state: Option<String>,
    /// What the volume is to its owner; the snapshot keeps it.
    pub about: Option<About>,
    /// What to call the snapshot; may be empty.
    pub name: String,
    /// What it is made on.
    pub parent: Parent,
    /// Who is told how far it is.
    pub progress: ProgressSink,
    /// Ends it early, in order: what was sent is kept for the next one.
    pub stop: CancellationToken,
}

impl Repository {
    /// Makes a snapshot of a volume that does not change meanwhile.
    ///
    /// Other backups into the same repository may run beside it. Where it fails, what was sent is kept,
    /// and the next one does not send it again.
    ///
    /// # Errors
    /// [`BackupError::Locked`] beside a prune; [`BackupError::Source`] where the volume cannot be read;
    /// [`BackupError::Store`] where the store does not take it; [`BackupError::Stopped`] where the request
    /// was told to stop.
    pub async fn backup(
        &self,
        source: Arc<dyn Source>,
        request: BackupRequest,
    ) -> Result<Snapshot, BackupError> {
        let work = format!("backup of {}", request.volume);
        let lock = Lock::take(&self.objects, Sharing::Shared, &work).await?;
        let done = self.backup_locked(&lock, source, request).await;
        lock.release().await;
        done
    }

    async fn backup_locked(
        &self,
        lock: &Lock,
        source: Arc<dyn Source>,
        request: BackupRequest,
    ) -> Result<Snapshot, BackupError> {
        let time = Timestamp::now();
        let mut stats = SnapshotStats::default();
        let mut rounds = 0;
        let sent = loop {
            let sent = self.round(&source, &request).await?;
            stats.read += sent.stats.read;
            stats.stored += sent.stats.stored;
            stats.new_chunks += sent.stats.new_chunks;
            rounds += 1;
            let Some(pack) = sent.lost else {
                break sent;
            };
            if rounds == ROUNDS {
                let why = "more and more of the repository is found lost";
                return Err(BackupError::damaged(pack_name(&pack), why));
            }
        };
        // Whoever took the lock away may have pruned what this snapshot refers to.
        lock.still_held().await?;
        let snapshot = Snapshot {
            id: Id::from_bytes([0; 32]),
            volume: request.volume,
            state: request.state,
            about: request.about,
            name: request.name,
            time,
            size: sent.size,
            parent: sent.parent,
            root: sent.root,
            stats,
        };
        snapshot.write(&self.objects).await
    }

    /// Goes through the volume once, and sends what the repository lacks.
    async fn round(
        &self,
        source: &Arc<dyn Source>,
        request: &BackupRequest,
    ) -> Result<Sent, BackupError> {
        let mut records = index::read(&self.objects).await?;
        let mut present = index::present(&self.objects).await?;
        let damaged = index::damaged(&self.objects).await?;
        present.retain(|pack, _| !damaged.contains(pack));
        let whole = records.retain_present(&present)
            && damaged.is_empty()
            && records.name_all(&present, &self.trashed().await?);
        let index = SharedIndex::of(&records.packs);
        drop(records);
        let mut planner = Planner::new(self, source, request, index.clone()).await?;
        planner.whole = whole;
        let (size, parent) = (
            planner.size,
            planner.parent.as_ref().map(|parent| parent.id),
        );
        let mut packer = Packer::new(self.objects.clone(), damaged);
        let sent = request
            .stop
            .run_until_cancelled(self.send(source, &request.progress, planner, &mut packer))
            .await
            .unwrap_or(Err(BackupError::Stopped));
        let sent = match sent {
            Ok(sent) => packer.finish().await.map(|stored| (sent, stored)),
            Err(error) => Err(error),
        };
        let ((root, mut stats), stored) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                packer.salvage().await;
                return Err(error);
            }
        };
        stats.stored = stored;
        Ok(Sent {
            root,
            size,
            parent,
            stats,
            lost: index.lost().into_iter().next(),
        })
    }

    /// What cannot be read of the parent is lost: its pack is not believed any more.
    async fn lose(
        &self,
        index: &SharedIndex,
        node: &Id,
        error: &BackupError,
    ) -> Result<(), BackupError> {
        tracing::warn!(%error, "the parent has lost a part, which is read anew");
        let Some(place) = index.place(node) else {
            return Ok(());
        };
        // One that is gone needs no mark: it is in no list of packs.
        if index.forget_pack(place.pack) && matches!(error, BackupError::Damaged { .. }) {
            index::mark_damaged(&self.objects, &place.pack).await?;
        }
        Ok(())
    }

    /// Sends what is new of all leaves, and the tree above them; says what its root is.
    async fn send(
        &self,
        source: &Arc<dyn Source>,
        progress: &ProgressSink,
        mut planner: Planner<'_>,
        packer: &mut Packer,
    ) -> Result<(Option<Id>, SnapshotStats), BackupError> {
        let size = planner.size;
        let index = planner.index.clone();
        let mut stats = SnapshotStats::default();
        let mut tree = TreeBuilder::new(size);
        let mut nodes = Vec::new();
        let mut store = |node: Vec<u8>| {
            let id = self.keys.id(Kind::Node, &node);
            if index.claim(&id) {
                nodes.push((id, node));
            }
            id
        };
        let mut running = FuturesOrdered::new();
        let (mut next, mut done) = (0, 0);
        loop {
            while running.len() < WORKERS && next < leaves(size) {
                let range = leaf_range(next, size);
                let plan = planner.plan(next).await?;
                let work = self.work(Arc::clone(source), index.clone(), range, plan);
                running.push_back(work.boxed());
                next += 1;
            }
            let Some(leaf) = running.next().await else {
                break;
            };
            let leaf: Leaf = leaf?;
            packer.add_damaged(index.lost());
            for blob in &leaf.blobs {
                packer.add(blob).await?;
            }
            tree.push(leaf.node, &mut store);
            stats.read += leaf.read;
            stats.new_chunks += leaf.new_chunks;
            done += leaf.length;
            progress.tell(Progress {
                done,
                total: size,
                read: stats.read,
                written: packer.stored(),
            });
        }
        let root = tree.finish(&mut store);
        for (id, node) in &nodes {
            let blob = Blob::encode(*id, Kind::Node, node, &self.objects.seal)?;
            packer.add(&blob).await?;
        }
        Ok((root, stats))
    }

    /// Does what was planned for a leaf.
    async fn work(
        &self,
        source: Arc<dyn Source>,
        index: SharedIndex,
        range: Range<u64>,
        plan: Plan,
    ) -> Result<Leaf, BackupError> {
        let (parent, allocated, dirty) = match plan {
            Plan::Keep(node) => {
                return Ok(Leaf {
                    node,
                    length: range.end - range.start,
                    ..Leaf::default()
                });
            }
            Plan::Read { allocated } => (None, allocated, Vec::new()),
            Plan::Change {
                node,
                allocated,
                dirty,
            } => {
                let length = range.end - range.start;
                // What the parent lost is read anew.
                let spans = match node {
                    None => Some(zeros(length)),
                    Some(id) => match self.read_node(&index, &id).await {
                        Ok(bytes) => decode_leaf(&bytes, length, &id).ok(),
                        Err(error) if error.is_loss() => {
                            self.lose(&index, &id, &error).await?;
                            None
                        }
                        Err(error) => return Err(error),
                    },
                };
                (spans, allocated, dirty)
            }
        };
        let cutter = Cutter {
            repository: self.clone(),
            source,
            index,
            allocated,
            dirty,
            spans: Vec::new(),
            leaf: Leaf::default(),
        };
        tokio::task::spawn_blocking(move || cutter.cut(range, parent))
            .await
            .map_err(|_| BackupError::Stopped)?
    }
}

fn zeros(length: u64) -> Vec<Span> {
    vec![Span {
        length: u32::try_from(length).unwrap_or(u32::MAX),
        chunk: None,
    }]
}

/// What went through a volume brought into the repository.
struct Sent {
    root: Option<Id>,
    size: u64,
    parent: Option<Id>,
    stats: SnapshotStats,
    /// A pack that was found lost on the way: what was done before may need it.
    lost: Option<Id>,
}

/// What to do for a leaf.
enum Plan {
    /// It is what it was, or nothing but zeros.
    Keep(Option<Id>),
    /// Read all that is allocated.
    Read { allocated: Vec<Range<u64>> },
    /// Take the parent's leaf but where it changed.
    Change {
        node: Option<Id>,
        allocated: Vec<Range<u64>>,
        dirty: Vec<Range<u64>>,
    },
}

/// Decides for one leaf after the other what has to be read.
struct Planner<'a> {
    repository: &'a Repository,
    size: u64,
    index: SharedIndex,
    /// Nothing of the repository is known to be lost: a leaf whose node is there has its chunks.
    whole: bool,
    parent: Option<Snapshot>,
    allocated: Vec<Range<u64>>,
    /// What changed since the parent, and the parent's leaves.
    changes: Option<(Vec<Range<u64>>, LeafWalk<'a>)>,
}

impl<'a> Planner<'a> {
    async fn new(
        repository: &'a Repository,
        source: &Arc<dyn Source>,
        request: &BackupRequest,
        index: SharedIndex,
    ) -> Result<Self, BackupError> {
        let reader = Arc::clone(source);
        let looked = tokio::task::spawn_blocking(move || {
            let allocated = reader.allocated()?;
            Ok::<_, io::Error>((reader.size(), allocated, reader.dirty()))
        });
        let unreadable = |source| BackupError::Source { offset: 0, source };
        let (size, allocated, dirty) = looked
            .await
            .map_err(|_| BackupError::Stopped)?
            .map_err(unreadable)?;
        if size > LARGEST_VOLUME {
            return Err(unreadable(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let snapshots = match request.parent {
            Parent::Nothing => Vec::new(),
            Parent::Latest | Parent::Snapshot(_) => {
                snapshot::read_readable(&repository.objects).await?
            }
        };
        let by_id = |id: Id| snapshots.iter().find(|snapshot| snapshot.id == id);
        let parent = match request.parent {
            Parent::Nothing => None,
            Parent::Snapshot(id) => Some(by_id(id).ok_or_else(|| BackupError::NoSnapshot {
                reference: id.to_string(),
            })?),
            Parent::Latest => dirty
                .as_ref()
                .and_then(|dirty| by_id(dirty.since))
                .or_else(|| {
                    let mut newest_first = snapshots.iter().rev();
                    newest_first.find(|snapshot| snapshot.volume == request.volume)
                }),
        }
        .cloned();
        let changes = match (&parent, dirty) {
            (Some(parent), Some(dirty)) if dirty.since == parent.id => Some((
                normalized(dirty.ranges),
                LeafWalk::new(repository, index.clone(), parent.root, parent.size),
            )),
            _ => None,
        };
        Ok(Self {
            repository,
            size,
            index,
            whole: false,
            parent,
            allocated: normalized(allocated),
            changes,
        })
    }

    async fn plan(&mut self, leaf: u64) -> Result<Plan, BackupError> {
        let range = leaf_range(leaf, self.size);
        let allocated = within(&self.allocated, &range);
        if let (Some((dirty, walk)), Some(parent)) = (&mut self.changes, &self.parent)
            // A volume that grew or shrank has another last leaf.
            && leaf_range(leaf, parent.size) == range
        {
            match walk.leaf(leaf).await {
                Ok(node) => {
                    let dirty = within(dirty, &range);
                    let there = node.is_none_or(|id| self.index.has(&id));
                    if dirty.is_empty() && there && (self.whole || node.is_none()) {
                        return Ok(Plan::Keep(node));
                    }
                    if there {
                        return Ok(Plan::Change {
                            node,
                            allocated,
                            dirty,
                        });
                    }
                }
                Err(error) if error.is_loss() => {
                    if let Some(node) = walk.unread() {
                        self.repository.lose(&self.index, &node, &error).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if allocated.is_empty() {
            return Ok(Plan::Keep(None));
        }
        Ok(Plan::Read { allocated })
    }
}
