//! What a whole computer cannot be, or do.

use crate::hypervisor::VmmError;
use aleph_types::{Classify, ErrorClass, MiB};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A computer that cannot be built or changed as it was to be.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Its parts do not fit together.
    #[error("a machine cannot be built so: {0}")]
    Invalid(String),
    /// A disk cannot be used.
    #[error("the disk {serial:?} cannot be used: {why}")]
    Disk {
        /// Its serial number.
        serial: String,
        /// Why not.
        why: String,
    },
    /// A file or a program that it needs is not on this host.
    #[error("{what} is not there")]
    Missing {
        /// Where it was looked for.
        what: String,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// The folder that it was drawn up in does not hold a blueprint.
    #[error("the machine's record {} cannot be read: {why}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The host no longer has what it was built for.
    #[error("the machine was created for {wanted}, which this host lacks")]
    Gone {
        /// What that is.
        wanted: String,
    },
    /// All slots are taken.
    #[error("all {slots} slots of the machine are taken")]
    NoSlot {
        /// How many it has.
        slots: usize,
    },
    /// There is one already.
    #[error("the machine has a {what} already")]
    Conflict {
        /// Which device.
        what: String,
    },
    /// There is none.
    #[error("the machine has no {what}")]
    Unknown {
        /// Which device.
        what: String,
    },
    /// More than the room that it was created with.
    #[error("the machine has room for {left} more {what}, not {wanted}")]
    NoRoom {
        /// Of what.
        what: &'static str,
        /// How much there is.
        left: u64,
        /// How much was wanted.
        wanted: u64,
    },
    /// Memory was added too often.
    #[error("memory was added to the machine {modules} times, as often as it can be while it runs")]
    NoModule {
        /// How many modules it takes.
        modules: u32,
    },
    /// A guest that keeps a device.
    #[error("the guest did not let go of the {what} in {limit:?}")]
    Kept {
        /// Which device.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// What its guest wrote to a disk cannot be made durable.
    #[error("the host's disk fails below the {what}: what the guest wrote cannot be made durable")]
    Failing {
        /// Which disk.
        what: String,
    },
    /// The VMM did not do what it was told.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// A call of the operating system failed.
    #[error("cannot {what}")]
    Io {
        /// What was to be done, with what.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl MachineError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn no_memory(left: MiB, wanted: MiB) -> Self {
        Self::NoRoom {
            what: "MiB of memory",
            left: left.0.into(),
            wanted: wanted.0.into(),
        }
    }
}

impl Classify for MachineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) | Self::Disk { .. } => ErrorClass::Invalid,
            Self::Missing { .. } | Self::Gone { .. } | Self::Failing { .. } | Self::Vmm(_) => {
                ErrorClass::Unavailable
            }
            Self::Record { .. } | Self::Io { .. } => ErrorClass::Internal,
            Self::NoSlot { .. } => ErrorClass::Capacity,
            // It was made so, or has to be started anew: who waits gets no more.
            Self::NoRoom { .. }
            | Self::NoModule { .. }
            | Self::Conflict { .. }
            | Self::Kept { .. } => ErrorClass::Conflict,
            Self::Unknown { .. } => ErrorClass::NotFound,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "machine_invalid",
            Self::Disk { .. } => "machine_disk",
            Self::Missing { .. } => "machine_file_missing",
            Self::Record { .. } => "machine_record",
            Self::Gone { .. } => "machine_gone",
            Self::NoSlot { .. } => "machine_slots",
            Self::Conflict { .. } => "machine_device_exists",
            Self::Unknown { .. } => "machine_device_unknown",
            Self::NoRoom { .. } => "machine_room",
            Self::NoModule { .. } => "machine_modules",
            Self::Kept { .. } => "machine_device_kept",
            Self::Failing { .. } => "disk_failing",
            Self::Vmm(_) => "machine_vmm",
            Self::Io { .. } => "machine_io",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Missing { package, .. } => Some(format!(
                "Install it with: apt-get install -y --no-install-recommends {package}"
            )),
            Self::Gone { .. } => {
                Some("Install the QEMU that it was created with, or create the VM anew.".into())
            }
            Self::NoSlot { .. } => {
                Some("Detach a device first, or create the VM with more slots.".into())
            }
            Self::NoRoom { .. } => Some("Create the VM with more room for hot-plug.".into()),
            Self::NoModule { .. } => {
                Some("Stop the VM and start it: all of its memory is one piece then.".into())
            }
            Self::Kept { .. } => Some(
                "Unmount the disk or take the interface down in the guest, and ask again.".into(),
            ),
            Self::Failing { .. } => Some(
                "The host's kernel log (dmesg) says which disk fails. Mend it, then detach and attach the volume, or \
                 restart the job."
                    .into(),
            ),
            _ => None,
        }
    }
}
