//! Giving GPUs to tenants and taking them back.

use super::address::PciAddress;
use super::binding::{apply, check, reset, undo};
use super::choice::{Allowed, ChosenGroup, choose, host_owned};
use super::error::{DeviceFault, GpuError};
use super::function::PciFunction;
use super::inventory::{Inventory, Names, VFIO_PCI};
use super::record::{OpenRecord, Prior, Quarantine, Record, RecordFolder, Taken, TakenFunction};
use super::sysfs::HostTree;
use super::users::users;
use crate::failpoint::pass;
use aleph_types::GpuRequest;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// What an operator decides about GPUs: `enable_gpu` and what goes with it in `[executor.qemu]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuConfig {
    /// `enable_gpu`: whether jobs can have GPUs at all.
    pub enabled: bool,
    /// `gpu_devices` and `iommu_group`: which ones.
    pub allowed: Allowed,
    /// `vfio_driver`: the driver that gives them to guests.
    pub driver: String,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            allowed: Allowed::default(),
            driver: VFIO_PCI.into(),
        }
    }
}

/// The GPUs of a host, and the record of who has which.
///
/// Everything here blocks: a reset takes up to some seconds.
#[derive(Debug)]
pub struct Gpus {
    tree: HostTree,
    names: Names,
    config: GpuConfig,
    folder: RecordFolder,
}

/// What became of a tenant's GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Those that the host has back.
    pub returned: Vec<PciAddress>,
    /// Those that failed, with how.
    pub quarantined: Vec<(PciAddress, String)>,
}

impl Gpus {
    /// The GPUs of the host in `tree`, with the record in the folder `gpu` of the state folder `state`.
    /// Nothing is read or made yet.
    #[must_use]
    pub fn new(tree: HostTree, state: &Path, config: GpuConfig) -> Self {
        Self {
            tree,
            names: Names::installed(),
            config,
            folder: RecordFolder::new(state),
        }
    }

    /// What there is, and who has it.
    ///
    /// # Errors
    /// Where the host's devices or the record cannot be read.
    pub fn inventory(&self) -> Result<Inventory, GpuError> {
        let record = self.folder.read().map_err(recording("read"))?;
        self.inventory_with(&record)
    }

    /// What an operator decided.
    #[must_use]
    pub fn config(&self) -> &GpuConfig {
        &self.config
    }

    fn inventory_with(&self, record: &Record) -> Result<Inventory, GpuError> {
        let mut inventory =
            Inventory::read(&self.tree, &self.names, record).map_err(GpuError::Inventory)?;
        inventory.look_for_users(&self.tree);
        Ok(inventory)
    }

    /// Sees that the host can give devices to guests at all.
    ///
    /// # Errors
    /// Without an IOMMU, or without the driver for guests.
    pub fn expect_passthrough(&self) -> Result<(), GpuError> {
        if !self.tree.has_iommu() {
            let amd = self.tree.is_amd();
            return Err(GpuError::NoIommu { amd });
        }
        let driver = &self.config.driver;
        if !self.tree.driver(driver).is_dir() {
            let driver = driver.clone();
            return Err(GpuError::NoVfio { driver });
        }
        Ok(())
    }

    /// Gives a tenant GPUs: chosen, recorded, bound to the driver for guests, reset and checked. Where
    /// one fails that, it is put in quarantine and others are tried. A tenant that has some already
    /// gets these again, made ready again as far as they are not.
    ///
    /// # Errors
    /// Where the host can give no devices to guests, or none is left that fits. Nothing is changed then
    /// but what is in quarantine.
    pub fn assign(&self, tenant: &str, request: &GpuRequest) -> Result<Vec<Taken>, GpuError> {
        self.expect_passthrough()?;
        let mut open = self.open()?;
        // Each turn but the last puts a GPU in quarantine, so there are no more than GPUs.
        loop {
            let taken = match open.record.tenants.get(tenant) {
                Some(taken) => taken.clone(),
                None => self.choose(&mut open, tenant, request)?,
            };
            pass("gpu.record", "after");
            let fault = taken
                .iter()
                .find_map(|group| Some((group, self.make_ready(group).err()?)));
            let Some((group, fault)) = fault else {
                return Ok(taken);
            };
            self.quarantine(&mut open, tenant, group.group, &fault)?;
            self.give_back(&mut open, tenant)?;
        }
    }

