//! The facet of the driver: draws whole computers up, opens and starts them.

use super::argv::{Line, argv};
use super::blueprint::{Blueprint, Firmware, GuestAgent, Wanted};
use super::error::MachineError;
use super::folder;
use super::tpm::{Tpm, TpmStart};
use crate::drivers::{QEMU, Signature};
use crate::hypervisor::{
    FullMachine, FullMachines, HostDevices, Launch, LaunchError, Memory, Start, VmmExit,
    socket_name,
};
use crate::process::ProcessExit;
use crate::qemu::block::{self, Drive};
use crate::qemu::driver::{Program, QemuDriver, QemuVmm, readable};
use rustix::fs::{AtFlags, CWD, chownat};
use rustix::process::{Gid, Uid};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The blueprint of a VM that runs, in its runtime folder.
const RUNNING: &str = "machine.json";

/// Ends what is left of a computer whose QEMU has ended unseen.
pub(in crate::qemu) fn bury(run_dir: &Path) {
    if let Some(tpm) = Tpm::adopt(run_dir) {
        tpm.bury();
    }
}

/// What a running QEMU has where it is a whole computer.
#[derive(Debug)]
pub(crate) struct Full {
    pub(super) blueprint: Blueprint,
    pub(super) tpm: Option<Tpm>,
    /// Held while a slot is looked for and taken.
    pub(super) changes: tokio::sync::Mutex<()>,
}

impl Full {
    fn new(blueprint: Blueprint, tpm: Option<Tpm>) -> Self {
        Self {
            blueprint,
            tpm,
            changes: tokio::sync::Mutex::new(()),
        }
    }

    /// That of a QEMU which an earlier process started, by its runtime folder; `None` where it is a
    /// microVM.
    ///
    /// # Errors
    /// Where its record cannot be read.
    pub(crate) fn adopt(run_dir: &Path) -> io::Result<Option<Self>> {
        let path = run_dir.join(RUNNING);
        if !path.exists() {
            return Ok(None);
        }
        // It runs, whatever a newer program would say to it.
        let blueprint = serde_json::from_slice(&fs::read(&path)?)?;
        Ok(Some(Self::new(blueprint, Tpm::adopt(run_dir))))
    }

    /// The name of the socket of the port for QEMU's guest agent.
    pub(crate) fn guest_port(&self) -> Option<&'static str> {
        match (self.blueprint.agent, self.blueprint.guest_port) {
            (_, true) => Some(socket_name::GUEST_AGENT),
            (GuestAgent::Qemu, false) => Some(socket_name::AGENT),
            (GuestAgent::Reports | GuestAgent::Aleph, false) => None,
        }
    }

    /// Whether there is a screen.
    pub(crate) fn has_display(&self) -> bool {
        self.blueprint.display
    }

    /// What of it has broken.
    pub(crate) fn impairment(&self) -> Option<String> {
        if !self.blueprint.tpm {
            return None;
        }
        let said = match &self.tpm {
            Some(tpm) if !tpm.has_ended() => return None,
            Some(tpm) => tpm.said(),
            None => String::new(),
        };
        Some(match said.trim() {
            "" => "the process of its TPM has ended".into(),
            said => format!("the process of its TPM has ended: {said}"),
        })
    }

    /// Sees what belongs to it end, once QEMU has.
    pub(crate) async fn end(&self, exit: &mut VmmExit) {
        let Some(tpm) = &self.tpm else { return };
        if exit.exit != ProcessExit::Code(0) {
            // It may not have come as far as its TPM, which does not see then that it has ended.
            tpm.kill();
        }
        // Where both are killed together nothing is to be said.
        if let ProcessExit::Code(code @ 1..) = tpm.end().await {
            let said = tpm.said();
            exit.stderr.push_str(&format!(
                "\nthe process of its TPM ended: exit {code} {said}"
            ));
        }
    }
}

impl FullMachines for QemuDriver {
    fn create(&self, folder: &Path, wanted: &Wanted) -> Result<Blueprint, MachineError> {
        let qemu = self.probe().map_err(|error| match error {
            LaunchError::Missing { program } => MachineError::Missing {
                what: program,
                package: "qemu-system-x86",
            },
            error => MachineError::io("ask QEMU what it is")(io::Error::other(error)),
        })?;
        let machine = qemu.q35.ok_or_else(|| MachineError::Gone {
            wanted: "the machine q35".into(),
        })?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(MachineError::io("name a machine"))?;
        let blueprint = Blueprint::draw(wanted, &machine, self.accelerator(), uuid.trim())?;
        folder::create(folder, &blueprint, self.firmware())?;
        Ok(blueprint)
    }

    fn open(&self, folder: &Path) -> Result<FullMachine, MachineError> {
        folder::open(folder)
    }
}

/// A device may write to any page of its guest, so VFIO keeps all of them in memory, and some of the
/// VMM's own (libvirt leaves a GiB for those, too: its `qemuDomainGetMemLockLimitBytes`).
fn locked_memory(blueprint: &Blueprint, devices: &HostDevices) -> Option<u64> {
    let most = blueprint.memory.bytes() + blueprint.memory_room.bytes() + (1 << 30);
    (!devices.groups.is_empty()).then_some(most)
}

