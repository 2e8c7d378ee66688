//! Which processes use a device: those that have one of its device nodes open.

use super::address::PciAddress;
use super::function::PciFunction;
use super::nvml_reader::NVML_READER;
use super::sysfs::HostTree;
use rustix::fs::{Dev, makedev};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DeviceUser {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel shortens it.
    pub program: String,
    /// What it has open.
    pub node: String,
}

impl fmt::Display for DeviceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, program, node } = self;
        write!(f, "{program} (process {pid}) has {node} open")
    }
}

/// A device node: a block device or not, and its number.
type Node = (bool, Dev);

/// The processes that use these functions. Who is not root sees only its own.
pub(super) fn users<'a>(
    tree: &HostTree,
    functions: impl IntoIterator<Item = &'a PciFunction>,
) -> BTreeMap<PciAddress, Vec<DeviceUser>> {
    let mut owners: BTreeMap<Node, Vec<PciAddress>> = BTreeMap::new();
    for function in functions {
        for node in nodes(tree, function) {
            owners.entry(node).or_default().push(function.address);
        }
    }
    let mut found: BTreeMap<PciAddress, Vec<DeviceUser>> = BTreeMap::new();
    if owners.is_empty() {
        return found;
    }
    for (pid, dir) in processes(&tree.proc) {
        for descriptor in descriptors(&dir) {
            let Some((node, path)) = open_node(&descriptor) else {
                continue;
            };
            for address in owners.get(&node).into_iter().flatten() {
                let program = fs::read_to_string(dir.join("comm")).unwrap_or_default();
                let user = DeviceUser {
                    pid,
                    program: program.trim().to_owned(),
                    node: path.clone(),
                };
                let users = found.entry(*address).or_default();
                if !users.contains(&user) {
                    users.push(user);
                }
            }
        }
    }
    found
}

/// Whether a process is one that asks NVML, of whichever program: it has all of NVIDIA's GPUs open, and ends by
/// itself.
pub(super) fn is_nvml_reader(tree: &HostTree, pid: u32) -> bool {
    let words = fs::read(tree.proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(NVML_READER.as_bytes())
}

/// The descriptors of a process: those of its other threads where the first one has ended, and shows none.
fn descriptors(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let of_first = list(dir.join("fd"));
    if !of_first.is_empty() {
        return of_first;
    }
    let threads = list(dir.join("task")).into_iter();
    threads.flat_map(|thread| list(thread.join("fd"))).collect()
}

fn processes(proc: &Path) -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

/// The device node that a descriptor is of. Others are not looked into: on a dead network filesystem
/// that would not return.
fn open_node(descriptor: &Path) -> Option<(Node, String)> {
    let target = fs::read_link(descriptor).ok()?;
    let path = target.to_str()?.to_owned();
    if !path.starts_with("/dev/") {
        return None;
    }
    let metadata = fs::metadata(descriptor).ok()?;
    let kind = metadata.file_type();
    let is_node = kind.is_char_device() || kind.is_block_device();
    is_node.then(|| ((kind.is_block_device(), metadata.rdev()), path))
}

/// The device nodes of a function: those that the kernel shows below it, NVIDIA's, which it does
/// not show there, and that of its IOMMU group.
fn nodes(tree: &HostTree, function: &PciFunction) -> Vec<Node> {
    let mut nodes = Vec::new();
    below(&tree.function(function.address), 6, &mut nodes);
    nodes.extend(nvidia_minor(tree, function.address).map(|n| (false, makedev(NVIDIA_MAJOR, n))));
    if let Some(group) = function.iommu_group {
        let node = tree.dev.join("vfio").join(group.to_string());
        let metadata = fs::metadata(node).ok();
        let node = metadata.filter(|m| m.file_type().is_char_device());
        nodes.extend(node.map(|m| (false, m.rdev())));
    }
    nodes
}

/// `/dev/nvidia0` and on (NVIDIA's driver README, "Does the NVIDIA driver have device nodes").
const NVIDIA_MAJOR: u32 = 195;

fn nvidia_minor(tree: &HostTree, address: PciAddress) -> Option<u32> {
    let path = tree.proc.join("driver/nvidia/gpus");
    let text = fs::read_to_string(path.join(address.to_string()).join("information")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Device Minor:"))?;
    line.trim().parse().ok()
}

/// Collects what `dev` files in a folder and those in it say.
fn below(dir: &Path, depth: usize, nodes: &mut Vec<Node>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let is_function = name
            .to_str()
            .is_some_and(|n| n.parse::<PciAddress>().is_ok());
        if kind.is_dir() && depth > 0 && !is_function {
            below(&entry.path(), depth - 1, nodes);
        } else if kind.is_file() && name == "dev" {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let numbers = text.trim().split_once(':');
            let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let subsystem = fs::read_link(dir.join("subsystem")).unwrap_or_default();
            let is_block = subsystem.ends_with("block");
            nodes.extend(numbers.map(|(major, minor)| (is_block, makedev(major, minor))));
        }
    }
}
