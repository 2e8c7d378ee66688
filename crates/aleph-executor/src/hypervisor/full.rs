//! The part of the seam that is for whole computers: what one is launched with, and its facets.
//!
//! A driver that has them gives [`FullMachines`] ([`Driver::full`](super::Driver::full)). It draws a
//! [`Blueprint`] up once, when a VM is created, into a folder that lasts as long as the VM's disks do;
//! each start opens that folder and launches what it says.

use super::{BoxFuture, Disk, Nic, VmmError};
use crate::gpu::{MemoryNode, PciFunction, Taken};
use crate::qemu::machine::{Blueprint, MAX_CPUS, MachineError, Wanted};
use aleph_types::{MiB, Resources};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// Which machine a guest has.
#[derive(Debug, Default)]
pub enum Machine {
    /// The smallest that runs Linux.
    #[default]
    MicroVm,
    /// A whole computer.
    Full(Box<FullMachine>),
}

/// A whole computer, with what it keeps over its restarts.
#[derive(Debug)]
pub struct FullMachine {
    /// How it is built.
    pub blueprint: Blueprint,
    /// The variables of its UEFI, opened for reading and writing.
    pub variables: Option<File>,
    /// The folder of its TPM.
    pub tpm: Option<OwnedFd>,
    /// What it gets of the host's devices, which are bound to `vfio-pci`.
    pub devices: HostDevices,
}

/// How long memory takes at most to be filled with zeros, or to be locked.
pub(crate) fn filling(memory: MiB) -> Duration {
    Duration::from_secs(u64::from(memory.0 / 1024))
}

impl Machine {
    /// How long its VMM may take for its guest's memory before the guest boots: it fills huge pages with zeros, and
    /// what a device reaches is filled and locked. Other memory is filled as the guest uses it.
    #[must_use]
    pub fn filling(&self, memory: MiB) -> Duration {
        match self {
            Self::Full(full)
                if !full.devices.groups.is_empty() || full.blueprint.huge_pages.is_some() =>
            {
                filling(memory)
            }
            Self::Full(_) | Self::MicroVm => Duration::ZERO,
        }
    }

    /// What the kernel keeps in its VMM's name to know where so much memory of its guest is. It is worth naming
    /// where a device reaches all of it: then it has eight bytes for each page of 4 KiB in three tables, of the
    /// VMM, the guest and the IOMMU. Huge pages take next to nothing.
    #[must_use]
    pub fn page_tables(&self, memory: MiB) -> MiB {
        match self {
            Self::Full(full)
                if !full.devices.groups.is_empty() && full.blueprint.huge_pages.is_none() =>
            {
                MiB(memory.0.div_ceil(128))
            }
            Self::Full(_) | Self::MicroVm => MiB(0),
        }
    }
}

/// Devices of the host that a guest gets.
#[derive(Debug, Default)]
pub struct HostDevices {
    /// As [`Gpus::assign`](crate::gpu::Gpus::assign) gives them.
    pub groups: Vec<Taken>,
    /// What is known of them: how large their regions are.
    pub functions: Vec<PciFunction>,
    /// Whether the guest's firmware does not see their ROMs.
    pub without_rom: bool,
    /// The host's NUMA node for the guest's memory; the kernel's choice where there is none.
    pub memory_node: Option<MemoryNode>,
}

/// The facet of a driver that builds whole computers. Its calls block.
pub trait FullMachines: Send + Sync {
    /// How many CPUs a computer can have, with those that are plugged in while it runs.
    fn max_cpus(&self) -> u16 {
        MAX_CPUS
    }

    /// Draws a computer up into a folder, which is made, with what it keeps over its restarts.
    ///
    /// # Errors
    /// [`MachineError`]: where it cannot be built so, or firmware is missing. Then no folder is left.
    fn create(&self, folder: &Path, wanted: &Wanted) -> Result<Blueprint, MachineError>;

    /// Opens what [`FullMachines::create`] made.
    ///
    /// # Errors
    /// Where it is not there, or no longer fits this host.
    fn open(&self, folder: &Path) -> Result<FullMachine, MachineError>;
}

/// The facet of a computer's power button.
pub trait Power: Send + Sync {
    /// Presses it, and waits until the guest has shut down and the VMM has ended. A guest that does not
    /// listen yet is asked again every few seconds.
    ///
    /// # Errors
    /// [`VmmError::Silent`] where it still runs after `limit`.
    fn powerdown(&self, limit: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Resets it at once, as the button in front does.
    fn reset(&self) -> BoxFuture<'_, Result<(), VmmError>>;
}

/// How many processors a machine has, and how much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// Processors.
    pub cpus: u16,
    /// Memory.
    pub memory: MiB,
}

