//! Firecracker behind the hypervisor seam.
//!
//! ```text
//! launch: quarters ─▶ process ─▶ API answers ─▶ calls, InstanceStart            (boot)
//!                                            └▶ state unpacked, /snapshot/load  (restore, behind it)
//! ```
//! A launch returns once the guest's first instruction runs, or once the VMM waits for a state. The
//! way to the guest's agent is its vsock.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the API's socket does not come | [`LaunchError::Io`], with what the program wrote |
//! | it ends between two calls, or refuses one | the same; nothing of it runs |
//! | a state is cut or foreign | the VMM is killed, and its end says why |
//! | a VM has a device that Firecracker lacks | refused before anything is started: [`NicError`] |
//! | a memory file is shorter than the guest's memory | refused before anything is loaded |
//! | a VM's memory server ends | the VMM is killed, and its end says why |
//! | the VM's links cannot be connected | it is killed, and its end says why |

use super::api::MAX_VCPUS;
use super::beginning::bring_up;
use super::figures::Figures;
use super::home::{Home, name};
use super::jail::Jails;
use super::link;
use super::memory::{MemoryMode, MemoryServer};
use super::nic::NicError;
use super::preparation::start;
use super::program::{Program, Programs};
use super::quarters::Housing;
use super::vmm::{Begun, FirecrackerVmm};
use super::{Version, serial};
use crate::accel::Accelerator;
use crate::drivers::{FIRECRACKER, Signature};
use crate::hypervisor::{AdoptError, Ahead, BoxFuture, Driver, Launch, LaunchError, LinkEnds, Vmm};
use crate::process::{Identity, Process};
use aleph_guest_proto::VSOCK_ARGUMENT;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How Firecracker is to be used.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// The program, by name or by path.
    pub program: PathBuf,
    /// The jails, and the jailer; without them each VMM runs in the open.
    pub jail: Option<(Jails, PathBuf)>,
    /// Whether it needs KVM. What stands for Firecracker where there is none does not.
    pub needs_kvm: bool,
    /// What else its guests' kernels are told.
    pub kernel_arguments: String,
    /// How guests come to the memory of the template that they go on from.
    pub memory: MemoryMode,
    /// Whether KVM notes which pages guests write to, so that writing one down again takes what has
    /// changed since, and not all of its memory.
    pub track_dirty_pages: bool,
    /// How long a guest that does not end by its agent may take to end by Ctrl-Alt-Del, before its VMM
    /// is ended. On x86-64; others have no such keys.
    pub keys: Duration,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            program: "firecracker".into(),
            jail: None,
            needs_kvm: true,
            kernel_arguments: String::new(),
            memory: MemoryMode::default(),
            track_dirty_pages: false,
            keys: Duration::from_secs(2),
        }
    }
}

/// Starts microVMs of Firecracker.
#[derive(Debug)]
pub struct FirecrackerDriver {
    config: Arc<DriverConfig>,
    programs: Arc<Programs>,
    housing: Housing,
}

impl FirecrackerDriver {
    /// A driver of this configuration. Firecracker is looked for when it is first needed.
    #[must_use]
    pub fn new(config: DriverConfig) -> Self {
        let programs = Arc::new(Programs::firecracker(config.program.clone()));
        let housing = match config.jail.clone() {
            Some((jails, jailer)) => Housing::Jailed { jails, jailer },
            None => Housing::Open,
        };
        Self {
            config: Arc::new(config),
            programs,
            housing,
        }
    }

    /// Which program it is.
    ///
    /// # Errors
    /// Where it is missing, is no Firecracker, or one that is not supported.
    pub fn program(&self) -> Result<Program, LaunchError> {
        self.programs.find()
    }
}

impl FirecrackerDriver {
    /// What a thread that may block needs of it.
    pub(super) fn parts(&self) -> (Arc<Programs>, Housing, Arc<DriverConfig>) {
        let programs = Arc::clone(&self.programs);
        (programs, self.housing.clone(), Arc::clone(&self.config))
    }

    fn compatible_with(&self, version: Option<Version>, is_jailed: bool) -> String {
        let version = version.map(|version| version.to_string());
        let version = version.unwrap_or_default();
        // A snapshot has the names of the guest's disks, which are others in the open.
        let place = if is_jailed { "" } else { " open" };
        let processor = crate::host::cpu_flags();
        format!("{} {version}{place} {processor}", self.name())
    }
}

impl Driver for FirecrackerDriver {
    fn name(&self) -> String {
        FIRECRACKER.into()
    }

