//! Which limits a VM's group has on this host.
//!
//! Hosts whose controllers are all in version 1 hierarchies have none to give. VMs run there, and
//! the node says what nobody limits.

use crate::cgroup::{Cgroup, Limits};
use std::path::Path;

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
    use aleph_types::MiB;

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
    fn a_host_without_groups_limits_nothing() {
        let all = ["processor time", "memory", "processes", "disk I/O"];
        assert_eq!(unlimited(None), all);
    }
}
