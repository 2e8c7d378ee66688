//! Jails of Firecracker: what locks a VMM up, made by the release's own `jailer`.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`argv`] | the jailer's command line, as a pure function |
//! | [`config`] | what an operator decides |
//! | [`users`] | a user and group for each VM, from a range, by claims that survive crashes |
//! | [`chroot`] | the folder of a jail: files in, sockets and files out |
//! | [`limits`] | which limits there are, and saying what nobody limits |
//! | [`jails`] | all jails of a node: making, finding, removing, sweeping |
//! | `mounts`, `tree` | taking away what is mounted and what lies in one |
//!
//! Start at [`Jails::open`], then [`Jails::create`], [`Jail::bring_in`] for each file,
//! [`JailerCommand::argv`], and [`Jails::remove`] once the VMM has ended.
//!
//! # What is where
//!
//! ```text
//! BASE/                           0700, root
//!   uids/UID -> VM                who has which user
//!   EXEC-NAME/VM/                 0700, root
//!     root/                       0700; the VM's user's once the jailer runs
//!       kernel, rootfs            links or mounts, read-only, whose they were
//!       scratch                   a link or a mount, the VM's user's, 0600
//!       EXEC-NAME, EXEC-NAME.pid, dev/, run/      the jailer's
//! ```
//!
//! `BASE` is closed, so no user of a VM reaches another's jail whatever is open in it. Within its
//! own jail a VMM is root of nothing: what is shared among VMs is root's and is not written to.
//!
//! | step | made | undone |
//! | --- | --- | --- |
//! | 1 | the claim of a user | released, last |
//! | 2 | `EXEC-NAME/VM/root/` | emptied and removed |
//! | 3 | files in it | unmounted, unlinked |
//! | 4 | what the jailer and the VMM make | with the folder |
//!
//! Removal undoes all steps whether they were made or not, and can be called again after a crash
//! at any point. The folder was a hostile VMM's to fill: nothing in it is followed, and nothing is
//! opened before it is known to be what it has to be.
//!
//! The jailer, and then Firecracker in its place, is the first process of a namespace of its own, which
//! the node makes as it starts the jailer ([`Process::spawn_first`](crate::process::Process::spawn_first)).
//! The jailer's own `--new-pid-ns` forks and ends: its VMM would be nobody's child, its number would
//! be known from a file in the jail, and its status would be lost. As it is, the pid file has `1` in it.
//! What a hostile VMM starts ends with it, wherever it hides.
//!
//! Limits are those of the VM's own group ([`crate::cgroup`]), which the jailer is started in
//! ([`JailerCgroup::Inherited`]) and which is limited, counted and killed as QEMU's is. The jailer
//! can make one as well ([`JailerCgroup::Made`]), for whoever starts it by hand. What no group limits is
//! how long a file a VMM writes: [`limits::longest_file`] (`RLIMIT_FSIZE`, which the jailer sets).

pub mod argv;
pub mod chroot;
pub mod config;
pub mod error;
pub mod jails;
pub mod limits;
mod mounts;
mod tree;
pub mod users;

pub use argv::{InvalidArgument, JailerCgroup, JailerCommand, ResourceLimits};
pub use chroot::{Access, Brought, Inside, Jail};
pub use config::{JailConfig, Programs};
pub use error::JailError;
pub use jails::Jails;
pub use users::{InvalidUidRange, UidRange, Users};
