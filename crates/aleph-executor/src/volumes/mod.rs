//! Volumes: disks that outlive jobs.
//!
//! | file | what it is | effects |
//! | --- | --- | --- |
//! | `store` | [`Volumes`]: opening, sweeping, finding, listing | folders |
//! | `making` | new volumes: empty, copies, imports | files, through `backend` |
//! | `changes` | growing, snapshots, removal | the same |
//! | `lease` | who has which volume; its files for a VMM | locks |
//! | `export` | volumes as images | files |
//! | `backend` | [`Backend`]: how bytes are kept, as raw files or qcow2 chains | files, `qemu-img` |
//! | `filesystem` | ext4 and XFS: made, checked | `mke2fs`, `mkfs.xfs`, `e2fsck` |
//! | `records` | what is known: one SQLite database | one file |
//! | `sandbox` | runs those programs, locked up | processes |
//! | `qcow2`, `content` | what an image is, by its bytes | none: pure |
//!
//! Start at [`Volumes::open`], then [`Volumes::create`], [`Volumes::import`], [`Volumes::clone_of`],
//! [`Volumes::attach`] and [`Volumes::release`]. All calls block, for as long as a disk's bytes take where
//! those are copied.
//!
//! ```text
//! STATE/volumes/   lock   volumes.db   layers/00000001.raw   layers/00000002.qcow2   work/
//! ```
//!
//! # What holds
//! - A volume is a chain of layers. The top is written by one job at most; layers below it never change,
//!   and volumes and snapshots share them. A layer goes when nothing leads to it any more.
//! - Intent before act: each file has a row before it is made and until after it is gone. A volume is seen
//!   whole or not at all.
//! - What a disk says of itself is not believed: no header leads to another file.
//! - An account is charged for all that its disks could hold: the sizes of volumes, and what the layers hold
//!   that it froze.
//!
//! # What fails
//! [`VolumeError`], with what to do about it. After a failure nothing of the operation is left; what a crash
//! leaves is removed when the volumes are opened next.
//!
//! # What is deliberately absent
//! Encryption, LVM, and changes of a volume while a job writes to it.

mod backend;
mod changes;
mod content;
mod error;
mod export;
mod filesystem;
mod lease;
mod making;
pub mod qcow2;
mod records;
mod sandbox;
mod store;

pub use backend::{Backend, Branch, Files, MAX_DEPTH, OpenLayer, Overlays};
pub use content::Content;
pub use error::VolumeError;
pub use export::Exported;
pub use lease::{Attachment, Layers, Owner};
pub use making::{Import, NewVolume, Source, Staged};
pub use records::LayerFormat;
pub use sandbox::ToolError;
pub use store::{BackendChoice, MAX_SIZE, MAX_SNAPSHOTS, VolumeQuota, Volumes, VolumesConfig};
