//! Which GPUs a job gets: a pure function of what it asks for and what there is.
//!
//! What is given is whole IOMMU groups: devices of one group can reach one another past the IOMMU,
//! so VFIO gives a group to one guest or to none (kernel documentation, `driver-api/vfio`). In a
//! group with GPUs, these and the other functions in their slots go to the guest, bridges stay
//! with the host, and anything else has to be without a driver or bound to one for guests.

use super::address::PciAddress;
use super::function::PciFunction;
use super::inventory::{Gpu, GpuState, Inventory, gib, is_for_guests};
use super::mig::MigInstance;
use super::users::DeviceUser;
use aleph_types::{GpuRequest, MiB};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What an operator lets jobs have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// The GPUs, by address; all where this is `None`.
    pub devices: Option<BTreeSet<PciAddress>>,
    /// The IOMMU groups, by number; all where this is `None`.
    pub groups: Option<BTreeSet<u32>>,
}

/// One IOMMU group that a job gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenGroup {
    /// Its number.
    pub number: u32,
    /// The GPUs in it.
    pub gpus: Vec<PciAddress>,
    /// What is bound and passed: the GPUs, and the other functions in their slots.
    pub functions: Vec<PciAddress>,
    /// The NUMA node that it is nearest to.
    pub numa_node: Option<u16>,
}

/// Why a GPU cannot be what a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// It is of another type.
    Type,
    /// It has too little memory, or nobody knows how much.
    Vram(Option<MiB>),
    /// The configuration leaves it out.
    NotAllowed,
    /// It failed.
    Quarantined(String),
    /// A tenant has it. Whoever asks for another one is not told which.
    Assigned,
    /// The host shows its console on it.
    Console,
    /// A process uses it.
    InUse(DeviceUser),
    /// Without an IOMMU group it would reach all of the host's memory.
    NoGroup,
    /// What one tenant leaves in it could not be removed.
    NoReset,
    /// The same, since only its whole bus can be reset, and this one, which does not go with it, is there
    /// too.
    SharedReset(PciAddress),
    /// It is divided, and its parts are GPUs of their own.
    Divided(usize),
    /// It is divided by NVIDIA's MIG, which a guest that does not know of it finds set, and cannot use it whole.
    Mig,
    /// It is a part of a GPU that MIG divides, which has no PCI function.
    MigInstance,
    /// It is a part of another one, which is not as it has to be for that.
    PartOf(PciAddress, Box<Misfit>),
    /// A driver gives it to guests as a whole.
    ForGuests(String),
    /// It is to be a vGPU, and nobody has said of which kind.
    NoKind,
    /// Another GPU of its group does not fit.
    Neighbour(PciAddress, Box<Misfit>),
    /// Another device of its group belongs to a driver of the host.
    Shared {
        /// The group.
        group: u32,
        /// The other device.
        with: PciAddress,
        /// What drives it.
        driver: String,
    },
    /// The group has more GPUs than are asked for, or than are still missing: half of it cannot be given.
    HalfGroup {
        /// The group.
        group: u32,
        /// How many GPUs it has.
        has: usize,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type => f.write_str("is of another type"),
            Self::Vram(Some(_)) => f.write_str("has too little memory"),
            Self::Vram(None) => f.write_str("does not show how much memory it has"),
            Self::NotAllowed => f.write_str("is not among gpu_devices and iommu_group"),
            Self::Quarantined(reason) => write!(f, "is in quarantine: {reason}"),
            Self::Assigned => f.write_str("belongs to another job"),
            Self::Console => f.write_str("shows the console of the host"),
            Self::InUse(user) => write!(f, "is in use: {user}"),
            Self::NoGroup => f.write_str("is in no IOMMU group"),
            Self::NoReset => f.write_str("cannot be reset"),
            Self::SharedReset(with) => write!(f, "cannot be reset without {with}, on its bus"),
            Self::Divided(parts) => write!(f, "is divided into {parts} virtual functions"),
            Self::Mig => f.write_str("is divided by MIG: nvidia-smi -mig 0 ends that"),
            Self::MigInstance => f.write_str(
                "is a MIG instance: it reaches a VM only as a vGPU of its maker's host driver",
            ),
            Self::PartOf(whole, why) => write!(f, "is a part of {whole}, which {why}"),
            Self::ForGuests(driver) => write!(f, "is bound to {driver} as a whole"),
            Self::NoKind => {
                f.write_str("has no kind of vGPU yet: its nvidia/current_vgpu_type is 0")
            }
            Self::Neighbour(address, why) => {
                write!(f, "shares its IOMMU group with {address}, which {why}")
            }
            Self::Shared {
                group,
                with,
                driver,
            } => write!(
                f,
                "shares IOMMU group {group} with {with}, which the host's driver {driver} has"
            ),
            Self::HalfGroup { group, has } => write!(
                f,
                "shares IOMMU group {group}, which is given whole or not at all: it has {has} GPUs"
            ),
        }
    }
}