fn unsupported(what: &'static str) -> LaunchError {
    LaunchError::Unsupported {
        vmm: "QEMU's q35 machine",
        what,
    }
}

impl QemuDriver {
    /// Starts a whole computer.
    pub(in crate::qemu) fn start_full(
        &self,
        launch: Launch,
        machine: FullMachine,
    ) -> Result<QemuVmm, LaunchError> {
        let FullMachine {
            blueprint,
            variables,
            tpm,
            devices,
        } = machine;
        let qemu = self.probe()?;
        if !qemu.machines.contains(&blueprint.machine) {
            let wanted = format!("the machine {:?} of QEMU", blueprint.machine);
            return Err(MachineError::Gone { wanted }.into());
        }
        if (launch.resources.cpus, launch.resources.memory) != (blueprint.cpus, blueprint.memory) {
            return Err(MachineError::Invalid(format!(
                "its blueprint has {} processors and {} MiB, and its VM {} and {}",
                blueprint.cpus,
                blueprint.memory.0,
                launch.resources.cpus,
                launch.resources.memory.0
            ))
            .into());
        }
        if !matches!(launch.memory, Memory::Own) {
            return Err(unsupported("memory in a file"));
        }
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| LaunchError::Io { what, source }
        };
        let mut files: Vec<OwnedFd> = vec![
            launch.sockets.control.into(),
            launch.sockets.agent.into(),
            launch.sockets.console.into(),
        ];
        if blueprint.guest_port {
            let path = launch.run_dir.join(socket_name::GUEST_AGENT);
            let listener =
                crate::socket::listen(&path).map_err(io("listen for the guest's agent"))?;
            files.push(listener.into());
        }
        files.push(self.firmware().code(blueprint.firmware)?.into());
        if matches!(blueprint.firmware, Firmware::Uefi { .. }) {
            let missing = || MachineError::Invalid("a UEFI without its variables".into());
            files.push(variables.ok_or_else(missing)?.into());
        }
        let (mut boot, mut command_line) = (Vec::new(), None);
        match launch.start {
            Start::Firmware => {}
            Start::Boot(kernel) => {
                boot.push(readable(kernel.kernel).map_err(io("hand the kernel over"))?);
                boot.push(readable(kernel.initrd).map_err(io("hand the initramfs over"))?);
                command_line = Some(kernel.command_line);
            }
            Start::Restore { .. } => return Err(unsupported("snapshots")),
        }
        let drives = launch.disks.iter().map(Drive::of);
        let drives: Vec<Drive<'_>> = drives.collect::<Result<_, _>>()?;
        let nics: Vec<_> = launch
            .nics
            .iter()
            .map(|nic| (nic.mac, nic.queues.len()))
            .collect();
        if nics.iter().any(|(_, queues)| *queues == 0) {
            let why = "a network device without a queue".into();
            return Err(MachineError::Invalid(why).into());
        }
        let links: Vec<_> = launch.links.iter().map(|link| link.mac).collect();
        let argv = argv(&Line {
            vm: launch.vm,
            accelerator: self.accelerator(),
            blueprint: &blueprint,
            kernel: command_line.as_deref(),
            disks: &drives,
            nics: &nics,
            links: &links,
            devices: &devices,
        })?;
        drop(drives);
        let signed = Signature::of(QEMU).write(&launch.run_dir);
        signed.map_err(io("sign for the VMM"))?;
        let record = serde_json::to_vec(&blueprint).map_err(io::Error::from);
        record
            .and_then(|record| folder::write_whole(&launch.run_dir.join(RUNNING), &record))
            .map_err(io("record the machine"))?;
        if let Some(user) = launch.user {
            // The node of a group goes when its functions are given back to the host.
            for group in &devices.groups {
                let node = format!("/dev/vfio/{}", group.group);
                let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
                chownat(CWD, &node, owner.0, owner.1, AtFlags::empty())
                    .map_err(|error| io(&format!("give {node} to the VMM"))(error.into()))?;
            }
        }
        let mut running = None;
        if blueprint.tpm {
            let missing = || MachineError::Invalid("a TPM without a folder".into());
            let (tpm, end) = Tpm::start(TpmStart {
                folder: tpm.ok_or_else(missing)?,
                run_dir: &launch.run_dir,
                cgroup: launch.cgroup.clone(),
                user: launch.user,
            })?;
            running = Some(tpm);
            files.push(end);
        }
        files.extend(boot);
        files.extend(launch.disks.into_iter().flat_map(block::files));
        files.extend(launch.nics.into_iter().flat_map(|nic| nic.queues));
        files.extend(launch.links.into_iter().map(|link| link.socket));
        let program = Program {
            argv,
            files,
            run_dir: launch.run_dir,
            cgroup: launch.cgroup,
            user: launch.user,
            memory_in_file: false,
            locked_memory: locked_memory(&blueprint, &devices),
            full: Some(Full::new(blueprint, running)),
        };
        self.spawn(&qemu, program)
    }
}