    /// Chooses and records.
    fn choose(
        &self,
        open: &mut OpenRecord,
        tenant: &str,
        request: &GpuRequest,
    ) -> Result<Vec<Taken>, GpuError> {
        let inventory = self.inventory_with(&open.record)?;
        let chosen = choose(&inventory, &self.config.allowed, request)?;
        let taken: Vec<Taken> = chosen.iter().map(|g| taken_of(g, &inventory)).collect();
        open.record.tenants.insert(tenant.to_owned(), taken.clone());
        open.save().map_err(recording("write"))?;
        Ok(taken)
    }

    /// Binds, resets and checks a group. What does not answer is not touched at all.
    fn make_ready(&self, group: &Taken) -> Result<(), DeviceFault> {
        for function in &group.functions {
            self.same(function)?;
            check(&self.tree, function)?;
        }
        for function in &group.functions {
            apply(&self.tree, function.address, &self.config.driver)?;
        }
        self.clean(group)?;
        self.expect_viable(group)
    }

    /// Resets and checks what is bound to the driver for guests; what is not, no guest has touched. A
    /// device that does not answer is not reset: the kernel would wait a minute for it.
    fn clean(&self, group: &Taken) -> Result<(), DeviceFault> {
        for function in &group.functions {
            let now = self.same(function)?;
            if now.driver.as_deref() == Some(&self.config.driver) {
                check(&self.tree, function)?;
                reset(&self.tree, function.address)?;
                pass("gpu.reset", "after");
                check(&self.tree, function)?;
            }
        }
        Ok(())
    }

    /// The function as it is now. After a boot another device may be at its address.
    fn same(&self, taken: &TakenFunction) -> Result<PciFunction, DeviceFault> {
        let now = self.tree.read(taken.address);
        now.filter(|now| (now.vendor, now.device) == (taken.vendor, taken.device))
            .ok_or(DeviceFault::Gone {
                address: taken.address,
            })
    }

    /// Sees that the kernel would give the group to a guest.
    fn expect_viable(&self, group: &Taken) -> Result<(), DeviceFault> {
        let number = group.group;
        let not_viable = |why: String| DeviceFault::NotViable { group: number, why };
        let functions = self.tree.functions();
        let functions = functions.map_err(|error| not_viable(error.to_string()))?;
        let inventory = Inventory::of(functions, &Names::none(), &Record::default());
        let passed = ChosenGroup {
            number,
            gpus: group.gpus.clone(),
            functions: group.functions.iter().map(|f| f.address).collect(),
            numa_node: None,
        };
        if let Some(other) = host_owned(&inventory, &passed) {
            let driver = other.driver.as_deref().unwrap_or_default();
            return Err(not_viable(format!(
                "{} is driven by {driver}",
                other.address
            )));
        }
        let node = self.tree.dev.join("vfio").join(number.to_string());
        match node.exists() {
            true => Ok(()),
            false => Err(not_viable(format!("there is no {}", node.display()))),
        }
    }

    /// Takes a tenant's GPUs back once its guest has ended: each group is reset and checked, and then
    /// the host's, or in quarantine. A tenant without any is none to take from.
    ///
    /// # Errors
    /// Where a process still uses one, before anything is changed; where the record cannot be written.
    pub fn release(&self, tenant: &str) -> Result<Released, GpuError> {
        let mut open = self.open()?;
        self.expect_unused(&open.record, tenant)?;
        self.give_back(&mut open, tenant)
    }

