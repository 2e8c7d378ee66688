//! What a launch of Firecracker prepares: quarters, files, devices and their description; and the
//! process, which has no guest yet. What is done then is [`super::beginning`]'s.
//!
//! # Failure cases
//! Whatever fails, nothing of it runs, and no jail is left.

use super::api::{Balloon, Drive, MemoryBackend, Vsock};
use super::beginning::{Beginning, Restoring, check_size};
use super::driver::DriverConfig;
use super::figures::Figures;
use super::link::Links;
use super::memory::{MemoryMode, MemoryServer, Serve};
use super::nic::{Nics, Owner};
use super::program::{Program, Programs};
use super::quarters::{Home, Housing, Quarters, Use, name};
use super::vmm::{Base, Begun, FirecrackerVmm, Lent};
use super::{Feature, FirecrackerConfig, Version, serial};
use crate::drivers::{FIRECRACKER, Signature};
use crate::hypervisor::{Disk, Launch, LaunchError, Memory, Start};
use crate::process::{Process, Spawn};
use aleph_guest_proto::DISKS_ARGUMENT;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

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

pub(super) fn io(what: &str) -> impl FnOnce(io::Error) -> LaunchError {
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
