//! How a node keeps volumes, as its configuration says.

use super::backend::ThinPool;
use aleph_types::MiB;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Which back end new layers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// Files where the filesystem lets them share blocks, else qcow2.
    #[default]
    Auto,
    /// Raw files.
    Files,
    /// qcow2 over raw files.
    Qcow2,
    /// Thin volumes of LVM.
    LvmThin,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Files => "files",
            Self::Qcow2 => "qcow2",
            Self::LvmThin => "lvm-thin",
        })
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "files" => Ok(Self::Files),
            "qcow2" => Ok(Self::Qcow2),
            "lvm-thin" => Ok(Self::LvmThin),
            _ => Err(format!(
                "{text:?} is none of auto, files, qcow2 and lvm-thin"
            )),
        }
    }
}

/// What an account may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeQuota {
    /// How many volumes, those included that can be had back.
    pub count: Option<u64>,
    /// Bytes: the sizes of all volumes, and what their snapshots hold.
    pub bytes: Option<u64>,
}

/// How a node keeps volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesConfig {
    /// How their bytes are kept.
    pub backend: BackendChoice,
    /// The pool of those that are thin volumes of LVM.
    pub thin_pool: Option<ThinPool>,
    /// Whether new ones are encrypted, where nobody says so.
    pub encrypt: bool,
    /// The file with the key that the keys of encrypted ones are encrypted with; beside the records, when
    /// absent.
    pub key_file: Option<PathBuf>,
    /// How long one that was removed can be had back.
    pub grace: Duration,
    /// What each account may have.
    pub quota: VolumeQuota,
    /// The size of one that a job asks for where it is missing, if the job does not say.
    pub default_size: MiB,
}

impl Default for VolumesConfig {
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            thin_pool: None,
            encrypt: false,
            key_file: None,
            grace: Duration::from_secs(24 * 3600),
            quota: VolumeQuota::default(),
            default_size: MiB(10 * 1024),
        }
    }
}
