//! The GPUs of a job's VM, from the look at what there is to the host that has them back.
//!
//! | step | done | undone |
//! | --- | --- | --- |
//! | 1 | a start is asked for: who asks hears why none fits, and nothing is kept. A start that nobody asked for finds that at step 3 | |
//! | 2 | the VM's row is journaled | with the end of the start |
//! | 3 | GPUs are recorded for this start of the job, bound, reset and checked ([`Gpus::assign`](crate::gpu::Gpus::assign)) | after its VMM has ended |
//! | 4 | they are given to its machine, and its VMM's user may open them | with step 3 |
//!
//! # Failure cases
//! Whichever way a start ends, and whenever this process dies, a tenant that is no VM of the table is
//! found when the node opens and by each sweep, and what it had is taken back; what could not be as a start
//! ended is tried again sooner than that. A GPU that fails goes
//! into quarantine; a job whose turn comes when another one has taken the last fails with the reason of
//! each.

use super::NodeError;
use super::entry::lock;
use super::inner::Inner;
use crate::gpu::{GpuError, HostFault, HostTree, Taken, Tenant, memory_node};
use crate::hypervisor::HostDevices;
use crate::vm::chain;
use aleph_types::{HugePages, Incarnation, Job, JobId, JobSpec, MiB};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A start of a job as the record of GPUs names it.
fn tenant(inner: &Inner, job: JobId, incarnation: Incarnation) -> Tenant {
    Tenant::new(inner.id.to_string(), job.to_string(), incarnation.get())
}

/// How long a job waits for what is done to its GPUs.
const PATIENCE: Duration = Duration::from_secs(120);
/// How soon it is tried again to take back what could not be.
const AGAIN: Duration = Duration::from_secs(1);

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GpuError> + Send + 'static,
) -> Result<T, GpuError> {
    match tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(join)) => Err(GpuError::Inventory(io::Error::other(join))),
        // The kernel may wait for a device for ever. Whatever becomes of it is taken back by a sweep.
        Err(_) => Err(HostFault::Busy.into()),
    }
}

impl Inner {
    /// Sees that a job could have the GPUs that it asks for, if it asks for any.
    pub(super) async fn admit_gpus(&self, spec: &JobSpec) -> Result<(), NodeError> {
        let Some(request) = spec.gpus.clone() else {
            return Ok(());
        };
        let gpus = Arc::clone(&self.gpus);
        Ok(blocking(move || gpus.admit(&request)).await?)
    }

    /// Gives the GPUs that it asks for to the start of a job whose VM is journaled.
    /// Its machine's memory is so much, in such pages.
    pub(super) async fn assign_gpus(
        &self,
        job: &Job,
        (memory, pages): (MiB, Option<HugePages>),
    ) -> Result<HostDevices, NodeError> {
        let Some(request) = job.spec.gpus.clone() else {
            return Ok(HostDevices::default());
        };
        let (gpus, tenant) = (
            Arc::clone(&self.gpus),
            tenant(self, job.id, job.incarnation),
        );
        let tree = self.config.host_tree.clone();
        let without_rom = !self.config.executor.gpu.rom;
        let assigned = blocking(move || {
            let mut devices = devices(&tree, gpus.assign(&tenant, &request)?);
            devices.without_rom = without_rom;
            devices.memory_node = memory_node(&tree, &devices.functions, memory, pages);
            Ok(devices)
        });
        Ok(assigned.await?)
    }

    /// The pages of a job's memory at its first start: its own choice, or the node's for jobs with GPUs. That is
    /// for memory which consists of such pages. Later starts have those of the first
    /// ([`Inner::drawn`]).
    pub(super) fn pages_of(&self, spec: &JobSpec) -> Option<HugePages> {
        let own = spec.machine.as_ref().and_then(|machine| machine.huge_pages);
        let of_node = || {
            let pages = self.config.executor.gpu.huge_pages?;
            let nodes = spec.machine.iter().flat_map(|machine| &machine.numa);
            let mut parts = nodes.map(|node| node.memory).chain([spec.resources.memory]);
            let fits = parts.all(|part| part.0.is_multiple_of(pages.size().0));
            (spec.gpus.is_some() && fits).then_some(pages)
        };
        own.or_else(of_node)
    }

