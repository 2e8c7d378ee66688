//! How Firecracker is run, as the node's operator says it.

use super::users::UidRange;
use crate::firecracker::MemoryMode;
use crate::paths::Paths;
use std::path::{Path, PathBuf};

/// `[executor.firecracker]` of `aleph.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailConfig {
    /// `firecracker`: the program. By default the one that `aleph setup firecracker` installed and
    /// made the default, else the one in the search path.
    pub firecracker: Option<PathBuf>,
    /// `jailer`: the jailer, of the same version. Found as `firecracker` is.
    pub jailer: Option<PathBuf>,
    /// `jailed`: whether VMMs run in jails. Only an operator who says so runs them without.
    pub jailed: bool,
    /// `uid_range`: the users, and groups of the same numbers, that VMMs run under.
    pub uid_range: UidRange,
    /// `chroot_base`: the folder in which the node has a folder with its jails. By default they are
    /// in `jail` in the node's state folder, which has images and disks of VMs on the same
    /// filesystem.
    pub chroot_base: Option<PathBuf>,
    /// `memory`: how VMs that go on from a template come to its memory.
    pub memory: MemoryMode,
    /// `track_dirty_pages`: whether KVM notes which pages guests write to, so that a job's next
    /// snapshot takes what has changed since the last one. It costs a fault for each page.
    pub track_dirty_pages: bool,
}

impl Default for JailConfig {
    fn default() -> Self {
        Self {
            firecracker: None,
            jailer: None,
            jailed: true,
            uid_range: UidRange::default(),
            chroot_base: None,
            memory: MemoryMode::File,
            track_dirty_pages: false,
        }
    }
}

/// The two programs of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The VMM.
    pub firecracker: PathBuf,
    /// What locks it up.
    pub jailer: PathBuf,
}

impl JailConfig {
    /// The programs: those that are named here, those that were installed below `state`, or those
    /// of the search path. A path with links in it is given as it is behind them: the jail's
    /// folder has the name of that file. One that is not there is given as it was named.
    #[must_use]
    pub fn programs(&self, state: &Path) -> Programs {
        let installed = state.join("firecracker").join("default");
        let of = |named: &Option<PathBuf>, name: &str| match named {
            Some(path) => found(path),
            None => file(&installed.join(name)).unwrap_or_else(|| found(Path::new(name))),
        };
        Programs {
            firecracker: of(&self.firecracker, "firecracker"),
            jailer: of(&self.jailer, "jailer"),
        }
    }

    /// The folder with the jails of the node in these folders, and with those of no other: whose
    /// owner is not found there is swept.
    #[must_use]
    pub fn base(&self, paths: &Paths) -> PathBuf {
        match &self.chroot_base {
            Some(base) => base.join(paths.name()),
            None => paths.state().join("jail"),
        }
    }

    /// What is to be said loudly as a node begins; `None` where VMMs are jailed.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        (!self.jailed).then_some(
            "VMMs of Firecracker run WITHOUT the jailer (jailed = false in [executor.firecracker]): \
             a guest that breaks out of its VMM sees this host's files and processes as the VM's \
             user. Take the setting away unless this host has nothing to lose.",
        )
    }

    /// Says it.
    pub fn announce(&self) {
        if let Some(warning) = self.warning() {
            tracing::error!("{warning}");
        }
    }
}

/// The program behind a path, or behind a name in the search path.
fn found(program: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = if program.components().count() > 1 {
        file(program)
    } else {
        std::env::split_paths(&path).find_map(|dir| file(&dir.join(program)))
    };
    there.unwrap_or_else(|| program.to_owned())
}

fn file(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmms_are_jailed_unless_somebody_says_otherwise() {
        assert!(JailConfig::default().jailed);
        assert_eq!(JailConfig::default().warning(), None);
        let open = JailConfig {
            jailed: false,
            ..JailConfig::default()
        };
        assert!(open.warning().unwrap().contains("WITHOUT the jailer"));
    }

    #[test]
    fn programs_are_those_named_then_those_installed_then_those_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap();
        let mut config = JailConfig {
            jailer: Some("no-such-jailer".into()),
            ..JailConfig::default()
        };
        assert_eq!(config.programs(&state).jailer, Path::new("no-such-jailer"));
        config.jailer = Some("sh".into());
        assert!(config.programs(&state).jailer.is_absolute());
        config.jailer = None;

        let version = state.join("firecracker/1.12.1");
        std::fs::create_dir_all(&version).unwrap();
        for name in ["firecracker", "jailer"] {
            std::fs::write(version.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("1.12.1", state.join("firecracker/default")).unwrap();
        let installed = config.programs(&state);
        assert_eq!(installed.firecracker, version.join("firecracker"));
        assert_eq!(installed.jailer, version.join("jailer"));

        let link = state.join("link");
        std::os::unix::fs::symlink(version.join("jailer"), &link).unwrap();
        config.jailer = Some(link);
        assert_eq!(config.programs(&state).jailer, version.join("jailer"));
        assert_eq!(config.programs(&state).firecracker, installed.firecracker);
    }
}
