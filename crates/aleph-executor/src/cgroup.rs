//! The cgroup v2 folder of each VMM.
//!
//! It holds a VMM's process and all that it might start, so that one write ends them together
//! (`cgroup.kill`) and their use can be counted. The hierarchy is found in
//! `/proc/self/mountinfo`: on hybrid hosts it is not at `/sys/fs/cgroup`. A host without
//! cgroup v2 still runs VMs; `aleph doctor` says what is missing. Version 1 hierarchies are
//! never touched.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The parent of all groups of one node.
#[derive(Debug, Clone)]
pub struct CgroupTree(PathBuf);

/// The group of one VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

/// Where cgroup v2 is mounted, by the text of `/proc/self/mountinfo`.
#[must_use]
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_v2 = filesystem.split(' ').next() == Some("cgroup2");
        is_v2
            .then(|| mount.split(' ').nth(4))
            .flatten()
            .map(PathBuf::from)
    })
}

impl CgroupTree {
    /// The tree named `aleph-NAME` at the top of the host's hierarchy; `None` where there is no
    /// hierarchy, or it may not be written.
    #[must_use]
    pub fn open(name: &str) -> Option<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let path = mount_point(&mountinfo)?.join(format!("aleph-{name}"));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Some(Self(path)),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no cgroups: cannot make one");
                None
            }
        }
    }

    /// The group with this name in the tree, whether it exists or not.
    #[must_use]
    pub fn group(&self, name: &str) -> Cgroup {
        Cgroup(self.0.join(name))
    }

    /// Names of the groups there are.
    ///
    /// # Errors
    /// Those of reading the folder.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    /// Removes the tree itself if no group is in it; another process may be using it.
    pub fn remove_if_empty(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl Cgroup {
    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it; the tree too, if another process of the node has just removed it.
    ///
    /// # Errors
    /// Those of making a folder; one that exists already is an error.
    pub fn create(&self) -> io::Result<()> {
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(tree) = self.0.parent() {
                    let _ = fs::create_dir(tree);
                }
                fs::create_dir(&self.0)
            }
            done => done,
        }
    }

    /// The file through which a process joins it.
    ///
    /// # Errors
    /// Where it does not exist.
    pub fn open_procs(&self) -> io::Result<OwnedFd> {
        Ok(File::options()
            .write(true)
            .open(self.0.join("cgroup.procs"))?
            .into())
    }

    /// Kills all in it. A group that is gone is no error; on kernels before 5.14, which lack
    /// `cgroup.kill`, each process is left to whoever holds it.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match File::options().write(true).open(self.0.join("cgroup.kill")) {
            Ok(mut file) => file.write_all(b"1"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a process is in it.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Removes it. One that is gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` while a process is in it.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_hosts() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("1 2 0:1 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
