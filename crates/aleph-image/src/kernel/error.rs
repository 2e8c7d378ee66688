//! What can go wrong with a kernel bundle.

use super::bzimage::ExtractError;
use super::config::GuestMode;
use super::modules::ModuleError;
use crate::apt::PackageError;
use crate::disk::DiskError;
use crate::program::ProgramError;
use aleph_types::{Classify, ErrorClass};
use std::path::PathBuf;

/// An operation on kernel bundles that failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// No bundle was built yet.
    #[error("there is no default kernel bundle")]
    NoDefault,
    /// There is no such bundle.
    #[error("there is no kernel bundle {reference:?}")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// A digest prefix that more than one bundle has.
    #[error("{prefix} begins the digests of {count} kernel bundles")]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// The package is not one that depends on one version of a kernel.
    #[error("the package {package} does not depend on one version of a kernel")]
    NotMeta {
        /// The package.
        package: String,
    },
    /// The kernel's uncompressed form cannot be had.
    #[error("cannot take the kernel out of {}", path.display())]
    Extract {
        /// The compressed kernel.
        path: PathBuf,
        /// What is wrong with it.
        source: ExtractError,
    },
    /// The modules cannot be had.
    #[error("cannot choose modules from {package}")]
    Modules {
        /// The package.
        package: String,
        /// What is wrong with them.
        source: ModuleError,
    },
    /// A file that is no kernel.
    #[error("{} is not a Linux kernel: {why}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file that is no initramfs.
    #[error("{} is not an initramfs: {why}", path.display())]
    NotAnInitrd {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file that is no kernel's configuration.
    #[error("{} is not a kernel's configuration: {why}", path.display())]
    NotAConfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A kernel that no guest could run with.
    #[error("{} lacks what guests need: {lacks}", path.display())]
    LacksDrivers {
        /// The kernel.
        path: PathBuf,
        /// What is missing for which kind of guest.
        lacks: String,
    },
    /// A kernel without an initramfs that fits it.
    #[error("{} ({release}) needs an initramfs of its own: {needs}", path.display())]
    NeedsInitrd {
        /// The kernel.
        path: PathBuf,
        /// Its release.
        release: String,
        /// What it needs of it.
        needs: String,
    },
    /// A kernel that does not serve this kind of guest.
    #[error("the kernel {digest} does not serve {mode}: {lacks}")]
    Unfit {
        /// Its bundle.
        digest: String,
        /// The kind of guest.
        mode: GuestMode,
        /// What is missing.
        lacks: String,
    },
    /// A kernel that was imported before it was kept whose initramfs it has.
    #[error("nobody knows any more whether the kernel {digest} was imported with an initramfs")]
    UnknownInitrd {
        /// Its bundle.
        digest: String,
    },
    /// A name that no bundle can have.
    #[error("{name:?} cannot be a kernel's name: {why}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// A guest runs with it.
    #[error("the kernel {reference:?} is in use")]
    InUse {
        /// What should be removed.
        reference: String,
    },
    /// What is stored is not what was stored.
    #[error("the kernel bundle in {} is damaged: {why}", path.display())]
    Damaged {
        /// The bundle's folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A record that cannot be read.
    #[error("cannot read {}", path.display())]
    BadRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record of a later version of this program.
    #[error("{} has version {version}, this program reads up to {}", path.display(), super::bundle::RECORD_VERSION)]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Classify for KernelError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) => error.class(),
            Self::Program(error) => error.class(),
            Self::Package(error) => error.class(),
            Self::NoDefault | Self::NotFound { .. } => ErrorClass::NotFound,
            Self::Ambiguous { .. }
            | Self::NotMeta { .. }
            | Self::NotAKernel { .. }
            | Self::NotAnInitrd { .. }
            | Self::NotAConfig { .. }
            | Self::LacksDrivers { .. }
            | Self::NeedsInitrd { .. }
            | Self::Unfit { .. }
            | Self::UnknownInitrd { .. }
            | Self::BadName { .. } => ErrorClass::Invalid,
            Self::InUse { .. } => ErrorClass::Conflict,
            Self::Extract { .. }
            | Self::Modules { .. }
            | Self::Damaged { .. }
            | Self::BadRecord { .. }
            | Self::Newer { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.code(),
            Self::Program(error) => error.code(),
            Self::Package(error) => error.code(),
            Self::NoDefault => "kernel_no_default",
            Self::NotFound { .. } => "kernel_not_found",
            Self::Ambiguous { .. } => "kernel_ambiguous",
            Self::NotMeta { .. } => "kernel_not_meta",
            Self::Extract { .. } => "kernel_extract",
            Self::Modules { .. } => "kernel_modules",
            Self::NotAKernel { .. } => "not_a_kernel",
            Self::NotAnInitrd { .. } => "not_an_initrd",
            Self::NotAConfig { .. } => "not_a_kernel_config",
            Self::LacksDrivers { .. } => "kernel_lacks_drivers",
            Self::NeedsInitrd { .. } => "kernel_needs_initrd",
            Self::Unfit { .. } => "kernel_unfit",
            Self::UnknownInitrd { .. } => "kernel_initrd_unknown",
            Self::BadName { .. } => "kernel_bad_name",
            Self::InUse { .. } => "kernel_in_use",
            Self::Damaged { .. } => "kernel_damaged",
            Self::BadRecord { .. } => "kernel_record",
            Self::Newer { .. } => "kernel_newer",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.advice(),
            Self::Program(error) => error.advice(),
            Self::Package(error) => error.advice(),
            Self::NoDefault => Some("Build it: aleph kernel build.".into()),
            Self::NotFound { .. } => {
                Some("aleph kernel ls shows the bundles that are here.".into())
            }
            Self::Ambiguous { .. } => Some("Give more digits of the digest.".into()),
            Self::NotMeta { .. } => {
                Some("Name a metapackage such as linux-image-cloud-amd64.".into())
            }
            Self::Extract { .. } | Self::Modules { .. } => {
                Some("Try another kernel package, or bring your own kernel and initramfs.".into())
            }
            Self::NotAKernel { .. } => {
                Some("Name a bzImage (vmlinuz) or an uncompressed ELF kernel (vmlinux).".into())
            }
            Self::NotAnInitrd { .. } => {
                Some("Name a cpio archive in the newc format, plain or compressed.".into())
            }
            Self::NotAConfig { .. } => {
                Some("Name the .config of the kernel's build, such as /boot/config-RELEASE.".into())
            }
            Self::LacksDrivers { .. } | Self::Unfit { .. } => {
                Some("Build the kernel with what it lacks, or bring an initramfs that has it.".into())
            }
            Self::NeedsInitrd { .. } => Some(
                "Give one with --initrd, with the guest agent as /init, or build the kernel without modules and \
                 give its configuration with --config."
                    .into(),
            ),
            Self::UnknownInitrd { .. } => {
                Some("Import it again under its name: aleph kernel import.".into())
            }
            Self::BadName { .. } => None,
            Self::InUse { .. } => Some("Stop the jobs that run with it first.".into()),
            Self::Damaged { .. } | Self::BadRecord { .. } | Self::Newer { .. } => {
                Some("Remove it with aleph kernel rm and build it again.".into())
            }
        }
    }
}
