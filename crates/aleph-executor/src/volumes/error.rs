//! What can go wrong with volumes.

use super::disk_fault;
use super::qcow2::Qcow2Error;
use super::sandbox::ToolError;
use aleph_types::{Classify, ErrorClass, Filesystem, MiB};
use std::io;
use std::path::PathBuf;

/// An operation on volumes that failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its name is none.
    #[error("{0:?} cannot be a name")]
    BadName(String),
    /// It is too small or too large.
    #[error("a volume of {size} cannot be made: {why}")]
    BadSize {
        /// What was asked for.
        size: MiB,
        /// Why not.
        why: String,
    },
    /// What is asked for does not go together.
    #[error("{0}")]
    BadRequest(&'static str),
    /// There is no such volume.
    #[error("there is no volume {0:?}")]
    NoVolume(String),
    /// Several are meant.
    #[error("{0:?} means {1} volumes")]
    Ambiguous(String, usize),
    /// The volume has no such snapshot.
    #[error("the volume has no snapshot {0:?}")]
    NoSnapshot(String),
    /// The name is another one's.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The account has no room left.
    #[error(
        "the account {account:?} may have {most} of {what}, has {has} and asks for {more} more"
    )]
    Quota {
        /// Whose.
        account: String,
        /// Of what: `volumes`, or `bytes of volumes`.
        what: &'static str,
        /// How much there may be.
        most: u64,
        /// How much there is.
        has: u64,
        /// How much was asked for.
        more: u64,
    },
    /// A volume has as many snapshots as it may.
    #[error("the volume has {0} snapshots, and may have no more")]
    TooManySnapshots(usize),
    /// As many images come in and go out as may.
    #[error("{0} images come in or go out, and no more may at a time")]
    TooManyImages(usize),
    /// A job has it.
    #[error("the volume {name:?} is attached to job {job}")]
    Attached {
        /// Which volume.
        name: String,
        /// Who has it.
        job: String,
    },
    /// The job has it already.
    #[error("the volume {0:?} is attached to this job already, in another way")]
    AttachedHere(String),
    /// The job does not have it.
    #[error("the volume {0:?} is not attached to this job")]
    NotAttached(String),
    /// It has as many layers as it may, and its job runs.
    #[error("the volume {0:?} has {1} layers, and may have no more while its job runs")]
    TooDeep(String, usize),
    /// The same, and its layers cannot be merged.
    #[error(
        "the volume {name:?} has {depth} layers while its job runs, which are not merged: {why}"
    )]
    Unmerged {
        /// Which volume.
        name: String,
        /// How many.
        depth: usize,
        /// Why not.
        why: String,
        /// The class and code of that, where it may pass: a disk that is full, say.
        passing: Option<(ErrorClass, &'static str)>,
    },
    /// It is the root disk of a job that there is.
    #[error("the volume {name:?} is the root disk of job {job:?}")]
    RootDisk {
        /// Which volume.
        name: String,
        /// Whose, by the job's name.
        job: String,
    },
    /// A process still has its file, whatever the records say.
    #[error("the disk of volume {0:?} is locked by a process")]
    Locked(String),
    /// Something else is done with it at this moment.
    #[error("the volume {0:?} is being worked on")]
    Busy(String),
    /// It was removed.
    #[error("the volume {0:?} was removed")]
    Deleted(String),
    /// It was not removed.
    #[error("the volume {0:?} was not removed")]
    NotDeleted(String),
    /// What was being done with it failed by our own fault.
    #[error("what was being done with a volume ended by a fault of the node")]
    Panicked,
    /// The image's bytes are none that are taken.
    #[error("this is no disk image that is taken: {0}")]
    NotAnImage(String),
    /// The qcow2 image is not taken.
    #[error("the image is not taken")]
    Qcow2(#[from] Qcow2Error),
    /// Its filesystem is damaged beyond what is mended without asking.
    #[error("the {filesystem} filesystem of volume {name:?} is damaged")]
    Damaged {
        /// Which volume.
        name: String,
        /// Which kind.
        filesystem: Filesystem,
        /// What the check said.
        source: ToolError,
    },
    /// A program that makes or reads disks failed.
    #[error("cannot {what}")]
    Tool {
        /// What was to be done.
        what: &'static str,
        /// How it failed.
        source: ToolError,
    },
    /// A file cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file with the node's key cannot be used.
    #[error("the key file {} {why}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What it is, or can be.
        why: &'static str,
    },
    /// The file with the node's key is gone, and there are volumes that need it.
    #[error("there is no key file {}, and encrypted volumes need it", .0.display())]
    NoKeyFile(PathBuf),
    /// The file has another key than the one that the volume's was encrypted with.
    #[error("the key file {} does not open the volume's key: it is another one", .0.display())]
    WrongKey(PathBuf),
    /// A key cannot be made or handed over.
    #[error("cannot make or hand over a key")]
    Key(#[source] io::Error),
    /// There is no room in LVM's pool.
    #[error(
        "the thin pool {pool} is full: {data}% of its data and {metadata}% of its metadata are used"
    )]
    PoolFull {
        /// Which.
        pool: String,
        /// How much of its data is used.
        data: u8,
        /// How much of its metadata is used.
        metadata: u8,
    },
    /// LVM's pool is none that volumes can be kept in.
    #[error("the thin pool {pool:?} {why}")]
    Pool {
        /// Which.
        pool: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What was sent broke off.
    #[error("the image broke off")]
    Source(#[source] io::Error),
    /// The records of volumes cannot be read or written.
    #[error("the records of volumes cannot be used")]
    Records(#[from] rusqlite::Error),
    /// They are of a newer program.
    #[error("the records of volumes have form {0}, and this program knows {1}")]
    Newer(u32, u32),
    /// Another process has these volumes.
    #[error("the volumes in {} are another process's", .0.display())]
    Owned(PathBuf),
}

impl VolumeError {
    /// Whether it is this process that has no room for more, and not what it asked for.
    pub(crate) fn is_of_process(&self) -> bool {
        use rustix::io::Errno;
        let codes = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
        match self {
            Self::File { source, .. } => {
                source.raw_os_error().is_some_and(|is| codes.contains(&is))
            }
            _ => false,
        }
    }

    /// Whether the host's disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::File { source, .. } => is_full(source),
            Self::PoolFull { .. } => true,
            Self::Tool { source, .. } => source.is_full(),
            Self::Records(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }

    /// Whether the host's disk does not read or write what it should.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        match self {
            Self::File { source, .. } | Self::Source(source) => disk_fault::is_one(source),
            Self::Tool { source, .. } => source.is_failing(),
            Self::Records(error) => matches!(
                error.sqlite_error_code(),
                // The last is what SQLite says of a file that it cannot read, too.
                Some(
                    rusqlite::ErrorCode::SystemIoFailure
                        | rusqlite::ErrorCode::ReadOnly
                        | rusqlite::ErrorCode::DatabaseCorrupt
                )
            ),
            _ => false,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

impl Classify for VolumeError {
    fn class(&self) -> ErrorClass {
        match self {
            failing if failing.is_failing() => ErrorClass::Unavailable,
            Self::BadName(_)
            | Self::BadSize { .. }
            | Self::BadRequest(_)
            | Self::NotAnImage(_)
            | Self::Qcow2(_)
            | Self::Source(_) => ErrorClass::Invalid,
            Self::NoVolume(_) | Self::NoSnapshot(_) | Self::NotAttached(_) => ErrorClass::NotFound,
            Self::Ambiguous(..)
            | Self::NameTaken(_)
            | Self::Attached { .. }
            | Self::AttachedHere(_)
            | Self::TooDeep(..)
            | Self::RootDisk { .. }
            | Self::Locked(_)
            | Self::Busy(_)
            | Self::Deleted(_)
            | Self::NotDeleted(_)
            | Self::Damaged { .. }
            | Self::Owned(_) => ErrorClass::Conflict,
            Self::Quota { .. } | Self::TooManySnapshots(_) | Self::TooManyImages(_) => {
                ErrorClass::Capacity
            }
            Self::Unmerged { passing, .. } => {
                passing.map_or(ErrorClass::Conflict, |(class, _)| class)
            }
            full if full.is_full() => ErrorClass::Capacity,
            Self::Tool { .. }
            | Self::File { .. }
            | Self::KeyFile { .. }
            | Self::NoKeyFile(_)
            | Self::WrongKey(_)
            | Self::Pool { .. }
            | Self::PoolFull { .. }
            | Self::Key(_) => ErrorClass::Unavailable,
            Self::Records(_) | Self::Newer(..) | Self::Panicked => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::BadName(_) => "bad_volume_name",
            Self::BadSize { .. } => "bad_volume_size",
            Self::BadRequest(_) => "bad_volume_request",
            Self::NoVolume(_) => "no_volume",
            Self::Ambiguous(..) => "ambiguous",
            Self::NoSnapshot(_) => "no_volume_snapshot",
            Self::NameTaken(_) => "name_taken",
            Self::Quota { .. } => "volume_quota",
            Self::TooManySnapshots(_) => "too_many_snapshots",
            Self::TooManyImages(_) => "too_many_images",
            Self::Attached { .. } => "volume_attached",
            Self::AttachedHere(_) => "volume_attached_here",
            Self::NotAttached(_) => "volume_not_attached",
            Self::Unmerged {
                passing: Some((_, code)),
                ..
            } => code,
            Self::TooDeep(..) | Self::Unmerged { .. } => "volume_too_deep",
            Self::RootDisk { .. } => "root_disk",
            Self::Locked(_) => "volume_locked",
            Self::Busy(_) => "volume_busy",
            Self::Deleted(_) => "volume_deleted",
            Self::NotDeleted(_) => "volume_not_deleted",
            Self::NotAnImage(_) => "not_an_image",
            Self::Qcow2(_) => "bad_qcow2",
            Self::Damaged { .. } => "volume_damaged",
            full if full.is_full() => "disk_full",
            failing if failing.is_failing() => "disk_failing",
            Self::KeyFile { .. } => "volume_key_file",
            Self::NoKeyFile(_) => "no_volume_key_file",
            Self::WrongKey(_) => "wrong_volume_key",
            Self::Key(_) => "volume_key",
            Self::Pool { .. } | Self::PoolFull { .. } => "volume_pool",
            Self::Tool { source, .. } if source.is_missing() => "volume_tool_missing",
            Self::Tool { .. } => "volume_tool",
            Self::File { .. } => "volume_file",
            Self::Source(_) => "bad_body",
            Self::Records(_) => "volume_records",
            Self::Panicked => "volume_panicked",
            Self::Newer(..) => "newer_volume_records",
            Self::Owned(_) => "volumes_in_use",
        }
    }

    fn advice(&self) -> Option<String> {
        let advice = match self {
            failing if failing.is_failing() => {
                "The host's kernel log (dmesg) says which disk fails. Mend or replace it, and try again: nothing was \
                 changed."
            }
            Self::BadName(_) => {
                "Begin with a letter or digit, then letters, digits, _, . and -; 63 at most."
            }
            Self::NoVolume(_) => "aleph volume ls shows the volumes that there are.",
            Self::Ambiguous(..) => "Name it by its whole id.",
            Self::NoSnapshot(_) => "aleph volume inspect shows the snapshots that there are.",
            Self::NameTaken(_) => "Choose another name.",
            Self::Quota { .. } => {
                "Remove volumes that nobody needs: aleph volume rm --now does at once."
            }
            Self::TooManySnapshots(_) => "Remove some of them first.",
            Self::TooManyImages(_) => "Try again in a while.",
            Self::BadSize { .. } => "Ask for another size.",
            Self::Source(_) => "Send the image again.",
            Self::Attached { .. } => "Detach it from the job, or stop the job first.",
            Self::AttachedHere(_) => "Detach it first: aleph volume detach JOB VOLUME.",
            Self::NotAttached(_) => "aleph inspect JOB shows the volumes that it has.",
            Self::TooDeep(..) => {
                "Stop the job, run aleph volume snapshot, which copies the disk into one layer, and start \
                 the job again."
            }
            Self::Unmerged { .. } => {
                "Mend what keeps its layers from being merged and try again. Or stop the job, run aleph volume \
                 snapshot, which copies the disk into one layer, and start the job again."
            }
            Self::RootDisk { .. } => "Remove the job: its root disk goes with it.",
            Self::Locked(_) => "End the process that has it, or wait for its end.",
            Self::Busy(_) => "Try again in a moment.",
            Self::Deleted(_) => "aleph volume undelete has it back.",
            Self::NotAnImage(_) => {
                "Raw disks and qcow2 are taken. Unpack what is compressed, convert others with \
                 qemu-img convert, or say --format raw where the bytes are a disk all the same."
            }
            Self::Qcow2(Qcow2Error::BackingFile | Qcow2Error::DataFile) => {
                "Make one file of it: qemu-img convert -O qcow2 FROM TO."
            }
            Self::Qcow2(_) => "See that the file is whole: qemu-img check says.",
            Self::Damaged {
                filesystem: Filesystem::Xfs,
                ..
            } => {
                "Restore a snapshot of it; or export it, mend the image (xfs_repair), and import that."
            }
            Self::Damaged { .. } => {
                "Restore a snapshot of it; or export it, mend the image (e2fsck -f), and import that."
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded => {
                "Remove volumes that nobody needs, or have the quota raised."
            }
            Self::PoolFull { .. } => {
                "Make the pool larger (lvextend), or remove volumes that nobody needs."
            }
            full if full.is_full() => "Free some disk and try again.",
            Self::KeyFile { .. } => "Give it to the daemon's user alone: chown, chmod 600.",
            Self::NoKeyFile(_) | Self::WrongKey(_) => {
                "Put the file back that was there when the volumes were made, or name it as key_file in \
                 [volumes]."
            }
            Self::Pool { .. } => "See thin_pool in [volumes], and lvs -a.",
            Self::Tool {
                source: ToolError::Start { program: "lvm", .. },
                ..
            } => "Install the packages lvm2 and thin-provisioning-tools.",
            Self::Tool { source, .. } if source.is_missing() => {
                "Install the packages qemu-utils, e2fsprogs and xfsprogs."
            }
            Self::Owned(_) => "Use the daemon that has them: leave --root out, or name its socket.",
            Self::Tool { .. } | Self::File { .. } | Self::Records(_) => {
                "See that the node's state folder has room and can be written to."
            }
            Self::Newer(..) => "Run the program that wrote them, or a newer one.",
            _ => return None,
        };
        Some(advice.into())
    }
}

/// A step with a file that failed.
pub(super) fn at(
    what: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
