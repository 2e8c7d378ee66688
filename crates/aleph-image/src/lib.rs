//! Root filesystem images and kernel bundles, kept on disk under their digests.
//!
//! The crate owns how an image comes to be (a recipe, a directory, an archive, a registry), how a kernel
//! bundle comes to be (a kernel package, its modules and the guest agent), and where both are
//! kept. It knows nothing of VMs, jobs or hypervisors: whoever starts a guest asks for paths.
//!
//! Everything here blocks but [`Store::pull`]; callers on an async runtime use its pool for
//! blocking work. The
//! programs it starts (`apt-get`, `apt-cache`, `dpkg-deb`, `mmdebstrap`, `mkfs.erofs`,
//! `mksquashfs`, `pip3`, `npm`, docker's credential helpers, a freshly unpacked `busybox`, and the
//! interpreter of a new Python image) all have a bounded time to end in.
//!
//! | entry point | what it does |
//! | --- | --- |
//! | [`Store`] | builds, imports, resolves, lists and removes images |
//! | [`Store::pull`] | gets an image from a registry; [`oci`] says how |
//! | [`Store::prune`] | removes what nobody needs |
//! | [`Image::hold`] | opens an image and keeps it from being removed |
//! | [`KernelStore`] | builds and finds kernel bundles |
//! | [`release::Releases`] | installs releases of Firecracker, by pinned digest |
//! | [`task::build`] | makes an image of a function's code, a zip archive |
//! | [`Bundle::custom`] | takes a user's own kernel and initramfs |
//! | [`Progress`] | hears how far a long operation is |
//!
//! # On disk
//! ```text
//! images/sha256-<64 hex>/{rootfs.<filesystem>, image.json}    read-only, never changed
//! images/names/<name> -> ../sha256-<64 hex>                   a slash in a name is a plus
//! images/blobs/sha256-<64 hex>{,.part,.lock}                  layers from registries: a cache
//! kernels/<16 hex>/{vmlinuz, vmlinux, initrd, bundle.json}    read-only, never changed
//! kernels/default -> <16 hex>
//! kernels/names/<name> -> ../<16 hex>                         those that were imported
//! firecracker/<version>/{firecracker, jailer, release.json}    read-only, never changed
//! firecracker/default -> <version>
//! {images,kernels,firecracker}/.tmp-<pid>-<n>/                work in progress, locked
//! {images,kernels,firecracker}/.lock                          held while names change
//! ```
//! An object is written in a work folder, synced, and renamed into its place: after a crash or
//! a full disk there is either the whole of it or nothing but a work folder, and the next
//! [`Store::open`] or build removes those whose owner is gone.
//!
//! # Invariants
//! - An object's folder never changes once it has its name; equal input gives an equal digest.
//! - An object is known by the digest of its filesystem, or if it was pulled, of its OCI
//!   configuration. Pulled images with the same layers share the file by a hard link.
//! - Nothing from an archive is ever resolved against the host's root: the kernel resolves each
//!   path with the image's root as `/` (`openat2` with `RESOLVE_IN_ROOT`).
//! - An image that someone holds is not removed.

mod agent;
mod apt;
mod digest;
mod disk;
mod error;
mod filesystem;
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod kernel;
mod lock;
mod name;
pub mod oci;
mod program;
mod progress;
mod prune;
mod recipe;
pub mod release;
mod removal;
mod staging;
mod store;
pub mod task;

pub use agent::AGENT;
pub use apt::PackageError;
pub use digest::{Digest, ParseDigestError};
pub use disk::DiskError;
pub use error::ImageError;
pub use filesystem::{FORMAT, Filesystem};
pub use image::{Config, Held, Image, ImageRecord, Source};
pub use kernel::{
    Bundle, BundleFile, BundleFiles, BundleRecord, ExtractError, GuestMode, Imported, KernelError,
    KernelFault, KernelForm, KernelImport, KernelStore, ModuleError, Stage,
};
pub use program::ProgramError;
pub use progress::{NoProgress, Progress};
pub use prune::{PruneOptions, Pruned};
pub use recipe::{ArchiveError, ClientError, PathFault, Recipe};
pub use store::{Removed, Store};
