//! What of the host is given to jobs: pure.

use super::Overcommit;
use crate::capacity::{Capacity, OVERHEAD, Shortage};
use aleph_types::{JobId, MiB, NodeResources, Resources};
use std::collections::HashMap;

/// What jobs that run, or are about to, have been given.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    given: HashMap<JobId, NodeResources>,
}

/// What a node may give away.
pub(super) fn allocatable(host: &Capacity, ratio: Overcommit, reserved: MiB) -> NodeResources {
    NodeResources {
        cpus: scaled(u32::from(host.cpus), ratio.cpus),
        memory: MiB(scaled(host.memory.0, ratio.memory).saturating_sub(reserved.0)),
        disk: MiB(scaled(host.disk.0, ratio.disk)),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn scaled(amount: u32, ratio: f64) -> u32 {
    // Ratios are checked to be positive and small; a product beyond the type is its maximum.
    (f64::from(amount) * ratio) as u32
}

fn cost(asked: &Resources) -> NodeResources {
    NodeResources {
        cpus: u32::from(asked.cpus),
        memory: MiB(asked.memory.0.saturating_add(OVERHEAD.0)),
        disk: asked.disk,
    }
}

impl Ledger {
    /// All that is given.
    pub(super) fn total(&self) -> NodeResources {
        let none = NodeResources::default();
        self.given.values().fold(none, |sum, one| NodeResources {
            cpus: sum.cpus.saturating_add(one.cpus),
            memory: MiB(sum.memory.0.saturating_add(one.memory.0)),
            disk: MiB(sum.disk.0.saturating_add(one.disk.0)),
        })
    }

    /// Gives a job what it asks for, if there is so much. A job that has its share keeps it.
    pub(super) fn give(
        &mut self,
        job: JobId,
        asked: &Resources,
        there: &NodeResources,
    ) -> Result<(), Shortage> {
        if self.given.contains_key(&job) {
            return Ok(());
        }
        let (cost, given) = (cost(asked), self.total());
        let left = |there: u32, given: u32| there.saturating_sub(given);
        let cpus = left(there.cpus, given.cpus);
        if cost.cpus > cpus {
            return Err(Shortage::CpusNow {
                asked: asked.cpus,
                there: cpus,
            });
        }
        let memory = MiB(left(there.memory.0, given.memory.0));
        if cost.memory > memory {
            return Err(Shortage::MemoryNow {
                needed: cost.memory,
                there: memory,
            });
        }
        let disk = MiB(left(there.disk.0, given.disk.0));
        if cost.disk > disk {
            return Err(Shortage::Disk {
                asked: asked.disk,
                there: disk,
            });
        }
        self.given.insert(job, cost);
        Ok(())
    }

    /// Gives it without asking: its VM runs already.
    pub(super) fn note(&mut self, job: JobId, asked: &Resources) {
        self.given.insert(job, cost(asked));
    }

    /// Takes back what a job has.
    pub(super) fn take(&mut self, job: JobId) {
        self.given.remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;

    fn host() -> Capacity {
        Capacity {
            cpus: 2,
            memory: MiB(4096),
            available: MiB(4096),
            disk: MiB(1000),
        }
    }

    fn asked(cpus: u16, memory: u32, disk: u32) -> Resources {
        Resources {
            cpus,
            memory: MiB(memory),
            disk: MiB(disk),
            ..Resources::default()
        }
    }

    #[test]
    fn ratios_and_the_reserve_count() {
        let ratio = Overcommit {
            cpus: 4.0,
            memory: 1.5,
            disk: 1.0,
        };
        let there = allocatable(&host(), ratio, MiB(512));
        assert_eq!(
            (there.cpus, there.memory, there.disk),
            (8, MiB(5632), MiB(1000))
        );
    }

    #[test]
    fn what_is_given_is_missing_until_it_comes_back() {
        let there = allocatable(
            &host(),
            Overcommit {
                cpus: 1.0,
                memory: 1.0,
                disk: 1.0,
            },
            MiB(0),
        );
        let mut ledger = Ledger::default();
        let (a, b) = (JobId::from_bits(1), JobId::from_bits(2));
        ledger.give(a, &asked(1, 2048, 600), &there).unwrap();
        ledger.give(a, &asked(1, 2048, 600), &there).unwrap();
        for (resources, code) in [
            (asked(2, 64, 0), "cpus_exhausted"),
            (asked(1, 2048, 0), "memory_exhausted"),
            (asked(1, 64, 500), "disk_exhausted"),
        ] {
            assert_eq!(ledger.give(b, &resources, &there).unwrap_err().code(), code);
        }
        ledger.take(a);
        ledger.give(b, &asked(2, 2048, 500), &there).unwrap();
        ledger.take(b);
        assert_eq!(ledger.total(), NodeResources::default());
    }
}
