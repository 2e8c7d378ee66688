//! What a QEMU that was launched ahead is told once it is known what its guest goes on from: as
//! pure functions, what of it and in which order.
//!
//! It waits in the state `-preconfig`: its own interface is open, its accelerator is there, its
//! machine is not. In that state it takes no descriptors (`getfd` and `add-fd` are refused), so it
//! opens what comes late by name, in a folder of which it has had the descriptor from the start.
//! Devices are on its command line already: what each of them is to use is looked up by name when
//! that state ends.

use super::argv::{late_path, late_queue};
use crate::hypervisor::Shape;
use serde_json::{Value, json};

/// The name of the guest's memory in the folder; a disk has its serial number.
pub(super) const MEMORY: &str = "memory";

/// A command, and its arguments.
pub(super) type Command = (&'static str, Value);

/// What gives it the files in its folder: after these nothing is opened there.
pub(super) fn files(shape: &Shape) -> Vec<Command> {
    let memory = json!({
        "qom-type": "memory-backend-file",
        "id": "ram",
        "size": shape.resources.memory.bytes(),
        "mem-path": late_path(MEMORY),
        "share": false,
    });
    let backend = json!({
        "path": "/machine",
        "property": "memory-backend",
        "value": "/objects/ram",
    });
    let disks = shape.disks.iter().map(|(serial, read_only)| {
        let mut disk = json!({
            "driver": "file",
            "node-name": serial,
            "filename": late_path(serial),
            "read-only": read_only,
        });
        if !read_only {
            disk["discard"] = "unmap".into();
        }
        ("blockdev-add", disk)
    });
    [("object-add", memory), ("qom-set", backend)]
        .into_iter()
        .chain(disks)
        .collect()
}

/// What gives it its networks, and ends its waiting: it makes its machine then.
pub(super) fn rest(shape: &Shape) -> Vec<Command> {
    let nics = (0..shape.nics).map(|nic| {
        let queue = json!({
            "type": "tap",
            "id": format!("net{nic}"),
            // A number is a descriptor that it was started with.
            "fd": late_queue(nic).to_string(),
            "vhost": false,
        });
        ("netdev_add", queue)
    });
    nics.chain([("x-exit-preconfig", json!({}))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{MiB, Resources};
    use std::fmt::Write;

    #[test]
    fn what_a_process_is_told_late() {
        let shape = Shape {
            resources: Resources {
                memory: MiB(128),
                ..Resources::default()
            },
            disks: vec![("rootfs", true), ("scratch", false)],
            nics: 1,
            links: vec![[0x52, 0x54, 0, 0xab, 0xcd, 1]],
        };
        let mut told = String::new();
        for (command, arguments) in files(&shape).into_iter().chain(rest(&shape)) {
            writeln!(told, "{command} {arguments:#}").unwrap();
        }
        insta::assert_snapshot!(told);
    }
}
