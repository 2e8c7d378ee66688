//! Kernel bundles: a kernel in the forms that VMMs take, and an initramfs with the guest agent
//! and the modules that it loads.

mod bundle;
mod bzimage;
mod elf;
mod error;
mod initramfs;
mod modules;
mod package;
mod signature;
mod store;
mod wanted;

pub use bundle::{Bundle, BundleFile, BundleRecord};
pub use bzimage::ExtractError;
pub use error::KernelError;
pub use modules::ModuleError;
pub use store::KernelStore;
pub use wanted::Stage;
