//! The firmware of whole computers, as Debian packages it.
//!
//! SeaBIOS is handed over as it is. Of UEFI the code is shared and only read; its variables are a file of
//! the VM's own, copied once: boot entries and keys that a guest writes are there after its next start.
//! Both are of the size that the file names call `4M`, so a newer OVMF reads what an older one wrote.
//!
//! Secure Boot takes three things together: code that was built for it, variables with keys, and a
//! machine with SMM, so that only the firmware writes the variables (`edk2`'s `OvmfPkg/README`).

use super::blueprint::Firmware;
use super::error::MachineError;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Where firmware is on a host.
#[derive(Debug, Clone)]
pub struct FirmwareFiles {
    /// The folder of OVMF.
    pub ovmf: PathBuf,
    /// The folder of SeaBIOS.
    pub seabios: PathBuf,
}

impl Default for FirmwareFiles {
    fn default() -> Self {
        Self {
            ovmf: "/usr/share/OVMF".into(),
            seabios: "/usr/share/seabios".into(),
        }
    }
}

impl FirmwareFiles {
    /// The code.
    ///
    /// # Errors
    /// [`MachineError::Missing`] with the package that has it.
    pub fn code(&self, firmware: Firmware) -> Result<File, MachineError> {
        match firmware {
            Firmware::Bios => open(&self.seabios, "bios-256k.bin", "seabios"),
            Firmware::Uefi { secure_boot: false } => open(&self.ovmf, "OVMF_CODE_4M.fd", "ovmf"),
            Firmware::Uefi { secure_boot: true } => {
                open(&self.ovmf, "OVMF_CODE_4M.secboot.fd", "ovmf")
            }
        }
    }

    /// The variables that a new VM begins with, where the firmware has any.
    ///
    /// # Errors
    /// The same.
    pub fn variables(&self, firmware: Firmware) -> Result<Option<File>, MachineError> {
        let name = match firmware {
            Firmware::Bios => return Ok(None),
            Firmware::Uefi { secure_boot: false } => "OVMF_VARS_4M.fd",
            Firmware::Uefi { secure_boot: true } => "OVMF_VARS_4M.ms.fd",
        };
        open(&self.ovmf, name, "ovmf").map(Some)
    }
}

fn open(folder: &Path, name: &str, package: &'static str) -> Result<File, MachineError> {
    let path = folder.join(name);
    File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MachineError::Missing {
            what: path.display().to_string(),
            package,
        },
        _ => MachineError::io(format!("open {}", path.display()))(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;

    #[test]
    fn missing_firmware_says_which_package_has_it() {
        let empty = tempfile::tempdir().unwrap();
        let files = FirmwareFiles {
            ovmf: empty.path().to_owned(),
            seabios: empty.path().to_owned(),
        };
        for (firmware, file, package) in [
            (Firmware::Bios, "bios-256k.bin", "seabios"),
            (
                Firmware::Uefi { secure_boot: true },
                "OVMF_CODE_4M.secboot.fd",
                "ovmf",
            ),
        ] {
            let error = files.code(firmware).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
            assert!(error.advice().unwrap().ends_with(package));
        }
        assert!(files.variables(Firmware::Bios).unwrap().is_none());
    }
}
