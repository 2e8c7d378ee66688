//! Which NUMA node of the host has the memory of a guest with GPUs: that of the GPUs, since what they read
//! from another one goes through the link between sockets.
//!
//! It is decided at each start and is in no blueprint: a start may get other GPUs, the guest sees nothing of
//! it, and what a node has left is of the moment.
//!
//! # Failure cases
//! Where the GPUs are of several nodes, or the firmware does not say of which, the kernel places the memory
//! as that of others. Where their node has too little left, what does not fit comes from others.
//!
//! A guest is bound to the node only with huge pages: those are set aside, so what is free of them is known, and
//! one that comes too late fails at its start by itself. Of ordinary pages nobody knows what others still take
//! that were promised theirs a moment ago, and a node that is full then ends in the kernel killing any process
//! whose memory is bound to it. So ordinary pages come from the node for as long as it has some, and then from
//! others.

use super::function::PciFunction;
use super::sysfs::HostTree;
use aleph_types::{HugePages, MiB};
use std::collections::BTreeSet;
use std::fs;

/// A NUMA node of the host, and whether memory may come from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNode {
    /// Its number.
    pub number: u16,
    /// Whether all of it comes from there: huge pages, of which there are enough.
    pub strict: bool,
}

/// The node for this much memory in such pages, beside these functions.
#[must_use]
pub fn memory_node<'a>(
    tree: &HostTree,
    functions: impl IntoIterator<Item = &'a PciFunction>,
    memory: MiB,
    pages: Option<HugePages>,
) -> Option<MemoryNode> {
    let gpus = functions.into_iter().filter(|function| function.is_gpu());
    let near: BTreeSet<Option<u16>> = gpus.map(|gpu| gpu.numa_node).collect();
    let [Some(number)] = near.into_iter().collect::<Vec<_>>()[..] else {
        return None;
    };
    let nodes = nodes_with_memory(tree);
    if nodes.len() < 2 || !nodes.contains(&number) {
        return None;
    }
    let left = pages.and_then(|pages| left(tree, number, pages));
    let strict = left.is_some_and(|left| left >= memory.bytes());
    Some(MemoryNode { number, strict })
}

/// The kernel lists them as `0-1,4`.
fn nodes_with_memory(tree: &HostTree) -> BTreeSet<u16> {
    let path = tree.sys.join("devices/system/node/has_memory");
    let text = fs::read_to_string(path).unwrap_or_default();
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

/// Bytes that a node can still give in such pages.
fn left(tree: &HostTree, number: u16, pages: HugePages) -> Option<u64> {
    let bytes = pages.size().bytes();
    let kind = format!("hugepages-{}kB", bytes >> 10);
    let count = |folder: String, name: &str| {
        let path = tree.sys.join(folder).join(&kind).join(name);
        let text = fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let node = format!("devices/system/node/node{number}/hugepages");
    // What others have set aside and not taken yet is of no node: it may be all of this one.
    let reserved = count("kernel/mm/hugepages".into(), "resv_hugepages").unwrap_or(0);
    let free = count(node, "free_hugepages")?.saturating_sub(reserved);
    free.checked_mul(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const HOST: &str = "0000:01:00.0 root 10de:2335 class=030200 node=0 group=1\n\
         0000:01:00.1 root 10de:22ba class=040300 group=1\n\
         0000:02:00.0 root 10de:2335 class=030200 node=1 group=2\n\
         0000:03:00.0 root 10de:2335 class=030200 group=3\n";

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join("sys/devices/system/node").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn memory_is_where_all_of_the_gpus_are() {
        let dir = tempfile::tempdir().unwrap();
        aleph_testkit::expand_pci_tree(HOST, dir.path()).unwrap();
        let tree = HostTree::recorded(dir.path());
        let found = |buses: &[&str], mib: u32, pages| {
            let all = tree.functions().unwrap();
            let given = all.iter().filter(|function| {
                let address = function.address.to_string();
                buses
                    .iter()
                    .any(|bus| address.starts_with(&format!("0000:{bus}:")))
            });
            let node = memory_node(&tree, given, MiB(mib), pages);
            node.map(|node| (node.number, node.strict))
        };
        let meminfo = "Node 1 MemTotal:       4194304 kB\n\
             Node 1 MemFree:        4194304 kB\n";
        assert_eq!(
            found(&["02"], 1024, None),
            None,
            "nobody says which there are"
        );
        write(dir.path(), "has_memory", "0\n");
        assert_eq!(found(&["02"], 1024, None), None, "there is one");
        write(dir.path(), "has_memory", "0-1\n");
        write(dir.path(), "node1/meminfo", meminfo);
        assert_eq!(
            found(&["02"], 64, None),
            Some((1, false)),
            "others were promised what is free"
        );
        assert_eq!(
            found(&["01"], 64, None).map(|it| it.0),
            Some(0),
            "sound is no GPU"
        );
        assert_eq!(found(&["01", "02"], 64, None), None, "they are on two");
        assert_eq!(found(&["03"], 64, None), None);
        assert_eq!(found(&[], 64, None), None);
        let pages = Some(HugePages::Mib2);
        assert_eq!(found(&["02"], 64, pages), Some((1, false)), "nobody knows");
        write(
            dir.path(),
            "node1/hugepages/hugepages-2048kB/free_hugepages",
            "512\n",
        );
        assert_eq!(found(&["02"], 1024, pages), Some((1, true)));
        assert_eq!(found(&["02"], 1026, pages), Some((1, false)));
        let reserved = "../../../kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";
        write(dir.path(), reserved, "1\n");
        assert_eq!(found(&["02"], 1024, pages), Some((1, false)));
        assert_eq!(found(&["02"], 1022, pages), Some((1, true)));
    }
}
