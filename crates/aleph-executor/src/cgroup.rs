//! The cgroup v2 folder of each VMM.
//!
//! It holds a VMM's process and all that it might start, so that one write ends them together
//! (`cgroup.kill`) and their use can be counted. The hierarchy is found in
//! `/proc/self/mountinfo`: on hybrid hosts it is not at `/sys/fs/cgroup`. A host without
//! cgroup v2 still runs VMs; `aleph doctor` says what is missing. Version 1 hierarchies are
//! never touched.

use aleph_types::MiB;
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
        let top = mount_point(&mountinfo)?;
        let path = top.join(format!("aleph-{name}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                tracing::debug!(path = %path.display(), %error, "no cgroups: cannot make one");
                None
            }
            _ => {
                hand_down(&path);
                Some(Self(path))
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
    /// That of a folder.
    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

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
                    hand_down(tree);
                }
                fs::create_dir(&self.0)
            }
            done => done,
        }
    }

    /// Sets limits, as far as the host has controllers for them; `disk` is a path on the disk
    /// that I/O limits are for.
    ///
    /// # Errors
    /// Where a controller is there and refuses.
    pub fn limit(&self, limits: &Limits, disk: &Path) -> io::Result<()> {
        for (file, value) in limits.files(disk) {
            let path = self.0.join(file);
            if path.exists() {
                write(&path, &value)?;
            }
        }
        Ok(())
    }

    /// Sets the limits that follow from the size of a VM, as far as the host has controllers for them. What is
    /// not given stays: the limit of a VM whose memory does not change has parts in it that its size does not
    /// say, such as tables for its devices.
    ///
    /// # Errors
    /// Where a controller is there and refuses.
    pub fn resize(&self, cpus: Option<u16>, memory: Option<MiB>) -> io::Result<()> {
        for (file, value) in [
            ("cpu.max", cpus.map(cpu_max)),
            ("memory.max", memory.map(memory_max)),
        ] {
            let path = self.0.join(file);
            if let Some(value) = value.filter(|_| path.exists()) {
                write(&path, &value)?;
            }
        }
        Ok(())
    }

    /// Its processes and threads, where they have a limit.
    #[must_use]
    pub fn pids(&self) -> Option<Pids> {
        let read = |file| fs::read_to_string(self.0.join(file)).ok();
        Some(Pids {
            there: read("pids.current")?.trim().parse().ok()?,
            most: read("pids.max")?.trim().parse().ok()?,
        })
    }

    /// Which of the files that limits are set by are there.
    #[must_use]
    pub fn controllers(&self) -> Vec<&'static str> {
        LIMIT_FILES
            .into_iter()
            .filter(|file| self.0.join(file).exists())
            .collect()
    }

    /// Processor time used by all in it, in microseconds.
    #[must_use]
    pub fn cpu_usec(&self) -> Option<u64> {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).ok()?;
        let line = stat.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
        line.trim().parse().ok()
    }

    /// That the kernel has killed a process of it, because all in it together used more memory than
    /// they may.
    #[must_use]
    pub fn overuse(&self) -> Option<Overuse> {
        let read = |file| fs::read_to_string(self.0.join(file)).ok();
        let events = read("memory.events")?;
        let killed = events.lines().find_map(|l| l.strip_prefix("oom_kill "))?;
        (killed.trim() != "0").then(|| Overuse {
            limit: read("memory.max").and_then(|max| max.trim().parse().ok()),
        })
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

    /// Kills all in it, and lifts its limits of I/O: what it waits for must come for it to end.
    /// A group that is gone is no error; on kernels before 5.14, which lack `cgroup.kill`, each
    /// process is left to whoever holds it.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        let killed = match write(&self.0.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        };
        self.lift_io_limits();
        killed
    }

    /// A process that a limit holds up at the disk is uninterruptible: even a killed one stays
    /// until its turn comes, which may take hours.
    fn lift_io_limits(&self) {
        let path = self.0.join("io.max");
        for line in fs::read_to_string(&path).unwrap_or_default().lines() {
            if let Some((device, _)) = line.split_once(' ') {
                let _ = write(
                    &path,
                    &format!("{device} rbps=max wbps=max riops=max wiops=max"),
                );
            }
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

/// Processes and threads of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub there: u32,
    /// How many there may be.
    pub most: u32,
}

/// The kernel killed a process of a group for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overuse {
    /// How many bytes the group may have; a group above may have set the limit, too.
    pub limit: Option<u64>,
}

impl std::fmt::Display for Overuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the kernel killed it, as it used more memory than its cgroup may have")?;
        match self.limit {
            Some(bytes) => write!(f, " ({} MiB)", bytes >> 20),
            None => Ok(()),
        }
    }
}

