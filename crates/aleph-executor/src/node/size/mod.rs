//! The size of a full VM: its processors and memory, and how they become more while its guest runs.
//!
//! What a machine can have at most is fixed when its job is made: what it begins with, and the room of
//! [`HotplugRoom`](aleph_types::HotplugRoom). As it grows its room becomes smaller, so each start has the size
//! that the job's record says, in the places that the machine was drawn with
//! ([`Blueprint::begin_with`](crate::qemu::machine::Blueprint::begin_with)).
//!
//! # The order of a growth
//! | step | done | undone |
//! | --- | --- | --- |
//! | 1 | the ledger gives the job its new share | the share of what the machine has |
//! | 2 | the job's record has the new size, and the one before as what is under way | with step 5 |
//! | 3 | limits of the VMM's group are raised | to those of what the machine has |
//! | 4 | memory, then processors: what may be refused comes first | neither: a guest uses it at once |
//! | 5 | the record has what the machine has, and nothing is under way | |
//!
//! What a machine has the VMM is asked, and never a record: where step 4 fails, where the VMM does not answer,
//! and by whoever adopts the VM after a crash in between. A VMM that lies has no more of it: what counts is
//! between the size before and the one that was asked for, and the group's limits follow what counts. Users are told
//! of the size before until then.
//! Where the VM ends in the middle, the job has the size that it had before. What is reserved is counted from
//! step 1 to the end of step 5.
//!
//! A job that does not run has its record changed and nothing else, so it may become smaller, too.
//!
//! A guest may let go of processors and memory by itself. The job has them all the same, with its share of the host,
//! and whoever asks for the size that it has already gives them back to its guest (step 4 alone).
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a microVM, or a guest with the node's agent | [`SizeError::Fixed`] |
//! | less than a guest has that runs | [`SizeError::Shrinks`] |
//! | more than the machine can ever have | [`SizeError::Beyond`] |
//! | memory that is no number of modules, or of huge pages | [`SizeError::Step`] |
//! | memory for a guest that has GPUs, and runs | [`SizeError::Locked`] |
//! | no room in the host | [`Shortage`](crate::capacity::Shortage) |
//! | a limit of threads that processors, or those that fill memory, would reach: the VMM would end | [`SizeError::Threads`], and [`SizeError::Limit`] of one that does not run |
//! | no huge pages left, or a VMM that refuses | what it says; the job has what the machine has |

mod error;
mod threads;

pub use error::SizeError;
pub(super) use threads::{check_threads, pids_of};

