//! What of the host is given to jobs: pure.
//!
//! Memory may be given out more than once (`overcommit.memory`), since guests seldom use all of theirs.
//! That of a guest with GPUs is locked as a whole, so it counts as what it is: of a pool that is twice as
//! large as the host's memory it takes twice its size. What is reserved for the host is never locked, however often
//! the rest is given out.
//!
//! Memory in huge pages is none of that: it is of those that the host has set aside, each size by itself, and is
//! given out once. Of the other memory such a job has what its VMM takes.

use super::Overcommit;
use crate::capacity::{Capacity, HugePagesLeft, OVERHEAD, Shortage};
use aleph_types::{HugePages, JobId, JobSpec, MiB, NodeResources};
use std::collections::HashMap;

/// What jobs that run, or are about to, have been given.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    given: HashMap<JobId, Given>,
}

/// What one job has.
#[derive(Debug, Clone, Copy)]
struct Given {
    /// Without what is in huge pages.
    resources: NodeResources,
    /// Whether all of that memory is locked.
    pinned: bool,
    /// The pages that its guest's memory is in, where those are huge, and how much that is.
    huge: Option<(HugePages, MiB)>,
}

/// What a node may give away, and how often it gives out the same memory.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) resources: NodeResources,
    pub(super) memory_ratio: f64,
    /// What of the host's memory may be locked, all guests together.
    pub(super) lockable: MiB,
    /// The host's huge pages, of the size that the job has which asks, if it has any.
    pub(super) huge_pages: Option<HugePagesLeft>,
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

fn cost(job: &JobSpec, pages: Option<HugePages>) -> Given {
    let asked = &job.resources;
    let memory = match pages {
        Some(_) => OVERHEAD,
        None => MiB(asked.memory.0.saturating_add(OVERHEAD.0)),
    };
    Given {
        resources: NodeResources {
            cpus: u32::from(asked.cpus),
            memory,
            disk: asked.disk,
        },
        pinned: job.gpus.is_some() && pages.is_none(),
        huge: pages.map(|pages| (pages, asked.memory)),
    }
}

impl Given {
    /// What it has in huge pages.
    fn huge_memory(&self) -> MiB {
        self.huge.map_or(MiB(0), |(_, memory)| memory)
    }

    /// What it takes of a pool's memory.
    fn memory_of(&self, pool: &Pool) -> u32 {
        let memory = self.resources.memory.0;
        // A pool that is smaller than the host's memory holds some of it back from all alike.
        match self.pinned {
            true => scaled(memory, pool.memory_ratio.max(1.0)),
            false => memory,
        }
    }
}

impl Ledger {
    /// All that is given.
    pub(super) fn total(&self) -> NodeResources {
        let none = NodeResources::default();
        let given = self.given.values().map(|given| given.resources);
        given.fold(none, |sum, one| NodeResources {
            cpus: sum.cpus.saturating_add(one.cpus),
            memory: MiB(sum.memory.0.saturating_add(one.memory.0)),
            disk: MiB(sum.disk.0.saturating_add(one.disk.0)),
        })
    }

    /// Gives a job what it asks for, if there is so much. A job that has its share keeps it. `pages`: what its memory
    /// is in, where those are huge.
    pub(super) fn give(
        &mut self,
        job: JobId,
        (spec, pages): (&JobSpec, Option<HugePages>),
        pool: &Pool,
    ) -> Result<(), Shortage> {
        if self.given.contains_key(&job) {
            return Ok(());
        }
        let one = cost(spec, pages);
        self.has_cpus(&one, spec, pool)?;
        self.has_memory(&one, pool)?;
        self.has_huge_pages(&one, pool)?;
        let given = self.total().disk;
        let disk = MiB(pool.resources.disk.0.saturating_sub(given.0));
        if one.resources.disk > disk {
            return Err(Shortage::Disk {
                asked: spec.resources.disk,
                there: disk,
            });
        }
        self.given.insert(job, one);
        Ok(())
    }

