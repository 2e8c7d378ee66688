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

use super::api::{
    Action, Balloon, Call, Drive, MemoryBackend, NetworkOverride, SnapshotLoad, VmState, Vsock,
};
use super::figures::Figures;
use super::jail::Jails;
use super::link::{self, Links};
use super::memory::{MemoryMode, MemoryServer, MemoryServerError, Serve};
use super::nic::{NicError, Nics, Owner};
use super::program::{Program, Programs};
use super::quarters::{Home, Housing, Quarters, Use, name};
use super::vmm::{Base, Begun, FirecrackerVmm, Lent};
use super::{Client, ClientError, Feature, FirecrackerConfig, Version, packing, serial};
use crate::accel::Accelerator;
use crate::drivers::{FIRECRACKER, Signature};
use crate::hypervisor::{
    AdoptError, BoxFuture, Disk, Driver, Launch, LaunchError, LinkEnds, Memory, Start, Vmm,
};
use crate::process::{Identity, Process, Spawn};
use aleph_guest_proto::{DISKS_ARGUMENT, VSOCK_ARGUMENT};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long Firecracker may take to answer a call.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How long it may take to load a guest whose memory a server fills: parts of it are needed for that.
const LOAD: Duration = Duration::from_secs(20);

/// How long its API may take to be there, and the first pause before it is looked for again.
const COME: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_micros(200);

/// The guest's address. It is seen within the guest alone.
const CID: u32 = 3;

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
    fn compatible_with(&self, version: Option<Version>) -> String {
        let version = version.map(|version| version.to_string());
        let version = version.unwrap_or_default();
        format!("{} {version} {}", self.name(), crate::host::cpu_flags())
    }
}

impl Driver for FirecrackerDriver {
    fn name(&self) -> String {
        FIRECRACKER.into()
    }

    fn compatibility(&self) -> String {
        let version = self.program().map(|program| program.version);
        self.compatible_with(version.ok())
    }

    fn compatibility_of(&self, run_dir: &Path) -> String {
        let signature = Signature::read(run_dir).ok().flatten();
        let launched = signature.and_then(|signature| signature.firecracker);
        self.compatible_with(launched.map(|launched| launched.version))
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
            let (programs, housing) = (Arc::clone(&self.programs), self.housing.clone());
            let config = Arc::clone(&self.config);
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
        });
        let vmm = Arc::new(vmm);
        if server_gone && !vmm.process.has_ended() {
            vmm.end_because("its memory server ended while no node was there".into());
        }
        vmm.watch_memory_server();
        Ok(Box::new(vmm))
    }
}

/// What is to be done once the API answers.
enum Beginning {
    Boot(Vec<Call>),
    Restore(Box<Restoring>),
}

/// A guest that goes on.
struct Restoring {
    state: OwnedFd,
    /// Where its state is put, and its memory, where that comes with it.
    files: [File; 2],
    /// Where its memory comes from; with its state where that is not said.
    memory: Option<MemoryBackend>,
    /// How much it has.
    size: u64,
    /// What its network devices are connected to now.
    nics: Vec<NetworkOverride>,
}

/// A process that has no guest yet.
struct Started {
    vmm: FirecrackerVmm,
    beginning: Beginning,
    /// They are connected once it has their TAPs open.
    links: Links,
}

fn start(
    programs: &Programs,
    housing: &Housing,
    config: &DriverConfig,
    launch: Launch,
) -> Result<Started, LaunchError> {
    let program = programs.find()?;
    let run_dir = launch.run_dir.clone();
    let quarters = Quarters::make(housing, launch.vm, &run_dir, &program.path, launch.user);
    let quarters = quarters?;
    let home = match &quarters.home {
        // Whatever fails from here on, the jail goes.
        Home::Jailed { jails, .. } => Some((jails.clone(), launch.vm)),
        Home::Open { .. } => None,
    };
    let started = start_in(quarters, housing, &program, config, launch);
    if let (Err(_), Some((jails, vm))) = (&started, home)
        && let Err(error) = jails.remove(vm)
    {
        tracing::warn!(%vm, %error, "a jail stays until the next sweep");
    }
    started
}

