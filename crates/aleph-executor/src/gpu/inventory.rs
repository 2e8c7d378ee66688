//! The GPUs of a host, and what stands around each.

use super::address::PciAddress;
use super::function::{MediatedType, PciFunction};
use super::mig::MigInstance;
use super::model::{Model, maker};
use super::nvml::{self, NvmlGpu};
use super::record::{Record, Tenant};
use super::sysfs::HostTree;
use super::users::{DeviceUser, users};
use aleph_types::MiB;
use pciid_parser::Database;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// The driver of the host that gives a function to a guest, where nobody names another one.
pub const VFIO_PCI: &str = "vfio-pci";

/// All PCI functions of a host, and those among them that are GPUs.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    functions: BTreeMap<PciAddress, PciFunction>,
    gpus: Vec<Gpu>,
    instances: Vec<MigInstance>,
}

/// One GPU: a card, a die of one, or a virtual function of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Where it is.
    pub address: PciAddress,
    /// What a job calls it: that of its model, or else its ids (`10de:2335`); of a virtual function `h100-vf`
    /// where the whole is a known model, or `vgpu-` and the number of its kind.
    #[serde(rename = "type")]
    pub gpu_type: String,
    /// Vendor and device.
    pub ids: String,
    /// Vendor and device of its board.
    pub subsystem_ids: String,
    /// Its name for people, where the host has the database `pci.ids` and it is in there.
    pub name: Option<String>,
    /// Its name for its maker's tools, where NVML said it.
    pub uuid: Option<String>,
    /// Its memory, where it can be known.
    pub vram: Option<Vram>,
    /// Whether it is divided by MIG, as NVML said when it was asked; none where it cannot be.
    pub mig: Option<bool>,
    /// Its IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// All others of that group, bridges too.
    pub group_members: Vec<PciAddress>,
    /// The other functions in its slot and group, such as its sound: they go where it goes.
    pub companions: Vec<PciAddress>,
    /// The NUMA node that it is nearest to.
    pub numa_node: Option<u16>,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// How it can be reset, the preferred way first.
    pub reset_methods: Vec<String>,
    /// Of a virtual function: what it is a part of.
    pub physical_function: Option<PciAddress>,
    /// The virtual functions that it is divided into, each a GPU of its own.
    pub virtual_functions: Vec<PciAddress>,
    /// Into how many it could be divided.
    pub total_virtual_functions: u32,
    /// Of a vGPU in a virtual function: its kind, and 0 where none was chosen.
    pub vgpu_type: Option<u32>,
    /// The mediated devices that its driver would make of it.
    pub mediated_types: Vec<MediatedType>,
    /// Whether the host shows its console on it.
    pub console: bool,
    /// The processes that use it or its companions, where these were looked for.
    pub users: Vec<DeviceUser>,
    /// Who has it.
    #[serde(flatten)]
    pub state: GpuState,
}

/// The memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vram {
    /// How much.
    pub mib: MiB,
    /// How that is known.
    pub source: VramSource,
}

/// As people say it: in GiB where that is a whole number.
impl fmt::Display for Vram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&gib(self.mib))
    }
}

/// How the memory of a GPU is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VramSource {
    /// By its ids.
    Model,
    /// NVML says so, rounded up to whole GiB.
    Nvml,
    /// Its driver says so.
    Driver,
    /// It is the size of its largest prefetchable region: of a data-centre GPU its memory, rounded up to
    /// a power of two. It may be less than the memory where the region cannot be resized.
    Region,
}

/// Who has a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GpuState {
    /// Nobody: it has no driver, or one that gives it to guests.
    Free,
    /// A driver of the host. It can still be given away, as long as no process uses it.
    Host,
    /// A tenant.
    Assigned {
        /// Which.
        tenant: Tenant,
    },
    /// Nobody may: it failed.
    Quarantined {
        /// How.
        reason: String,
    },
}

impl Inventory {
    /// Reads a host's. `names` says what devices are called, and `record` who has them.
    ///
    /// # Errors
    /// Where the host's PCI devices cannot be read.
    pub fn read(tree: &HostTree, names: &Names, record: &Record) -> io::Result<Self> {
        Ok(Self::of(tree.functions()?, names, record))
    }