    /// Gives a job that has its share another one, if there is so much, in the pages that it has. One that has none
    /// gets none.
    pub(super) fn resize(
        &mut self,
        job: JobId,
        spec: &JobSpec,
        pool: &Pool,
    ) -> Result<(), Shortage> {
        let Some(had) = self.given.remove(&job) else {
            return Ok(());
        };
        let one = cost(spec, had.huge.map(|(pages, _)| pages));
        let fits = |ledger: &Self| -> Result<(), Shortage> {
            // What it gives back is never too much.
            if one.resources.cpus > had.resources.cpus {
                ledger.has_cpus(&one, spec, pool)?;
            }
            if one.resources.memory > had.resources.memory {
                ledger.has_memory(&one, pool)?;
            }
            if one.huge_memory() > had.huge_memory() {
                ledger.has_huge_pages(&one, pool)?;
            }
            Ok(())
        };
        let fit = fits(self);
        let now = match fit {
            Ok(()) => one,
            Err(_) => had,
        };
        self.given.insert(job, now);
        fit
    }

    fn has_cpus(&self, one: &Given, spec: &JobSpec, pool: &Pool) -> Result<(), Shortage> {
        let cpus = pool.resources.cpus.saturating_sub(self.total().cpus);
        if one.resources.cpus > cpus {
            return Err(Shortage::CpusNow {
                asked: spec.resources.cpus,
                there: cpus,
            });
        }
        Ok(())
    }

    fn has_memory(&self, one: &Given, pool: &Pool) -> Result<(), Shortage> {
        let taken = self.given.values().map(|given| given.memory_of(pool));
        let taken = taken.fold(0, u32::saturating_add);
        let memory = pool.resources.memory.0.saturating_sub(taken);
        if one.memory_of(pool) > memory {
            // Of locked memory there is less than of other.
            let of_host = |memory: u32| match one.pinned {
                true => scaled(memory, 1.0 / pool.memory_ratio.max(1.0)),
                false => memory,
            };
            return Err(Shortage::MemoryNow {
                needed: one.resources.memory,
                there: MiB(of_host(memory)),
            });
        }
        let locked = self.given.values().filter(|given| given.pinned);
        let locked = locked.map(|given| given.resources.memory.0);
        let locked = locked.fold(0, u32::saturating_add);
        let lockable = MiB(pool.lockable.0.saturating_sub(locked));
        if one.pinned && one.resources.memory > lockable {
            return Err(Shortage::MemoryNow {
                needed: one.resources.memory,
                there: lockable,
            });
        }
        Ok(())
    }

