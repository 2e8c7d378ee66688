//! What a launch of Firecracker prepares: quarters, files, devices and their description; and the
//! process, which has no guest yet. What is done then is [`super::beginning`]'s.
//!
//! # Failure cases
//! Whatever fails, nothing of it runs, and no jail is left.

use super::api::{Balloon, CacheType, Drive, MemoryBackend, Vsock};
use super::beginning::{Beginning, Restoring, check_size};
use super::driver::DriverConfig;
use super::figures::Figures;
use super::home::{Use, name};
use super::jail::{Jails, ResourceLimits};
use super::link::Links;
use super::memory::{MemoryMode, MemoryServer, Serve};
use super::nic::{self, Nics};
use super::program::{Program, Programs};
use super::quarters::{Housing, Quarters};
use super::vmm::{Base, Begun, FirecrackerVmm, Lent};
use super::{Feature, FirecrackerConfig, Version, serial};
use crate::cgroup::Cgroup;
use crate::drivers::{FIRECRACKER, Signature};
use crate::hypervisor::{Disk, DiskFormat, Launch, LaunchError, Machine, Memory, Start};
use crate::process::{Process, Spawn};
use aleph_guest_proto::DISKS_ARGUMENT;
use aleph_types::VmId;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// The guest's address. It is seen within the guest alone.
const CID: u32 = 3;

/// A process that has no guest yet.
pub(super) struct Started {
    pub(super) vmm: FirecrackerVmm,
    pub(super) beginning: Beginning,
    /// They are connected once it has their TAPs open.
    pub(super) links: Links,
}

/// Prepares a launch and starts its process. Blocks.
pub(super) fn start(
    programs: &Programs,
    housing: &Housing,
    config: &DriverConfig,
    launch: Launch,
) -> Result<Started, LaunchError> {
    let program = programs.find()?;
    let run_dir = launch.run_dir.clone();
    let quarters = Quarters::make(housing, launch.vm, &run_dir, &program.path, launch.user);
    let quarters = quarters?;
    // Whatever fails from here on, the jail goes.
    let home = quarters.home.jailed();
    let mut server = None;
    let means = Means {
        housing,
        program: &program,
        settings: config,
    };
    let started = start_in(quarters, means, launch, &mut server);
    if started.is_err() {
        give_up(server, home);
    }
    started
}

/// Takes away what is there of a launch that failed, its memory server first: it has the user of the
/// jail, whom another VM may get.
pub(super) fn give_up(server: Option<MemoryServer>, jail: Option<(Jails, VmId)>) {
    if let Some(server) = server {
        tokio::runtime::Handle::current().block_on(server.end());
    }
    if let Some((jails, vm)) = jail
        && let Err(error) = jails.remove(vm)
    {
        tracing::warn!(%vm, %error, "a jail stays until the next sweep");
    }
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

pub(super) fn io(what: &str) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.to_owned();
    move |source| LaunchError::Io { what, source }
}

/// What VMs are started with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) housing: &'a Housing,
    pub(super) program: &'a Program,
    pub(super) settings: &'a DriverConfig,
}

fn unsupported(what: &'static str) -> LaunchError {
    let vmm = "Firecracker";
    LaunchError::Unsupported { vmm, what }
}