use super::actor::Ask;
use super::entry::lock;
use super::inner::Inner;
use super::{Node, NodeError};
use crate::capacity::admit_growth;
use crate::cgroup::Cgroup;
use crate::failpoint;
use crate::hypervisor::{Hotplug, MachineSize, Vmm};
use crate::journal::JobRecord;
use crate::qemu::machine::MAX_FILLERS;
use crate::vm::chain;
use aleph_types::{
    HugePages, InvalidJob, Job, JobId, JobResize, JobSpec, MEMORY_STEP, MiB, Resources, VmId,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use threads::Threads;
use tokio::time::sleep;

/// How often a machine is asked that does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// What became of a change of a VM's size.
#[derive(Debug)]
pub(super) struct Resized {
    /// What its machine has; `None` where that cannot be known yet.
    pub(super) size: Option<MachineSize>,
    /// Why it is not as was asked for.
    pub(super) error: Option<NodeError>,
}

impl Resized {
    fn failed(size: Option<MachineSize>, error: impl Into<NodeError>) -> Self {
        Self {
            size,
            error: Some(error.into()),
        }
    }
}

/// The size that a specification has.
pub(super) fn size_of(spec: &JobSpec) -> MachineSize {
    MachineSize::from(&spec.resources)
}

/// A job's specification with the size that is asked for; `None` where it has that. `runs`: its guest does.
/// `pages`: what its memory is in, where those are huge.
pub(super) fn resized(
    spec: &JobSpec,
    asked: &JobResize,
    runs: bool,
    pages: Option<HugePages>,
) -> Result<Option<JobSpec>, NodeError> {
    if !spec.has_own_disk() {
        let why = match spec.is_full_vm() {
            true => "its guest has the node's agent, which takes in no CPUs or memory",
            false => "it is a microVM, whose machine takes in no CPUs or memory",
        };
        return Err(SizeError::Fixed(why).into());
    }
    let has = size_of(spec);
    let wanted = MachineSize {
        cpus: asked.cpus.unwrap_or(has.cpus),
        memory: asked.memory.unwrap_or(has.memory),
    };
    if wanted == has {
        return Ok(None);
    }
    // What no machine has is said first, whatever this one has.
    if wanted.cpus == 0 {
        return Err(InvalidJob::NoCpus(0).into());
    }
    if wanted.memory < Resources::MIN_MEMORY {
        let (asked, least) = (wanted.memory, Resources::MIN_MEMORY);
        return Err(InvalidJob::LittleMemory { asked, least }.into());
    }
    let parts = |size: MachineSize| {
        let (cpus, memory) = (u32::from(size.cpus), size.memory.0);
        [("CPUs", cpus), ("MiB of memory", memory)]
    };
    if runs {
        let pairs = parts(has).into_iter().zip(parts(wanted));
        for ((what, has), (_, wanted)) in pairs {
            if wanted < has {
                return Err(SizeError::Shrinks { what, has, wanted }.into());
            }
        }
        if spec.gpus.is_some() && wanted.memory > has.memory {
            return Err(SizeError::Locked { has: has.memory }.into());
        }
    }
    let most = [spec.max_cpus(), spec.max_memory().0];
    for ((what, wanted), most) in parts(wanted).into_iter().zip(most) {
        if wanted > most {
            return Err(SizeError::Beyond { what, most, wanted }.into());
        }
    }
    let step = pages.map_or(MEMORY_STEP, |pages| MEMORY_STEP.max(pages.size()));
    if !wanted
        .memory
        .0
        .abs_diff(has.memory.0)
        .is_multiple_of(step.0)
    {
        let (has, wanted) = (has.memory, wanted.memory);
        return Err(SizeError::Step { step, has, wanted }.into());
    }
    let mut resized = spec.clone();
    set_size(&mut resized, wanted);
    resized.validate()?;
    // Of one that runs it is known what is left.
    if !runs && wanted.cpus > has.cpus {
        check_threads(&resized)?;
    }
    Ok(Some(resized))
}

pub(super) fn set_size(spec: &mut JobSpec, size: MachineSize) {
    // Within what it can have.
    let _ = spec.set_size(size.cpus, size.memory);
}

/// Has a job's record, and what its present start is, have a size.
pub(super) fn put_size(record: &mut JobRecord, size: MachineSize) {
    set_size(&mut record.job.spec, size);
    if let Some(run) = &mut record.run {
        set_size(&mut run.effective, size);
    }
}

impl Node {
    /// Gives a full VM with a disk of its own another size: at once where it runs, and for all its starts to
    /// come. The size that it has already is no error: where it runs, what its guest let go of is added again.
    ///
    /// # Errors
    /// [`SizeError`] where its machine cannot have that; [`Shortage`](crate::capacity::Shortage) where the host
    /// has not so much left; [`MachineError`](crate::qemu::machine::MachineError) where the VMM refuses.
    /// The job has the size that it had before then, or, where a part was done already, what its machine has.
    pub async fn resize(&self, id: JobId, size: JobResize) -> Result<Job, NodeError> {
        self.ask(id, Ask::Resize(size)).await
    }
}

impl Inner {
    /// Gives a job that has its share of the host that of another size, with its memory in such pages. Where its
    /// guest runs it has the one before.
    pub(super) fn reserve_size(
        &self,
        id: JobId,
        (spec, pages): (&JobSpec, Option<HugePages>),
        runs: Option<&JobSpec>,
    ) -> Result<(), NodeError> {
        let host = self.executor.capacity()?;
        let pool = self.pool(&host, pages);
        if let Some(before) = runs {
            let (has, asked) = (&before.resources, &spec.resources);
            let admitted = admit_growth(has, asked, &host, pool.huge_pages.as_ref());
            admitted.map_err(|shortage| NodeError::Executor(shortage.into()))?;
        }
        let given = lock(&self.ledger).resize(id, spec, &pool);
        given.map_err(|shortage| NodeError::Executor(shortage.into()))
    }

    fn group_of(&self, vm: VmId) -> Option<Cgroup> {
        let tree = self.executor.cgroups()?;
        Some(tree.group(&vm.to_string()))
    }

    /// Sets the limits of a VM that grows from one size to another to those of a size between the two.
    fn limit_size(
        &self,
        vm: VmId,
        (before, wanted): (MachineSize, MachineSize),
        size: MachineSize,
    ) -> Result<(), SizeError> {
        match self.group_of(vm) {
            Some(group) => limit(&group, (before, wanted), size).map_err(SizeError::Limits),
            None => Ok(()),
        }
    }

    /// Has a machine whose memory is in such pages grow from one size to another.
    pub(super) async fn grow(
        &self,
        (vm, vmm): (VmId, &dyn Vmm),
        (before, wanted): (MachineSize, MachineSize),
        pages: Option<HugePages>,
    ) -> Resized {
        let Some(hotplug) = vmm.hotplug() else {
            let why = "its VMM changes no machine that runs";
            return Resized::failed(Some(before), SizeError::Fixed(why));
        };
        let threads = Threads {
            pids: self.group_of(vm).and_then(|group| group.pids()),
            fill: pages.map_or(0, |_| before.cpus.min(MAX_FILLERS)),
        };
        let grows = (before, wanted);
        if let Err(error) = self.limit_size(vm, grows, wanted) {
            // One of two may have been raised.
            let _ = self.limit_size(vm, grows, before);
            return Resized::failed(Some(before), error);
        }
        failpoint::pass("vm.resize", "limited");
        match add(hotplug, wanted, threads).await {
            Ok(()) => Resized {
                size: Some(wanted),
                error: None,
            },
            Err(error) => {
                let now = self.settle_size((vm, hotplug), before, wanted).await;
                Resized::failed(now, error)
            }
        }
    }

    /// What a machine has that was growing. Its limits are brought to that; `None` where it does not say.
    async fn settle_size(
        &self,
        (vm, hotplug): (VmId, &dyn Hotplug),
        before: MachineSize,
        wanted: MachineSize,
    ) -> Option<MachineSize> {
        let now = match hotplug.size().await {
            Ok(now) => now.clamp(before, wanted),
            Err(error) => {
                tracing::debug!(%vm, error = chain(&error), "a machine is asked again for its size");
                return None;
            }
        };
        if let Err(error) = self.limit_size(vm, (before, wanted), now) {
            tracing::warn!(%vm, error = chain(&error), "a VM's limits are not those of its size");
        }
        Some(now)
    }

    /// Looks until it is known what a machine has that was growing; `None` where it has ended.
    pub(super) async fn find_size(
        self: &Arc<Self>,
        (vm, vmm): (VmId, &dyn Vmm),
        before: MachineSize,
        wanted: MachineSize,
    ) -> Option<MachineSize> {
        while let (false, Some(hotplug)) = (vmm.has_ended(), vmm.hotplug()) {
            let found = self.settle_size((vm, hotplug), before, wanted).await;
            if found.is_some() {
                return found;
            }
            sleep(AGAIN).await;
        }
        None
    }
}

/// Only what changes has another limit. Beside memory that GPUs reach the kernel keeps tables, which count, too,
/// and were added as the VM was launched ([`Machine::page_tables`](crate::hypervisor::Machine::page_tables)): such
/// memory does not change while it runs, and neither does what it may be. Less would have the VMM killed, as none of
/// it can be taken back.
fn limit(
    group: &Cgroup,
    (before, wanted): (MachineSize, MachineSize),
    size: MachineSize,
) -> io::Result<()> {
    group.resize(
        (before.cpus != wanted.cpus).then_some(size.cpus),
        (before.memory != wanted.memory).then_some(size.memory),
    )
}

/// Adds what a machine lacks of a size. Its guest may have given back some of what it had.
async fn add(
    hotplug: &dyn Hotplug,
    wanted: MachineSize,
    threads: Threads,
) -> Result<(), NodeError> {
    let now = hotplug.size().await?;
    threads.check(now, wanted)?;
    let memory = MiB(wanted.memory.0.saturating_sub(now.memory.0));
    if memory.0 > 0 {
        hotplug.add_memory(memory).await?;
        failpoint::pass("vm.resize", "memory");
    }
    let cpus = wanted.cpus.saturating_sub(now.cpus);
    if cpus > 0 {
        hotplug.add_cpus(cpus).await?;
        failpoint::pass("vm.resize", "cpus");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{
        Classify, CloudInitSpec, ErrorClass, GpuRequest, HotplugRoom, MachineSpec, Mode,
    };

    fn vm() -> JobSpec {
        let mut job = JobSpec::new("debian", Vec::new());
        (job.mode, job.cloud_init) = (Mode::Vm, Some(CloudInitSpec::default()));
        (job.resources.cpus, job.resources.memory) = (2, MiB(1024));
        job.machine = Some(MachineSpec {
            room: HotplugRoom {
                cpus: 2,
                memory: MiB(1024),
                slots: 0,
            },
            ..MachineSpec::default()
        });
        job
    }

    fn ask(cpus: u16, memory: u32) -> JobResize {
        JobResize {
            cpus: (cpus > 0).then_some(cpus),
            memory: (memory > 0).then_some(MiB(memory)),
        }
    }

    #[test]
    fn a_size_is_one_that_the_machine_can_have() {
        let grown = resized(&vm(), &ask(3, 2048), true, None).unwrap().unwrap();
        let size = MachineSize {
            cpus: 3,
            memory: MiB(2048),
        };
        assert_eq!(size_of(&grown), size);
        let room = grown.machine.unwrap().room;
        assert_eq!((room.cpus, room.memory), (1, MiB(0)));
        for same in [ask(0, 0), ask(2, 0), ask(2, 1024)] {
            assert_eq!(resized(&vm(), &same, true, None).unwrap(), None);
        }
        // One that does not run gives back, too.
        let small = resized(&vm(), &ask(1, 512), false, None).unwrap().unwrap();
        let room = small.machine.unwrap().room;
        assert_eq!((room.cpus, room.memory), (3, MiB(1536)));
    }

    #[test]
    fn memory_that_stays_keeps_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        // A VM with GPUs: 2048 MiB, their tables, and what its VMM takes.
        let launched = MiB(2048 + 2048 / 128 + 512).bytes().to_string();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("memory.max"), &launched).unwrap();
        std::fs::write(file("cpu.max"), "").unwrap();
        let group = Cgroup::at(dir.path());
        let size = |cpus| MachineSize {
            cpus,
            memory: MiB(2048),
        };
        // Raised, and back, where the VMM refused.
        for (to, quota) in [(size(4), "400000 100000"), (size(2), "200000 100000")] {
            std::fs::write(file("cpu.max"), "").unwrap();
            limit(&group, (size(2), size(4)), to).unwrap();
            assert_eq!(std::fs::read_to_string(file("cpu.max")).unwrap(), quota);
            assert_eq!(
                std::fs::read_to_string(file("memory.max")).unwrap(),
                launched
            );
        }
    }

    #[test]
    fn each_refusal_has_its_code_and_says_what_to_do() {
        let code = |spec: &JobSpec, asked, runs, pages| {
            let error = resized(spec, &asked, runs, pages).unwrap_err();
            assert!(error.advice().is_some(), "{error}");
            // None is worth another try.
            let class = error.class();
            let lasts = matches!(class, ErrorClass::Invalid | ErrorClass::Conflict);
            assert!(lasts, "{error}: {class:?}");
            error.code()
        };
        let vm = vm();
        assert_eq!(code(&vm, ask(1, 0), true, None), "machine_shrinks");
        assert_eq!(code(&vm, ask(4, 896), true, None), "machine_shrinks");
        for runs in [true, false] {
            assert_eq!(code(&vm, ask(5, 0), runs, None), "machine_room");
            assert_eq!(code(&vm, ask(0, 2176), runs, None), "machine_room");
            assert_eq!(code(&vm, ask(0, 1100), runs, None), "memory_step");
        }
        let pages = Some(HugePages::Gib1);
        assert_eq!(code(&vm, ask(0, 1152), true, pages), "memory_step");
        assert!(resized(&vm, &ask(0, 2048), true, pages).is_ok());
        let mut tight = vm.clone();
        tight.resources.pids = Some(16);
        tight.machine.get_or_insert_default().room.cpus = 6;
        assert!(resized(&tight, &ask(6, 0), false, None).is_ok());
        assert_eq!(code(&tight, ask(7, 0), false, None), "vmm_threads");
        assert!(resized(&tight, &ask(1, 0), false, None).is_ok());
        for runs in [true, false] {
            let none = |cpus, memory| JobResize { cpus, memory };
            let no_cpus = code(&vm, none(Some(0), None), runs, None);
            assert_eq!(no_cpus, "no_cpus");
            for memory in [0, 1] {
                let little = code(&vm, none(None, Some(MiB(memory))), runs, None);
                assert_eq!(little, "little_memory");
            }
            let most = u32::MAX;
            assert_eq!(code(&vm, ask(u16::MAX, 0), runs, None), "machine_room");
            assert_eq!(code(&vm, ask(0, most), runs, None), "machine_room");
        }
        let mut with_gpu = vm.clone();
        with_gpu.gpus = Some(GpuRequest::default());
        assert_eq!(code(&with_gpu, ask(0, 2048), true, None), "memory_locked");
        assert!(resized(&with_gpu, &ask(0, 2048), false, None).is_ok());
        assert!(resized(&with_gpu, &ask(4, 0), true, None).is_ok());
        let mut with_agent = vm.clone();
        with_agent.cloud_init = None;
        assert_eq!(code(&with_agent, ask(4, 0), true, None), "size_fixed");
        let micro = JobSpec::new("busybox", Vec::new());
        assert_eq!(code(&micro, ask(4, 0), false, None), "size_fixed");
    }
}
