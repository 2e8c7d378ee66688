//! Ways for the fuzzer to what has no public name. No part of the interface.

use crate::oci;
use crate::recipe::{Bounds, Layers, Limits, unpack_code};
use crate::removal;
use std::path::Path;

/// Lays layers over one another in the empty folder `tree`, as far as they can be.
pub fn lay(tree: &Path, layers: &[Vec<u8>]) {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 1000,
        paths: 1 << 20,
        room: u64::MAX,
    };
    let Ok(mut stack) = Layers::new(tree, limits) else {
        return;
    };
    for layer in layers {
        if stack.lay(&layer[..]).is_err() {
            return;
        }
    }
    let _ = stack.finish();
}

/// Removes a tree.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove(tree: &Path) -> std::io::Result<()> {
    removal::remove(tree)
}

/// Reads what a registry sends.
pub fn read(bytes: &[u8]) {
    oci::read_any(bytes);
}

/// Unpacks a function's code into the empty folder `tree`, as far as it can be.
pub fn unpack_task(tree: &Path, zip: &[u8]) {
    let bounds = Bounds {
        bytes: 1 << 20,
        entries: 1000,
    };
    let _ = unpack_code(zip, tree, bounds);
}

/// Looks into what somebody calls a kernel and an initramfs.
pub fn inspect_kernel(bytes: &[u8]) {
    let _ = crate::kernel::inspection::inspect(bytes);
    let _ = crate::kernel::archive::inspect(bytes);
    if let Ok(config) = crate::kernel::config::Config::parse(bytes) {
        let _ = crate::kernel::config::lacks(&config, &std::collections::BTreeSet::new());
    }
}