fn start_in(
    mut quarters: Quarters,
    means: Means<'_>,
    launch: Launch,
    memory_server: &mut Option<MemoryServer>,
) -> Result<Started, LaunchError> {
    let Means {
        program, settings, ..
    } = means;
    if matches!(launch.machine, Machine::Full(_)) {
        return Err(unsupported("machines of whole computers"));
    }
    sign(&quarters, program, &launch.run_dir)?;
    let owner = quarters.owner(launch.vm);
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
        format,
        read_only,
        // Only what is refused here has one.
        key: _,
        durable,
    } in launch.disks
    {
        if !matches!(format, DiskFormat::Raw) {
            return Err(unsupported("disks in QEMU's format"));
        }
        let how = if read_only { Use::Shared } else { Use::Own };
        drives.push(Drive {
            is_read_only: Some(read_only),
            cache_type: match durable {
                true => CacheType::Writeback,
                false => CacheType::Unsafe,
            },
            ..Drive::file(serial.as_ref(), bring(&serial, file, how)?)
        });
        serials.push(serial);
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
            base = base_of(&file, size, settings)?;
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
        Start::Firmware => return Err(unsupported("firmware")),
        Start::Restore { state } => {
            let files = snapshot_files(&quarters)?;
            let nics = nics.overrides();
            Beginning::Restore(Box::new(Restoring {
                state,
                files,
                memory,
                size,
                nics,
                shown: Vec::new(),
            }))
        }
    };
    if let Some((server, prefetch, memory)) = served {
        let listener = quarters.home.listen(name::MEMORY_SERVER);
        let server = MemoryServer::start(Serve {
            program: server,
            prefetch,
            listener: listener.map_err(io("listen for the guest's memory"))?,
            memory,
            run_dir: &launch.run_dir,
            user: owner.user,
            cgroup: launch.cgroup.clone(),
        });
        *memory_server = Some(server.map_err(io("start the memory server"))?);
    }
    let spawning = Spawning {
        longest_file: Some(quarters.longest_file(launch.resources.memory)),
        means,
        vm: launch.vm,
        run_dir: &launch.run_dir,
        console: launch.sockets.console,
        cgroup: launch.cgroup,
    };
    let (namespace, links) = nics.apart();
    let begun = spawn(quarters, spawning, namespace)?;
    let vmm = FirecrackerVmm::new(Begun {
        template,
        memory_server: memory_server.take(),
        ..begun
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

/// Signs for a VMM that is about to be started.
pub(super) fn sign(
    quarters: &Quarters,
    program: &Program,
    run_dir: &Path,
) -> Result<(), LaunchError> {
    let signature = Signature {
        firecracker: Some(quarters.launched(program)),
        ..Signature::of(FIRECRACKER)
    };
    signature.write(run_dir).map_err(io("sign for the VMM"))?;
    crate::failpoint::pass("firecracker.sign", "after");
    Ok(())
}

/// Files of the VMM's for what a guest goes on from: its state, and its memory where that comes with it.
pub(super) fn snapshot_files(quarters: &Quarters) -> Result<[File; 2], LaunchError> {
    let make = |name| {
        let file = quarters.make_file(name);
        file.map_err(io("make a file for the snapshot"))
    };
    Ok([make(name::STATE)?, make(name::MEMORY)?])
}

/// What a guest with so much memory differs from that goes on from this file; nothing where that is not
/// kept.
pub(super) fn base_of(
    memory: &File,
    size: u64,
    settings: &DriverConfig,
) -> Result<Option<Base>, LaunchError> {
    check_size(memory, size).map_err(io("go on from the template's memory"))?;
    if !settings.track_dirty_pages {
        return Ok(None);
    }
    let kept = memory.try_clone().and_then(|file| Base::of(file, 0));
    kept.map(Some).map_err(io("keep the template's memory"))
}

/// How a process is started, beside its quarters.
pub(super) struct Spawning<'a> {
    pub(super) means: Means<'a>,
    /// How long a file it may write, in a jail; any where that is not known.
    pub(super) longest_file: Option<u64>,
    pub(super) vm: VmId,
    pub(super) run_dir: &'a Path,
    pub(super) console: UnixListener,
    pub(super) cgroup: Option<Cgroup>,
}

/// Starts a process in this network namespace, or where we are.
pub(super) fn spawn(
    mut quarters: Quarters,
    spawning: Spawning<'_>,
    namespace: Option<OwnedFd>,
) -> Result<Begun, LaunchError> {
    let Means {
        housing, program, ..
    } = spawning.means;
    let (tail, stderr, log) = quarters.log().map_err(io("make the log"))?;
    let (metrics, metrics_path) = quarters.metrics().map_err(io("make the metrics' pipe"))?;
    let figures = Figures::read(metrics).map_err(io("read the metrics"))?;
    let stdout = serial::make(spawning.run_dir).map_err(io("make the console's pipe"))?;
    let console = serial::serve(spawning.run_dir, spawning.console);
    let console = console.map_err(io("serve the console"))?;
    let mut arguments: Vec<String> = Vec::new();
    if matches!(housing, Housing::Open) {
        // The jailer says it itself.
        arguments.extend(["--id".into(), spawning.vm.to_string()]);
    }
    for (argument, path) in [
        ("--api-sock", quarters.home.seen(name::API)),
        ("--log-path", log),
        ("--metrics-path", metrics_path),
    ] {
        arguments.extend([argument.into(), path.display().to_string()]);
    }
    arguments.extend(["--level".into(), "Warn".into()]);
    let limits = ResourceLimits {
        file_size: spawning.longest_file,
        open_files: None,
    };
    let started = quarters.command(housing, &program.path, &arguments, limits)?;
    let (mut command, home, files, user) = started;
    command.env_clear().current_dir("/");
    nic::enter(namespace, &mut command);
    let device_group = std::fs::metadata("/dev/kvm")
        .ok()
        .filter(|meta| meta.mode() & 0o006 != 0o006 && meta.gid() != 0)
        .map(|meta| meta.gid());
    let start = match housing {
        // The jailer becomes Firecracker: it is the first process of the VM's own namespace.
        Housing::Jailed { .. } => Process::spawn_first,
        Housing::Open => Process::spawn,
    };
    let process = start(Spawn {
        command,
        files,
        user,
        device_group,
        cgroup: spawning.cgroup,
        stdout: Some(stdout),
        stderr,
    })
    .map_err(io(&format!("start {}", program.path.display())))?;
    crate::failpoint::pass("firecracker.spawn", "after");
    Ok(Begun {
        process,
        home,
        version: program.version,
        tail: Some(tail),
        figures: Some(figures),
        template: None,
        console,
        memory_server: None,
        tracks: spawning.means.settings.track_dirty_pages,
        keys: spawning.means.settings.keys,
    })
}
