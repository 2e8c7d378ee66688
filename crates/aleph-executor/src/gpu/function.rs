//! What is known of one PCI function.

use super::address::PciAddress;
use super::inventory::is_for_guests;
use aleph_types::MiB;
use serde::Serialize;

/// One function of a PCI device, as sysfs shows it. What one driver binds to, and the smallest thing
/// that a guest can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it.
    pub vendor: u16,
    /// Which of the maker's devices it is.
    pub device: u16,
    /// Who made the board.
    pub subsystem_vendor: u16,
    /// Which of that maker's boards it is.
    pub subsystem_device: u16,
    /// Base class, subclass and programming interface, a byte each.
    pub class: u32,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// The only driver that may bind to it, where one was named.
    pub driver_override: Option<String>,
    /// The NUMA node that it is nearest to, where the firmware says.
    pub numa_node: Option<u16>,
    /// Its IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Its regions of memory.
    pub bars: Vec<Bar>,
    /// Whether the host's firmware shows its console on it.
    pub boot_vga: bool,
    /// How the kernel can reset it, the preferred way first. Kernels before 5.15 do not say how: then
    /// this is `default` where they can.
    pub reset_methods: Vec<String>,
    /// Of a virtual function: the function that it is a part of.
    pub physical_function: Option<PciAddress>,
    /// The virtual functions that it was divided into (SR-IOV, or MIG with vGPU on top).
    pub virtual_functions: Vec<PciAddress>,
    /// Into how many it could be divided.
    pub total_virtual_functions: u32,
    /// Of a virtual function that NVIDIA's driver gives to guests by itself, as a vGPU: of which kind, and 0
    /// where none was chosen.
    pub vgpu_type: Option<u32>,
    /// Mediated devices that its driver would make of it (vGPU, MIG-backed ones among them).
    pub mediated_types: Vec<MediatedType>,
    /// The memory that its driver says it has: `mem_info_vram_total` of amdgpu.
    pub driver_vram: Option<MiB>,
}

/// A kind of mediated device (`mdev_supported_types`, kernel documentation
/// `vfio-mediated-device`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MediatedType {
    /// The driver's name of it, such as `nvidia-699`.
    pub id: String,
    /// The name for people, such as `NVIDIA H100-1-10C`.
    pub name: Option<String>,
    /// How many more of them there could be.
    pub available: u32,
}

/// A region of a function's memory (base address register).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Bytes.
    pub size: u64,
    /// Whether reading it has no effect, as of memory.
    pub prefetchable: bool,
}

/// Base class of displays: VGA, 3D, and other controllers (PCI Code and ID Assignment Specification).
const DISPLAY: u32 = 0x03;
/// Base class of processing accelerators, which AMD's Instinct and Intel's Gaudi are of.
const ACCELERATOR: u32 = 0x12;
/// Bridges from PCI to PCI, from PCI to CardBus, and semi-transparent ones.
const PCI_BRIDGES: [u32; 3] = [0x0604, 0x0607, 0x0609];

impl PciFunction {
    /// Whether it is what a job can ask for.
    #[must_use]
    pub const fn is_gpu(&self) -> bool {
        matches!(self.class >> 16, DISPLAY | ACCELERATOR)
    }

    /// Whether it only connects buses. VFIO allows bridges in a group that belongs to a guest, and they
    /// stay with the host. NVSwitches, whose class is another bridge, are no such bridges.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        PCI_BRIDGES.contains(&(self.class >> 8))
    }

    /// Whether its driver gives it to guests.
    #[must_use]
    pub fn is_for_guests(&self) -> bool {
        self.vgpu_kind().is_some() || self.driver.as_deref().is_some_and(is_for_guests)
    }

    /// The kind of vGPU that it is.
    #[must_use]
    pub fn vgpu_kind(&self) -> Option<u32> {
        self.vgpu_type.filter(|kind| *kind != 0)
    }

    /// The size of its largest region of prefetchable memory: of a data-centre GPU that is all its
    /// memory, rounded up to a power of two; of others it may be a window of 256 MiB.
    #[must_use]
    pub fn largest_prefetchable(&self) -> Option<u64> {
        let sizes = self.bars.iter().filter(|bar| bar.prefetchable);
        sizes.map(|bar| bar.size).max()
    }

    /// The function that keeps this one from being reset by its own: the kernel can reset it by its bus
    /// alone, and refuses that where another one is there (`pci_parent_bus_reset` in its
    /// `drivers/pci/pci.c`). It names the way all the same: functions that come later are not there yet
    /// when it looks.
    #[must_use]
    pub fn kept_from_reset_by<'a>(
        &self,
        functions: impl IntoIterator<Item = &'a Self>,
    ) -> Option<PciAddress> {
        let mut others = self.reset_with(functions);
        others.next().map(|other| other.address)
    }

    /// The function that keeps this one from being reset at all: one that is on its bus and does not go
    /// where it goes. What does, VFIO resets with it.
    #[must_use]
    pub fn kept_from_hot_reset_by<'a>(
        &self,
        functions: impl IntoIterator<Item = &'a Self>,
    ) -> Option<PciAddress> {
        let goes_with = |other: &Self| {
            let of_group = self.iommu_group.is_some() && other.iommu_group == self.iommu_group;
            of_group && other.address.slot() == self.address.slot() && !other.is_bridge()
        };
        let mut others = self.reset_with(functions);
        let other = others.find(|other| !goes_with(other));
        other.map(|other| other.address)
    }

    /// The others that are reset when this one is.
    fn reset_with<'a>(
        &self,
        functions: impl IntoIterator<Item = &'a Self>,
    ) -> impl Iterator<Item = &'a Self> {
        let (own, by_bus) = (self.address, self.reset_methods == ["bus"]);
        let functions = functions.into_iter();
        functions
            .filter(move |other| by_bus && other.address != own && other.address.bus() == own.bus())
    }

    /// Its vendor and device, as `10de:2335`.
    #[must_use]
    pub fn ids(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.device)
    }
}
