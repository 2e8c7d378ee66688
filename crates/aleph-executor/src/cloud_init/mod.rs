//! What a full VM's own cloud-init is told, and what it answers. Pure: no clock, no I/O.
//!
//! A [`GuestSpec`] says what a job wants of its guest. [`GuestSpec::seed`] checks it and gives a
//! [`Seed`]: the documents `user-data`, `meta-data`, `vendor-data` and `network-config`.
//! [`Seed::image`] is the disk with them, which [`write_seed`](crate::seed_file::write_seed) puts
//! into a file. [`GuestStatus`] is what came of it.
//!
//! ```
//! use aleph_executor::cloud_init::GuestSpec;
//! use aleph_types::{JobId, NodeId};
//!
//! let mut spec = GuestSpec::new(JobId::random(), NodeId::random());
//! spec.packages.push("nginx".into());
//! spec.user_data = Some("#cloud-config\nruncmd: [[touch, /ready]]\n".into());
//! let disk = spec.seed()?.image()?;
//! assert_eq!(disk.len() % (1 << 20), 0);
//! # Ok::<(), aleph_executor::cloud_init::CloudInitError>(())
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | `spec` | the types, and what each field may be |
//! | `job` | the same from what microVMs are told, too: [`GuestSpec::of_job`], [`Nic::of_network`] |
//! | `config` | the node's own cloud-config, meta-data and vendor-data |
//! | `unit` | the job's environment, its unit of systemd, the check in the guest |
//! | `user_data`, `shape` | what the user's own user-data is, and whether the node's part survives it |
//! | `message` | a user's MIME message, taken apart |
//! | `mime` | both in one message |
//! | `network` | `network-config`, version 2 |
//! | `seed` | all of it, and the disk |
//! | `status`, `report` | what the guest reports, and how it does |
//!
//! # How the user's part and the node's come together
//! cloud-init has two ways to have several documents, and both are used.
//!
//! **vendor-data is for defaults.** Where user-data has a key, vendor-data's is not taken: configurations
//! are merged with `list()+dict()+str()`, which replaces nothing and joins no lists. So it has what a user
//! may well want otherwise: growing the root, passwords and host keys of ssh, `/etc/hosts`. What the node promises cannot be
//! there: one `runcmd` of the user's, and the job would not run.
//!
//! **user-data is one MIME message.** Its parts are the user's document, untouched, and then the
//! node's. cloud-init merges cloud-config parts in their order, each by its own `merge_how` (default
//! `dict(replace)+list()+str()`: the later part's value replaces the earlier one's). The node's are last
//! and say `list(append)` or `list(prepend)` and `dict(no_replace,recurse_list,recurse_str)`: lists of
//! both are joined, mappings are merged, and of two texts the node's is taken. The user's own
//! `merge_how` works among the user's own parts.
//!
//! - `users`, `packages`, `fs_setup`, `mounts`, `write_files`: the node's entries after the user's, and
//!   so the node's file where both write one.
//! - `runcmd`: the node's commands first. cloud-init makes one script of all, which an `exit` in
//!   the user's commands would end. The node's only start a unit of systemd, which waits for
//!   the end of cloud-init: the application starts after all that the user has asked for.
//! - Scripts, templates (`## template: jinja`), boot hooks, archives, JSON patches, `#include`, which the
//!   guest fetches by itself, and MIME messages are parts of their own kind.
//!
//! Gzip is undone before that, and so is base64 around what cloud-init knows: what is in it is
//! bounded and looked at, and so is each part of a message and each document of an archive. Refused is
//! what would take the node's part away without a word: keys that
//! decide which stages there are, keys that the node sets, `users: default` and its kind (a list is not
//! joined with what is none), a user of the name `aleph` in `users` or `user`, part handlers, and line breaks
//! that not all readers of YAML know. A template or an included
//! document can still do such a thing in the guest, where it has all rights anyway. So the last part is a
//! script that looks for the job's environment, user, unit and volumes, and leaves a mark where they are
//! there. Without that mark a guest is not [`GuestStatus::Done`], whatever its cloud-init says: one whose
//! final modules were switched off runs no script, and calls itself done.
//!
//! # Failure cases
//! | what | where it shows |
//! | --- | --- |
//! | a field that is not of its form, too much of something | [`CloudInitError`], with the field's path and never its value |
//! | user-data that is no YAML, that cloud-init would ignore, or that takes the node's part away | [`UserDataError`], with line and column |
//! | a package, script or mount that fails in the guest | [`GuestStatus::Error`] or [`GuestStatus::Degraded`] |
//! | a part that only cloud-init finds wrong, such as a template | its log; [`GuestStatus::with_log`] |
//! | a volume with another file system than was said | not formatted, not mounted; the check's script fails |
//! | the node's part is taken away in the guest | [`GuestStatus::Error`], by the check or for want of its mark |
//! | a report that is none, from a guest that lies | [`StatusError`] |
//!
//! Secrets are environment, files and user-data: [`Secret`] prints its length alone. In the guest
//! `job.env` is root's alone (0600), files have the modes that were said, and cloud-init keeps
//! user-data readable by root. On the host the seed is readable by the node alone.
//!
//! # Sources
//! - merging: <https://docs.cloud-init.io/en/latest/reference/merging.html>, and
//!   `cloudinit/handlers/cloud_config.py`, `cloudinit/mergers/` and `cloudinit/helpers.py`
//!   (`ConfigMerger`) of 22.4, which Debian 12 has
//! - forms of user-data: <https://docs.cloud-init.io/en/latest/explanation/format.html>,
//!   `cloudinit/handlers/__init__.py`, `cloudinit/user_data.py`
//! - seeds: <https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html>
//! - networks: <https://docs.cloud-init.io/en/latest/reference/network-config-format-v2.html>
//! - disks: `cloudinit/config/cc_disk_setup.py`, whose `partition: none` formats what has data on it
//! - status: `cloudinit/cmd/status.py`, and
//!   <https://docs.cloud-init.io/en/latest/howto/status.html>

mod config;
mod error;
mod job;
mod message;
mod mime;
mod network;
mod report;
mod secret;
mod seed;
mod shape;
mod spec;
mod status;
mod unit;
mod user_data;

pub use error::{CloudInitError, UserDataError};
pub use report::{MAX_REPORT, SEEN};
pub use secret::Secret;
pub use seed::Seed;
pub use spec::{
    Command, File, Filesystem, GuestSpec, MAX_ENTRIES, MAX_ENV, MAX_FILES, MAX_SERIAL, Nic, Owner,
    USER, Volume,
};
pub use status::{GuestStatus, MAX_LOG, MAX_REASON, MAX_STATUS, StatusError};
pub use unit::{ENV_FILE, UNIT};
pub use user_data::{MAX_USER_DATA, UserDataKind};
