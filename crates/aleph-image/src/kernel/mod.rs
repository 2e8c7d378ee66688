//! Kernel bundles: a kernel in the forms that VMMs take, and an initramfs with the guest agent
//! and the modules that it loads.

pub(crate) mod archive;
mod bundle;
mod bzimage;
pub(crate) mod config;
mod elf;
mod error;
mod import;
mod initramfs;
pub(crate) mod inspection;
mod modules;
mod names;
mod package;
mod signature;
mod store;
mod wanted;

pub use bundle::{Bundle, BundleFile, BundleFiles, BundleRecord, Imported};
pub use bzimage::ExtractError;
pub use config::GuestMode;
pub use error::KernelError;
pub use import::KernelImport;
pub use inspection::{KernelFault, KernelForm};
pub use modules::ModuleError;
pub use store::KernelStore;
pub use wanted::Stage;
