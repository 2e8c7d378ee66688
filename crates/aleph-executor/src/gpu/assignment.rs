//! Giving GPUs to tenants and taking them back.

use super::address::PciAddress;
use super::choice::{Allowed, ChosenGroup, choose};
use super::error::{DeviceFault, GpuError, HostFault, Trouble};
use super::group::{
    Look, clean, expect_nobody, expect_unused, make_ready, remaining, take_node_back, there,
    undo_all,
};
use super::inventory::{Inventory, Names, VFIO_PCI};
use super::nvml::{Asked, Asks, LIMIT, Nvml};
use super::record::{
    OpenRecord, Prior, Quarantine, Record, RecordFolder, Taken, TakenFunction, Tenant,
};
use super::sysfs::HostTree;
use super::users::is_nvml_reader;
use crate::failpoint::pass;
use aleph_types::{GpuRequest, HugePages};
use std::io;
use std::time::{Duration, Instant, SystemTime};

/// What an operator decides about GPUs: `enable_gpu` and what goes with it in `[executor.qemu]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuConfig {
    /// `enable_gpu`: whether jobs can have GPUs at all.
    pub enabled: bool,
    /// `gpu_devices` and `iommu_group`: which ones.
    pub allowed: Allowed,
    /// `vfio_driver`: the driver that gives them to guests.
    pub driver: String,
    /// `huge_pages`: the pages of the memory of jobs that have some.
    pub huge_pages: Option<HugePages>,
    /// `gpu_rom`: whether the firmware of a guest sees the ROMs of its devices.
    pub rom: bool,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            allowed: Allowed::default(),
            driver: VFIO_PCI.into(),
            huge_pages: None,
            rom: true,
        }
    }
}

/// How long a person waits for another process that changes who has which GPUs: longer than a reset of a few
/// devices takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that asks NVML may have GPUs open: it is killed before that.
const READING: Duration = LIMIT.saturating_add(Duration::from_secs(2));
const LOOK: Duration = Duration::from_millis(50);

/// The GPUs of a host, and the record of who has which. Any number of nodes of the host may have one.
///
/// Everything here blocks: a reset takes up to some seconds.
#[derive(Debug)]
pub struct Gpus {
    tree: HostTree,
    names: Names,
    config: GpuConfig,
    folder: RecordFolder,
    nvml: Option<Asked>,
    patience: Duration,
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
    /// The GPUs of the host in `tree`. Nothing is read or made yet.
    #[must_use]
    pub fn new(tree: HostTree, config: GpuConfig) -> Self {
        Self {
            folder: RecordFolder::new(&tree.record),
            tree,
            names: Names::installed(),
            config,
            nvml: None,
            patience: PATIENCE,
        }
    }

    /// The same for whoever waits so long for another process that changes who has which.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same, with what NVML says of them.
    #[must_use]
    pub fn asking(self, nvml: impl Nvml + 'static) -> Self {
        let nvml = Some(Asked::new(Box::new(nvml)));
        Self { nvml, ..self }
    }

    /// What there is, and who has it.
    ///
    /// # Errors
    /// Where the host's devices or the record cannot be read.
    pub fn inventory(&self) -> Result<Inventory, GpuError> {
        self.learn(Asks::WhatIsNew)?;
        self.inventory_with(&self.read()?)
    }

    /// Asks NVML, where that has something to say that is not known. Nobody waits for the record then.
    fn learn(&self, asks: Asks) -> Result<(), GpuError> {
        if let Some(nvml) = &self.nvml {
            let record = Record::default();
            let inventory = Inventory::read(&self.tree, &Names::none(), &record);
            nvml.learn(&inventory.map_err(GpuError::Inventory)?, asks);
        }
        Ok(())
    }

    /// What an operator decided.
    #[must_use]
    pub fn config(&self) -> &GpuConfig {
        &self.config
    }

    fn inventory_with(&self, record: &Record) -> Result<Inventory, GpuError> {
        let mut inventory =
            Inventory::read(&self.tree, &self.names, record).map_err(GpuError::Inventory)?;
        if let Some(nvml) = &self.nvml {
            nvml.tell(&mut inventory);
        }
        inventory.look_for_users(&self.tree);
        Ok(inventory)
    }

