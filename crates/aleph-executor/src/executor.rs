//! The node's executor: it admits jobs and composes images, kernels, drivers and places into
//! VMs.

use crate::accel::{Accelerator, Device};
use crate::capacity::{self, Capacity, Shortage};
use crate::cgroup::CgroupTree;
use crate::cloud_init::Secret;
use crate::computer;
use crate::drivers::{Drivers, Hypervisor, HypervisorError};
use crate::firecracker::jail::JailConfig;
use crate::gpu::GpuConfig;
use crate::guest::{ExecRequest, SetupRequest, UpperKind};
use crate::host;
use crate::hypervisor::{
    Disk, Driver, FullMachine, HostDevices, Kernel, LaunchError, Machine, Memory, Nic,
};
use crate::lifecycle::Timeouts;
use crate::node::DiskKernel;
use crate::paths::Paths;
use crate::place::{Place, PlaceError};
use crate::seed_file::write_seed;
use crate::sweep::{Grounds, sweep};
use crate::vm::{Begin, Ending, Origin, Vm, VmSpec};
use aleph_types::{Classify, ErrorClass, InvalidJob, JobId, JobSpec, VmId, signal};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How a node runs VMs.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// What runs VMs.
    pub hypervisor: Hypervisor,
    /// The QEMU program, by name or by path.
    pub qemu: PathBuf,
    /// The accelerator; `None` takes the best that works.
    pub accelerator: Option<Accelerator>,
    /// How Firecracker is run and locked up.
    pub firecracker: JailConfig,
    /// Which GPUs jobs may have.
    pub gpu: GpuConfig,
    /// How long each stage of a VM's life may take.
    pub timeouts: Timeouts,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            hypervisor: Hypervisor::Auto,
            qemu: "qemu-system-x86_64".into(),
            accelerator: None,
            firecracker: JailConfig::default(),
            gpu: GpuConfig::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A kernel and a root filesystem, opened.
#[derive(Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: File,
    /// The initramfs with the agent.
    pub initrd: File,
    /// The image's filesystem as mount(2) names it.
    pub filesystem: String,
    /// The image.
    pub image: File,
}