    /// The inventory of these functions.
    #[must_use]
    pub fn of(functions: Vec<PciFunction>, names: &Names, record: &Record) -> Self {
        let functions: BTreeMap<_, _> = functions.into_iter().map(|f| (f.address, f)).collect();
        let gpus = functions.values().filter(|function| function.is_gpu());
        let gpus = gpus
            .map(|function| gpu(function, &functions, names, record))
            .collect();
        Self {
            functions,
            gpus,
            instances: Vec::new(),
        }
    }

    /// Looks for the processes that use the GPUs.
    pub fn look_for_users(&mut self, tree: &HostTree) {
        let members = self.gpus.iter().flat_map(|gpu| {
            let companions = gpu.companions.iter().copied();
            std::iter::once(gpu.address).chain(companions)
        });
        let found = users(tree, members.filter_map(|at| self.functions.get(&at)));
        for gpu in &mut self.gpus {
            let members = gpu.companions.iter().chain([&gpu.address]);
            let mut users: Vec<_> = members
                .filter_map(|at| found.get(at))
                .flatten()
                .cloned()
                .collect();
            users.sort();
            users.dedup();
            gpu.users = users;
        }
    }

    /// Adds what NVML says of GPUs. What is known of another device at the same address counts for
    /// nothing.
    pub(super) fn know(&mut self, known: &BTreeMap<PciAddress, NvmlGpu>) {
        for gpu in &mut self.gpus {
            let ids = self
                .functions
                .get(&gpu.address)
                .map(|f| (f.vendor, f.device));
            let said = known.get(&gpu.address);
            let Some(said) = said.filter(|said| Some(said.ids) == ids) else {
                continue;
            };
            gpu.uuid.clone_from(&said.uuid);
            gpu.mig = said.mig;
            if gpu.name.is_none() {
                gpu.name.clone_from(&said.name);
            }
            if gpu.vram.is_none_or(|vram| vram.source != VramSource::Model) {
                gpu.vram = said.memory.and_then(nvml::vram).or(gpu.vram);
            }
            if gpu.is_divided_by_mig() {
                let parts = said.instances.iter();
                self.instances
                    .extend(parts.map(|part| MigInstance::of(gpu, part)));
            }
        }
    }

    /// The GPUs, in the order of their addresses.
    #[must_use]
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// The parts of GPUs that MIG divides, in the order of the GPUs.
    #[must_use]
    pub fn instances(&self) -> &[MigInstance] {
        &self.instances
    }

    /// The GPU at an address.
    #[must_use]
    pub fn gpu(&self, address: PciAddress) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.address == address)
    }

    /// Any function.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<&PciFunction> {
        self.functions.get(&address)
    }

    /// All functions, in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = &PciFunction> {
        self.functions.values()
    }

    /// All functions of an IOMMU group, bridges too.
    pub fn group(&self, number: u32) -> impl Iterator<Item = &PciFunction> {
        let functions = self.functions.values();
        functions.filter(move |function| function.iommu_group == Some(number))
    }

    /// Whether any device is in an IOMMU group.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        self.functions.values().any(|f| f.iommu_group.is_some())
    }
}

fn gpu(
    function: &PciFunction,
    all: &BTreeMap<PciAddress, PciFunction>,
    names: &Names,
    record: &Record,
) -> Gpu {
    // A virtual function may have the ids of the whole, and has a part of its memory.
    let of_ids = Model::of(function.vendor, function.device);
    let model = of_ids.filter(|_| function.physical_function.is_none());
    let gpu_type = match (function.vgpu_kind(), function.physical_function, of_ids) {
        (Some(kind), ..) => format!("vgpu-{kind}"),
        (None, Some(_), Some(whole)) => format!("{}-vf", whole.gpu_type),
        (None, None, Some(whole)) => whole.gpu_type.to_owned(),
        (None, _, None) => function.ids(),
    };
    let others = all.values().filter(|other| {
        other.address != function.address
            && other.iommu_group.is_some()
            && other.iommu_group == function.iommu_group
    });
    let others: Vec<&PciFunction> = others.collect();
    let companions = others
        .iter()
        .filter(|other| other.address.slot() == function.address.slot() && !other.is_bridge());
    let state = if let Some(quarantine) = record.quarantine_of(function) {
        GpuState::Quarantined {
            reason: quarantine.reason.clone(),
        }
    } else if let Some(tenant) = record.tenant_of(function) {
        let tenant = tenant.clone();
        GpuState::Assigned { tenant }
    } else if function.driver.is_none() || function.is_for_guests() {
        GpuState::Free
    } else {
        GpuState::Host
    };
    Gpu {
        address: function.address,
        gpu_type,
        ids: function.ids(),
        subsystem_ids: format!(
            "{:04x}:{:04x}",
            function.subsystem_vendor, function.subsystem_device
        ),
        name: names.of(function),
        uuid: None,
        vram: vram(function, model),
        mig: None,
        iommu_group: function.iommu_group,
        group_members: others.iter().map(|other| other.address).collect(),
        companions: companions.map(|other| other.address).collect(),
        numa_node: function.numa_node,
        driver: function.driver.clone(),
        reset_methods: function.reset_methods.clone(),
        physical_function: function.physical_function,
        virtual_functions: function.virtual_functions.clone(),
        total_virtual_functions: function.total_virtual_functions,
        vgpu_type: function.vgpu_type,
        mediated_types: function.mediated_types.clone(),
        console: function.boot_vga,
        users: Vec::new(),
        state,
    }
}