    /// A job's specification, with the pages that its memory has at its first start.
    pub(super) fn with_pages(&self, spec: &JobSpec) -> JobSpec {
        in_pages(spec, self.pages_of(spec))
    }

    /// Takes back what a start of a job had, once its VMM has ended, and says whether that is done.
    pub(super) async fn release_gpus(&self, job: &Job) -> bool {
        if job.spec.gpus.is_none() {
            return true;
        }
        let (gpus, tenant) = (
            Arc::clone(&self.gpus),
            tenant(self, job.id, job.incarnation),
        );
        let released = blocking(move || gpus.release(&tenant)).await;
        if let Err(error) = &released {
            let error = chain(error);
            tracing::error!(job = %job.id, error, "GPUs are not taken back; it is tried again");
        }
        released.is_ok()
    }

    /// Takes them back soon: after a second, and after twice as long each time until it is done. From where
    /// sweeps come sooner they see to it.
    pub(super) fn recover_gpus_soon(self: &Arc<Self>) {
        let (inner, sweep) = (Arc::downgrade(self), self.config.sweep_interval);
        tokio::spawn(async move {
            let mut pause = AGAIN;
            while pause < sweep {
                tokio::time::sleep(pause).await;
                let Some(inner) = inner.upgrade() else { return };
                let leaves = *inner.leaving.borrow();
                if leaves || inner.recover_gpus_in_turn().await {
                    return;
                }
                pause *= 2;
            }
        });
    }

    /// Takes back the GPUs of starts that have no VM any more, and those of an earlier boot of the host,
    /// beside whatever else is done: a device that hangs keeps nobody from anything else. One at a time.
    pub(super) fn recover_gpus(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::spawn(async move { inner.recover_gpus_in_turn().await });
    }

    /// Whether it is done; not, where it is under way.
    async fn recover_gpus_in_turn(self: &Arc<Self>) -> bool {
        if self.recovers_gpus.swap(true, Ordering::AcqRel) {
            return false;
        }
        let done = self.recover_gpus_now().await;
        self.recovers_gpus.store(false, Ordering::Release);
        done
    }

    async fn recover_gpus_now(self: &Arc<Self>) -> bool {
        let (inner, gpus) = (Arc::clone(self), Arc::clone(&self.gpus));
        let node = self.id.to_string();
        let recovered = blocking(move || gpus.recover(&node, |tenant| inner.has_vm(tenant))).await;
        match &recovered {
            Ok(released) if released.returned.is_empty() => {}
            Ok(released) => tracing::info!(gpus = ?released.returned, "GPUs were taken back"),
            Err(error) => tracing::warn!(error = %chain(error), "GPUs are not taken back"),
        }
        recovered.is_ok()
    }

    /// Whether a tenant is a start whose VM is there, or is being removed.
    fn has_vm(&self, tenant: &Tenant) -> bool {
        let Ok(job) = tenant.job.parse() else {
            return false;
        };
        let entry = lock(&self.jobs).get(job);
        entry.is_some_and(|entry| {
            let job = entry.job();
            job.incarnation.get() == tenant.incarnation && job.vm.is_some()
        })
    }
}

/// A specification with memory in these pages.
pub(super) fn in_pages(spec: &JobSpec, pages: Option<HugePages>) -> JobSpec {
    let mut spec = spec.clone();
    if spec.machine.is_some() || pages.is_some() {
        spec.machine.get_or_insert_default().huge_pages = pages;
    }
    spec
}

/// What a guest is given.
fn devices(tree: &HostTree, groups: Vec<Taken>) -> HostDevices {
    let functions = groups.iter().flat_map(|group| &group.functions);
    let functions = functions.filter_map(|function| tree.read(function.address));
    HostDevices {
        functions: functions.collect(),
        groups,
        ..HostDevices::default()
    }
}
