//! Jobs whose guests boot disks of their own: full VMs without an agent of the node's.
//!
//! | what | where | how long |
//! | --- | --- | --- |
//! | root disk | a volume `root-JOB`, a copy of the one that the job names as its image | as long as the job |
//! | machine: its blueprint, UEFI's variables, TPM | `STATE/machines/JOB/` | as long as the job, which says how much of it there is ([`size`](super::size)) |
//! | data | volumes of the account, leased for each start | until somebody removes them |
//! | kernel, where the job names one: [`DiskKernel`] | the node's kernels | opened for each start, the same for all |
//! | seed, from which cloud-init reads | `seed.img` in the VM's place | as long as the VM |
//!
//! The first start makes the machine and the root disk, later ones find them. What a start needs is
//! leased before its VM is made, and given back with its end. Its guest runs as soon as its VMM does; what
//! its cloud-init did it tells later ([`words`](super::words)). A guest that powers itself off ends its job
//! with code 0. [`Node::stop`](super::Node::stop) presses its power button, and after the grace period
//! takes the power away.
//!
//! # What cannot be done
//! What an agent would do: commands, files, health, signals ([`NodeError::NoAgent`]). Nor are such guests
//! written down, for their disks are not in a snapshot.
//!
//! # Failure cases
//! A root disk is removed with its job alone, and one that is gone all the same is not replaced by a new
//! one. An image that is no volume, a volume that another job has and a machine that this host cannot
//! build are reasons of a start that failed; what it had leased is given back. A node that dies between
//! the steps finds a lease without a VM, or half a machine, and ends both when it opens next.

