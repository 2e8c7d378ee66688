//! What is old, and goes.

use super::entry::{Entry, lock};
use super::{Node, NodeError, Scope};
use crate::logs;
use aleph_types::{JobId, JobState, Timestamp};
use std::sync::Arc;
use std::time::Duration;

impl Node {
    /// Removes jobs that ended for good so long ago, with their logs; says which they are
    /// (with `dry_run`: would be), and how many bytes of logs that frees.
    ///
    /// # Errors
    /// The first job that cannot be removed.
    pub async fn prune_jobs(
        &self,
        scope: &Scope,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<(Vec<JobId>, u64), NodeError> {
        let (mut removed, mut freed) = (Vec::new(), 0);
        for entry in self.over(scope, older_than) {
            let dir = self.inner.log_dir(entry.id);
            let bytes = logs::remove_before(&dir, None, true).unwrap_or(0);
            if !dry_run {
                match self.destroy(entry.id, false).await {
                    // Started or removed by somebody else meanwhile.
                    Err(NodeError::Live(_) | NodeError::NoJob(_)) => continue,
                    done => done?,
                }
            }
            freed += bytes;
            removed.push(entry.id);
        }
        Ok((removed, freed))
    }

    /// Removes the logs of jobs that ended so long ago, and those of all earlier starts of
    /// other jobs; gives the bytes.
    ///
    /// # Errors
    /// The first log that cannot be removed.
    pub async fn prune_logs(
        &self,
        scope: &Scope,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<u64, NodeError> {
        let mut freed = 0;
        let over: Vec<JobId> = self.over(scope, older_than).iter().map(|e| e.id).collect();
        let entries: Vec<Arc<Entry>> = lock(&self.inner.jobs).all().map(Arc::clone).collect();
        for entry in entries {
            let job = entry.job();
            if !scope.covers(&job.account) {
                continue;
            }
            // One that was started meanwhile keeps what it writes.
            let is_over = over.contains(&entry.id) && job.state.is_over();
            let kept = (!is_over).then_some(job.incarnation);
            let path = self.inner.log_dir(entry.id);
            freed += logs::remove_before(&path, kept, dry_run)
                .map_err(|source| NodeError::Log { path, source })?;
            tokio::task::yield_now().await;
        }
        Ok(freed)
    }

    fn over(&self, scope: &Scope, older_than: Duration) -> Vec<Arc<Entry>> {
        let now = Timestamp::now();
        let is_old = |entry: &Arc<Entry>| {
            let job = entry.job();
            let age = job
                .finished_at
                .and_then(|at| Duration::try_from(now.duration_since(at)).ok());
            scope.covers(&job.account)
                && matches!(job.state, JobState::Exited | JobState::Failed)
                && age.is_some_and(|age| age >= older_than)
        };
        let jobs = lock(&self.inner.jobs);
        jobs.all().filter(|e| is_old(e)).map(Arc::clone).collect()
    }
}
