//! What a whole computer keeps over its restarts, in a folder that lasts as long as its disks.
//!
//! | file | what |
//! | --- | --- |
//! | `blueprint.json` | how it is built |
//! | `variables.fd` | the variables of its UEFI |
//! | `tpm/` | the memory of its TPM, which is the VMM's user's |
//!
//! It is made under another name and renamed when it is whole: a folder without a blueprint is none.

use super::blueprint::{Blueprint, Firmware, VERSION};
use super::error::MachineError;
use super::firmware::FirmwareFiles;
use crate::hypervisor::{FullMachine, HostDevices};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The file with the blueprint.
const BLUEPRINT: &str = "blueprint.json";
const VARIABLES: &str = "variables.fd";
const TPM: &str = "tpm";

/// Makes the folder.
///
/// # Errors
/// Where it is there, or firmware is missing.
pub(super) fn create(
    folder: &Path,
    blueprint: &Blueprint,
    firmware: &FirmwareFiles,
) -> Result<(), MachineError> {
    // Before anything is made.
    firmware.code(blueprint.firmware)?;
    let variables = firmware.variables(blueprint.firmware)?;
    if blueprint.tpm {
        super::tpm::find()?;
    }
    let failed = |what: &str| MachineError::io(format!("{what} {}", folder.display()));
    if folder.exists() {
        return Err(failed("make")(io::ErrorKind::AlreadyExists.into()));
    }
    let temporary = folder.with_extension("tmp");
    let made = (|| {
        // What one left that was killed here.
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&temporary)?;
        if let Some(mut variables) = variables {
            let mut copy = create_file(&temporary.join(VARIABLES))?;
            io::copy(&mut variables, &mut copy)?;
            copy.sync_all()?;
        }
        if blueprint.tpm {
            DirBuilder::new().mode(0o700).create(temporary.join(TPM))?;
        }
        let mut record = create_file(&temporary.join(BLUEPRINT))?;
        record.write_all(&serde_json::to_vec_pretty(blueprint)?)?;
        record.sync_all()?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, folder)?;
        let parent = folder.parent().unwrap_or(Path::new("/"));
        File::open(parent)?.sync_all()
    })();
    made.map_err(|error| {
        let _ = fs::remove_dir_all(&temporary);
        failed("make")(error)
    })
}

fn create_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Opens the folder.
///
/// # Errors
/// Where it is not whole.
pub(super) fn open(folder: &Path) -> Result<FullMachine, MachineError> {
    let blueprint = read(&folder.join(BLUEPRINT))?;
    let path = folder.join(VARIABLES);
    let mut options = File::options();
    let variables = match options.read(true).write(true).open(&path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(MachineError::io(format!("open {}", path.display()))(error)),
    };
    if variables.is_none() && matches!(blueprint.firmware, Firmware::Uefi { .. }) {
        let why = "it is not there".into();
        return Err(MachineError::Record { path, why });
    }
    let path = folder.join(TPM);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let tpm = match blueprint.tpm {
        true => Some(
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| {
                MachineError::io(format!("open {}", path.display()))(error.into())
            })?,
        ),
        false => None,
    };
    Ok(FullMachine {
        blueprint,
        variables,
        tpm,
        devices: HostDevices::default(),
    })
}

/// Writes a file that is whole or not there.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

/// Reads a blueprint and checks it.
pub(super) fn read(path: &Path) -> Result<Blueprint, MachineError> {
    let record = |why: String| MachineError::Record {
        path: path.to_owned(),
        why,
    };
    let text = fs::read(path).map_err(|error| record(error.to_string()))?;
    let blueprint: Blueprint =
        serde_json::from_slice(&text).map_err(|error| record(error.to_string()))?;
    if blueprint.version != VERSION {
        return Err(record(format!(
            "it is of version {}, and this program knows {VERSION}",
            blueprint.version
        )));
    }
    blueprint
        .check()
        .map_err(|error| record(error.to_string()))?;
    Ok(blueprint)
}