/// What a VM that boots its own disks is made from.
pub(crate) struct OwnDisks {
    /// Its machine.
    pub(crate) machine: FullMachine,
    /// Its disks, the one that it boots first.
    pub(crate) disks: Vec<Disk>,
    /// The disk that its cloud-init reads, with its serial number.
    pub(crate) seed: (&'static str, Secret),
    /// What is booted, where its firmware does not find that on its disks.
    pub(crate) kernel: Option<DiskKernel>,
}

/// What a VM is made of, beside what its guest begins with.
struct Devices {
    image: File,
    /// Those that outlive it.
    disks: Vec<Disk>,
    nics: Vec<Nic>,
    machine: Machine,
}

/// How long a guest may take to write its volumes out as it ends.
const WRITING_OUT: Duration = Duration::from_secs(120);

/// Runs VMs on this host.
pub struct Executor {
    paths: Paths,
    drivers: Drivers,
    cgroups: Option<CgroupTree>,
    timeouts: Timeouts,
}

/// A job that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// No node could run it.
    #[error(transparent)]
    Job(#[from] InvalidJob),
    /// This node has too little of something.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The VMM that it needs cannot be started here.
    #[error(transparent)]
    Vmm(#[from] LaunchError),
    /// What VMs are to run on cannot be had.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// It asks for a full VM, and nothing here runs one.
    #[error("no VMM of this node runs full VMs")]
    NoFullVms,
    /// It asks for volumes, of which a node knows that outlives it.
    #[error("the job asks for volumes, which take a node that runs")]
    NoVolumes,
    /// Its place could not be made.
    #[error("cannot make room for the VM")]
    Place(#[from] PlaceError),
    /// The host could not be looked at or prepared.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for ExecutorError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Job(invalid) => invalid.class(),
            Self::Shortage(shortage) => shortage.class(),
            Self::Vmm(vmm) => vmm.class(),
            Self::Hypervisor(hypervisor) => hypervisor.class(),
            Self::NoVolumes => ErrorClass::Invalid,
            Self::NoFullVms => ErrorClass::Unavailable,
            Self::Place(place) if place.is_full() => ErrorClass::Capacity,
            Self::Place(_) | Self::Host { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Job(invalid) => invalid.code(),
            Self::Shortage(shortage) => shortage.code(),
            Self::Vmm(vmm) => vmm.code(),
            Self::Hypervisor(hypervisor) => hypervisor.code(),
            Self::NoVolumes => "no_volumes",
            Self::NoFullVms => "no_full_vms",
            Self::Place(place) if place.is_full() => "disk_full",
            Self::Place(_) => "no_place",
            Self::Host { .. } => "host",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Job(invalid) => invalid.advice(),
            Self::Shortage(shortage) => shortage.advice(),
            Self::Vmm(vmm) => vmm.advice(),
            Self::Hypervisor(hypervisor) => hypervisor.advice(),
            Self::NoFullVms => Some(
                "Install QEMU: apt-get install -y --no-install-recommends qemu-system-x86 ovmf"
                    .into(),
            ),
            Self::NoVolumes => Some("Start one with aleph up, or leave the volumes out.".into()),
            Self::Place(place) if place.is_full() => Some("Free some disk and try again.".into()),
            Self::Place(_) | Self::Host { .. } => {
                Some("Run as root, or name a folder of your own with --root DIR.".into())
            }
        }
    }
}

/// The kernel's command line for every microVM:
/// - `panic=-1 reboot=t`: a panic, like the agent's own end, resets the machine by a triple
///   fault, at which the VMM exits; there is nothing slower to go through.
/// - `quiet`: the emulated serial port costs 4 ms for some 30 characters.
/// - `cryptomgr.notests`: skips self-tests of algorithms at registration (300 to 400 ms under
///   emulation).
/// - `noreplace-smp`: leaves lock prefixes where they are instead of patching 10,000 of them
///   out; each patch costs an emulator its translated code (170 to 250 ms).
pub const COMMAND_LINE: &str = "quiet panic=-1 reboot=t cryptomgr.notests noreplace-smp";

impl Executor {
    /// The executor of the node in these folders. What dead owners left is removed first.
    ///
    /// # Errors
    /// Where the folders cannot be made, or what VMs are to run on is missing.
    pub async fn open(paths: Paths, config: ExecutorConfig) -> Result<Self, ExecutorError> {
        let executor = Self::unswept(paths, &config).await?;
        sweep(executor.grounds(), None).await;
        Ok(executor)
    }

    /// The same over a driver of the caller's.
    ///
    /// # Errors
    /// Where the folders cannot be made.
    pub async fn with_driver(
        paths: Paths,
        driver: Arc<dyn Driver>,
        timeouts: Timeouts,
    ) -> Result<Self, ExecutorError> {
        let executor = Self::unswept_with(paths, Drivers::only(driver), timeouts)?;
        sweep(executor.grounds(), None).await;
        Ok(executor)
    }

    /// The executor of a daemon, which has VMs of its own to look for before anything is swept.
    pub(crate) async fn unswept(
        paths: Paths,
        config: &ExecutorConfig,
    ) -> Result<Self, ExecutorError> {
        make_folders(&paths)?;
        let of = (paths.clone(), config.clone());
        // Programs are asked for their versions.
        let drivers = tokio::task::spawn_blocking(move || Drivers::open(&of.0, &of.1)).await;
        let drivers = drivers.map_err(|join| ExecutorError::Host {
            what: "look for a hypervisor".into(),
            source: io::Error::other(join),
        })??;
        Self::unswept_with(paths, drivers, config.timeouts)
    }

    /// The same over drivers of the caller's.
    pub(crate) fn unswept_with(
        paths: Paths,
        drivers: Drivers,
        timeouts: Timeouts,
    ) -> Result<Self, ExecutorError> {
        make_folders(&paths)?;
        let cgroups = CgroupTree::open(paths.name());
        Ok(Self {
            paths,
            drivers,
            cgroups,
            timeouts,
        })
    }

    /// Where the objects of its VMs are.
    pub(crate) fn grounds(&self) -> Grounds<'_> {
        Grounds {
            paths: &self.paths,
            cgroups: self.cgroups.as_ref(),
            jails: self.drivers.jails(),
        }
    }

    /// The driver that starts VMs, to share.
    pub(crate) fn shared_driver(&self) -> Arc<dyn Driver> {
        Arc::clone(self.drivers.chosen())
    }

    pub(crate) fn cgroups(&self) -> Option<&CgroupTree> {
        self.cgroups.as_ref()
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Those of a VM: one whose guest writes to disks that outlive it has its time to write them out.
    pub(crate) fn timeouts_of(&self, durable: bool) -> Timeouts {
        match durable {
            true => Timeouts {
                quit: self.timeouts.quit.max(WRITING_OUT),
                ..self.timeouts
            },
            false => self.timeouts,
        }
    }

    /// The folders of the node.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The driver that starts VMs.
    #[must_use]
    pub fn driver(&self) -> &dyn Driver {
        &**self.drivers.chosen()
    }

    /// All drivers.
    #[must_use]
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// What a user of this node should be told once in each boot of the host; `None` once it
    /// has been.
    #[must_use]
    pub fn first_notice(&self) -> Option<String> {
        let virtualisation = host::virtualisation();
        let emulated = self
            .driver()
            .name()
            .ends_with(&Accelerator::Tcg.to_string());
        let told = self.paths.run().join("told-of-emulation");
        let first = emulated && File::create_new(told).is_ok();
        first.then(|| {
            let why = match (virtualisation.cpu, virtualisation.device) {
                (_, Device::Missing) => "there is no /dev/kvm",
                (_, Device::Forbidden) => "/dev/kvm may not be opened by this user",
                (false, Device::Opens) => "/dev/kvm opens, but this processor does not virtualise",
                (true, Device::Opens) => "it was asked for",
            };
            format!("guests run by software emulation: {why} (told once; see aleph doctor)")
        })
    }

    /// Checks a job and makes a VM for it, which is not started yet.
    ///
    /// # Errors
    /// Where the job is wrong, or does not fit.
    pub fn create(&self, id: JobId, job: &JobSpec, boot: Boot) -> Result<Vm, ExecutorError> {
        job.validate()?;
        if job.command.is_empty() {
            return Err(InvalidJob::NoCommand.into());
        }
        if !job.volumes.is_empty() {
            return Err(ExecutorError::NoVolumes);
        }
        computer::check(job)?;
        self.admit(job, &self.capacity()?, Path::new("/sys"))?;
        let place = Place::create(&self.paths, self.cgroups.as_ref())?;
        let setup = setup(id, job, boot.filesystem.clone(), true);
        let ending = Ending {
            kept: false,
            stop_signal: job.stop_signal_number().unwrap_or(signal::TERM),
            durable: false,
        };
        let (image, begin) = booting(boot, setup);
        let machine = self.machine(&place, job, (&[], &[], HostDevices::default()))?;
        let devices = Devices {
            image,
            disks: Vec::new(),
            nics: Vec::new(),
            machine,
        };
        Ok(self.begin(place, job, devices, (begin, ending)))
    }

    /// Makes a VM that outlives this process, under an id that its owner has recorded. `disks` are those
    /// that it has beside its own, and that outlive it.
    pub(crate) fn create_kept(
        &self,
        vm: VmId,
        job: &JobSpec,
        (boot, disks, nics, devices): (Boot, Vec<Disk>, Vec<Nic>, HostDevices),
        (setup, stop_signal): (SetupRequest, u8),
    ) -> Result<Vm, ExecutorError> {
        let place = Place::create_for(&self.paths, self.cgroups.as_ref(), vm, true)?;
        let ending = Ending {
            kept: true,
            stop_signal,
            durable: disks.iter().any(|disk| !disk.read_only),
        };
        let (image, begin) = booting(boot, setup);
        let machine = self.machine(&place, job, (&nics, &disks, devices))?;
        let devices = Devices {
            image,
            disks,
            nics,
            machine,
        };
        Ok(self.begin(place, job, devices, (begin, ending)))
    }

    /// The machine of a job's VM, built in its place; where that fails the place goes.
    fn machine(
        &self,
        place: &Place,
        job: &JobSpec,
        (nics, disks, devices): (&[Nic], &[Disk], HostDevices),
    ) -> Result<Machine, ExecutorError> {
        if !job.is_full_vm() {
            return Ok(Machine::MicroVm);
        }
        let wanted = computer::wanted(job, nics, disks);
        let folder = place.state_dir().join("machine");
        let built = self
            .full_driver()
            .and_then(|driver| computer::build(&**driver, &folder, &wanted, devices));
        if built.is_err()
            && let Err(error) = place.remove()
        {
            tracing::warn!(vm = %place.vm(), %error, "a place stays until the next sweep");
        }
        built
    }

    /// The same, of a VM that goes on where another stood still.
    pub(crate) fn restore_kept(
        &self,
        vm: VmId,
        job: &JobSpec,
        (image, nics): (File, Vec<Nic>),
        (origin, stop_signal): (Origin, u8),
    ) -> Result<Vm, ExecutorError> {
        let place = Place::create_for(&self.paths, self.cgroups.as_ref(), vm, true)?;
        let ending = Ending {
            kept: true,
            stop_signal,
            durable: false,
        };
        let begin = Begin::Snapshot(Box::new(origin));
        let devices = Devices {
            image,
            disks: Vec::new(),
            nics,
            machine: Machine::MicroVm,
        };
        Ok(self.begin(place, job, devices, (begin, ending)))
    }

    /// What the host has now.
    pub(crate) fn capacity(&self) -> Result<Capacity, ExecutorError> {
        host::capacity(self.paths.state()).map_err(|source| ExecutorError::Host {
            what: "read what the host has".into(),
            source,
        })
    }

    /// Checks that the host, whose kernel shows `sys`, has what a job asks for, and the VMM that it needs.
    pub(crate) fn admit(
        &self,
        job: &JobSpec,
        host: &Capacity,
        sys: &Path,
    ) -> Result<(), ExecutorError> {
        let pages = job.machine.as_ref().and_then(|machine| machine.huge_pages);
        let pages = pages.map(|pages| host::huge_pages(sys, pages));
        capacity::admit(&job.resources, host, pages.as_ref())?;
        self.check_cpus(job)?;
        Ok(self.driver_of(job)?.check()?)
    }

    /// Checks that a job's VM can have as many CPUs as it is ever to have, whatever the host has.
    pub(crate) fn check_cpus(&self, job: &JobSpec) -> Result<(), ExecutorError> {
        let driver = self.driver_of(job)?;
        let most = match driver.full() {
            Some(full) if job.is_full_vm() => full.max_cpus(),
            _ => driver.max_cpus(),
        };
        let asked = job.max_cpus();
        match asked > most.into() {
            true => Err(Shortage::CpusOfVm { asked, most }.into()),
            false => Ok(()),
        }
    }

    /// The driver that starts a job's VMs.
    ///
    /// # Errors
    /// Where it needs a full VM, and no driver has them.
    pub(crate) fn driver_of(&self, job: &JobSpec) -> Result<&Arc<dyn Driver>, ExecutorError> {
        match job.is_full_vm() {
            true => self.full_driver(),
            false => Ok(self.drivers.chosen()),
        }
    }

    /// The driver that starts full VMs.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn full_driver(&self) -> Result<&Arc<dyn Driver>, ExecutorError> {
        self.drivers.full().ok_or(ExecutorError::NoFullVms)
    }

    /// Makes a VM that boots its own disks and outlives this process, under an id that its owner has
    /// recorded.
    pub(crate) fn create_with_disks(
        &self,
        vm: VmId,
        job: &JobSpec,
        own: OwnDisks,
        nics: Vec<Nic>,
    ) -> Result<Vm, ExecutorError> {
        let driver = Arc::clone(self.full_driver()?);
        let place = Place::create_for(&self.paths, self.cgroups.as_ref(), vm, true)?;
        let (serial, seed) = own.seed;
        let path = self.paths.vm_state(vm).join("seed.img");
        let written = write_seed(&path, &seed).and_then(|()| File::open(&path));
        let seed = match written {
            Ok(seed) => seed,
            Err(source) => {
                place.remove()?;
                let what = format!("write {}", path.display());
                return Err(ExecutorError::Host { what, source });
            }
        };
        let kernel = own.kernel.map(|DiskKernel { kernel, initrd, .. }| {
            let machine = [driver.kernel_arguments(), computer::KERNEL_ARGUMENTS.into()];
            Box::new(Kernel {
                kernel,
                initrd,
                command_line: told(machine.into_iter().collect(), job),
            })
        });
        let mut disks = own.disks;
        disks.push(Disk::raw(serial, seed, true));
        let machine = Machine::Full(Box::new(own.machine));
        let filling = machine.filling(job.resources.memory);
        let spec = VmSpec {
            resources: job.resources,
            machine,
            begin: Begin::Disk(kernel),
            image: None,
            disks,
            memory: Memory::Own,
            nics,
            links: Vec::new(),
            timeouts: self.timeouts.after(filling),
            ending: Ending {
                kept: true,
                stop_signal: signal::TERM,
                durable: false,
            },
        };
        Ok(Vm::create(place, driver, spec))
    }

    fn begin(
        &self,
        place: Place,
        job: &JobSpec,
        devices: Devices,
        (mut begin, ending): (Begin, Ending),
    ) -> Vm {
        let Devices {
            image,
            disks,
            nics,
            machine,
        } = devices;
        let mut driver = self.shared_driver();
        if let Machine::Full(_) = &machine {
            // Whoever built it is there.
            driver = self.drivers.full().map_or(driver, Arc::clone);
            if let Begin::Boot { command_line, .. } = &mut begin {
                let words = vec![command_line.clone(), computer::KERNEL_ARGUMENTS.into()];
                *command_line = told(words, job);
            }
        }
        let filling = machine.filling(job.resources.memory);
        let spec = VmSpec {
            resources: job.resources,
            machine,
            begin,
            image: Some(image),
            disks,
            memory: Memory::Own,
            nics,
            links: Vec::new(),
            timeouts: self.timeouts_of(ending.durable).after(filling),
            ending,
        };
        Vm::create(place, driver, spec)
    }

    /// The main command of a job, for [`Vm::start`].
    #[must_use]
    pub fn main_command(job: &JobSpec, terminal: Option<(u16, u16)>) -> ExecRequest {
        ExecRequest {
            argv: job.command.clone(),
            env: job.env.clone().into_iter().collect(),
            workdir: job.workdir.clone().unwrap_or_default(),
            user: job.user.clone().unwrap_or_default(),
            terminal: if job.tty {
                Some(terminal.unwrap_or((24, 80)))
            } else {
                None
            },
            stdin: job.stdin,
            main: true,
            keep: false,
        }
    }
}

/// A kernel's command line of these words, and of those that a job has for it.
fn told(mut words: Vec<String>, job: &JobSpec) -> String {
    let machine = job.machine.as_ref();
    words.extend(machine.and_then(|machine| machine.boot_args.clone()));
    words.join(" ")
}

/// An image, and a guest that boots with it.
fn booting(boot: Boot, setup: SetupRequest) -> (File, Begin) {
    let begin = Begin::Boot {
        kernel: boot.kernel,
        initrd: boot.initrd,
        command_line: COMMAND_LINE.to_owned(),
        setup: Box::new(setup),
    };
    (boot.image, begin)
}

/// How a job's guest is set up.
pub(crate) fn setup(
    id: JobId,
    job: &JobSpec,
    filesystem: String,
    poweroff_on_hangup: bool,
) -> SetupRequest {
    let upper = if job.resources.disk.0 == 0 {
        UpperKind::Memory
    } else {
        UpperKind::Disk
    };
    SetupRequest {
        hostname: job.hostname.clone().unwrap_or_else(|| id.hostname()),
        filesystem,
        upper,
        poweroff_on_hangup,
        network: None,
        mounts: Vec::new(),
    }
}

fn make_folders(paths: &Paths) -> Result<(), ExecutorError> {
    for dir in [paths.state(), paths.run()] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| ExecutorError::Host {
                what: format!("make {}", dir.display()),
                source,
            })?;
    }
    Ok(())
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Others of the same node may still use it; the last one takes it away.
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove_if_empty();
        }
        let _ = fs::remove_dir(self.paths.run().join("vms"));
    }
}
