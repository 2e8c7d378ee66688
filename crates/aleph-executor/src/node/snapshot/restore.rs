//! Jobs that go on from a snapshot.

use super::folder::{self, Record};
use super::making::blocking;
use super::{Kept, SnapshotError, lock_snapshots};
use crate::guest::{CloneRequest, GuestNetwork};
use crate::hypervisor::Nic;
use crate::journal::{JobRecord, RunRecord};
use crate::node::inner::Inner;
use crate::node::size::pids_of;
use crate::node::{CreateOptions, Node, NodeError};
use crate::vm::{Origin, Vm};
use aleph_types::{
    ForkRequest, Forked, Job, JobId, JobSpec, JobState, MAX_COPIES, NetworkMode, PullPolicy,
    RestoreRequest, SnapshotId, VmId,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How long the copies of a fork may take until they need the snapshot no more.
const COPYING: Duration = Duration::from_secs(3600);

/// What a job's guest has of its own.
pub(in crate::node) fn own(
    job: JobId,
    spec: &JobSpec,
    network: Option<GuestNetwork>,
) -> CloneRequest {
    CloneRequest {
        hostname: spec.hostname.clone().unwrap_or_else(|| job.hostname()),
        generation: generation(),
        machine_id: job.bits().to_be_bytes(),
        network,
    }
}

/// A number above all that were given before, by this process or another.
fn generation() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX / 2);
    let before = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(now.max(last + 1))
    });
    before.map_or(now, |last| now.max(last + 1))
}

/// What differs between where a snapshot was made and where it is to go on; nothing where it can.
fn differences(
    (theirs, connected): (&str, bool),
    (ours, connects): (&str, bool),
) -> Option<String> {
    let words = |text: &str| -> BTreeSet<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    };
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> String {
        let words: Vec<&str> = a.difference(b).map(String::as_str).take(8).collect();
        match words.is_empty() {
            true => "no more".into(),
            false => words.join(" "),
        }
    };
    if theirs != ours {
        let (a, b) = (words(theirs), words(ours));
        return Some(format!(
            "it was made with {}, and here is {}",
            only(&a, &b),
            only(&b, &a)
        ));
    }
    match (connected, connects) {
        (true, false) => Some("its guest has a network, and this node connects none".into()),
        (false, true) => Some("its guest has no network, and this node connects all".into()),
        _ => None,
    }
}

impl Inner {
    /// Whether a guest of a job has a network device here.
    fn connects(&self, spec: &JobSpec) -> bool {
        self.network.is_some() && spec.network.mode != Some(NetworkMode::None)
    }

    fn check_compatibility(&self, record: &Record, spec: &JobSpec) -> Result<(), SnapshotError> {
        let ours = self.executor.driver().compatibility();
        let theirs = (record.compatible_with.as_str(), record.connected);
        match differences(theirs, (ours.trim(), self.connects(spec))) {
            None => Ok(()),
            Some(what) => Err(SnapshotError::Incompatible(what)),
        }
    }

    /// What a job that is to go on from a snapshot is started as, and which image that takes.
    pub(in crate::node) fn to_restore(
        &self,
        id: SnapshotId,
        spec: &JobSpec,
    ) -> Result<(RunRecord, Arc<Kept>), SnapshotError> {
        let kept = self.snapshot(id)?;
        self.check_compatibility(&kept.record, spec)?;
        let mut run = kept.record.run.clone();
        run.host_boot.clone_from(&self.host_boot);
        run.effective.name.clone_from(&spec.name);
        run.effective.hostname.clone_from(&spec.hostname);
        run.effective.network.clone_from(&spec.network);
        Ok((run, kept))
    }

    /// Makes the VM that goes on from a snapshot.
    pub(in crate::node) fn restore_vm(
        &self,
        (record, run): (&JobRecord, &RunRecord),
        kept: &Kept,
        image: File,
        (nics, network): (Vec<Nic>, Option<GuestNetwork>),
    ) -> Result<Vm, NodeError> {
        let (paths, id) = (&self.config.paths, kept.record.snapshot.id);
        let state = folder::state(paths, id);
        let origin = Origin {
            state: File::open(&state).map_err(SnapshotError::at("open", &state))?,
            scratch: (run.effective.resources.disk.0 > 0).then(|| folder::scratch(paths, id)),
            main: kept.record.main(),
            own: own(record.job.id, &run.effective, network),
        };
        let vm = record.job.vm.unwrap_or_else(VmId::random);
        let mut job = run.effective.clone();
        job.resources.pids = Some(pids_of(&job, self.config.pids));
        let restored =
            self.executor
                .restore_kept(vm, &job, (image, nics), (origin, run.stop_signal));
        Ok(restored?)
    }
}

