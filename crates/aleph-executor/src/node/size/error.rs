//! Why a VM does not get the size that is asked for.

use aleph_types::{Classify, ErrorClass, MiB};
use std::io;

/// A size that a job cannot have.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// It has one size for as long as it lives.
    #[error("the job is as large as it was made: {0}")]
    Fixed(&'static str),
    /// A guest that runs gives nothing back.
    #[error("a VM that runs does not get smaller: it has {has} {what}, and {wanted} are asked for")]
    Shrinks {
        /// Of what.
        what: &'static str,
        /// How much it has.
        has: u32,
        /// How much was asked for.
        wanted: u32,
    },
    /// More than its machine has places for.
    #[error("the VM was made for at most {most} {what}, and {wanted} are asked for")]
    Beyond {
        /// Of what.
        what: &'static str,
        /// How much it can have.
        most: u32,
        /// How much was asked for.
        wanted: u32,
    },
    /// Memory comes in modules.
    #[error("the VM's memory changes in steps of {step}: it has {has}, and {wanted} are asked for")]
    Step {
        /// How large they are.
        step: MiB,
        /// How much it has.
        has: MiB,
        /// How much was asked for.
        wanted: MiB,
    },
    /// Its devices write to all of it.
    #[error(
        "the VM has GPUs, beside which all of its memory is placed and locked as it starts: it has {has}, and does not get more while it runs"
    )]
    Locked {
        /// How much it has.
        has: MiB,
    },
    /// Each processor is a thread of the VMM, and others fill huge pages. One that it cannot start ends it.
    #[error(
        "the VM's VMM needs {needed} more threads for that, and may have {left} more beside those of its disks"
    )]
    Threads {
        /// How many.
        needed: u32,
        /// How many it may have.
        left: u32,
    },
    /// The same of one that does not run, by what its job says.
    #[error(
        "the VMM of a VM with {cpus} CPUs needs more processes and threads than the {most} that its job allows"
    )]
    Limit {
        /// Processors of the VM.
        cpus: u16,
        /// What the job says.
        most: u32,
        /// What is enough.
        enough: u32,
    },
    /// The VMM's group could not be given its limits.
    #[error("cannot set the limits of the VM's cgroup")]
    Limits(#[source] io::Error),
}

impl Classify for SizeError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Fixed(_) | Self::Step { .. } => ErrorClass::Invalid,
            // None of it changes while one waits.
            Self::Shrinks { .. }
            | Self::Locked { .. }
            | Self::Beyond { .. }
            | Self::Threads { .. }
            | Self::Limit { .. } => ErrorClass::Conflict,
            Self::Limits(_) => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Fixed(_) => "size_fixed",
            Self::Shrinks { .. } => "machine_shrinks",
            Self::Beyond { .. } => "machine_room",
            Self::Step { .. } => "memory_step",
            Self::Locked { .. } => "memory_locked",
            Self::Threads { .. } | Self::Limit { .. } => "vmm_threads",
            Self::Limits(_) => "cgroup_limits",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Fixed(_) => {
                "Make it anew with another size, or as a full VM: aleph vm create.".into()
            }
            Self::Shrinks { .. } | Self::Locked { .. } => {
                "Stop it, resize it, and start it: aleph vm stop, aleph vm resize, aleph vm start."
                    .into()
            }
            Self::Beyond { .. } => {
                "Ask for less, or make a VM that can have more: aleph vm create --max-cpus N --max-memory SIZE."
                    .into()
            }
            Self::Step { step, has, .. } => {
                format!("Ask for {has} and a multiple of {step}.")
            }
            Self::Threads { .. } => {
                "Ask for fewer CPUs, or make the VM with a larger --pids-limit.".into()
            }
            Self::Limit { enough, .. } => {
                format!("Leave --pids-limit out, set it to {enough}, or ask for fewer CPUs.")
            }
            Self::Limits(_) => "See aleph doctor for what the host's cgroups lack.".into(),
        })
    }
}
