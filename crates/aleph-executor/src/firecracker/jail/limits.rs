//! Which limits a VM's group has on this host, and how long a file its VMM may write.
//!
//! Hosts whose controllers are all in version 1 hierarchies have none to give. VMs run there, and
//! the node says what nobody limits.

use crate::cgroup::{Cgroup, Limits};
use aleph_types::MiB;
use std::path::Path;

/// What a VMM may write in any case: the state of a guest's devices is some 100 KiB.
const FLOOR: u64 = 64 << 20;

/// How long the longest file may get that the VMM of a guest with this memory and these disks of its own,
/// in bytes, has to write: the longest disk, or the memory in a snapshot, which is a file of its size.
///
/// A file that a VMM writes beyond it ends that VMM (SIGXFSZ). The limit is one of each file, as the
/// kernel has none of how many there are: a VMM that makes many fills the disk by as much each time.
#[must_use]
pub fn longest_file(memory: MiB, disks: impl IntoIterator<Item = u64>) -> u64 {
    let memory = u64::from(memory.0) << 20;
    disks.into_iter().chain([memory]).fold(FLOOR, u64::max)
}

/// What is limited by which file of a group.
const LIMITED: [(&str, &str); 4] = [
    ("cpu.max", "processor time"),
    ("memory.max", "memory"),
    ("pids.max", "processes"),
    ("io.max", "disk I/O"),
];

/// What a group does not limit, in words; all of it where there is no group.
#[must_use]
pub fn unlimited(cgroup: Option<&Cgroup>) -> Vec<&'static str> {
    let there = cgroup.map(Cgroup::controllers).unwrap_or_default();
    LIMITED
        .into_iter()
        .filter(|(file, _)| !there.contains(file))
        .map(|(_, what)| what)
        .collect()
}

/// Says what nobody limits, if there is something.
pub fn announce(cgroup: Option<&Cgroup>) {
    let unlimited = unlimited(cgroup).join(", ");
    if !unlimited.is_empty() {
        tracing::warn!(
            "this host has no controllers of cgroup v2 for {unlimited}: VMs run without these limits"
        );
    }
}

/// The limits for [`super::JailerCgroup::Made`], as far as there are controllers for them:
/// `controllers` is the text of `cgroup.controllers` at the top of the hierarchy. Empty where there
/// are none; the jailer is to make no group then. `disk` is a path on the disk that I/O limits are
/// for.
#[must_use]
pub fn values(limits: &Limits, disk: &Path, controllers: &str) -> Vec<(&'static str, String)> {
    let mut values = limits.files(disk);
    values.retain(|(file, _)| {
        let controller = file.split('.').next().unwrap_or(file);
        controllers
            .split_ascii_whitespace()
            .any(|c| c == controller)
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_asked_for_where_a_controller_is() {
        let limits = Limits {
            cpus: 2,
            memory: MiB(128),
            pids: 100,
            io_bytes_per_second: None,
        };
        let named = |controllers| -> Vec<&str> {
            let values = values(&limits, Path::new("/"), controllers);
            values.into_iter().map(|(file, _)| file).collect()
        };
        assert_eq!(named("cpuset cpu io\n"), ["cpu.max"]);
        assert_eq!(
            named("memory pids"),
            ["memory.max", "memory.swap.max", "pids.max"]
        );
        assert_eq!(named(""), [""; 0]);
    }

    #[test]
    fn the_longest_file_is_a_disk_or_the_memory() {
        let mib = |n: u64| n << 20;
        for (memory, disks, longest) in [
            (32, vec![], 64),
            (512, vec![], 512),
            (512, vec![mib(100), mib(4096), mib(7)], 4096),
            (512, vec![mib(100)], 512),
        ] {
            assert_eq!(longest_file(MiB(memory), disks), mib(longest));
        }
    }

    #[test]
    fn a_host_without_groups_limits_nothing() {
        let all = ["processor time", "memory", "processes", "disk I/O"];
        assert_eq!(unlimited(None), all);
    }
}