/// The balloon of a guest: empty until the host wants memory back. Pages that the guest frees are
/// given back at once, where the version can.
fn balloon(version: Version) -> Balloon {
    Balloon {
        deflate_on_oom: true,
        // Without statistics its size is not told, and each report wakes the guest.
        stats_polling_interval_s: u16::MAX,
        free_page_reporting: Feature::FreePageReporting.is_in(version),
        ..Balloon::default()
    }
}

fn io(what: &str) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.to_owned();
    move |source| LaunchError::Io { what, source }
}

fn start_in(
    mut quarters: Quarters,
    housing: &Housing,
    program: &Program,
    settings: &DriverConfig,
    launch: Launch,
) -> Result<Started, LaunchError> {
    let signature = Signature {
        firecracker: Some(quarters.launched(program)),
        ..Signature::of(FIRECRACKER)
    };
    let signed = signature.write(&launch.run_dir);
    signed.map_err(io("sign for the VMM"))?;
    crate::failpoint::pass("firecracker.sign", "after");
    let user = quarters.user();
    let owner = Owner {
        vm: launch.vm,
        user,
        is_jailed: matches!(housing, Housing::Jailed { .. }),
    };
    let nics = Nics::of(launch.nics, launch.links, owner)?;
    let server_socket = quarters.home.seen(name::MEMORY_SERVER);
    // First what a snapshot names: each VM that goes on from it has them at the same place.
    let mut bring = |name: &str, file: File, how: Use| {
        let path = quarters.bring(name, file, how);
        path.map_err(io(&format!("hand {name} over")))
    };
    let mut drives = Vec::with_capacity(launch.disks.len());
    let mut serials = Vec::with_capacity(launch.disks.len());
    for Disk {
        serial,
        file,
        read_only,
    } in launch.disks
    {
        let how = if read_only { Use::Shared } else { Use::Own };
        serials.push(serial);
        drives.push(Drive {
            is_read_only: Some(read_only),
            ..Drive::file(serial, bring(serial, file, how)?)
        });
    }
    let size = u64::from(launch.resources.memory.0) << 20;
    let mut base = None;
    let mut served = None;
    let (memory, template) = match launch.memory {
        Memory::Own => (None, None),
        Memory::Template(file) => {
            let lent = file.try_clone().map_err(io("hold the template"))?;
            let path = bring("template", file, Use::Own)?;
            (None, Some(Lent { path, file: lent }))
        }
        Memory::Clone(file) => {
            check_size(&file, size).map_err(io("go on from the template's memory"))?;
            if settings.track_dirty_pages {
                let kept = file.try_clone().and_then(|file| Base::of(file, 0));
                base = Some(kept.map_err(io("keep the template's memory"))?);
            }
            let backend = match &settings.memory {
                MemoryMode::File => MemoryBackend::File(bring("template", file, Use::Shared)?),
                MemoryMode::Userfaultfd { server, prefetch } => {
                    served = Some((server, *prefetch, file));
                    MemoryBackend::Uffd(server_socket)
                }
            };
            (Some(backend), None)
        }
    };
    let beginning = match launch.start {
        Start::Boot(boot) => {
            let kernel = bring("kernel", boot.kernel, Use::Shared)?;
            let initrd = bring("initramfs", boot.initrd, Use::Shared)?;
            let vcpus = u8::try_from(launch.resources.cpus).map_err(|_| LaunchError::Io {
                what: format!("give a VM {} CPUs", launch.resources.cpus),
                source: io::ErrorKind::InvalidInput.into(),
            })?;
            // Firecracker's disks have no serial numbers: the guest is told their order.
            let disks = serials.join(",");
            let config = FirecrackerConfig {
                initrd_path: Some(initrd),
                boot_args: Some(format!("{} {DISKS_ARGUMENT}{disks}", boot.command_line)),
                drives,
                network_interfaces: nics.interfaces(),
                balloon: Some(balloon(program.version)),
                track_dirty_pages: settings.track_dirty_pages,
                vsock: Some(Vsock {
                    guest_cid: CID,
                    uds_path: quarters.home.seen(name::VSOCK),
                }),
                ..FirecrackerConfig::new(kernel, vcpus, launch.resources.memory)
            };
            let calls = config.calls(program.version);
            Beginning::Boot(calls.map_err(|invalid| LaunchError::Io {
                what: "describe the VM to Firecracker".into(),
                source: io::Error::other(invalid),
            })?)
        }
        Start::Restore { state } => {
            let make = |name: &str| {
                let file = quarters.make_file(name);
                file.map_err(io("make a file for the snapshot"))
            };
            Beginning::Restore(Box::new(Restoring {
                state,
                files: [make(name::STATE)?, make(name::MEMORY)?],
                memory,
                size,
                nics: nics.overrides(),
            }))
        }
    };
    let memory_server = match served {
        None => None,
        Some((server, prefetch, memory)) => {
            let listener = quarters.listen(name::MEMORY_SERVER);
            let server = MemoryServer::start(Serve {
                program: server,
                prefetch,
                listener: listener.map_err(io("listen for the guest's memory"))?,
                memory,
                run_dir: &launch.run_dir,
                user,
                cgroup: launch.cgroup.clone(),
            });
            Some(server.map_err(io("start the memory server"))?)
        }
    };
    let (tail, stderr, log) = quarters.log().map_err(io("make the log"))?;
    let (metrics, metrics_path) = quarters.metrics().map_err(io("make the metrics' pipe"))?;
    let figures = Figures::read(metrics).map_err(io("read the metrics"))?;
    let stdout = serial::make(&launch.run_dir).map_err(io("make the console's pipe"))?;
    let console = serial::serve(&launch.run_dir, launch.sockets.console);
    let console = console.map_err(io("serve the console"))?;
    let mut arguments: Vec<String> = Vec::new();
    if matches!(housing, Housing::Open) {
        // The jailer says it itself.
        arguments.extend(["--id".into(), launch.vm.to_string()]);
    }
    for (argument, path) in [
        ("--api-sock", quarters.home.seen(name::API)),
        ("--log-path", log),
        ("--metrics-path", metrics_path),
    ] {
        arguments.extend([argument.into(), path.display().to_string()]);
    }
    arguments.extend(["--level".into(), "Warn".into()]);
    let started = quarters.command(housing, &program.path, &arguments)?;
    let (mut command, home, files, user) = started;
    command.env_clear().current_dir("/");
    let links = nics.enter(&mut command);
    let device_group = std::fs::metadata("/dev/kvm")
        .ok()
        .filter(|meta| meta.mode() & 0o006 != 0o006 && meta.gid() != 0)
        .map(|meta| meta.gid());
    let process = Process::spawn(Spawn {
        command,
        files,
        user,
        device_group,
        cgroup: launch.cgroup,
        stdout: Some(stdout),
        stderr,
    })
    .map_err(io(&format!("start {}", program.path.display())))?;
    crate::failpoint::pass("firecracker.spawn", "after");
    let vmm = FirecrackerVmm::new(Begun {
        process,
        home,
        version: program.version,
        tail: Some(tail),
        figures: Some(figures),
        template,
        console,
        memory_server,
        tracks: settings.track_dirty_pages,
    });
    if let Some(base) = base {
        vmm.differs_from(base);
    }
    Ok(Started {
        vmm,
        beginning,
        links,
    })
}

