//! The whole computers of a hypervisor without VMs: they are drawn up and never built.

use crate::ScriptedDriver;
use aleph_executor::accel::Accelerator;
use aleph_executor::hypervisor::{FullMachine, FullMachines, HostDevices};
use aleph_executor::qemu::machine::{Blueprint, MachineError, Wanted};
use std::fs;
use std::path::Path;

const BLUEPRINT: &str = "blueprint.json";

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
