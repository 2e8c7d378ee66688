//! The size of a full VM, where it becomes another one.

use crate::{JobSpec, MiB, Resources};
use serde::{Deserialize, Serialize};

/// What memory is added to a machine in while it runs: as much as Linux takes in at once on x86.
pub const MEMORY_STEP: MiB = MiB(128);

/// The size that a full VM is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct JobResize {
    /// Virtual CPUs; those that it has when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 65_535))]
    pub cpus: Option<u16>,
    /// Memory; what it has when absent. It changes in steps of 128 MiB, or of its huge pages where those are
    /// larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MiB>,
}

impl JobResize {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl JobSpec {
    /// The most processors that its machine ever has.
    #[must_use]
    pub fn max_cpus(&self) -> u32 {
        let room = self.machine.as_ref().map_or(0, |machine| machine.room.cpus);
        u32::from(self.resources.cpus) + u32::from(room)
    }

    /// The most memory that its machine ever has.
    #[must_use]
    pub fn max_memory(&self) -> MiB {
        let room = self.machine.as_ref().map(|machine| machine.room.memory);
        MiB(self
            .resources
            .memory
            .0
            .saturating_add(room.unwrap_or_default().0))
    }

    /// Gives its machine another size. What it can have at most stays: its room becomes that much smaller, or
    /// larger. `None`, and nothing is changed, where that is more than it can have.
    pub fn set_size(&mut self, cpus: u16, memory: MiB) -> Option<()> {
        let cpu_room = u16::try_from(self.max_cpus().checked_sub(cpus.into())?).ok()?;
        let memory_room = MiB(self.max_memory().0.checked_sub(memory.0)?);
        self.resources = Resources {
            cpus,
            memory,
            ..self.resources
        };
        // One without a machine of its own has no room, and gets none.
        if self.machine.is_some() || cpu_room > 0 || memory_room.0 > 0 {
            let room = &mut self.machine.get_or_insert_default().room;
            (room.cpus, room.memory) = (cpu_room, memory_room);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CloudInitSpec, HotplugRoom, MachineSpec, Mode, Topology};

    #[test]
    fn what_a_machine_can_have_at_most_stays() {
        let mut job = JobSpec::new("debian", Vec::new());
        (job.mode, job.cloud_init) = (Mode::Vm, Some(CloudInitSpec::default()));
        (job.resources.cpus, job.resources.memory) = (2, MiB(1024));
        let before = job.clone();
        assert_eq!(job.set_size(3, MiB(1024)), None);
        assert_eq!(job.set_size(2, MiB(1152)), None);
        assert_eq!(job, before);
        assert_eq!(job.set_size(2, MiB(1024)), Some(()));
        assert_eq!(job, before, "the same again is no other machine");

        job.machine = Some(MachineSpec {
            topology: Some(Topology {
                sockets: 1,
                cores: 4,
                threads: 1,
            }),
            room: HotplugRoom {
                cpus: 2,
                memory: MiB(1024),
                slots: 1,
            },
            ..MachineSpec::default()
        });
        assert_eq!(job.validate(), Ok(()));
        for (cpus, memory) in [(4, 2048), (3, 1152), (1, 128), (2, 1024)] {
            assert_eq!(job.set_size(cpus, MiB(memory)), Some(()));
            assert_eq!((job.max_cpus(), job.max_memory()), (4, MiB(2048)));
            // Its topology still multiplies to what it can have.
            assert_eq!(job.validate(), Ok(()));
        }
        assert_eq!(job.set_size(5, MiB(1024)), None);
        assert_eq!(job.set_size(4, MiB(2049)), None);
    }
}
