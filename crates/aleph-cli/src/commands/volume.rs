//! `aleph volume`: disks that outlive jobs.

use super::backup::{self, Forget, KeyFile};
use super::completion::{jobs, volumes};
use super::each::each;
use crate::context::Context;
use crate::duration::duration;
use crate::output::{
    Advised, Column, Listing, ago, plain, print, print_error, print_json, print_json_line, size,
};
use aleph_types::{
    BackupPruneRequest, BackupVerification, DiskImageFormat, Filesystem, MiB, Timestamp,
    Volume as Known, VolumeAccess, VolumeAttach, VolumeBackupRequest, VolumeBackupRestore,
    VolumeOrigin, VolumeRequest, VolumeState,
};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap_complete::ArgValueCompleter;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much of an image is read at a time.
const PIECE: usize = 256 * 1024;

/// What to do with volumes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Volume {
    /// Make an empty volume
    Create {
        /// The volume's name
        name: String,
        /// Its size, such as 20g
        #[arg(long, value_name = "SIZE")]
        size: MiB,
        /// What is made on it: ext4, xfs or none [default: ext4]
        #[arg(long = "fs", value_name = "FILESYSTEM")]
        filesystem: Option<Filesystem>,
        /// Encrypt it on the node's disk, or not [default: as the node's configuration says]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        encrypted: Option<bool>,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Show those, too, that were removed and can be had back
        #[arg(short, long)]
        all: bool,
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of volumes, as JSON
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "VOLUME", add = ArgValueCompleter::new(volumes))]
        volumes: Vec<String>,
    },
    /// Make a volume larger
    Resize {
        /// Name or id
        #[arg(add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// Its new size, such as 40g
        size: MiB,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a full VM a volume: at once where it runs, and at each of its starts
    Attach {
        /// Name or id of the VM's job
        #[arg(add = ArgValueCompleter::new(jobs::any))]
        job: String,
        /// Name or id of the volume, and where the guest mounts it from its next start on
        /// [default: /mnt/VOLUME]
        #[arg(value_name = "VOLUME[:PATH][:ro]")]
        volume: AttachedVolume,
        /// Print the attachment as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a volume from a full VM: at once where it runs, and from all its starts to come
    Detach {
        /// Name or id of the VM's job
        #[arg(add = ArgValueCompleter::new(jobs::any))]
        job: String,
        /// Name or id of the volume
        #[arg(add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// How long the guest may take to let go [default: 30]
        #[arg(short, long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Keep a volume's present state under a name
    Snapshot {
        /// Name or id
        #[arg(add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// The snapshot's name
        snapshot: String,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a volume hold what it held at a snapshot
    Restore {
        /// Name or id
        #[arg(add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// The snapshot's name
        snapshot: String,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume that is a copy of another one, or of a snapshot
    Clone {
        /// Name or id, and a snapshot of it
        #[arg(value_name = "VOLUME[@SNAPSHOT]", add = ArgValueCompleter::new(volumes))]
        origin: String,
        /// The new volume's name
        name: String,
        /// Its size, where it is to be larger
        #[arg(long, value_name = "SIZE")]
        size: Option<MiB>,
        /// Encrypt it on the node's disk, or not [default: as the node's configuration says]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        encrypted: Option<bool>,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove volumes, which can be had back for a time, or snapshots
    Rm {
        /// Names or ids, or snapshots
        #[arg(required = true, value_name = "VOLUME[@SNAPSHOT]", add = ArgValueCompleter::new(volumes))]
        volumes: Vec<String>,
        /// Let them be gone at once
        #[arg(long)]
        now: bool,
        /// Print a line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Have a volume back that was removed
    Undelete {
        /// Name or id
        volume: String,
        /// Another name for it
        #[arg(long)]
        name: Option<String>,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume of a disk image: raw or qcow2
    Import {
        /// The image; - for standard input
        file: PathBuf,
        /// The volume's name
        name: String,
        /// What the image is: raw or qcow2 [default: what its bytes say]
        #[arg(long)]
        format: Option<DiskImageFormat>,
        /// The volume's size, where it is to be larger
        #[arg(long, value_name = "SIZE")]
        size: Option<MiB>,
        /// Encrypt it on the node's disk, or not [default: as the node's configuration says]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        encrypted: Option<bool>,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Back a volume up, or a snapshot: what is there already is not sent again
    Backup {
        /// Name or id, and a snapshot of it
        #[arg(value_name = "VOLUME[@SNAPSHOT]", add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// Where to: file:///FOLDER of the node, or s3://BUCKET/PREFIX with the credentials of the
        /// node's environment
        url: String,
        /// What to call the backup
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        key: KeyFile,
        /// Print no progress
        #[arg(short, long)]
        quiet: bool,
        /// Print the backup as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List the backups at a place, or look whether they are whole
    Backups {
        /// Where they are
        url: String,
        /// Look whether all that they need is there
        #[arg(long)]
        verify: bool,
        /// Read each byte of it, too
        #[arg(long, requires = "verify")]
        read_data: bool,
        #[command(flatten)]
        key: KeyFile,
        /// Print no progress
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove backups: those that are named, or those that no rule keeps
    Forget(Forget),
    /// Get back the space of what no backup needs
    PruneBackups {
        /// Where the backups are
        url: String,
        /// How long what nobody needs stays for all that [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        grace: Option<Duration>,
        /// Remove all locks there first; who works there all the same fails
        #[arg(long)]
        unlock: bool,
        #[command(flatten)]
        key: KeyFile,
        /// Print no progress
        #[arg(short, long)]
        quiet: bool,
        /// Print what was done as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume of a backup
    RestoreBackup {
        /// Where the backup is
        url: String,
        /// Its id, or the beginning of it
        backup: String,
        /// The new volume's name
        name: String,
        /// Encrypt it on the node's disk, or not [default: as the node's configuration says]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        encrypted: Option<bool>,
        /// The account that the volume is to belong to [default: default]
        // Not `account`: that is the flag before all commands.
        #[arg(long = "for", value_name = "ACCOUNT")]
        owner: Option<String>,
        #[command(flatten)]
        key: KeyFile,
        /// Print no progress
        #[arg(short, long)]
        quiet: bool,
        /// Print the volume as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a volume, or a snapshot, into a disk image
    Export {
        /// Name or id, and a snapshot of it
        #[arg(value_name = "VOLUME[@SNAPSHOT]", add = ArgValueCompleter::new(volumes))]
        volume: String,
        /// The image, which must not be there yet; - for standard output
        file: PathBuf,
        /// How it is written down: raw or qcow2
        #[arg(long, default_value_t = DiskImageFormat::Raw)]
        format: DiskImageFormat,
    },
}

impl Volume {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let (volume, json) = match self {
            Self::Ls { all, quiet, json } => return ls(context, all, quiet, json).await,
            Self::Inspect { volumes } => return inspect(context, &volumes).await,
            Self::Rm { volumes, now, json } => return rm(context, &volumes, now, json).await,
            Self::Export {
                volume,
                file,
                format,
            } => return export(context, &volume, &file, format).await,
            Self::Attach { job, volume, json } => {
                let AttachedVolume { volume, how } = volume;
                let attached = client.attach_volume(&job, &volume, &how).await?;
                if json {
                    print_json_line(&attached)?;
                } else {
                    print(&attached.serial)?;
                }
                return Ok(0);
            }
            Self::Detach {
                job,
                volume,
                timeout,
            } => {
                client.detach_volume(&job, &volume, timeout).await?;
                return Ok(0);
            }
            Self::Backup {
                volume,
                url,
                name,
                key,
                quiet,
                json,
            } => {
                let (volume, snapshot) = split(&volume);
                let request = VolumeBackupRequest {
                    url,
                    name,
                    snapshot: snapshot.map(str::to_owned),
                    key_file: key.told()?,
                };
                let lines = client.back_up_volume(volume, &request).await?;
                return backup::made(lines, quiet, json).await;
            }
            Self::Backups {
                url,
                verify: true,
                read_data,
                key,
                quiet,
                json,
            } => {
                let request = BackupVerification {
                    url,
                    read_data,
                    key_file: key.told()?,
                };
                let lines = client.verify_backups(&request).await?;
                return backup::made(lines, quiet, json).await;
            }
            Self::Backups { url, key, json, .. } => {
                let all = client.backups(&url, key.told()?.as_deref()).await?;
                return backup::list(&all, json);
            }
            Self::Forget(forget) => return forget.run(&client).await,
            Self::PruneBackups {
                url,
                grace,
                unlock,
                key,
                quiet,
                json,
            } => {
                let request = BackupPruneRequest {
                    url,
                    grace_seconds: grace.map(|grace| grace.as_secs()),
                    unlock,
                    key_file: key.told()?,
                };
                let lines = client.prune_backups(&request).await?;
                return backup::made(lines, quiet, json).await;
            }
            Self::RestoreBackup {
                url,
                backup,
                name,
                encrypted,
                owner,
                key,
                quiet,
                json,
            } => {
                let request = VolumeBackupRestore {
                    url,
                    backup,
                    name,
                    encrypted,
                    account: owner,
                    key_file: key.told()?,
                };
                let lines = client.restore_backup(&request).await?;
                return backup::made(lines, quiet, json).await;
            }
            Self::Create {
                name,
                size,
                filesystem,
                encrypted,
                json,
            } => {
                let request = VolumeRequest {
                    name,
                    size: Some(size),
                    filesystem,
                    from: None,
                    encrypted,
                };
                (client.create_volume(&request).await?, json)
            }
            Self::Clone {
                origin,
                name,
                size,
                encrypted,
                json,
            } => {
                let (volume, snapshot) = split(&origin);
                let from = VolumeOrigin {
                    volume: volume.to_owned(),
                    snapshot: snapshot.map(str::to_owned),
                };
                let request = VolumeRequest {
                    name,
                    size,
                    filesystem: None,
                    from: Some(from),
                    encrypted,
                };
                (client.create_volume(&request).await?, json)
            }
            Self::Resize { volume, size, json } => {
                (client.resize_volume(&volume, size).await?, json)
            }
            Self::Snapshot {
                volume,
                snapshot,
                json,
            } => (client.snapshot_volume(&volume, &snapshot).await?, json),
            Self::Restore {
                volume,
                snapshot,
                json,
            } => (client.restore_volume(&volume, &snapshot).await?, json),
            Self::Undelete { volume, name, json } => {
                (client.undelete_volume(&volume, name).await?, json)
            }
            Self::Import {
                file,
                name,
                format,
                size,
                encrypted,
                json,
            } => {
                let image = read(&file).await?;
                let imported = client.import_volume(&name, (format, size, encrypted), image);
                (imported.await?, json)
            }
        };
        if json {
            print_json_line(&volume)?;
        } else {
            print(plain(&volume.name))?;
        }
        Ok(0)
    }
}

/// A volume that is to be attached, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttachedVolume {
    volume: String,
    how: VolumeAttach,
}

impl FromStr for AttachedVolume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not of the form VOLUME, VOLUME:PATH or VOLUME:PATH:ro");
        let mut parts = text.split(':');
        let volume = parts.next().filter(|volume| !volume.is_empty());
        let mut how = VolumeAttach::default();
        let mut rest: Vec<&str> = parts.collect();
        if let Some("ro" | "rw") = rest.last().copied() {
            how.read_only = rest.pop() == Some("ro");
        }
        how.path = match rest[..] {
            [] => None,
            [path] if path.starts_with('/') => Some(path.to_owned()),
            _ => return Err(bad()),
        };
        let volume = volume.ok_or_else(bad)?.to_owned();
        Ok(Self { volume, how })
    }
}

/// A volume, and the snapshot behind the `@`, which no name has.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (text, None),
    }
}

async fn ls(context: &Context, all: bool, quiet: bool, json: bool) -> Result<u8> {
    let found = context.client()?.volumes(all).await?;
    if json {
        print_json(&found)?;
    } else if quiet {
        found
            .iter()
            .try_for_each(|volume| print(plain(&volume.name)))?;
    } else {
        print(listing(&found, Timestamp::now()))?;
    }
    Ok(0)
}

async fn inspect(context: &Context, names: &[String]) -> Result<u8> {
    let client = context.client()?;
    let (mut found, mut code) = (Vec::new(), 0);
    for name in names {
        match client.volume(name).await {
            Ok(volume) => found.push(volume),
            Err(error) => {
                print_error(&error.into());
                code = crate::FAILED;
            }
        }
    }
    print_json(&found)?;
    Ok(code)
}

async fn rm(context: &Context, names: &[String], now: bool, json: bool) -> Result<u8> {
    let client = context.client()?;
    let remove = async |name: &str| {
        match split(name) {
            (volume, None) => client.remove_volume(volume, now).await?,
            (volume, Some(snapshot)) => client.remove_volume_snapshot(volume, snapshot).await?,
        }
        Ok(json!({ "volume": name, "removed": true }))
    };
    each(names, json, remove).await
}

async fn export(
    context: &Context,
    volume: &str,
    path: &Path,
    format: DiskImageFormat,
) -> Result<u8> {
    let client = context.client()?;
    let (volume, snapshot) = split(volume);
    if path == Path::new("-") {
        let mut image = client.export_volume(volume, snapshot, format).await?;
        let mut out = tokio::io::stdout();
        while let Some(piece) = image.next().await? {
            out.write_all(&piece).await?;
        }
        out.flush().await?;
        return Ok(0);
    }
    // Looked at before the node does any work.
    if tokio::fs::try_exists(path).await? {
        return Err(Advised {
            what: format!("{} is there already", path.display()),
            advice: "Choose another name, or remove it first.".into(),
        }
        .into());
    }
    let image = client.export_volume(volume, snapshot, format).await?;
    let written = write(image, path).await;
    if written.is_err() {
        // Nobody is to take a part for the whole.
        let _ = tokio::fs::remove_file(path).await;
    }
    written?;
    print(path.display())?;
    Ok(0)
}

/// Writes an image into a new file. Zeros become holes.
async fn write(mut image: crate::client::Answer, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let named = || format!("cannot write {}", path.display());
    let file = std::fs::File::create_new(path).with_context(named)?;
    let mut length = 0_u64;
    while let Some(piece) = image.next().await? {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece, length).with_context(named)?;
        }
        length += u64::try_from(piece.len())?;
    }
    file.set_len(length).with_context(named)?;
    file.sync_all().with_context(named)
}

/// An image as a body that is sent while it is read.
pub(super) async fn read(
    path: &Path,
) -> Result<impl hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static> {
    let source: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match path == Path::new("-") {
        true => Box::new(tokio::io::stdin()),
        false => {
            let file = File::open(path).await;
            Box::new(file.with_context(|| format!("cannot read {}", path.display()))?)
        }
    };
    let pieces = stream::try_unfold(source, async |mut source| {
        let mut piece = vec![0; PIECE];
        let read = source.read(&mut piece).await?;
        piece.truncate(read);
        let piece = (read > 0).then(|| Frame::data(Bytes::from(piece)));
        Ok::<_, io::Error>(piece.map(|piece| (piece, source)))
    });
    // A body is sent by one task, and a stream of this kind may move.
    Ok(StreamBody::new(Box::pin(pieces)))
}

fn listing(volumes: &[Known], now: Timestamp) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("NAME"),
        Column::Number("SIZE"),
        Column::Number("STORED"),
        Column::Text("FILESYSTEM"),
        Column::Number("SNAPSHOTS"),
        Column::Text("ATTACHED"),
        Column::Text("CREATED"),
    ]);
    for volume in volumes {
        listing.row([
            plain(&volume.name),
            size(volume.size.bytes()),
            size(volume.stored),
            volume.filesystem.to_string(),
            volume.snapshots.len().to_string(),
            attached(volume),
            ago(volume.created_at, now),
        ]);
    }
    listing
}

/// Who has a volume, in a few words.
fn attached(volume: &Known) -> String {
    if volume.state == VolumeState::Deleted {
        return "removed".into();
    }
    match &volume.leases[..] {
        [] => String::new(),
        [one] if one.access == VolumeAccess::Exclusive => one.job.short(),
        [one] => format!("{} (reads)", one.job.short()),
        readers => format!("{} read", readers.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_read_with_and_without_a_path() {
        let read = |text: &str| text.parse::<AttachedVolume>().ok();
        let of = |path: Option<&str>, read_only| {
            Some(AttachedVolume {
                volume: "data".into(),
                how: VolumeAttach {
                    path: path.map(str::to_owned),
                    read_only,
                },
            })
        };
        assert_eq!(read("data"), of(None, false));
        assert_eq!(read("data:ro"), of(None, true));
        assert_eq!(read("data:/srv"), of(Some("/srv"), false));
        assert_eq!(read("data:/srv:ro"), of(Some("/srv"), true));
        assert_eq!(read("data:/srv:rw"), of(Some("/srv"), false));
        for wrong in ["", ":/srv", "data:srv", "data:/srv:x", "data:/srv:ro:ro"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
