//! What a host has to give, and whether a VM fits.

use aleph_types::{Classify, ErrorClass, MiB, Resources};
use std::path::PathBuf;

/// What a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u16,
    /// All its memory, without what is set aside as huge pages: nothing else can have that.
    pub memory: MiB,
    /// Memory that can be had now without swapping.
    pub available: MiB,
    /// Free disk where VMs keep theirs.
    pub disk: MiB,
}

/// Huge pages of one size, which a host has set aside for whoever asks for them: they are in none of the
/// memory that others can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePagesLeft {
    /// What all of them have together, used or not.
    pub all: MiB,
    /// What they have together that are free, without those that are promised.
    pub left: MiB,
    /// The file that sets how many there are.
    pub file: PathBuf,
}

/// What one VM costs its host beyond the guest's memory: the VMM's own, generously.
pub const OVERHEAD: MiB = MiB(64);

/// A VM that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// More CPUs than the host has.
    #[error("the job asks for {asked} CPUs, this node has {there}")]
    Cpus {
        /// What was asked for.
        asked: u16,
        /// What there is.
        there: u16,
    },
    /// More CPUs than a VM can have.
    #[error("the job's VM is to have up to {asked} CPUs, a VM of this node has at most {most}")]
    CpusOfVm {
        /// What was asked for, with the room for more.
        asked: u32,
        /// What the hypervisor gives one VM.
        most: u16,
    },
    /// More CPUs than the node has left to give.
    #[error("the job asks for {asked} CPUs, this node has {there} left to give")]
    CpusNow {
        /// What was asked for.
        asked: u16,
        /// What is left.
        there: u32,
    },
    /// More memory than the host has at all.
    #[error("the job asks for {asked} of memory, this node has {there}")]
    Memory {
        /// What was asked for.
        asked: MiB,
        /// What there is.
        there: MiB,
    },
    /// More memory than the host has left.
    #[error("the job needs {needed} of memory with its overhead, this node has {there} left")]
    MemoryNow {
        /// What is needed.
        needed: MiB,
        /// What is left.
        there: MiB,
    },
    /// More huge pages than the host has left.
    #[error("the job needs {needed} in huge pages, this node has {there} of them left")]
    HugePages {
        /// What is needed.
        needed: MiB,
        /// What is left.
        there: MiB,
        /// The file that sets how many there are.
        file: PathBuf,
    },
    /// More disk than the host has left.
    #[error("the job asks for {asked} of disk, this node has {there} left")]
    Disk {
        /// What was asked for.
        asked: MiB,
        /// What is left.
        there: MiB,
    },
}

impl Classify for Shortage {
    fn class(&self) -> ErrorClass {
        ErrorClass::Capacity
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Cpus { .. } | Self::CpusOfVm { .. } => "too_many_cpus",
            Self::CpusNow { .. } => "cpus_exhausted",
            Self::Memory { .. } => "too_much_memory",
            Self::MemoryNow { .. } => "memory_exhausted",
            Self::HugePages { .. } => "huge_pages_exhausted",
            Self::Disk { .. } => "disk_exhausted",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Cpus { there, .. } => format!("Ask for at most {there} with --cpus."),
            Self::CpusOfVm { most, .. } => {
                format!("Ask for at most {most} with --cpus and --max-cpus.")
            }
            Self::CpusNow { .. } => {
                "Stop other jobs, ask for fewer with --cpus, or raise limits.overcommit_cpus."
                    .into()
            }
            Self::Memory { there, .. } => format!("Ask for less than {}m with -m.", there.0),
            Self::MemoryNow { .. } => "Stop other jobs, or ask for less with -m.".into(),
            Self::HugePages { file, .. } => format!(
                "Stop other jobs with huge pages, or set more of them aside in {}.",
                file.display()
            ),
            Self::Disk { there, .. } => {
                format!(
                    "Free some disk, or ask for at most {}m with --disk.",
                    there.0
                )
            }
        })
    }
}

/// Whether a VM fits, whose memory is in huge pages where `pages` are given: then it is none of what is
/// available.
///
/// # Errors
/// The first thing that there is too little of.
pub fn admit(
    asked: &Resources,
    host: &Capacity,
    pages: Option<&HugePagesLeft>,
) -> Result<(), Shortage> {
    if asked.cpus > host.cpus {
        return Err(Shortage::Cpus {
            asked: asked.cpus,
            there: host.cpus,
        });
    }
    if pages.is_none() && asked.memory >= host.memory {
        return Err(Shortage::Memory {
            asked: asked.memory,
            there: host.memory,
        });
    }
    if let Some(HugePagesLeft { left, file, .. }) = pages
        && asked.memory > *left
    {
        return Err(Shortage::HugePages {
            needed: asked.memory,
            there: *left,
            file: file.clone(),
        });
    }
    let needed = match pages {
        Some(_) => OVERHEAD,
        None => MiB(asked.memory.0.saturating_add(OVERHEAD.0)),
    };
    if needed > host.available {
        return Err(Shortage::MemoryNow {
            needed,
            there: host.available,
        });
    }
    if asked.disk > host.disk {
        return Err(Shortage::Disk {
            asked: asked.disk,
            there: host.disk,
        });
    }
    Ok(())
}