impl MachineSize {
    /// This much of each, but no less than one and no more than another size.
    #[must_use]
    pub fn clamp(self, least: Self, most: Self) -> Self {
        Self {
            cpus: self.cpus.min(most.cpus).max(least.cpus),
            memory: self.memory.min(most.memory).max(least.memory),
        }
    }
}

impl From<&Resources> for MachineSize {
    fn from(resources: &Resources) -> Self {
        Self {
            cpus: resources.cpus,
            memory: resources.memory,
        }
    }
}

impl fmt::Display for MachineSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs and {} of memory", self.cpus, self.memory)
    }
}

/// The facet of changing a computer that runs.
///
/// What is added is not in its [`Blueprint`]: who wants it there after the next start says so when it is
/// launched.
pub trait Hotplug: Send + Sync {
    /// Adds a disk.
    ///
    /// # Errors
    /// [`MachineError::NoSlot`] where no slot is free, [`MachineError::Conflict`] where there is one with
    /// its serial number. After [`VmmError::Silent`] it may be attached all the same: detaching it makes
    /// sure.
    fn attach_disk(&self, disk: Disk) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Takes a disk away, once the guest has let go of it, and closes its files. One that is not there
    /// is taken away already.
    ///
    /// # Errors
    /// [`MachineError::Kept`] where the guest does not let go in `limit`. It may later: asking again
    /// finishes it.
    fn detach_disk<'a>(
        &'a self,
        serial: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), MachineError>>;

    /// Makes a disk larger: its file, where that is not as large yet, and what the guest sees.
    fn resize_disk<'a>(
        &'a self,
        serial: &'a str,
        bytes: u64,
    ) -> BoxFuture<'a, Result<(), MachineError>>;

    /// Adds a network device.
    fn attach_nic(&self, nic: Nic) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Takes a network device away, as [`Hotplug::detach_disk`] does.
    fn detach_nic(&self, mac: [u8; 6], limit: Duration) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Adds memory, within the room that its blueprint has, in units of 128 MiB. The limits of its group
    /// are the caller's: they have to be raised before.
    ///
    /// # Errors
    /// [`MachineError::NoRoom`] where there is less.
    fn add_memory(&self, memory: MiB) -> BoxFuture<'_, Result<(), MachineError>>;

    /// Adds processors, within the room that its blueprint has. As for [`Hotplug::add_memory`], limits are
    /// the caller's.
    ///
    /// # Errors
    /// [`MachineError::NoRoom`] where there is less, and nothing was added. Where the VMM fails, some may
    /// have been.
    fn add_cpus(&self, cpus: u16) -> BoxFuture<'_, Result<(), MachineError>>;

    /// What it has now, whoever added it. What an earlier change left half-done is taken away.
    fn size(&self) -> BoxFuture<'_, Result<MachineSize, MachineError>>;
}

/// The facet of a computer's screen, keyboard and mouse.
pub trait Display: Send + Sync {
    /// A new connection over which the VMM speaks RFB, VNC's protocol (RFC 6143), and begins. There is no
    /// other way to it: no socket has a name, so whoever may connect is ours to say.
    ///
    /// # Errors
    /// Where the VMM has ended, or gives none.
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accelerator;
    use crate::qemu::machine::HugePages;

    #[test]
    fn memory_that_devices_reach_has_tables_and_is_filled_at_once() {
        let group = || Taken {
            boot: String::new(),
            group: 1,
            gpus: Vec::new(),
            functions: Vec::new(),
        };
        for (groups, huge_pages, tables, seconds) in [
            (Vec::new(), None, 0, 0),
            (Vec::new(), Some(HugePages::Size2M), 0, 256),
            (vec![group()], None, 2048, 256),
            (vec![group()], Some(HugePages::Size2M), 0, 256),
        ] {
            let wanted = Wanted {
                huge_pages,
                ..Wanted::default()
            };
            let uuid = "01234567-89ab-4def-8123-456789abcdef";
            let drawn = Blueprint::draw(&wanted, "pc-q35-7.2", Accelerator::Tcg, uuid);
            let full = FullMachine {
                blueprint: drawn.unwrap(),
                variables: None,
                tpm: None,
                devices: HostDevices {
                    groups,
                    ..HostDevices::default()
                },
            };
            let machine = Machine::Full(Box::new(full));
            let memory = MiB(256 << 10);
            assert_eq!(machine.page_tables(memory), MiB(tables));
            assert_eq!(machine.filling(memory), Duration::from_secs(seconds));
        }
        assert_eq!(Machine::MicroVm.filling(MiB(1024)), Duration::ZERO);
        assert_eq!(Machine::MicroVm.page_tables(MiB(1024)), MiB(0));
    }
}
