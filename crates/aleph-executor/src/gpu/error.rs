//! What can go wrong with GPUs.

use super::address::PciAddress;
use super::choice::NoFit;
use aleph_types::{Classify, ErrorClass};
use std::io;
use std::path::PathBuf;

/// An operation on the host's GPUs that failed.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The configuration gives jobs none.
    #[error("this node gives no GPUs to jobs")]
    Disabled,
    /// The kernel drives no IOMMU.
    #[error("this host has no IOMMU that is switched on, so no device can be given to a guest")]
    NoIommu {
        /// Whether the processor is AMD's.
        amd: bool,
    },
    /// The module of the driver is not loaded.
    #[error("the driver {driver}, which gives devices to guests, is not loaded")]
    NoVfio {
        /// The driver.
        driver: String,
    },
    /// No GPUs are as asked for and free.
    #[error(transparent)]
    NoFit(#[from] NoFit),
    /// The tenant's guest still has it.
    #[error("{address} cannot be taken from {tenant}: {user}")]
    InUse {
        /// What.
        address: PciAddress,
        /// From whom, or what.
        tenant: String,
        /// Who has it open.
        user: String,
    },
    /// Nobody has it.
    #[error("{address} belongs to no job")]
    NotAssigned {
        /// What.
        address: PciAddress,
    },
    /// It is not in quarantine.
    #[error("{address} is not in quarantine")]
    NotQuarantined {
        /// What.
        address: PciAddress,
    },
    /// It is still as it was.
    #[error("{address} stays in quarantine")]
    StillFaulty {
        /// What.
        address: PciAddress,
        /// How it failed this time.
        source: DeviceFault,
    },
    /// The host does not let devices be given away.
    #[error(transparent)]
    Host(#[from] HostFault),
    /// The host's devices cannot be looked at.
    #[error("cannot read the host's PCI devices")]
    Inventory(#[source] io::Error),
    /// The record of who has what cannot be read or written.
    #[error("cannot {operation} the record of who has which GPUs")]
    Record {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Classify for GpuError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disabled => ErrorClass::Invalid,
            Self::NoIommu { .. } | Self::NoVfio { .. } | Self::Host(_) => ErrorClass::Unavailable,
            Self::NoFit(_) => ErrorClass::Capacity,
            Self::InUse { .. } | Self::NotQuarantined { .. } | Self::NotAssigned { .. } => {
                ErrorClass::Conflict
            }
            Self::StillFaulty { .. } => ErrorClass::Unavailable,
            Self::Inventory(_) | Self::Record { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disabled => "gpu_disabled",
            Self::Host(fault) => fault.code(),
            Self::NoIommu { .. } => "no_iommu",
            Self::NoVfio { .. } => "no_vfio",
            Self::NoFit(_) => "no_gpu",
            Self::InUse { .. } => "gpu_in_use",
            Self::NotAssigned { .. } => "gpu_not_assigned",
            Self::NotQuarantined { .. } => "gpu_not_quarantined",
            Self::StillFaulty { .. } => "gpu_faulty",
            Self::Inventory(_) => "gpu_inventory",
            Self::Record { .. } => "gpu_record",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Disabled => {
                Some("Set enable_gpu = true in [executor.qemu] of aleph.toml.".into())
            }
            Self::Host(fault) => Some(fault.advice()),
            Self::NoIommu { amd } => Some(iommu_advice(*amd)),
            Self::NoVfio { driver } => Some(vfio_advice(driver)),
            Self::NoFit(_) => Some("aleph gpu ls shows the GPUs of this host.".into()),
            Self::InUse { .. } => Some("End the process, or wait for its end.".into()),
            Self::NotQuarantined { .. } | Self::NotAssigned { .. } => None,
            Self::StillFaulty { .. } => {
                Some("Power-cycle the host: what a reset does not mend, a cold start may.".into())
            }
            Self::Inventory(_) => None,
            Self::Record { .. } => {
                Some("See that /var/lib/aleph-gpu has room and can be written to.".into())
            }
        }
    }
}

/// What switches an IOMMU on. Kernel parameters: the kernel's `admin-guide/kernel-parameters`.
pub(crate) fn iommu_advice(amd: bool) -> String {
    let (firmware, parameter) = match amd {
        true => ("IOMMU (AMD-Vi)", "iommu=pt"),
        false => ("VT-d", "intel_iommu=on iommu=pt"),
    };
    format!(
        "Switch on {firmware} in the firmware's setup, add {parameter} to the kernel's command line \
         (GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub) and start the host again."
    )
}

/// What loads a driver for guests.
pub(crate) fn vfio_advice(driver: &str) -> String {
    format!(
        "Run sudo modprobe {driver}, and name it in /etc/modules-load.d/vfio.conf for every start."
    )
}

/// What is wrong with a device itself. It is kept in quarantine for it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// It is not there any more.
    #[error("{address} is gone from the bus")]
    Gone {
        /// What.
        address: PciAddress,
    },
    /// The kernel refused.
    #[error("{address} cannot be {operation}: {}: {source}", path.display())]
    Refused {
        /// What.
        address: PciAddress,
        /// What was tried.
        operation: &'static str,
        /// The file that was written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another driver has it, or none, than the one that should.
    #[error("{address} is {}, not driven by {wanted}", driver.as_ref().map_or_else(|| "without a driver".into(), |d| format!("driven by {d}")))]
    Driver {
        /// What.
        address: PciAddress,
        /// What should drive it.
        wanted: String,
        /// What does.
        driver: Option<String>,
    },
    /// It does not answer as what it is.
    #[error("{address} does not answer: {why}")]
    Silent {
        /// What.
        address: PciAddress,
        /// What it answers.
        why: String,
    },
}

/// What is wrong with the host, whichever device is asked for: nothing goes into quarantine for it.
#[derive(Debug, thiserror::Error)]
pub enum HostFault {
    /// Files of the kernel's cannot be written here.
    #[error("this node may not have {address} {operation}: {}: {source}", path.display())]
    Denied {
        /// What.
        address: PciAddress,
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else changes who has GPUs, and does not come to an end.
    #[error("another process has GPUs bound or reset, and does not come to an end")]
    Busy,
    /// There is no way to open a group.
    #[error("there is no {}, though all of the group is bound to a driver for guests", path.display())]
    NoGroupNode {
        /// What is missing.
        path: PathBuf,
    },
    /// A driver of the host has come to another device of the group.
    #[error("IOMMU group {group} cannot be given away: {with} is driven by {driver}")]
    Shared {
        /// The group.
        group: u32,
        /// The other device.
        with: PciAddress,
        /// What drives it.
        driver: String,
    },
}

impl HostFault {
    const fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "gpu_denied",
            Self::Busy => "gpu_busy",
            Self::NoGroupNode { .. } => "no_vfio_group",
            Self::Shared { .. } => "gpu_group_shared",
        }
    }

    fn advice(&self) -> String {
        match self {
            Self::Denied { .. } => {
                "Run the node as root, where /sys and /dev/vfio can be written to.".into()
            }
            Self::Busy => {
                "Try again. Where it stays so, a device hangs: see dmesg, and power-cycle the host."
                    .into()
            }
            Self::NoGroupNode { .. } => {
                "The kernel needs CONFIG_VFIO_GROUP, and the node all of /dev.".into()
            }
            Self::Shared { driver, .. } => {
                format!("Keep {driver} from that device, or leave the group out of iommu_group.")
            }
        }
    }
}

/// Why a device could not be given away or taken back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It is the device's own.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// It is the host's.
    #[error(transparent)]
    Host(#[from] HostFault),
}