    fn compatibility(&self) -> String {
        let version = self.program().map(|program| program.version);
        self.compatible_with(version.ok(), self.config.jail.is_some())
    }

    fn compatibility_of(&self, run_dir: &Path) -> String {
        let signature = Signature::read(run_dir).ok().flatten();
        let launched = signature.and_then(|signature| signature.firecracker);
        let is_jailed = launched.as_ref().is_none_or(|of| of.jails.is_some());
        self.compatible_with(launched.map(|launched| launched.version), is_jailed)
    }

    fn kernel_arguments(&self) -> String {
        // The keyboard's controller is what a guest ends its machine with.
        let mut arguments = format!("console=ttyS0 {VSOCK_ARGUMENT} reboot=k");
        if !self.config.kernel_arguments.is_empty() {
            arguments.push(' ');
            arguments.push_str(&self.config.kernel_arguments);
        }
        arguments
    }

    fn wants_uncompressed_kernel(&self) -> bool {
        true
    }

    fn max_cpus(&self) -> u16 {
        u16::from(MAX_VCPUS)
    }

    fn takes_chains(&self) -> bool {
        false
    }

    fn max_nic_queues(&self) -> usize {
        1
    }

    fn check(&self) -> Result<(), LaunchError> {
        let kvm = crate::host::virtualisation().device;
        if self.config.needs_kvm && kvm != crate::accel::Device::Opens {
            return Err(LaunchError::Accelerator(Accelerator::Kvm));
        }
        if let Some((jails, _)) = &self.config.jail {
            jails.users().check_free()?;
        }
        self.program().map(drop)
    }

    fn link(&self) -> BoxFuture<'_, Result<LinkEnds, LaunchError>> {
        Box::pin(async {
            let made = tokio::task::spawn_blocking(link::ends).await;
            let made = made.map_err(io::Error::other).flatten();
            Ok(made.map_err(NicError::Link)?)
        })
    }

    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Box<dyn Vmm>, LaunchError>> {
        Box::pin(async move {
            let (programs, housing, config) = self.parts();
            // Asking Firecracker what it is and forking both block.
            let started =
                tokio::task::spawn_blocking(move || start(&programs, &housing, &config, launch));
            let started = started.await.map_err(|join| LaunchError::Io {
                what: "start Firecracker".into(),
                source: io::Error::other(join),
            })??;
            let vmm = Arc::new(started.vmm);
            vmm.watch_memory_server();
            match bring_up(&vmm, started.beginning, started.links).await {
                Ok(()) => Ok(Box::new(vmm) as Box<dyn Vmm>),
                Err(error) => {
                    let _ = vmm.kill();
                    let said = vmm.wait().await;
                    Err(LaunchError::Io {
                        what: format!("bring Firecracker up ({said})"),
                        source: error,
                    })
                }
            }
        })
    }

    fn adopt(&self, identity: Identity, run_dir: PathBuf) -> Result<Box<dyn Vmm>, AdoptError> {
        let process = match Process::adopt(&identity) {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AdoptError::Gone),
            Err(error) => return Err(error.into()),
        };
        let launched = Signature::read(&run_dir)?.and_then(|signature| signature.firecracker);
        let launched = launched.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let vm = run_dir.file_name().and_then(|name| name.to_str());
        let vm = vm.and_then(|name| name.parse().ok());
        let vm = vm.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let home = Home::find(&launched, vm, &run_dir)?;
        if home.has(name::STATE) {
            // Whoever was to load it is gone.
            process.kill()?;
            return Err(AdoptError::Unbegun);
        }
        let (memory_server, server_gone) = match MemoryServer::find(&run_dir) {
            Ok(server) => (server, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, true),
            Err(error) => return Err(error.into()),
        };
        // It lives without: one of an earlier release has no such pipe.
        let figures = home.pipe(name::METRICS).and_then(Figures::read).ok();
        let vmm = FirecrackerVmm::new(Begun {
            process,
            home,
            version: launched.version,
            tail: None,
            figures,
            template: None,
            console: serial::serve_again(&run_dir)?,
            memory_server,
            // Which pages were written to since when, an earlier process knew.
            tracks: false,
            keys: self.config.keys,
        });
        let vmm = Arc::new(vmm);
        if server_gone && !vmm.process.has_ended() {
            vmm.end_because("its memory server ended while no node was there".into());
        }
        vmm.watch_memory_server();
        Ok(Box::new(vmm))
    }

    fn ahead(&self) -> Option<&dyn Ahead> {
        // Each version waits for its guest.
        self.program().is_ok().then_some(self)
    }
}
