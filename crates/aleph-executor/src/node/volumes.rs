//! The volumes of a node's jobs: whose leases end, and what is purged.

use super::entry::lock;
use super::inner::Inner;
use super::{Node, NodeConfig, NodeError};
use crate::executor::ExecutorError;
use crate::volumes::{Owner, VolumeError, Volumes};
use aleph_types::{JobState, Timestamp, Volume};
use std::io;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Opens a node's volumes.
pub(super) async fn open(config: &NodeConfig) -> Result<Volumes, NodeError> {
    let (state, config) = (config.paths.state().to_owned(), config.volumes.clone());
    let opened = spawn_blocking(move || Volumes::open(&state, config)).await;
    let opened = opened.map_err(|join| ExecutorError::Host {
        what: "open the volumes".into(),
        source: io::Error::other(join),
    })?;
    Ok(opened?)
}

impl Node {
    /// Says so where a volume is the root disk of a job that there is: it goes with its job, and holds
    /// what its guest left there.
    ///
    /// # Errors
    /// [`VolumeError::RootDisk`], with the job's name.
    pub fn ensure_no_root(&self, volume: &Volume) -> Result<(), VolumeError> {
        self.inner.ensure_no_root(volume)
    }
}

impl Inner {
    /// Ends the leases of jobs that are gone or have ended, and purges what was removed long enough ago.
    pub(super) async fn tend_volumes(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let tended = spawn_blocking(move || {
            let freed = inner.volumes.recover(|owner| inner.has_volumes(owner))?;
            for volume in freed {
                tracing::info!(%volume, "a volume is free: its job has ended");
            }
            inner.volumes.purge_due(Timestamp::now())?;
            Ok::<_, VolumeError>(())
        });
        if let Ok(Err(error)) = tended.await {
            tracing::warn!(%error, "volumes cannot be looked after");
        }
    }

    /// Whether a job may have volumes: it is in this very start, which is not over.
    fn has_volumes(&self, owner: &Owner) -> bool {
        let Some(entry) = lock(&self.jobs).get(owner.job) else {
            return false;
        };
        let job = entry.job();
        let is_over = job.state.is_over() || job.state == JobState::Restarting;
        job.incarnation == owner.incarnation && (job.vm.is_some() || !is_over)
    }
}
