//! Threads of a VMM that grows.

use super::SizeError;
use crate::cgroup::Pids;
use crate::hypervisor::MachineSize;

/// The most threads that QEMU starts for reads and writes of disks (`THREAD_POOL_MAX_THREADS_DEFAULT`): it does so
/// whenever its guest has work for them.
const FOR_DISKS: u32 = 64;

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
        // Of few no more than a part is kept back, or none would be left.
        let kept = FOR_DISKS.min(most / 4);
        let left = most.saturating_sub(there).saturating_sub(kept);
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
    use aleph_types::MiB;

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