/// `vfio-pci`, and those for one kind of device that are named after it (`nvgrace_gpu_vfio_pci`).
#[must_use]
pub fn is_for_guests(driver: &str) -> bool {
    driver == VFIO_PCI || driver.ends_with("_vfio_pci") || driver.ends_with("-vfio-pci")
}

fn vram(function: &PciFunction, model: Option<Model>) -> Option<Vram> {
    let known = |mib: Option<MiB>, source| mib.map(|mib| Vram { mib, source });
    known(model.map(Model::vram), VramSource::Model)
        .or_else(|| known(function.driver_vram, VramSource::Driver))
        .or_else(|| {
            // Emulated displays have one of some KiB.
            let region = function.largest_prefetchable().map(MiB::from_bytes);
            known(region.filter(|mib| mib.0 > 0), VramSource::Region)
        })
}

impl Gpu {
    /// Whether a job that asks for `wanted` means it: by its type, its maker, its ids, or the type of
    /// which this is a variant (`h100` of `h100-nvl`). Who names a model means no part of one.
    #[must_use]
    pub fn is_type(&self, wanted: &str) -> bool {
        let wanted = wanted.to_ascii_lowercase();
        let variant = self.gpu_type.strip_prefix(&wanted).is_some_and(|rest| {
            let is_whole = self.physical_function.is_none();
            rest.is_empty() || is_whole && rest.starts_with('-')
        });
        let vendor = self.ids.split(':').next();
        let vendor = vendor.and_then(|id| u16::from_str_radix(id, 16).ok());
        variant || self.ids == wanted || vendor.and_then(maker).is_some_and(|m| m == wanted)
    }

    /// Whether MIG divides it. What another driver has was divided when it was asked, and nobody knows whether it
    /// still is.
    #[must_use]
    pub fn is_divided_by_mig(&self) -> bool {
        self.mig == Some(true) && self.state == GpuState::Host
    }

    /// What it is, in few words.
    #[must_use]
    pub fn label(&self) -> String {
        let vram = self.vram.map(|vram| format!(", {vram}"));
        format!("{}{}", self.gpu_type, vram.unwrap_or_default())
    }
}

/// An amount of memory in GiB where it is a whole number of them.
pub(crate) fn gib(mib: MiB) -> String {
    if mib.0 != 0 && mib.0.is_multiple_of(1024) {
        format!("{} GiB", mib.0 / 1024)
    } else {
        mib.to_string()
    }
}

/// What devices are called: the database `pci.ids`, which Debian has in the package of that name and
/// others in `hwdata`.
#[derive(Debug, Default)]
pub struct Names(Option<Database>);

impl Names {
    /// The host's database; none where it has none, or one that cannot be read.
    #[must_use]
    pub fn installed() -> Self {
        let read = Database::read();
        if let Err(error) = &read {
            tracing::debug!(%error, "devices have no names: no pci.ids");
        }
        Self(read.ok())
    }

    /// No names at all.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    fn of(&self, function: &PciFunction) -> Option<String> {
        let vendor = self.0.as_ref()?.vendors.get(&function.vendor)?;
        let device = vendor.devices.get(&function.device)?;
        Some(format!("{} {}", vendor.name, device.name))
    }
}
