//! Who launched a VMM: what its driver writes down in the VM's runtime folder before it starts it.
//!
//! It is there before there is a process, and does not outlive the host's boot, as the process does
//! not. A driver adopts what its own kind has signed for, and finds in it what it has to know of a
//! VMM whatever is configured now.

use crate::firecracker::Version;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Its name in the runtime folder of a VM.
pub(crate) const FILE: &str = "driver.json";

/// Who launched a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The kind of driver: its name without the accelerator.
    pub driver: String,
    /// What else that of Firecracker has to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firecracker: Option<Launched>,
}

/// A Firecracker that was launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// The program.
    pub program: PathBuf,
    /// Its version, such as `1.16.1`.
    #[serde(with = "version")]
    pub version: Version,
    /// The folder with the jails, where it is in one.
    pub jails: Option<PathBuf>,
}

impl Signature {
    /// That of a driver with nothing more to say.
    #[must_use]
    pub fn of(driver: &str) -> Self {
        Self {
            driver: driver.to_owned(),
            firecracker: None,
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let temporary = run_dir.join("driver.json.tmp");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, run_dir.join(FILE))
    }

    /// That of the VM with this runtime folder; `None` where nobody has signed.
    ///
    /// # Errors
    /// Where it cannot be read: then nothing is known of its VMM.
    pub fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(run_dir.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        }
    }
}

mod version {
    use crate::firecracker::Version;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(version: &Version, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(version)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Version, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}