/// A mapping of a file that is too short faults long after it was made.
fn check_size(file: &File, wanted: u64) -> io::Result<()> {
    let there = file.metadata()?.len();
    if there >= wanted {
        return Ok(());
    }
    let why = MemoryServerError::Short {
        file: there,
        wanted,
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

async fn bring_up(vmm: &Arc<FirecrackerVmm>, beginning: Beginning, links: Links) -> io::Result<()> {
    let client = come(vmm).await.map_err(io::Error::other)?;
    match beginning {
        Beginning::Boot(calls) => {
            for call in &calls {
                let done = client.call(call, ANSWER).await;
                done.map_err(io::Error::other)?;
            }
            connect(vmm, links).await?;
            let start = Call::Action(Action::InstanceStart);
            let started = client.call(&start, ANSWER).await;
            started.map_err(io::Error::other)?;
            vmm.runs();
        }
        Beginning::Restore(restoring) => {
            let vmm = Arc::clone(vmm);
            tokio::spawn(async move {
                if let Err(error) = restore(&vmm, *restoring, links).await {
                    vmm.fail(&error);
                }
            });
        }
    }
    Ok(())
}

/// Connects a VM's links, whose TAPs the VMM has open.
async fn connect(vmm: &FirecrackerVmm, mut links: Links) -> io::Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let connected = tokio::task::spawn_blocking(move || links.connect().map(|()| links)).await;
    vmm.keep(connected.map_err(io::Error::other)??);
    Ok(())
}

/// Waits until the API answers, or the process has ended.
async fn come(vmm: &FirecrackerVmm) -> Result<&Client, ClientError> {
    let deadline = Instant::now() + COME;
    let mut pause = LOOK;
    loop {
        let come = async {
            let client = vmm.client()?;
            let version = client.get::<super::api::FirecrackerVersion>(ANSWER).await;
            version.map(|_| client)
        };
        match come.await {
            Err(error @ ClientError::Connect { .. }) => {
                let ended = tokio::time::timeout(pause, vmm.process.wait())
                    .await
                    .is_ok();
                if ended || Instant::now() > deadline {
                    return Err(error);
                }
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            come => return come,
        }
    }
}

/// Reads the state that the guest goes on from, and has it go on.
async fn restore(vmm: &FirecrackerVmm, restoring: Restoring, links: Links) -> io::Result<()> {
    let Restoring {
        state,
        files,
        memory,
        size,
        nics,
    } = restoring;
    let unpacked = tokio::task::spawn_blocking(move || {
        let [to, memory] = files;
        let has_memory = packing::unpack(&mut File::from(state), &to, &memory)?;
        Ok::<_, io::Error>(has_memory.then_some(memory))
    });
    let unpacked = unpacked.await.map_err(io::Error::other)??;
    let memory = match (memory, unpacked) {
        (Some(memory), _) => memory,
        (None, Some(file)) => {
            check_size(&file, size)?;
            if vmm.tracks() {
                vmm.differs_from(Base::of(file, 0)?);
            }
            MemoryBackend::File(vmm.home.seen(name::MEMORY))
        }
        (None, None) => {
            let why = "it has no memory";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    };
    let has_links = !links.is_empty();
    let load = SnapshotLoad {
        // What it sends before its links are connected would be lost.
        resume_vm: !has_links,
        network_overrides: nics,
        track_dirty_pages: vmm.tracks(),
        ..SnapshotLoad::new(vmm.home.seen(name::STATE), memory)
    };
    let limit = match load.mem_backend {
        MemoryBackend::File(_) => ANSWER,
        MemoryBackend::Uffd(_) => LOAD,
    };
    let client = vmm.client().map_err(io::Error::other)?;
    let loaded = client.call(&Call::SnapshotLoad(load), limit).await;
    loaded.map_err(io::Error::other)?;
    if has_links {
        connect(vmm, links).await?;
        let resumed = client.call(&Call::VmState(VmState::Resumed), ANSWER).await;
        resumed.map_err(io::Error::other)?;
    }
    // It is mapped by now, or served.
    for file in [name::STATE, name::MEMORY, name::MEMORY_SERVER] {
        vmm.home.remove(file)?;
    }
    vmm.runs();
    Ok(())
}
