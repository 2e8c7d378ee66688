//! Whole computers: QEMU's q35 with firmware, PCI Express, and what changes while it runs.
//!
//! | file | what it does |
//! | --- | --- |
//! | `blueprint` | how a computer is built, as it is recorded: pure |
//! | `topology` | where its processors and its memory are: pure |
//! | `argv` | the command line of it: pure |
//! | `firmware` | which files SeaBIOS and OVMF are |
//! | `folder` | what it keeps over its restarts |
//! | `tpm` | the process that is its TPM |
//! | `launch` | the facet of the driver: draws computers up, opens and starts them |
//! | `power`, `display`, `balloon`, `hotplug`, `live_disks` | facets of one that runs |
//! | `merged_layer` | one layer of a disk in the place of several, while it is written to |
//! | `growth` | its processors and memory, of `hotplug` |
//!
//! The seam is [`crate::hypervisor::FullMachines`], [`crate::hypervisor::Machine`] and the facets of
//! [`crate::hypervisor::Vmm`].
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | firmware or `swtpm` is not there | [`MachineError::Missing`], with the package |
//! | a newer QEMU lacks the machine that was recorded | [`MachineError::Gone`] |
//! | a record that was edited, cut off or is of another version | [`MachineError::Record`] |
//! | a file that QEMU could not use, or an image that names others | [`MachineError::Disk`] |
//! | a guest that keeps a device | [`MachineError::Kept`]; asking again finishes it |
//! | a guest that ignores its power button | [`VmmError::Silent`](crate::hypervisor::VmmError) |
//! | the TPM's process dies | the guest goes on; [`Vmm::impairment`](crate::hypervisor::Vmm::impairment) says so |

mod argv;
mod balloon;
mod blueprint;
mod display;
mod error;
mod firmware;
mod folder;
mod growth;
mod hotplug;
mod launch;
mod live_disks;
mod merged_layer;
mod power;
mod topology;
mod tpm;

pub use argv::{Line, argv};
pub use blueprint::{
    Blueprint, CpuModel, Device, Firmware, GuestAgent, HugePages, MAX_CPUS, MAX_SLOTS, Wanted,
};
pub use error::MachineError;
pub use firmware::FirmwareFiles;
pub(crate) use growth::MAX_FILLERS;
pub(super) use launch::{Full, bury};
pub use topology::{MAX_APIC_ID, NumaNode, Topology};