/// Has the groups in a tree controlled. Controllers of version 1 hierarchies, or that others
/// hold, are not there to be handed down.
fn hand_down(tree: &Path) {
    for dir in tree.parent().into_iter().chain([tree]) {
        for controller in ["+cpu", "+memory", "+pids", "+io"] {
            let _ = write(&dir.join("cgroup.subtree_control"), controller);
        }
    }
}

const LIMIT_FILES: [&str; 5] = [
    "cpu.max",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "io.max",
];

/// What all in a group may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Whole processors.
    pub cpus: u16,
    /// Memory.
    pub memory: MiB,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes read and written per second, each.
    pub io_bytes_per_second: Option<u64>,
}

/// What a VMM may take beyond its guest's memory before it is ended: translated code of an
/// emulator is the most of it. A bound for one gone wild, not what it costs.
const MEMORY_BEYOND: MiB = MiB(512);

impl Limits {
    /// The files and what is written to them, as `Documentation/admin-guide/cgroup-v2.rst` of
    /// the kernel has them.
    pub(crate) fn files(&self, disk: &Path) -> Vec<(&'static str, String)> {
        let mut files = vec![
            ("cpu.max", cpu_max(self.cpus)),
            ("memory.max", memory_max(self.memory)),
            ("memory.swap.max", "0".into()),
            ("pids.max", self.pids.to_string()),
        ];
        if let Some(bytes) = self.io_bytes_per_second
            && let Some(device) = whole_disk(disk)
        {
            files.push(("io.max", format!("{device} rbps={bytes} wbps={bytes}")));
        }
        files
    }
}

fn cpu_max(cpus: u16) -> String {
    let period = 100_000_u64;
    format!("{} {period}", u64::from(cpus) * period)
}

fn memory_max(memory: MiB) -> String {
    let bytes = MiB(memory.0.saturating_add(MEMORY_BEYOND.0)).bytes();
    bytes.to_string()
}

/// `MAJOR:MINOR` of the disk that a path is on: not of a partition, which takes no limits.
fn whole_disk(path: &Path) -> Option<String> {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let number = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let entry = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
    if !entry.join("partition").exists() {
        return Some(number);
    }
    let parent = fs::read_to_string(entry.parent()?.join("dev")).ok()?;
    Some(parent.trim().to_owned())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
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

    #[test]
    fn a_kill_for_want_of_memory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup(dir.path().to_owned());
        let told = || group.overuse().map(|overuse| overuse.to_string());
        assert_eq!(told(), None);
        let events = |kills| format!("low 0\nmax 312\noom 3\noom_kill {kills}\noom_group_kill 0\n");
        let write = |file, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.max", "671088640\n");
        write("memory.events", &events(0));
        assert_eq!(told(), None);
        write("memory.events", &events(2));
        assert!(told().unwrap().ends_with("may have (640 MiB)"));
        write("memory.max", "max\n");
        assert!(told().unwrap().ends_with("may have"));
    }

    #[test]
    fn limits_are_written_where_there_is_a_controller() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup(dir.path().to_owned());
        for file in ["cpu.max", "memory.max", "pids.max"] {
            File::create(dir.path().join(file)).unwrap();
        }
        let limits = Limits {
            cpus: 2,
            memory: MiB(128),
            pids: 100,
            io_bytes_per_second: Some(1 << 20),
        };
        group.limit(&limits, dir.path()).unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("cpu.max"), "200000 100000");
        assert_eq!(read("memory.max"), MiB(640).bytes().to_string());
        assert_eq!(read("pids.max"), "100");
        assert!(!dir.path().join("io.max").exists());
        assert_eq!(group.controllers(), ["cpu.max", "memory.max", "pids.max"]);

        fs::write(dir.path().join("pids.current"), "93\n").unwrap();
        let (there, most) = (93, 100);
        assert_eq!(group.pids(), Some(Pids { there, most }));
        let empty = || {
            for file in ["cpu.max", "memory.max"] {
                // As the kernel has it, which takes a value and is not added to.
                fs::write(dir.path().join(file), "").unwrap();
            }
        };
        empty();
        group.resize(Some(3), None).unwrap();
        assert_eq!(read("cpu.max"), "300000 100000");
        assert_eq!(read("memory.max"), "", "its memory is what it was");
        empty();
        group.resize(Some(4), Some(MiB(1024))).unwrap();
        assert_eq!(read("cpu.max"), "400000 100000");
        assert_eq!(read("memory.max"), MiB(1536).bytes().to_string());
        assert_eq!(
            read("pids.max"),
            "100",
            "what it does not follow from stays"
        );
        fs::write(dir.path().join("pids.max"), "max\n").unwrap();
        assert_eq!(group.pids(), None);
    }
}