use super::entry::lock;
use super::inner::Inner;
use super::launch::beside;
use super::mounts::{disk_of, owner, serial_of};
use super::size::pids_of;
use super::{DiskKernel, NodeError, Scope};
use crate::cloud_init::{self, CloudInitError, GuestSpec};
use crate::computer::{SPARE_SLOTS, as_asked, spare_beside};
use crate::executor::OwnDisks;
use crate::guest::GuestNetwork;
use crate::hypervisor::{Disk, FullMachine, HostDevices, Nic};
use crate::journal::{JobRecord, RunRecord};
use crate::qemu::machine::{self as qemu, Blueprint, Device, GuestAgent, MachineError, Wanted};
use crate::vm::Vm;
use crate::volumes::{NewVolume, Source, VolumeError};
use aleph_types::{
    Filesystem, Firmware, HugePages, InvalidJob, JobId, JobSpec, MiB, NetworkMode, NodeId, Problem,
    Volume, VolumeAccess, VolumeMount, signal,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The serial numbers of a guest's own disks.
const ROOT: &str = "root";
const SEED: &str = "cidata";

/// What a start of such a job needs.
pub(super) struct Parts {
    machine: FullMachine,
    /// Root and data, in order.
    disks: Vec<Disk>,
    /// What cloud-init is told of the data.
    volumes: Vec<cloud_init::Volume>,
    /// What is booted, where its firmware does not find that on its disks.
    kernel: Option<DiskKernel>,
}

impl Parts {
    /// The digest of the kernel that its job names.
    pub(super) fn kernel_digest(&self) -> Option<String> {
        self.kernel.as_ref().map(|kernel| kernel.digest.clone())
    }

    /// The memory of its machine, and its pages: those of its first start, whatever the node's are by now.
    pub(super) fn memory(&self) -> (MiB, Option<HugePages>) {
        let blueprint = &self.machine.blueprint;
        (blueprint.memory, pages_of(blueprint))
    }
}

/// The pages that a machine was drawn with.
fn pages_of(blueprint: &Blueprint) -> Option<HugePages> {
    blueprint.huge_pages.map(|pages| match pages {
        qemu::HugePages::Size2M => HugePages::Mib2,
        qemu::HugePages::Size1G => HugePages::Gib1,
    })
}

/// How a VM is connected, and what of the host it is given.
type Connections = ((Vec<Nic>, Option<GuestNetwork>), HostDevices);

/// Says so where a job's guest could not be told what the job says.
pub(super) fn check(node: NodeId, job: &JobSpec) -> Result<(), CloudInitError> {
    let volumes = job.volumes.iter().enumerate();
    // As long as those of volumes, so that none is the beginning of another one.
    let volumes = volumes.map(|(n, mount)| told(mount, format!("v{n:016x}"), Filesystem::Ext4));
    guest_of(JobId::from_bits(0), node, job, volumes.collect())?
        .seed()
        .map(drop)
}

/// What the job's guest is told.
fn guest_of(
    id: JobId,
    node: NodeId,
    job: &JobSpec,
    volumes: Vec<cloud_init::Volume>,
) -> Result<GuestSpec, CloudInitError> {
    let mut spec = GuestSpec::of_job(id, node, job)?;
    if let Some(told) = &job.cloud_init {
        spec.ssh_keys.clone_from(&told.ssh_keys);
        spec.packages.clone_from(&told.packages);
        spec.user_data = told.user_data.as_deref().map(Into::into);
    }
    // Also where there is no room for more now: it may be made smaller before it grows, and hears of it once.
    spec.takes_more = true;
    spec.volumes = volumes;
    Ok(spec)
}

fn told(mount: &VolumeMount, serial: String, made: Filesystem) -> cloud_init::Volume {
    cloud_init::Volume {
        serial,
        mount: mount.path.clone(),
        filesystem: match made {
            Filesystem::Xfs => cloud_init::Filesystem::Xfs,
            // One with nothing on it gets what most have; one with something keeps it.
            Filesystem::Ext4 | Filesystem::None => cloud_init::Filesystem::Ext4,
        },
        read_only: mount.read_only,
    }
}

/// The serial number of a volume's disk in the machine of a job that has it.
pub(super) fn serial_in(job: JobId, volume: &Volume) -> String {
    match volume.name == Inner::root_name(job) {
        true => ROOT.into(),
        false => serial_of(volume),
    }
}

/// What a job is started as.
pub(super) fn resolve(spec: &JobSpec, host_boot: &str) -> Result<RunRecord, InvalidJob> {
    spec.validate()?;
    Ok(RunRecord {
        host_boot: host_boot.to_owned(),
        effective: spec.clone(),
        filesystem: String::new(),
        stop_signal: signal::TERM,
        log_base: 0,
        mounts: Vec::new(),
    })
}

/// What a job's machine is drawn as.
pub(super) struct Drawn {
    /// The pages that its memory is in; those that its first start gives it, where it was not started yet.
    pub(super) pages: Option<HugePages>,
    /// How it is built, where it was started.
    blueprint: Option<Blueprint>,
}

impl Drawn {
    /// Says so where the machine cannot begin with this size.
    pub(super) fn check(&self, cpus: u16, memory: MiB) -> Result<(), MachineError> {
        let Some(blueprint) = &self.blueprint else {
            return Ok(());
        };
        blueprint.clone().begin_with(cpus, memory)
    }
}

impl Inner {
    /// How a job's machine is drawn. Once it was started this is as it was then, whatever the node's settings are
    /// by now.
    pub(super) async fn drawn(
        self: &Arc<Self>,
        id: JobId,
        spec: &JobSpec,
    ) -> Result<Drawn, NodeError> {
        let anew = self.pages_of(spec);
        if !spec.has_own_disk() {
            let (pages, blueprint) = (anew, None);
            return Ok(Drawn { pages, blueprint });
        }
        let inner = Arc::clone(self);
        beside("look at the VM's machine", move || {
            let blueprint = inner.blueprint(id)?;
            let pages = blueprint.as_ref().map_or(anew, pages_of);
            Ok(Drawn { pages, blueprint })
        })
        .await
    }

    /// The pages that the memory of a job's machine is in, as far as can be told: those that it was drawn with, or
    /// else those of a first start. It blocks for as long as a small file takes to be read.
    pub(super) fn pages_at_hand(&self, id: JobId, spec: &JobSpec) -> Option<HugePages> {
        let drawn = match spec.has_own_disk() {
            true => self.blueprint(id).ok().flatten(),
            false => None,
        };
        drawn.map_or_else(|| self.pages_of(spec), |drawn| pages_of(&drawn))
    }

    /// The blueprint of a job's machine, which its first start draws.
    fn blueprint(&self, id: JobId) -> Result<Option<Blueprint>, NodeError> {
        let folder = self.machine_folder(id);
        if !folder.exists() {
            return Ok(None);
        }
        let driver = self.executor.full_driver()?;
        let Some(machines) = driver.full() else {
            return Err(crate::executor::ExecutorError::NoFullVms.into());
        };
        Ok(Some(machines.open(&folder)?.blueprint))
    }

    /// Says so where the machine of a job has fewer slots than its next start would need.
    pub(super) async fn check_slots(self: &Arc<Self>, record: &JobRecord) -> Result<(), NodeError> {
        let (inner, record) = (Arc::clone(self), record.clone());
        beside("look at the VM's machine", move || {
            let job = &record.job;
            let Some(mut blueprint) = inner.blueprint(job.id)? else {
                // Its first start draws it with as many as it needs.
                return Ok(());
            };
            let mut devices = vec![Device::Disk(ROOT.into()), Device::Disk(SEED.into())];
            for mount in &job.spec.volumes {
                // One that was removed is told by the start.
                if let Ok(volume) = inner.volumes.named(&job.account, &mount.name) {
                    devices.push(Device::Disk(serial_of(&volume)));
                }
            }
            if job.spec.network.mode != Some(NetworkMode::None) {
                devices.push(Device::Nic([0; 6]));
            }
            for device in &devices {
                blueprint.place(device)?;
            }
            Ok(())
        })
        .await
    }

    fn root_name(id: JobId) -> String {
        format!("root-{}", &id.to_string()[2..])
    }

    fn machines(&self) -> PathBuf {
        self.config.paths.state().join("machines")
    }

    fn machine_folder(&self, id: JobId) -> PathBuf {
        let name = id.to_string();
        self.machines().join(&name[2..])
    }

    /// Removes the halves of machines that a node left which was killed while it made them. What has a
    /// job's name stays, whatever is known of the job.
    pub(super) fn sweep_machines(&self) {
        for entry in std::fs::read_dir(self.machines())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if name.as_encoded_bytes().contains(&b'.')
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(?name, %error, "half a machine stays");
            }
        }
    }

    /// Says so where a volume is the root disk of a job that there is.
    pub(super) fn ensure_no_root(&self, volume: &Volume) -> Result<(), VolumeError> {
        let id = volume.name.strip_prefix("root-");
        let id = id.and_then(|digits| format!("0x{digits}").parse::<JobId>().ok());
        let Some(entry) = id.and_then(|id| lock(&self.jobs).get(id)) else {
            return Ok(());
        };
        let job = entry.job();
        if job.account != volume.account || !job.spec.has_own_disk() {
            return Ok(());
        }
        Err(VolumeError::RootDisk {
            name: volume.name.clone(),
            job: job.name.clone(),
        })
    }

    /// Leases what a start needs, and makes what the first one finds missing.
    pub(super) async fn prepare_disks(
        self: &Arc<Self>,
        record: &JobRecord,
    ) -> Result<Parts, Problem> {
        let job = &record.job;
        // That which its name meant at the first start, whatever it means by now.
        let kernel = job.kernel_digest.as_ref().or(job.spec.kernel.as_ref());
        let kernel = match kernel.filter(|_| job.spec.kernel.is_some()) {
            Some(kernel) => Some(self.disk_kernel(kernel).await?),
            None => None,
        };
        let parts = self.leasing(record, Self::lease).await?;
        Ok(Parts { kernel, ..parts })
    }

    /// Opens the kernel that a job names.
    pub(super) async fn disk_kernel(&self, reference: &str) -> Result<DiskKernel, Problem> {
        let driver = self.executor.full_driver().ok();
        let uncompressed = driver.is_some_and(|driver| driver.wants_uncompressed_kernel());
        self.images.kernel(reference, uncompressed).await
    }

    fn lease(&self, record: &JobRecord) -> Result<Parts, NodeError> {
        let job = &record.job;
        let (spec, owner) = (&job.spec, owner(record));
        let root = Self::root_name(job.id);
        let account = job.account.as_str();
        let exclusive = VolumeAccess::Exclusive;
        let attach = |name: &str| self.volumes.attach(account, name, &owner, exclusive);
        let folder = self.machine_folder(job.id);
        let attached = match attach(&root) {
            // The machine comes after it: a later start makes no other one.
            Err(VolumeError::NoVolume(_)) if folder.exists() => {
                return Err(NodeError::NoRoot(root));
            }
            Err(VolumeError::NoVolume(_)) => {
                self.make_root(account, &root, spec)?;
                attach(&root)?
            }
            attached => attached?,
        };
        let mut disks = vec![disk_of(ROOT.into(), attached.layers)?];
        let mut volumes = Vec::new();
        for mount in &spec.volumes {
            let attached = self.attach(record, mount)?;
            let serial = serial_of(&attached.volume);
            volumes.push(told(mount, serial.clone(), attached.volume.filesystem));
            disks.push(disk_of(serial, attached.layers)?);
        }
        let driver = self.executor.full_driver()?;
        let Some(machines) = driver.full() else {
            return Err(crate::executor::ExecutorError::NoFullVms.into());
        };
        if !folder.exists() {
            let serials = disks.iter().map(|disk| disk.serial.clone().into_owned());
            let spec = self.with_pages(spec);
            let wanted = wanted(&spec, serials.chain([SEED.to_owned()]));
            let above = folder.parent().map(PathBuf::from).unwrap_or_default();
            std::fs::create_dir_all(&above)
                .map_err(|source| machine_error("make a folder for machines", source))?;
            machines.create(&folder, &wanted).map_err(machine)?;
        }
        let mut opened = machines.open(&folder).map_err(machine)?;
        let (cpus, memory) = (spec.resources.cpus, spec.resources.memory);
        // Of the places that it was drawn with, as many as the job has by now.
        opened.blueprint.begin_with(cpus, memory).map_err(machine)?;
        Ok(Parts {
            machine: opened,
            disks,
            volumes,
            kernel: None,
        })
    }

    fn make_root(&self, account: &str, name: &str, spec: &JobSpec) -> Result<(), NodeError> {
        let scope = Scope::Account(account.to_owned());
        let image = self.volumes.find(&scope, &spec.image)?;
        let size = spec.resources.disk.max(image.size);
        // As the configuration says, and as its image is.
        let encrypted = None;
        let new = NewVolume {
            account,
            name,
            encrypted,
        };
        self.volumes
            .clone_of(new, Source::Volume(image.id), Some(size))?;
        Ok(())
    }

    /// Makes the VM of a start that has all its parts.
    pub(super) async fn create_with_disks(
        self: &Arc<Self>,
        record: &JobRecord,
        run: &RunRecord,
        parts: Parts,
        connections: Connections,
    ) -> Result<Vm, NodeError> {
        // Its seed is built, written and synced, which takes its time on a busy disk.
        let (inner, record, run) = (Arc::clone(self), record.clone(), run.clone());
        let make = move || inner.make_with_disks(&record, &run, parts, connections);
        beside("make the VM", make).await
    }

    fn make_with_disks(
        &self,
        record: &JobRecord,
        run: &RunRecord,
        parts: Parts,
        ((nics, network), devices): Connections,
    ) -> Result<Vm, NodeError> {
        let job = &record.job;
        let vm = job.vm.unwrap_or_else(|| self.free_vm_id());
        let mut guest = guest_of(job.id, self.id, &run.effective, parts.volumes)?;
        let nic = network.map(|network| cloud_init::Nic::of_network("eth0", &network));
        guest.networks.extend(nic);
        let seed = guest.seed()?.image()?;
        let mut spec = run.effective.clone();
        spec.resources.pids = Some(pids_of(&spec, self.config.pids));
        let disks = OwnDisks {
            machine: FullMachine {
                devices,
                ..parts.machine
            },
            disks: parts.disks,
            seed: (SEED, seed),
            kernel: parts.kernel,
        };
        Ok(self.executor.create_with_disks(vm, &spec, disks, nics)?)
    }

    /// Removes what lasts as long as a job: its root disk and its machine. Can be done again.
    pub(super) async fn remove_disks(
        self: &Arc<Self>,
        record: &JobRecord,
    ) -> Result<(), NodeError> {
        if !record.job.spec.has_own_disk() {
            self.end_leases(record, false).await;
            return Ok(());
        }
        let (inner, record) = (Arc::clone(self), record.clone());
        let work = tokio::task::spawn_blocking(move || {
            let job = &record.job;
            inner.let_go(&owner(&record), false);
            let scope = Scope::Account(job.account.clone());
            match inner.volumes.find(&scope, &Self::root_name(job.id)) {
                Ok(root) => inner.volumes.remove(root.id, true)?,
                Err(VolumeError::NoVolume(_)) => {}
                Err(error) => return Err(error.into()),
            }
            match std::fs::remove_dir_all(inner.machine_folder(job.id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(machine_error("remove the VM's machine", error))
                }
                _ => Ok(()),
            }
        });
        work.await
            .map_err(|join| machine_error("remove the VM's disks", io::Error::other(join)))?
    }
}