/// Why a job gets no GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoFit {
    /// What was asked for.
    pub request: GpuRequest,
    /// Each GPU of the host with what it is, and why it does not fit; `None` for one that does.
    pub gpus: Vec<(PciAddress, String, Option<Misfit>)>,
    /// The same of each part of one that MIG divides.
    pub instances: Vec<(MigInstance, Misfit)>,
}

impl fmt::Display for NoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuRequest {
            gpu_type,
            vram,
            count,
        } = &self.request;
        let noun = if *count == 1 { "GPU" } else { "GPUs" };
        write!(f, "no {count} {noun}")?;
        if let Some(gpu_type) = gpu_type {
            write!(f, " of type {gpu_type}")?;
        }
        if let Some(vram) = vram {
            write!(f, " with {}", gib(*vram))?;
        }
        if self.gpus.is_empty() {
            return f.write_str(": this host has no GPU");
        }
        let mut separator = ": ";
        for (address, label, misfit) in &self.gpus {
            write!(f, "{separator}{address} ({label}) ")?;
            match misfit {
                Some(misfit) => write!(f, "{misfit}")?,
                None => f.write_str("fits, with too few others")?,
            }
            separator = "; ";
            let parts = self.instances.iter();
            for (part, misfit) in parts.filter(|(part, _)| part.parent == *address) {
                write!(f, "{separator}{} ({part}) {misfit}", part.name())?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for NoFit {}

/// The groups to give for a request: those with as many GPUs as are asked for, on one NUMA node
/// where that is possible, and then on the one where the fewest GPUs are left over.
///
/// # Errors
/// Where there are none, with the reason of each GPU.
pub fn choose(
    inventory: &Inventory,
    allowed: &Allowed,
    request: &GpuRequest,
) -> Result<Vec<ChosenGroup>, NoFit> {
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    let (groups, mut misfits) = fitting(inventory, allowed, request, count);
    pick(&groups, count).ok_or_else(|| {
        let gpus = inventory.gpus().iter();
        let gpus = gpus.map(|gpu| (gpu.address, gpu.label(), misfits.remove(&gpu.address)));
        let parts = inventory.instances().iter();
        NoFit {
            request: request.clone(),
            gpus: gpus.collect(),
            instances: parts
                .map(|part| (part.clone(), part.misfit(request)))
                .collect(),
        }
    })
}

/// Why no job could have a GPU now, whatever it asks for: those that are not named here can be given.
#[must_use]
pub fn misfits(inventory: &Inventory, allowed: &Allowed) -> BTreeMap<PciAddress, Misfit> {
    fitting(inventory, allowed, &GpuRequest::default(), usize::MAX).1
}

/// The groups that can be given for a request of `count` GPUs, and why the GPUs of others cannot.
fn fitting(
    inventory: &Inventory,
    allowed: &Allowed,
    request: &GpuRequest,
    count: usize,
) -> (Vec<ChosenGroup>, BTreeMap<PciAddress, Misfit>) {
    let mut misfits: BTreeMap<PciAddress, Misfit> = BTreeMap::new();
    for gpu in inventory.gpus() {
        if let Some(misfit) = misfit_alone(gpu, inventory, allowed, request) {
            misfits.insert(gpu.address, misfit);
        }
    }
    let mut groups = Vec::new();
    for number in numbers(inventory) {
        let group = group(inventory, number);
        match misfit_together(inventory, &group, &misfits) {
            None if group.gpus.len() > count => {
                let has = group.gpus.len();
                let half = |gpu: &PciAddress| {
                    let group = group.number;
                    (*gpu, Misfit::HalfGroup { group, has })
                };
                misfits.extend(group.gpus.iter().map(half));
            }
            None => groups.push(group),
            Some(misfit) => {
                for gpu in &group.gpus {
                    // Its own reason says more than its neighbour's, unless it is of a neighbour too.
                    let own = misfits.entry(*gpu).or_insert_with(|| misfit.clone());
                    if let (Misfit::SharedReset(_), Misfit::Shared { .. }) = (&*own, &misfit) {
                        own.clone_from(&misfit);
                    }
                }
            }
        }
    }
    (groups, misfits)
}

/// What is wrong with a GPU whatever stands beside it. What it is comes before who has it.
fn misfit_alone(
    gpu: &Gpu,
    inventory: &Inventory,
    allowed: &Allowed,
    request: &GpuRequest,
) -> Option<Misfit> {
    let wanted_type = request.gpu_type.as_deref();
    if wanted_type.is_some_and(|wanted| !gpu.is_type(wanted)) {
        return Some(Misfit::Type);
    }
    let vram = gpu.vram.map(|vram| vram.mib);
    if request.vram.is_some_and(|wanted| vram < Some(wanted)) {
        return Some(Misfit::Vram(vram));
    }
    let device_allowed = allowed
        .devices
        .as_ref()
        .is_none_or(|devices| devices.contains(&gpu.address));
    let group_allowed = allowed.groups.as_ref().is_none_or(|groups| {
        gpu.iommu_group
            .is_some_and(|number| groups.contains(&number))
    });
    if !device_allowed || !group_allowed {
        return Some(Misfit::NotAllowed);
    }
    match &gpu.state {
        GpuState::Quarantined { reason } => return Some(Misfit::Quarantined(reason.clone())),
        GpuState::Assigned { .. } => return Some(Misfit::Assigned),
        GpuState::Free | GpuState::Host => {}
    }
    if gpu.console {
        return Some(Misfit::Console);
    }
    if let Some(user) = gpu.users.first() {
        return Some(Misfit::InUse(user.clone()));
    }
    if gpu.iommu_group.is_none() {
        return Some(Misfit::NoGroup);
    }
    if let Some(whole) = gpu.physical_function
        && let Some(why) = misfit_of_whole(whole, inventory)
    {
        return Some(Misfit::PartOf(whole, Box::new(why)));
    }
    match gpu.vgpu_type {
        Some(0) => return Some(Misfit::NoKind),
        // Its driver clears it.
        Some(_) => return None,
        None => {}
    }
    let parts = gpu.virtual_functions.len();
    if parts > 0 {
        return Some(Misfit::Divided(parts));
    }
    if gpu.is_divided_by_mig() {
        return Some(Misfit::Mig);
    }
    let Some(function) = inventory
        .function(gpu.address)
        .filter(|function| !function.reset_methods.is_empty())
    else {
        return Some(Misfit::NoReset);
    };
    function
        .kept_from_hot_reset_by(inventory.functions())
        .map(Misfit::SharedReset)
}

/// Why no part of a GPU can be given: the whole belongs to somebody, or to nobody.
fn misfit_of_whole(whole: PciAddress, inventory: &Inventory) -> Option<Misfit> {
    match inventory.gpu(whole).map(|gpu| &gpu.state) {
        Some(GpuState::Assigned { .. }) => return Some(Misfit::Assigned),
        Some(GpuState::Quarantined { reason }) => {
            return Some(Misfit::Quarantined(reason.clone()));
        }
        Some(GpuState::Free | GpuState::Host) | None => {}
    }
    // The kernel lets nobody have one without a token of whoever has the whole (VFIO's `vf_token`).
    let driver = inventory.function(whole)?.driver.clone()?;
    is_for_guests(&driver).then_some(Misfit::ForGuests(driver))
}

/// The numbers of the groups that have GPUs.
fn numbers(inventory: &Inventory) -> BTreeSet<u32> {
    let gpus = inventory.gpus().iter();
    gpus.filter_map(|gpu| gpu.iommu_group).collect()
}

/// What would be given with a group.
fn group(inventory: &Inventory, number: u32) -> ChosenGroup {
    let members: Vec<&PciFunction> = inventory.group(number).collect();
    let gpus: Vec<&&PciFunction> = members.iter().filter(|f| f.is_gpu()).collect();
    let slots: BTreeSet<_> = gpus.iter().map(|gpu| gpu.address.slot()).collect();
    let passed = members
        .iter()
        .filter(|f| !f.is_bridge() && slots.contains(&f.address.slot()));
    ChosenGroup {
        number,
        gpus: gpus.iter().map(|gpu| gpu.address).collect(),
        functions: passed.map(|function| function.address).collect(),
        numa_node: gpus.iter().find_map(|gpu| gpu.numa_node),
    }
}

/// Why a group as a whole cannot be given.
fn misfit_together(
    inventory: &Inventory,
    group: &ChosenGroup,
    misfits: &BTreeMap<PciAddress, Misfit>,
) -> Option<Misfit> {
    if let Some(other) = host_owned(inventory, group) {
        return Some(Misfit::Shared {
            group: group.number,
            with: other.address,
            driver: other.driver.clone().unwrap_or_default(),
        });
    }
    let unfit = group
        .gpus
        .iter()
        .find_map(|gpu| Some((*gpu, misfits.get(gpu)?)));
    unfit.map(|(gpu, why)| Misfit::Neighbour(gpu, Box::new(why.clone())))
}

/// A device of the group that is not passed, and that a driver of the host has: with it the kernel gives
/// the group to nobody.
pub(crate) fn host_owned<'a>(
    inventory: &'a Inventory,
    group: &ChosenGroup,
) -> Option<&'a PciFunction> {
    let mut others = inventory
        .group(group.number)
        .filter(|other| !other.is_bridge() && !group.functions.contains(&other.address));
    others.find(|other| other.driver.is_some() && !other.is_for_guests())
}

