//! Inventory and choice of GPUs, on trees of hosts that nobody has here. What a kernel does with real
//! devices is in `gpu_host`.

#![allow(clippy::unwrap_used)]

mod assignment;
mod choice;
mod inventory;
mod machines;

use aleph_executor::gpu::{HostTree, Inventory, Names, PciAddress, Record};
use aleph_testkit::expand_pci_tree;
use tempfile::TempDir;

/// A host with eight H200.
const HGX: &str = include_str!("hgx_h200.txt");

/// A host's tree, which goes when it is dropped.
fn tree(description: &str) -> (TempDir, HostTree) {
    let dir = tempfile::tempdir().unwrap();
    expand_pci_tree(description, dir.path()).unwrap();
    let tree = HostTree::recorded(dir.path());
    (dir, tree)
}

fn inventory(description: &str) -> Inventory {
    let (_dir, tree) = tree(description);
    Inventory::read(&tree, &Names::none(), &Record::default()).unwrap()
}

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}