    /// What others have been promised of huge pages may not be in use yet, so the kernel alone does not tell what is
    /// left of them.
    fn has_huge_pages(&self, one: &Given, pool: &Pool) -> Result<(), Shortage> {
        let (Some((pages, needed)), Some(there)) = (one.huge, &pool.huge_pages) else {
            return Ok(());
        };
        let given = self.given.values().filter_map(|given| given.huge);
        let given = given.filter(|(size, _)| *size == pages);
        let given = given.fold(0, |sum: u32, (_, memory)| sum.saturating_add(memory.0));
        let left = MiB(there.all.0.saturating_sub(given));
        match needed > left {
            true => Err(Shortage::HugePages {
                needed,
                there: left,
                file: there.file.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Gives it without asking: its VM runs already, with its memory in these pages.
    pub(super) fn note(&mut self, job: JobId, spec: &JobSpec, pages: Option<HugePages>) {
        self.given.insert(job, cost(spec, pages));
    }

    /// Gives a job that has its share the one of this size without asking, in the pages that it has.
    pub(super) fn note_size(&mut self, job: JobId, spec: &JobSpec) {
        let had = self.given.get(&job).and_then(|given| given.huge);
        self.note(job, spec, had.map(|(pages, _)| pages));
    }

    /// Takes back what a job has.
    pub(super) fn take(&mut self, job: JobId) {
        self.given.remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{Classify, GpuRequest, Resources};

    fn host() -> Capacity {
        Capacity {
            cpus: 2,
            memory: MiB(4096),
            available: MiB(4096),
            disk: MiB(1000),
        }
    }

    fn asked(cpus: u16, memory: u32, disk: u32) -> JobSpec {
        let mut job = JobSpec::new("x", Vec::new());
        job.resources = Resources {
            cpus,
            memory: MiB(memory),
            disk: MiB(disk),
            ..Resources::default()
        };
        job
    }

    fn pool(memory_ratio: f64) -> Pool {
        let ratio = Overcommit {
            cpus: 10.0,
            memory: memory_ratio,
            disk: 1.0,
        };
        Pool {
            resources: allocatable(&host(), ratio, MiB(0)),
            memory_ratio,
            lockable: host().memory,
            huge_pages: None,
        }
    }

    /// The same, with huge pages of one size.
    fn pool_with(all: u32) -> Pool {
        let all = MiB(all);
        let huge_pages = Some(HugePagesLeft {
            all,
            left: all,
            file: "nr_hugepages".into(),
        });
        Pool {
            huge_pages,
            ..pool(1.0)
        }
    }

    #[test]
    fn memory_in_huge_pages_is_of_those_alone() {
        let pages = Some(HugePages::Mib2);
        let pool = pool_with(65_536);
        let mut ledger = Ledger::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(JobId::from_bits);
        // More than all other memory, and locked more than may be of that.
        let mut job = asked(1, 40_960, 0);
        job.gpus = Some(GpuRequest::default());
        ledger.give(a, (&job, pages), &pool).unwrap();
        assert_eq!(ledger.total().memory, OVERHEAD);
        // The kernel says that all are free until its VMM has taken them.
        let short = ledger.give(b, (&job, pages), &pool).unwrap_err();
        let missing = Shortage::HugePages {
            needed: MiB(40_960),
            there: MiB(24_576),
            file: "nr_hugepages".into(),
        };
        assert_eq!(short, missing);
        // Those of another size are others, and other memory is all there.
        ledger
            .give(b, (&asked(1, 65_536, 0), Some(HugePages::Gib1)), &pool)
            .unwrap();
        let rest = 4096 - 3 * OVERHEAD.0;
        ledger.give(c, (&asked(1, rest, 0), None), &pool).unwrap();
        let none = ledger.give(d, (&asked(1, 2, 0), pages), &pool);
        assert_eq!(none.unwrap_err().code(), "memory_exhausted");
    }

    #[test]
    fn a_share_in_huge_pages_grows_by_them() {
        let pages = Some(HugePages::Gib1);
        let pool = pool_with(8192);
        let mut ledger = Ledger::default();
        let [a, b] = [1, 2].map(JobId::from_bits);
        ledger.give(a, (&asked(1, 4096, 0), pages), &pool).unwrap();
        ledger.note(b, &asked(1, 2048, 0), pages);
        ledger.resize(a, &asked(1, 6144, 0), &pool).unwrap();
        let short = ledger.resize(a, &asked(1, 7168, 0), &pool).unwrap_err();
        assert_eq!(short.code(), "huge_pages_exhausted");
        // What becomes of a change is in the same pages.
        ledger.note_size(a, &asked(1, 5120, 0));
        assert_eq!(ledger.total().memory, MiB(2 * OVERHEAD.0));
        ledger.resize(a, &asked(1, 6144, 0), &pool).unwrap();
        ledger.take(b);
        ledger.resize(a, &asked(1, 8192, 0), &pool).unwrap();
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
        let mut there = pool(1.0);
        there.resources.cpus = 2;
        let mut ledger = Ledger::default();
        let (a, b) = (JobId::from_bits(1), JobId::from_bits(2));
        ledger
            .give(a, (&asked(1, 2048, 600), None), &there)
            .unwrap();
        ledger
            .give(a, (&asked(1, 2048, 600), None), &there)
            .unwrap();
        for (resources, code) in [
            (asked(2, 64, 0), "cpus_exhausted"),
            (asked(1, 2048, 0), "memory_exhausted"),
            (asked(1, 64, 500), "disk_exhausted"),
        ] {
            assert_eq!(
                ledger
                    .give(b, (&resources, None), &there)
                    .unwrap_err()
                    .code(),
                code
            );
        }
        ledger.take(a);
        ledger
            .give(b, (&asked(2, 2048, 500), None), &there)
            .unwrap();
        ledger.take(b);
        assert_eq!(ledger.total(), NodeResources::default());
    }

    #[test]
    fn what_is_reserved_for_the_host_is_not_locked() {
        let with_gpu = |memory| {
            let mut job = asked(1, memory - OVERHEAD.0, 0);
            job.gpus = Some(GpuRequest::default());
            job
        };
        let ratio = Overcommit {
            cpus: 10.0,
            memory: 2.0,
            disk: 1.0,
        };
        // 4 GiB, of which the host keeps one.
        let pool = Pool {
            resources: allocatable(&host(), ratio, MiB(1024)),
            memory_ratio: 2.0,
            lockable: MiB(3072),
            huge_pages: None,
        };
        let mut ledger = Ledger::default();
        let [a, b, c] = [1, 2, 3].map(JobId::from_bits);
        ledger.give(a, (&with_gpu(2048), None), &pool).unwrap();
        let none = ledger.give(b, (&with_gpu(1025), None), &pool).unwrap_err();
        let (needed, there) = (MiB(1025), MiB(1024));
        assert_eq!(none, Shortage::MemoryNow { needed, there });
        // What is not locked can be given out more often.
        ledger
            .give(c, (&asked(1, 1025 - OVERHEAD.0, 0), None), &pool)
            .unwrap();
        ledger.give(b, (&with_gpu(1023), None), &pool).unwrap();
    }

    #[test]
    fn a_share_grows_within_what_others_leave() {
        let mut there = pool(1.0);
        there.resources.cpus = 4;
        let mut ledger = Ledger::default();
        let (a, b) = (JobId::from_bits(1), JobId::from_bits(2));
        ledger
            .give(a, (&asked(1, 1024, 900), None), &there)
            .unwrap();
        ledger.give(b, (&asked(1, 1024, 0), None), &there).unwrap();
        // By now its disk is full of what it wrote.
        there.resources.disk = MiB(100);
        ledger.resize(a, &asked(3, 2048, 900), &there).unwrap();
        let had = ledger.total();
        assert_eq!(
            (had.cpus, had.memory),
            (4, MiB(1024 + 2048 + 2 * OVERHEAD.0))
        );
        for (to, code) in [
            (asked(4, 2048, 900), "cpus_exhausted"),
            (asked(3, 3072, 900), "memory_exhausted"),
        ] {
            assert_eq!(ledger.resize(a, &to, &there).unwrap_err().code(), code);
            assert_eq!(ledger.total(), had);
        }
        // A pool that has become smaller than what is given takes back, and gives no more.
        there.resources.cpus = 1;
        ledger.resize(a, &asked(2, 1024, 900), &there).unwrap();
        ledger.resize(a, &asked(3, 1024, 900), &there).unwrap_err();
        // Who has nothing is not given anything by this.
        ledger.take(b);
        ledger.resize(b, &asked(1, 64, 0), &there).unwrap();
        assert_eq!(ledger.total().cpus, 2);
    }

    #[test]
    fn memory_that_is_locked_is_given_out_once() {
        let with_gpu = |memory| {
            let mut job = asked(1, memory - OVERHEAD.0, 0);
            job.gpus = Some(GpuRequest::default());
            job
        };
        let jobs: Vec<JobId> = (1..9).map(JobId::from_bits).collect();
        // 4 GiB that are given out twice: 8 GiB to others, 4 GiB to those with GPUs.
        let pool = pool(2.0);
        let mut ledger = Ledger::default();
        ledger
            .give(jobs[0], (&with_gpu(2048), None), &pool)
            .unwrap();
        ledger
            .give(jobs[1], (&with_gpu(1024), None), &pool)
            .unwrap();
        let none = ledger
            .give(jobs[2], (&with_gpu(1025), None), &pool)
            .unwrap_err();
        let (needed, there) = (MiB(1025), MiB(1024));
        assert_eq!(none, Shortage::MemoryNow { needed, there });
        assert_eq!(ledger.total().memory, MiB(3072), "what they have");
        // The rest is lent twice.
        ledger
            .give(jobs[3], (&asked(1, 2048 - OVERHEAD.0, 0), None), &pool)
            .unwrap();
        let none = ledger
            .give(jobs[4], (&with_gpu(65), None), &pool)
            .unwrap_err();
        assert_eq!(none.code(), "memory_exhausted");
        ledger.take(jobs[0]);
        ledger.note(jobs[5], &with_gpu(1024), None);
        ledger
            .give(jobs[6], (&with_gpu(1024), None), &pool)
            .unwrap();
    }
}
