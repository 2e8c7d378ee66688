//! The whole computers of a hypervisor without VMs: they are drawn up and never built.

use crate::ScriptedDriver;
use aleph_executor::accel::Accelerator;
use aleph_executor::gpu::PciAddress;
use aleph_executor::hypervisor::{FullMachine, FullMachines, HostDevices, Launch, Machine};
use aleph_executor::qemu::machine::{Blueprint, MachineError, Wanted};
use std::fs;
use std::path::Path;

const BLUEPRINT: &str = "blueprint.json";

/// What a whole computer was launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchedComputer {
    /// How it is built.
    pub blueprint: Blueprint,
    /// The serial numbers of its disks, in order.
    pub disks: Vec<String>,
    /// What it got of the host's devices.
    pub devices: Vec<PciAddress>,
    /// Whether its firmware does not see their ROMs.
    pub without_rom: bool,
}

impl LaunchedComputer {
    /// That of a launch; `None` where it is of a microVM.
    pub(crate) fn of(launch: &Launch) -> Option<Self> {
        let Machine::Full(machine) = &launch.machine else {
            return None;
        };
        let disks = launch.disks.iter();
        let groups = machine.devices.groups.iter();
        let functions = groups.flat_map(|group| &group.functions);
        Some(Self {
            blueprint: machine.blueprint.clone(),
            disks: disks.map(|disk| disk.serial.clone().into_owned()).collect(),
            devices: functions.map(|function| function.address).collect(),
            without_rom: machine.devices.without_rom,
        })
    }
}

impl FullMachines for ScriptedDriver {
    fn create(&self, folder: &Path, wanted: &Wanted) -> Result<Blueprint, MachineError> {
        let uuid = "00000000-0000-4000-8000-000000000000";
        let blueprint = Blueprint::draw(wanted, "pc-q35-7.2", Accelerator::Tcg, uuid)?;
        let made = serde_json::to_vec(&blueprint)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                fs::create_dir(folder)?;
                fs::write(folder.join(BLUEPRINT), text)
            });
        made.map_err(|source| MachineError::Io {
            what: "draw a machine up".into(),
            source,
        })?;
        Ok(blueprint)
    }

    fn open(&self, folder: &Path) -> Result<FullMachine, MachineError> {
        let path = folder.join(BLUEPRINT);
        let read = fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
        Ok(FullMachine {
            blueprint: read.map_err(|why| MachineError::Record { path, why })?,
            variables: None,
            tpm: None,
            devices: HostDevices::default(),
        })
    }
}
