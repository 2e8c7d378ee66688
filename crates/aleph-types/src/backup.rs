//! Backups of volumes.

use crate::{Problem, Timestamp, Volume};
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
    /// The snapshot of the volume to take; as it is now, when absent, which needs that no job writes to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 63))]
    pub snapshot: Option<String>,
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
}

/// A backup of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeBackup {
    /// Its id: 64 hex digits.
    pub id: String,
    /// The id of the volume that it is of.
    pub volume: String,
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
}

/// A line of the answer to a backup or a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum BackupLine {
    /// How far it is.
    Progress {
        /// Bytes of the volume that are done.
        done: u64,
        /// Bytes of the volume.
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
    /// It failed: the last line.
    Failed {
        /// Why.
        error: Problem,
    },
}
