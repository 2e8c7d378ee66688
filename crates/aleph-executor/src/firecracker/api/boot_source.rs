//! What a guest boots: `/boot-source`.

use super::fault::Problem;
use super::{Body, Check};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The longest command line of a kernel, in bytes (`CMDLINE_MAX_SIZE` of Firecracker, less its
/// end). Firecracker appends the root device and each virtio device on MMIO to it.
const MAX_COMMAND_LINE: usize = 2047;

/// A kernel, and what it is given. Firecracker opens the files at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An uncompressed ELF kernel; from 1.17 on also a `bzImage`. On arm64 an `Image`.
    pub kernel_image_path: PathBuf,
    /// Its initrd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Its command line. What is given here **replaces** Firecracker's own, which differs between
    /// versions; from 1.13 on ` pci=off` is appended in any case where PCI is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl Body for BootSource {
    fn check(&self, check: &mut Check) {
        check.path("kernel_image_path", &self.kernel_image_path);
        if let Some(initrd) = &self.initrd_path {
            check.path("initrd_path", initrd);
        }
        if let Some(arguments) = self.boot_args.as_deref().filter(|line| !line.is_empty()) {
            check.text("boot_args", arguments, MAX_COMMAND_LINE);
            if let Some(other) = arguments.chars().find(|c| !matches!(c, ' '..='~')) {
                check.fault("boot_args", Problem::Character(other));
            }
        }
    }
}