/// The specification by which the image of a snapshot is opened: that very image.
pub(in crate::node) fn image_of(record: &Record) -> JobSpec {
    let mut spec = JobSpec::new(&record.snapshot.image_digest, Vec::new());
    spec.pull = PullPolicy::Never;
    spec
}

impl Node {
    /// Takes a job that goes on from a snapshot, for the snapshot's account.
    ///
    /// # Errors
    /// Where it cannot go on here, does not fit, or its name is taken; nothing is kept then.
    pub async fn restore(&self, id: SnapshotId, request: RestoreRequest) -> Result<Job, NodeError> {
        let kept = self.inner.snapshot(id)?;
        let mut spec = kept.record.spec.clone();
        spec.name = request.name;
        spec.hostname = None;
        spec.network.ports = request.ports;
        spec.validate()?;
        self.inner.check_compatibility(&kept.record, &spec)?;
        let image = image_of(&kept.record);
        let prepared = self.inner.images.prepare(
            &kept.record.snapshot.account,
            &image,
            self.inner.executor.driver().wants_uncompressed_kernel(),
        );
        // Told now rather than by a job that fails.
        prepared.await.map_err(NodeError::Image)?;
        let options = CreateOptions {
            account: kept.record.snapshot.account.clone(),
            start: true,
            idempotency_key: None,
        };
        let created = self.insert(spec, options, None, Some(id)).await?;
        Ok(created.job)
    }

    /// Takes copies of a job that go on from where it is now. The job itself goes on, too.
    ///
    /// # Errors
    /// As [`Node::snapshot`](Self::snapshot) and [`Node::restore`]: then no copy is left.
    pub async fn fork(&self, id: JobId, request: ForkRequest) -> Result<Forked, NodeError> {
        let asked = request.copies;
        if asked == 0 || asked > MAX_COPIES {
            let most = MAX_COPIES;
            return Err(SnapshotError::Copies { asked, most }.into());
        }
        let snapshot = self.write_down(id, false, !request.keep).await?;
        let mut jobs = Vec::new();
        for n in 1..=asked {
            let name = request.name.as_ref().map(|name| format!("{name}-{n}"));
            let own = RestoreRequest {
                name,
                ports: Vec::new(),
            };
            match self.restore(snapshot.id, own).await {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    for job in jobs {
                        // One that has gone by itself need not be removed.
                        let _ = self.destroy(job.id, true).await;
                    }
                    self.inner.remove_snapshot(snapshot.id).await?;
                    return Err(error);
                }
            }
        }
        if !request.keep {
            let ids = jobs.iter().map(|job| job.id).collect();
            tokio::spawn(remove_after(self.clone(), snapshot.id, ids));
        }
        Ok(Forked {
            jobs,
            snapshot: request.keep.then_some(snapshot.id),
        })
    }
}

/// Removes a snapshot once none of these jobs needs it any more.
pub(super) async fn remove_after(node: Node, id: SnapshotId, jobs: Vec<JobId>) {
    let done = [
        JobState::Running,
        JobState::Paused,
        JobState::Exited,
        JobState::Failed,
        JobState::Destroyed,
    ];
    for job in jobs {
        // One that is gone needs it no more, and one that takes longer is found at the next start.
        if tokio::time::timeout(COPYING, node.wait(job, &done))
            .await
            .is_err()
        {
            return;
        }
    }
    if *node.inner.leaving.borrow() {
        return;
    }
    if let Err(error) = node.inner.remove_snapshot(id).await {
        tracing::warn!(%id, error = %crate::vm::chain(&error), "a snapshot stays");
    }
}

impl Inner {
    /// Removes a snapshot: its row first, so that nobody begins to go on from it.
    pub(in crate::node) async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), NodeError> {
        self.journal.forget_snapshot(id, None).await?;
        lock_snapshots(self).remove(&id);
        let paths = self.config.paths.clone();
        Ok(blocking(move || folder::remove(&paths, id)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let here = ("qemu/tcg 7.2 microvm max", false);
        assert_eq!(differences(here, here), None);
        let newer = ("qemu/tcg 9.0 microvm max", false);
        let said = differences(here, newer).unwrap();
        assert_eq!(said, "it was made with 7.2, and here is 9.0");
        let lacking = ("qemu/tcg 7.2 microvm", false);
        let said = differences(here, lacking).unwrap();
        assert_eq!(said, "it was made with max, and here is no more");
        let said = differences((here.0, true), here).unwrap();
        assert!(said.contains("connects none"), "{said}");
        assert!(differences(here, (here.0, true)).is_some());
    }

    #[test]
    fn generations_grow() {
        let given: Vec<u64> = (0..1000).map(|_| generation()).collect();
        assert!(given.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