    /// The same once no process asks NVML: `aleph gpu ls` has all GPUs in use for a moment. One that does not
    /// come to an end has them in use.
    fn inventory_unread(&self, record: &Record) -> Result<Inventory, GpuError> {
        let end = Instant::now() + READING;
        loop {
            let inventory = self.inventory_with(record)?;
            let mut users = inventory.gpus().iter().flat_map(|gpu| &gpu.users);
            let is_read = users.any(|user| is_nvml_reader(&self.tree, user.pid));
            if !is_read || Instant::now() >= end {
                return Ok(inventory);
            }
            std::thread::sleep(LOOK);
        }
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

    /// Sees that a job could have what it asks for, now. Nothing is kept for it.
    ///
    /// # Errors
    /// As [`assign`](Self::assign), as far as looking tells.
    pub fn admit(&self, request: &GpuRequest) -> Result<(), GpuError> {
        self.expect_enabled()?;
        self.learn(Asks::OfWhole)?;
        let inventory = self.inventory_unread(&self.read()?)?;
        choose(&inventory, &self.config.allowed, request)?;
        Ok(())
    }

    fn expect_enabled(&self) -> Result<(), GpuError> {
        match self.config.enabled {
            true => self.expect_passthrough(),
            false => Err(GpuError::Disabled),
        }
    }

    /// Gives a tenant GPUs: chosen, recorded, bound to the driver for guests, reset and checked. Where
    /// one fails that, it is put in quarantine and others are tried. A tenant that has some already
    /// gets these again, made ready again, unless a process uses them.
    ///
    /// # Errors
    /// Where jobs are given none, where the host can give no devices to guests, or none is left that
    /// fits. Nothing is changed then but what is in quarantine.
    pub fn assign(&self, tenant: &Tenant, request: &GpuRequest) -> Result<Vec<Taken>, GpuError> {
        self.expect_enabled()?;
        self.learn(Asks::OfWhole)?;
        let mut open = self.open()?;
        self.take_back_of_earlier_boots(&mut open);
        // Each turn but the last puts a GPU in quarantine or takes back too few, so there are no more
        // of them than GPUs, and one.
        loop {
            let recorded = open.record.tenants.get(tenant).cloned();
            // A guest may have had those that are recorded, and none those that are chosen now.
            let used = recorded.is_some();
            let taken = match recorded {
                Some(taken) => {
                    expect_unused(&self.tree, &open.record, tenant, Look::All)?;
                    let gpus: usize = taken.iter().map(|group| group.gpus.len()).sum();
                    let stale = is_of_another_boot(&taken, &self.tree.boot());
                    if stale || u32::try_from(gpus) != Ok(request.count) {
                        // A crash came while others were to be tried; or the host booted, and they could not
                        // be taken back before.
                        self.give_back(&mut open, tenant)?;
                        continue;
                    }
                    taken
                }
                None => self.choose(&mut open, tenant, request)?,
            };
            pass("gpu.record", "after");
            let driver = &self.config.driver;
            let trouble = taken
                .iter()
                .find_map(|group| Some((group, make_ready(&self.tree, group, driver).err()?)));
            let Some((group, trouble)) = trouble else {
                return Ok(taken);
            };
            match trouble {
                Trouble::Device(fault) => {
                    self.quarantine(&mut open, tenant, group.group, &fault)?;
                    self.let_go(&mut open, tenant, used)?;
                }
                Trouble::Host(fault) => {
                    // Where that does not go either, they stay recorded, and are taken back later.
                    self.let_go(&mut open, tenant, used)?;
                    return Err(fault.into());
                }
            }
        }
    }

    /// Chooses and records.
    fn choose(
        &self,
        open: &mut OpenRecord,
        tenant: &Tenant,
        request: &GpuRequest,
    ) -> Result<Vec<Taken>, GpuError> {
        let inventory = self.inventory_unread(&open.record)?;
        let chosen = choose(&inventory, &self.config.allowed, request)?;
        let boot = self.tree.boot();
        let taken = chosen.iter().map(|g| taken_of(g, &inventory, &boot));
        let taken: Vec<Taken> = taken.collect();
        open.record.tenants.insert(tenant.clone(), taken.clone());
        open.save().map_err(recording("write"))?;
        Ok(taken)
    }

    /// Takes a tenant's GPUs back once its guest has ended: each group is reset and checked, and then
    /// the host's, or in quarantine. A tenant without any is none to take from.
    ///
    /// # Errors
    /// Where a process still uses one, before anything is changed; where the host does not let it be
    /// done, or the record cannot be written: what is not taken back stays recorded.
    pub fn release(&self, tenant: &Tenant) -> Result<Released, GpuError> {
        if !self.read()?.tenants.contains_key(tenant) {
            return Ok(Released::default());
        }
        let mut open = self.open()?;
        self.take_back(&mut open, tenant)
    }

    /// Takes a GPU back, with all that its tenant has, from a node that is no more: its own takes back
    /// what it gave by itself. The tenant, whose guest must have ended, is told by whoever asks for this.
    ///
    /// # Errors
    /// [`GpuError::NotAssigned`] where nobody has it; else as [`release`](Self::release).
    pub fn release_device(&self, address: PciAddress) -> Result<Released, GpuError> {
        let mut open = self.open()?;
        let now = self.tree.read(address);
        let Some(tenant) = open.record.tenant_at(address, now.as_ref()).cloned() else {
            return Err(GpuError::NotAssigned { address });
        };
        self.take_back(&mut open, &tenant)
    }

    /// Takes back the GPUs of the jobs of a node that do not live any more, and those of an earlier boot
    /// of the host, whoever's they were: what a daemon does that starts.
    ///
    /// # Errors
    /// As [`release`](Self::release), the first of them; it goes on with the other tenants.
    pub fn recover(
        &self,
        node: &str,
        lives: impl Fn(&Tenant) -> bool,
    ) -> Result<Released, GpuError> {
        let (mut all, mut failed) = (Released::default(), None);
        if self.read()?.tenants.is_empty() {
            return Ok(all);
        }
        let (mut open, boot) = (self.open()?, self.tree.boot());
        let tenants: Vec<Tenant> = open
            .record
            .tenants
            .iter()
            .filter(|(tenant, taken)| {
                let dead = tenant.node == node && !lives(tenant);
                dead || is_of_another_boot(taken, &boot)
            })
            .map(|(tenant, _)| tenant.clone())
            .collect();
        for tenant in tenants {
            match self.take_back(&mut open, &tenant) {
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

    /// No guest outlives its host's boot, so what was recorded in an earlier one is nobody's any more.
    fn take_back_of_earlier_boots(&self, open: &mut OpenRecord) {
        let boot = self.tree.boot();
        let tenants = open.record.tenants.iter();
        let tenants: Vec<Tenant> = tenants
            .filter(|(_, taken)| is_of_another_boot(taken, &boot))
            .map(|(tenant, _)| tenant.clone())
            .collect();
        for tenant in tenants {
            if let Err(error) = self.take_back(open, &tenant) {
                tracing::warn!(%error, %tenant, "GPUs of an earlier boot are not taken back");
            }
        }
    }

    fn take_back(&self, open: &mut OpenRecord, tenant: &Tenant) -> Result<Released, GpuError> {
        expect_unused(&self.tree, &open.record, tenant, Look::ForGuests)?;
        self.give_back(open, tenant)
    }

    fn give_back(&self, open: &mut OpenRecord, tenant: &Tenant) -> Result<Released, GpuError> {
        self.let_go(open, tenant, true)
    }

    /// Gives a tenant's groups back, cleaned where a guest may have used them.
    fn let_go(
        &self,
        open: &mut OpenRecord,
        tenant: &Tenant,
        used: bool,
    ) -> Result<Released, GpuError> {
        let mut released = Released::default();
        let groups = open.record.tenants.get(tenant).cloned().unwrap_or_default();
        let boot = self.tree.boot();
        for group in groups {
            let left = match group.boot == boot {
                true => group.clone(),
                false => left_of(&self.tree, &group),
            };
            let cleaned = match used {
                true => clean(&self.tree, &left),
                false => Ok(()),
            };
            match cleaned.and_then(|()| undo_all(&self.tree, &left)) {
                Ok(()) => {
                    open.record.remove(tenant, group.group);
                    open.save().map_err(recording("write"))?;
                    released.returned.extend(left.gpus);
                }
                Err(Trouble::Host(fault)) => return Err(fault.into()),
                Err(Trouble::Device(fault)) => {
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

    /// Moves a group from its tenant into quarantine. It stays bound to what it is bound to: a driver of
    /// the host that meets a device which does not answer can take the host down with it.
    fn quarantine(
        &self,
        open: &mut OpenRecord,
        tenant: &Tenant,
        group: u32,
        fault: &DeviceFault,
    ) -> Result<String, GpuError> {
        let reason = fault.to_string();
        if let Some(taken) = open.record.remove(tenant, group) {
            take_node_back(&self.tree, &taken);
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

    /// Ends the quarantine that a GPU is in, with all of its group, once all of that answers and can be
    /// reset: the host has it back then. What was removed from the host leaves quarantine too.
    ///
    /// # Errors
    /// Where it is in none, or still fails: it stays there.
    pub fn end_quarantine(&self, address: PciAddress) -> Result<(), GpuError> {
        let mut open = self.open()?;
        let now = self.tree.read(address);
        let Some(quarantine) = open.record.quarantine_at(address, now.as_ref()).cloned() else {
            return Err(GpuError::NotQuarantined { address });
        };
        let of = std::slice::from_ref(&quarantine.taken);
        expect_nobody(&self.tree, of, "quarantine", Look::ForGuests)?;
        let ended = remaining(&self.tree, &quarantine.taken)
            .map_err(Trouble::from)
            .and_then(|group| {
                clean(&self.tree, &group)?;
                undo_all(&self.tree, &group)
            });
        match ended {
            Ok(()) => {}
            Err(Trouble::Device(source)) => {
                return Err(GpuError::StillFaulty { address, source });
            }
            Err(Trouble::Host(fault)) => return Err(fault.into()),
        }
        open.record.quarantines.retain(|other| *other != quarantine);
        open.save().map_err(recording("write"))
    }

    fn read(&self) -> Result<Record, GpuError> {
        self.folder.read().map_err(recording("read"))
    }

    fn open(&self) -> Result<OpenRecord, GpuError> {
        self.folder
            .lock(self.patience)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => HostFault::Busy.into(),
                _ => recording("read")(error),
            })
    }
}

/// What there is of a group that was taken in an earlier boot. What is gone is nobody's, and no fault of it: it
/// was removed, or is to be made anew, as the parts of a GPU are.
fn left_of(tree: &HostTree, group: &Taken) -> Taken {
    let left = there(tree, group);
    if left.functions.len() < group.functions.len() {
        tracing::warn!(gpus = ?group.gpus, "GPUs of an earlier boot are gone, and forgotten");
    }
    left
}

fn is_of_another_boot(taken: &[Taken], boot: &str) -> bool {
    taken.iter().any(|group| group.boot != boot)
}

fn recording(operation: &'static str) -> impl Fn(io::Error) -> GpuError {
    move |source| GpuError::Record { operation, source }
}

/// What is recorded of a group before it is taken.
fn taken_of(group: &ChosenGroup, inventory: &Inventory, boot: &str) -> Taken {
    let functions = group.functions.iter().filter_map(|address| {
        let function = inventory.function(*address)?;
        Some(TakenFunction {
            address: *address,
            vendor: function.vendor,
            device: function.device,
            prior: Prior {
                driver: function.driver.clone(),
                driver_override: function.driver_override.clone(),
                vgpu: function.vgpu_kind(),
            },
        })
    });
    Taken {
        boot: boot.to_owned(),
        group: group.number,
        gpus: group.gpus.clone(),
        functions: functions.collect(),
    }
}