    /// Takes back the GPUs of all tenants that do not live any more: what a daemon does that starts.
    ///
    /// # Errors
    /// As [`release`](Self::release), the first of them; it goes on with the other tenants.
    pub fn recover(&self, lives: impl Fn(&str) -> bool) -> Result<Released, GpuError> {
        let mut open = self.open()?;
        let tenants = open.record.tenants.keys().filter(|tenant| !lives(tenant));
        let (mut all, mut failed) = (Released::default(), None);
        for tenant in tenants.cloned().collect::<Vec<_>>() {
            let released = self
                .expect_unused(&open.record, &tenant)
                .and_then(|()| self.give_back(&mut open, &tenant));
            match released {
                Ok(released) => {
                    all.returned.extend(released.returned);
                    all.quarantined.extend(released.quarantined);
                }
                Err(error) => {
                    tracing::warn!(%error, %tenant, "GPUs of a tenant that is gone are not taken back");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// A driver for guests waits for as long as one has its device open, so nothing is unbound then.
    fn expect_unused(&self, record: &Record, tenant: &str) -> Result<(), GpuError> {
        let groups = record.tenants.get(tenant).into_iter().flatten();
        let functions: Vec<_> = groups
            .flat_map(|group| &group.functions)
            .filter_map(|function| self.tree.read(function.address))
            .filter(|now| now.driver.as_deref() == Some(&self.config.driver))
            .collect();
        let found = users(&self.tree, &functions);
        let Some((address, user)) = found
            .iter()
            .find_map(|(a, users)| Some((a, users.first()?)))
        else {
            return Ok(());
        };
        Err(GpuError::InUse {
            address: *address,
            tenant: tenant.to_owned(),
            user: user.to_string(),
        })
    }

    fn give_back(&self, open: &mut OpenRecord, tenant: &str) -> Result<Released, GpuError> {
        let mut released = Released::default();
        let groups = open.record.tenants.get(tenant).cloned().unwrap_or_default();
        for group in groups {
            match self.clean(&group).and_then(|()| self.undo_all(&group)) {
                Ok(()) => {
                    open.record.remove(tenant, group.group);
                    open.save().map_err(recording("write"))?;
                    released.returned.extend(group.gpus);
                }
                Err(fault) => {
                    let reason = self.quarantine(open, tenant, group.group, &fault)?;
                    let gpus = group.gpus.into_iter();
                    released
                        .quarantined
                        .extend(gpus.map(|gpu| (gpu, reason.clone())));
                }
            }
        }
        Ok(released)
    }

    fn undo_all(&self, group: &Taken) -> Result<(), DeviceFault> {
        let mut functions = group.functions.iter();
        functions.try_for_each(|function| undo(&self.tree, function.address, &function.prior))
    }

    /// Moves a group from its tenant into quarantine. It stays bound to what it is bound to: a driver of
    /// the host that meets a device which does not answer can take the host down with it.
    fn quarantine(
        &self,
        open: &mut OpenRecord,
        tenant: &str,
        group: u32,
        fault: &DeviceFault,
    ) -> Result<String, GpuError> {
        let reason = fault.to_string();
        if let Some(taken) = open.record.remove(tenant, group) {
            tracing::warn!(gpus = ?taken.gpus, %reason, "GPUs are put in quarantine");
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            open.record.quarantines.push(Quarantine {
                taken,
                reason: reason.clone(),
                since: now.map_or(0, |since| since.as_secs()),
            });
        }
        open.save().map_err(recording("write"))?;
        Ok(reason)
    }

    /// Ends the quarantine that a GPU is in, with all of its group, once it can be reset and answers: the
    /// host has it back then. One that was removed from the host leaves quarantine too.
    ///
    /// # Errors
    /// Where it is in none, or still fails: it stays there.
    pub fn end_quarantine(&self, address: PciAddress) -> Result<(), GpuError> {
        let mut open = self.open()?;
        let Some(quarantine) = open.record.quarantine_of(address).cloned() else {
            return Err(GpuError::NotQuarantined { address });
        };
        let group = &quarantine.taken;
        match self.clean(group).and_then(|()| self.undo_all(group)) {
            Ok(()) | Err(DeviceFault::Gone { .. }) => {}
            Err(source) => return Err(GpuError::StillFaulty { address, source }),
        }
        open.record.quarantines.retain(|other| *other != quarantine);
        open.save().map_err(recording("write"))
    }

    fn open(&self) -> Result<OpenRecord, GpuError> {
        self.folder.lock().map_err(recording("read"))
    }
}

fn recording(operation: &'static str) -> impl Fn(io::Error) -> GpuError {
    move |source| GpuError::Record { operation, source }
}

/// What is recorded of a group before it is taken.
fn taken_of(group: &ChosenGroup, inventory: &Inventory) -> Taken {
    let functions = group.functions.iter().filter_map(|address| {
        let function = inventory.function(*address)?;
        Some(TakenFunction {
            address: *address,
            vendor: function.vendor,
            device: function.device,
            prior: Prior {
                driver: function.driver.clone(),
                driver_override: function.driver_override.clone(),
            },
        })
    });
    Taken {
        group: group.number,
        gpus: group.gpus.clone(),
        functions: functions.collect(),
    }
}
