//! Backups of volumes.

use crate::{Filesystem, Problem, Timestamp, Volume, VolumeConsistency};
use serde::{Deserialize, Serialize};

/// A backup to make of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeBackupRequest {
    /// Where to: `file:///FOLDER` of the node, or `s3://BUCKET/PREFIX`. Its credentials are those of the
    /// node's own environment.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub url: String,
    /// What to call it; the snapshot's name, or nothing, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(max_length = 128))]
    pub name: Option<String>,
    /// The snapshot of the volume to take; as it is now, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 63))]
    pub snapshot: Option<String>,
    /// The key file of an encrypted repository, a path on the node, or `none`. The node's own
    /// (`backup_key_file` in `[volumes]`) when absent. A repository that is made with a key is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub key_file: Option<String>,
}

/// A volume to make of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeBackupRestore {
    /// Where the backup is, as when it was made.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub url: String,
    /// Its id, or a beginning of it that it has alone.
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 64, pattern = "^[0-9a-f]+$")
    )]
    pub backup: String,
    /// The new volume's name.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 63))]
    pub name: String,
    /// Whether it is encrypted; as the node's configuration says, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// The account that it is to belong to; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9][a-z0-9_.-]*$")
    )]
    pub account: Option<String>,
    /// The key file of an encrypted repository, a path on the node, or `none`. The node's own
    /// (`backup_key_file` in `[volumes]`) when absent. A repository that is made with a key is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub key_file: Option<String>,
}

/// A look whether all that backups need is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BackupVerification {
    /// Where the backups are.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub url: String,
    /// Read each byte, too, and compare it with its hash.
    #[serde(default)]
    pub read_data: bool,
    /// The key file of an encrypted repository, a path on the node, or `none`. The node's own
    /// (`backup_key_file` in `[volumes]`) when absent. A repository that is made with a key is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub key_file: Option<String>,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BackupsVerified {
    /// Backups that can be read.
    pub backups: u64,
    /// Packs of chunks that there should be.
    pub packs: u64,
    /// Bytes that were read whole.
    pub read: u64,
    /// What is wrong, a sentence each; none where all is well.
    pub damage: Vec<String>,
    /// The ids of backups that are not whole because of it.
    pub broken: Vec<String>,
}

/// Backups to remove: those that are named, or those that no rule keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BackupForgetRequest {
    /// Where the backups are.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub url: String,
    /// Ids, or beginnings that one has alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 1024))]
    pub backups: Vec<String>,
    /// Keep these, and remove all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<BackupRetention>,
    /// Look only at the backups of this volume, by its id as backups tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 128))]
    pub volume: Option<String>,
    /// Say what would be removed, and remove nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// The key file of an encrypted repository, a path on the node, or `none`. The node's own
    /// (`backup_key_file` in `[volumes]`) when absent. A repository that is made with a key is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub key_file: Option<String>,
}

/// How many backups of each volume to keep: of each period that has some its latest one, and so many periods.
/// Times are UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BackupRetention {
    /// The latest.
    pub last: u32,
    /// Hours.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// Weeks, which begin on Monday.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
}

/// What became of backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BackupsForgotten {
    /// Those that were removed, or would be.
    pub forgotten: Vec<VolumeBackup>,
    /// The ids of those that were removed, or would be, and cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Those that stay, of the ones that were looked at.
    pub kept: Vec<VolumeBackup>,
}

/// Space to get back of what no backup needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BackupPruneRequest {
    /// Where the backups are.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub url: String,
    /// How long what was found to be needed by nobody stays for all that, in seconds: a day when absent. Less is
    /// safe only where no other host backs up to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
    /// Remove all locks there first, whoever holds them. Who works there all the same fails.
    #[serde(default)]
    pub unlock: bool,
    /// The key file of an encrypted repository, a path on the node, or `none`. The node's own
    /// (`backup_key_file` in `[volumes]`) when absent. A repository that is made with a key is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 1024))]
    pub key_file: Option<String>,
}

/// What became of packs of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BackupsPruned {
    /// Those that stay as they are.
    pub kept: u64,
    /// Those of which what is needed was written anew.
    pub repacked: u64,
    /// Those that a later prune deletes.
    pub trashed: u64,
    /// Those that were deleted.
    pub deleted: u64,
    /// Bytes of these.
    pub freed: u64,
}

/// A backup of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeBackup {
    /// Its id: 64 hex digits.
    pub id: String,
    /// The id of the volume that it is of.
    pub volume: String,
    /// What the volume was called; older backups do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// Whose the volume was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// What filesystem it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// What it was called; may be empty.
    pub name: String,
    /// When it was begun.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// Bytes of the volume.
    pub size: u64,
    /// The backup that it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Bytes of the volume that were read for it.
    pub read: u64,
    /// Bytes that were new to the store.
    pub stored: u64,
    /// What it is of, where a guest wrote meanwhile. Told when it is made, and kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<VolumeConsistency>,
}

/// A line of the answer to a backup, a restore, a verification or a prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum BackupLine {
    /// How far it is.
    Progress {
        /// Bytes that are done: of the volume, or of the packs that are read.
        done: u64,
        /// How many there are.
        total: u64,
        /// Bytes that were sent to the store, or written to the volume.
        written: u64,
    },
    /// The backup is made: the last line.
    Backup {
        /// The backup.
        backup: Box<VolumeBackup>,
    },
    /// The volume is made: the last line.
    Volume {
        /// The volume.
        volume: Box<Volume>,
    },
    /// All was looked at: the last line.
    Verified {
        /// What was found.
        verified: BackupsVerified,
    },
    /// The space was got back: the last line.
    Pruned {
        /// What was done.
        pruned: BackupsPruned,
    },
    /// It failed: the last line.
    Failed {
        /// Why.
        error: Problem,
    },
}