fn machine(error: MachineError) -> NodeError {
    let launch = crate::hypervisor::LaunchError::from(error);
    NodeError::Executor(launch.into())
}

fn machine_error(what: &str, source: io::Error) -> NodeError {
    let what = what.to_owned();
    NodeError::Executor(crate::executor::ExecutorError::Host { what, source })
}

/// The machine that a job asks for, with slots for these disks.
fn wanted(job: &JobSpec, serials: impl Iterator<Item = String>) -> Wanted {
    let asked = as_asked(job);
    let machine = job.machine.clone().unwrap_or_default();
    let devices: Vec<Device> = serials.map(Device::Disk).collect();
    Wanted {
        firmware: match machine.firmware {
            Firmware::Uefi => qemu::Firmware::Uefi {
                secure_boot: machine.secure_boot,
            },
            Firmware::Bios | Firmware::Kernel => qemu::Firmware::Bios,
        },
        display: true,
        agent: GuestAgent::Reports,
        guest_port: true,
        spare_slots: spare_beside(&devices, SPARE_SLOTS + asked.spare_slots),
        devices,
        ..asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;

    #[test]
    fn a_guest_is_told_of_as_many_volumes_as_a_job_can_have() {
        let mut job = JobSpec::new("disk", Vec::new());
        job.volumes = (0..16)
            .map(|n| format!("v{n}:/srv/{n}").parse().unwrap())
            .collect();
        check(NodeId::from_bits(1), &job).unwrap();
        job.volumes[3].path = "/srv/my data".into();
        let error = check(NodeId::from_bits(1), &job).unwrap_err();
        assert_eq!(error.code(), "bad_guest_field", "{error}");
    }
}
