//! Threads of a VMM: how many it may have, and whether it can grow.

use super::SizeError;
use crate::cgroup::Pids;
use crate::hypervisor::MachineSize;
use aleph_types::JobSpec;

/// The most threads that QEMU starts for reads and writes of disks (`THREAD_POOL_MAX_THREADS_DEFAULT`): it does so
/// whenever its guest has work for them.
const FOR_DISKS: u32 = 64;

/// Those that it has beside them and its processors, and its TPM, which is in its group.
const OF_ITS_OWN: u32 = 6;

/// Of a low limit no more than a part is kept back for disks, or none would be left.
fn kept(most: u32) -> u32 {
    FOR_DISKS.min(most / 4)
}

/// How many are enough for so many processors.
fn enough(cpus: u32) -> u32 {
    cpus.saturating_add(OF_ITS_OWN + FOR_DISKS)
}

/// How many processes and threads the VMM of a job may have: as many as the job says, or else the node; those are
/// as many more as its processors need, all that it can ever have.
pub(in crate::node) fn pids_of(spec: &JobSpec, of_node: u32) -> u32 {
    let asked = spec.resources.pids;
    asked.unwrap_or_else(|| of_node.max(enough(spec.max_cpus())))
}

/// Says so where a full VM could not begin for want of threads, by the limit that its job says: its VMM would end as
/// it starts, or with its guest's first use of its disks.
pub(in crate::node) fn check_threads(spec: &JobSpec) -> Result<(), SizeError> {
    let Some(most) = spec.resources.pids.filter(|_| spec.is_full_vm()) else {
        return Ok(());
    };
    let cpus = spec.resources.cpus;
    let needed = u32::from(cpus) + OF_ITS_OWN + kept(most);
    match needed > most {
        true => Err(SizeError::Limit {
            cpus,
            most,
            enough: enough(cpus.into()),
        }),
        false => Ok(()),
    }
}

/// Threads that a VMM may start. QEMU ends where it cannot have one that it needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads {
    /// What its group has, where there is a limit.
    pub(super) pids: Option<Pids>,
    /// How many fill memory that is added.
    pub(super) fill: u16,
}

impl Threads {
    /// Says so where a machine cannot grow for want of them.
    pub(super) fn check(self, now: MachineSize, wanted: MachineSize) -> Result<(), SizeError> {
        let Some(Pids { there, most }) = self.pids else {
            return Ok(());
        };
        let left = most.saturating_sub(there).saturating_sub(kept(most));
        // Those that fill memory end before processors come.
        let fill = match wanted.memory > now.memory {
            true => self.fill,
            false => 0,
        };
        let needed = u32::from(wanted.cpus.saturating_sub(now.cpus).max(fill));
        match needed > left {
            true => Err(SizeError::Threads { needed, left }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{Classify, HotplugRoom, MachineSpec, MiB, Mode};

    fn vm(cpus: u16, room: u16, pids: Option<u32>) -> JobSpec {
        let mut job = JobSpec::new("x", Vec::new());
        job.mode = Mode::Vm;
        (job.resources.cpus, job.resources.pids) = (cpus, pids);
        job.machine = Some(MachineSpec {
            room: HotplugRoom {
                cpus: room,
                ..HotplugRoom::default()
            },
            ..MachineSpec::default()
        });
        job
    }

    #[test]
    fn a_limit_that_nobody_set_is_enough_for_all_processors() {
        assert_eq!(pids_of(&vm(2, 0, None), 256), 256);
        let wide = pids_of(&vm(192, 0, None), 256);
        assert_eq!(wide, 192 + 64 + 6);
        assert_eq!(pids_of(&vm(2, 190, None), 256), wide, "with its room");
        assert_eq!(pids_of(&vm(192, 0, Some(100)), 256), 100);
        // As it is then, the machine can have all of them.
        let size = |cpus| MachineSize {
            cpus,
            memory: MiB(1024),
        };
        let (there, most) = (2 + OF_ITS_OWN, wide);
        let pids = Some(Pids { there, most });
        let threads = Threads { pids, fill: 0 };
        threads.check(size(2), size(192)).unwrap();
        assert!(threads.check(size(2), size(193)).is_err());
    }

    #[test]
    fn a_job_whose_limit_is_too_low_for_its_processors_is_refused() {
        check_threads(&vm(192, 0, None)).unwrap();
        check_threads(&vm(6, 0, Some(16))).unwrap();
        check_threads(&vm(186, 0, Some(256))).unwrap();
        let error = check_threads(&vm(187, 60, Some(256))).unwrap_err();
        assert_eq!(error.code(), "vmm_threads");
        let (said, advice) = (error.to_string(), error.advice().unwrap());
        assert!(said.contains("187 CPUs") && said.contains("256"), "{said}");
        assert!(advice.contains("257"), "{advice}");
        check_threads(&vm(187, 60, Some(257))).unwrap();
        // A microVM's VMM has none for disks.
        let mut micro = vm(187, 0, Some(256));
        micro.mode = Mode::Microvm;
        check_threads(&micro).unwrap();
    }

    #[test]
    fn a_vmm_keeps_threads_for_its_disks() {
        let size = |cpus, memory| MachineSize {
            cpus,
            memory: MiB(memory),
        };
        let fits = |(there, most), fill, wanted| {
            let pids = Some(Pids { there, most });
            let checked = Threads { pids, fill }.check(size(2, 1024), wanted);
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(fits((10, 256), 0, size(184, 1024)), Ok(()));
        let refused = fits((10, 256), 0, size(185, 1024)).unwrap_err();
        assert!(
            refused.contains("needs 183 more threads") && refused.contains("may have 182 more")
        );
        // The least limit that a job can have.
        assert_eq!(fits((8, 16), 0, size(6, 1024)), Ok(()));
        assert!(fits((8, 16), 0, size(7, 1024)).is_err());
        // Memory that is filled as it comes.
        assert_eq!(fits((8, 16), 4, size(2, 2048)), Ok(()));
        assert!(fits((8, 16), 5, size(2, 2048)).is_err());
        assert_eq!(fits((8, 16), 5, size(3, 1024)), Ok(()));
        assert_eq!(fits((16, 16), 0, size(2, 2048)), Ok(()));
        let unbounded = Threads {
            pids: None,
            fill: 16,
        };
        unbounded.check(size(2, 1024), size(255, 9000)).unwrap();
    }
}