/// Groups that have `count` GPUs together.
fn pick(groups: &[ChosenGroup], count: usize) -> Option<Vec<ChosenGroup>> {
    let mut nodes: BTreeMap<Option<u16>, Vec<&ChosenGroup>> = BTreeMap::new();
    for group in groups {
        nodes.entry(group.numa_node).or_default().push(group);
    }
    let gpus_of = |groups: &[&ChosenGroup]| groups.iter().map(|g| g.gpus.len()).sum::<usize>();
    let mut by_node: Vec<Vec<&ChosenGroup>> = nodes.into_values().collect();
    by_node.sort_by_key(|groups| gpus_of(groups));
    let on_one_node = by_node.iter().find_map(|groups| exactly(groups, count));
    let found = on_one_node.or_else(|| {
        // As few nodes as possible: the fullest first.
        let all: Vec<&ChosenGroup> = by_node.iter().rev().flatten().copied().collect();
        exactly(&all, count)
    })?;
    Some(found.into_iter().cloned().collect())
}

/// The first groups that have exactly `count` GPUs together: for each sum that can be had, the groups
/// that had it first.
fn exactly<'a>(groups: &[&'a ChosenGroup], count: usize) -> Option<Vec<&'a ChosenGroup>> {
    let mut sums: BTreeMap<usize, Vec<&ChosenGroup>> = BTreeMap::from([(0, Vec::new())]);
    for &group in groups {
        let more: Vec<_> = sums
            .iter()
            .map(|(sum, chosen)| (sum + group.gpus.len(), chosen))
            .filter(|(sum, _)| *sum <= count && !sums.contains_key(sum))
            .map(|(sum, chosen)| (sum, [chosen.as_slice(), &[group]].concat()))
            .collect();
        sums.extend(more);
    }
    sums.remove(&count)
}
