//! Volumes: disks that outlive jobs.
//!
//! | file | what it is | effects |
//! | --- | --- | --- |
//! | `config` | [`VolumesConfig`] | none |
//! | `store` | [`Volumes`]: opening, finding, listing | folders |
//! | `sweep` | what a crash left, and layers that nobody needs | files, through `backend` |
//! | `making` | new volumes: empty, copies, imports | files, through `backend` |
//! | `changes` | growing, snapshots, removal | the same |
//! | `lease` | who has which volume; its files for a VMM | locks |
//! | `live` | what is done with a volume while a guest writes to it |
//! | `exposed` | copies of layers that a VMM may still write to | files |
//! | `merge` | layers that are merged while a guest writes | files, through `images` |
//! | `merge_plan` | which layers those are | none: pure |
//! | `export` | volumes as images | files |
//! | `reading` | a state of a volume, read where it lies, and what changed since another | files |
//! | `backend` | [`Backend`]: how bytes are kept, as files, qcow2 chains or thin volumes of LVM | files, `lvm` |
//! | `images` | layers and images made, grown and converted | `qemu-img` |
//! | `keys` | keys of encrypted volumes, and the node's | one file |
//! | `filesystem` | ext4 and XFS: made, checked | `mke2fs`, `mkfs.xfs`, `e2fsck`, `xfs_logprint`, `xfs_repair` |
//! | `records` | what is known: one SQLite database | one file |
//! | `turns` | one change of a volume at a time, and how many wait | none |
//! | `layer` | what a layer is | none |
//! | `sandbox` | runs those programs, locked up | processes |
//! | `disk_fault` | whether it is the host's disk that fails | reads files |
//! | `qcow2`, `content` | what an image is, by its bytes | none: pure |
//!
//! Start at [`Volumes::open`], then [`Volumes::create`], [`Volumes::import`], [`Volumes::clone_of`],
//! [`Volumes::attach`] and [`Volumes::release`]. All calls block, for as long as a disk's bytes take where
//! those are copied.
//!
//! ```text
//! STATE/volumes/   lock   key   volumes.db   layers/00000001.raw   layers/00000002.qcow2   work/
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
//! Most changes of a volume while a job writes to it: it grows and has its state kept where its VMM can do
//! that ([`crate::node`]); all else waits until it is detached. A new key for a volume that there is, since all
//! that it shares would have to be written anew.

mod backend;
mod changes;
mod config;
mod content;
mod disk_fault;
mod error;
mod export;
mod exposed;
mod filesystem;
mod images;
mod keys;
mod layer;
mod lease;
mod live;
mod making;
mod merge;
mod merge_plan;
pub mod qcow2;
mod reading;
mod records;
mod sandbox;
mod store;
mod sweep;
mod turns;

pub use backend::{
    Backend, Branch, Files, LvmThin, MAX_DEPTH, NewTop, OpenLayer, Overlays, ThinPool,
};
pub use config::{BackendChoice, VolumeQuota, VolumesConfig};
pub use content::Content;
pub use error::VolumeError;
pub use export::Exported;
pub use keys::Passphrase;
pub use layer::{Home, LayerFormat};
pub use lease::{Attachment, Layers, Owner};
pub use live::{Cover, Growth, GuestState, Pending, Point};
pub use making::{Contents, Import, NewVolume, Source, Staged, Unseen};
pub use merge::{Merge, Merged};
pub use reading::Reading;
pub use sandbox::ToolError;
pub use store::{ImagePlace, MAX_SIZE, MAX_SNAPSHOTS, Volumes};
