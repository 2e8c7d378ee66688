//! Names of kernel bundles: `kernels/names/NAME` points at a bundle's folder.

use super::error::KernelError;
use super::store::KernelStore;
use crate::disk::{Doing, sync_dir};
use crate::name::check_name;
use crate::staging;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const NAMES: &str = "names";

impl KernelStore {
    fn names_dir(&self) -> PathBuf {
        self.dir().join(NAMES)
    }

    /// All names, each with the name of the folder that it stands for.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn folders_by_name(&self) -> Result<BTreeMap<String, String>, KernelError> {
        let dir = self.names_dir();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            entries => entries.doing("list", &dir)?,
        };
        let mut names = BTreeMap::new();
        for entry in entries {
            let entry = entry.doing("list", &dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let target = fs::read_link(entry.path()).ok();
            let folder = target.as_deref().and_then(Path::file_name);
            if let Some(folder) = folder.filter(|_| check_name(&name).is_ok()) {
                names.insert(name, folder.to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// Checks that a bundle can have this name.
    pub(super) fn check_kernel_name(name: &str) -> Result<(), KernelError> {
        let bad = |why: String| KernelError::BadName {
            name: name.to_owned(),
            why,
        };
        if name == "default" {
            return Err(bad("it is what the default is called".to_owned()));
        }
        check_name(name).map_err(|error| bad(error.to_string()))
    }

    /// Gives a folder a name, which may have been another one's. The caller holds the store's lock.
    pub(super) fn set_name(&self, name: &str, folder: &str) -> Result<(), KernelError> {
        let dir = self.names_dir();
        fs::create_dir_all(&dir).doing("create", &dir)?;
        let target = Path::new("..").join(folder);
        Ok(staging::replace_symlink(&dir.join(name), &target)?)
    }

    /// Takes a name away. The caller holds the store's lock.
    pub(super) fn remove_name(&self, name: &str) -> Result<(), KernelError> {
        let dir = self.names_dir();
        let link = dir.join(name);
        fs::remove_file(&link).doing("remove", &link)?;
        Ok(sync_dir(&dir)?)
    }
}