/// Whether a VM that runs can grow: what it has is not free any more. `pages` as for [`admit`].
///
/// # Errors
/// The first thing that there is too little of.
pub fn admit_growth(
    has: &Resources,
    asked: &Resources,
    host: &Capacity,
    pages: Option<&HugePagesLeft>,
) -> Result<(), Shortage> {
    if asked.cpus > has.cpus && asked.cpus > host.cpus {
        return Err(Shortage::Cpus {
            asked: asked.cpus,
            there: host.cpus,
        });
    }
    let needed = MiB(asked.memory.0.saturating_sub(has.memory.0));
    if needed.0 == 0 {
        return Ok(());
    }
    if pages.is_none() && asked.memory >= host.memory {
        return Err(Shortage::Memory {
            asked: asked.memory,
            there: host.memory,
        });
    }
    match pages {
        Some(HugePagesLeft { left, file, .. }) if needed > *left => Err(Shortage::HugePages {
            needed,
            there: *left,
            file: file.clone(),
        }),
        None if needed > host.available => Err(Shortage::MemoryNow {
            needed,
            there: host.available,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Capacity = Capacity {
        cpus: 4,
        memory: MiB(8192),
        available: MiB(1024),
        disk: MiB(500),
    };

    #[test]
    fn each_shortage_is_named() {
        let ask = |cpus, memory, disk| {
            let asked = Resources {
                cpus,
                memory: MiB(memory),
                disk: MiB(disk),
                ..Resources::default()
            };
            admit(&asked, &HOST, None).map_err(|shortage| shortage.code())
        };
        assert_eq!(ask(4, 960, 500), Ok(()));
        assert_eq!(ask(5, 128, 0), Err("too_many_cpus"));
        assert_eq!(ask(1, 8192, 0), Err("too_much_memory"));
        assert_eq!(ask(1, 961, 0), Err("memory_exhausted"));
        assert_eq!(ask(1, u32::MAX, 0), Err("too_much_memory"));
        assert_eq!(ask(1, 128, 501), Err("disk_exhausted"));
    }

    #[test]
    fn huge_pages_are_none_of_what_is_available() {
        let ask = |available, left| {
            let asked = Resources {
                memory: MiB(4096),
                ..Resources::default()
            };
            let available = MiB(available);
            let pages = HugePagesLeft {
                all: MiB(left),
                left: MiB(left),
                file: "nr_hugepages".into(),
            };
            // Next to all of its memory is in them.
            let memory = MiB(512);
            let host = Capacity {
                memory,
                available,
                ..HOST
            };
            admit(&asked, &host, Some(&pages))
        };
        assert_eq!(ask(OVERHEAD.0, 4096), Ok(()));
        let code = |asked: Result<(), Shortage>| asked.unwrap_err().code();
        assert_eq!(code(ask(OVERHEAD.0 - 1, 4096)), "memory_exhausted");
        let short = ask(512, 4094).unwrap_err();
        assert_eq!(short.code(), "huge_pages_exhausted");
        assert!(short.advice().unwrap().contains("nr_hugepages"));
    }

    #[test]
    fn one_that_grows_needs_what_is_added() {
        let size = |cpus, memory| Resources {
            cpus,
            memory: MiB(memory),
            // Long written.
            disk: MiB(10_000),
            ..Resources::default()
        };
        let grow =
            |has, to| admit_growth(&has, &to, &HOST, None).map_err(|shortage| shortage.code());
        assert_eq!(grow(size(1, 4096), size(4, 5120)), Ok(()));
        assert_eq!(grow(size(1, 4096), size(5, 4096)), Err("too_many_cpus"));
        assert_eq!(grow(size(1, 4096), size(1, 5248)), Err("memory_exhausted"));
        assert_eq!(grow(size(1, 7680), size(1, 8192)), Err("too_much_memory"));
        let pages = HugePagesLeft {
            all: MiB(10_240),
            left: MiB(1024),
            file: "nr_hugepages".into(),
        };
        let grow_in = |to| admit_growth(&size(1, 8192), &to, &HOST, Some(&pages));
        assert_eq!(grow_in(size(1, 9216)), Ok(()));
        let short = grow_in(size(1, 9218)).unwrap_err();
        assert_eq!(short.code(), "huge_pages_exhausted");
        // A host that has less than it had when the VM was made keeps it.
        assert_eq!(grow(size(8, 9000), size(8, 9000)), Ok(()));
    }
}
