//! Backups of volumes, in a folder of the node or in a bucket.
//!
//! Where they go is the node's: its files, and what its credentials open. So only operators make,
//! see and restore them.

use super::volumes::VolumePath;
use crate::accounts::is_account_name;
use crate::server::extract::{Body, Query, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_backup::{
    About, BackupError, BackupRequest, Dirty, Key, Location, Progress, ProgressSink, Repository,
    Snapshot, Source,
};
use aleph_executor::node::VolumeImage;
use aleph_executor::volumes::{Contents, Import, NewVolume, Reading, VolumeError};
use aleph_types::{
    BackupLine, DiskImageFormat, Filesystem, Problem, Volume, VolumeBackup, VolumeBackupRequest,
    VolumeBackupRestore,
};
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How many lines of progress wait for a slow client; more are left out.
const WAITING: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(make))
        .routes(routes!(list))
        .routes(routes!(restore))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Where they are: `file:///FOLDER` of the node, or `s3://BUCKET/PREFIX`.
    #[param(min_length = 1, max_length = 1024)]
    url: String,
    /// The key file of an encrypted repository, or `none`; the node's own when absent.
    #[param(min_length = 1, max_length = 1024)]
    key_file: Option<String>,
}

/// Back a volume up
///
/// Chunks that are there already are not sent again, whichever volume they are of, and where an earlier backup was
/// of a snapshot that this one goes on from, only what changed since is read. The answer is a line of
/// JSON for each step; the last one has `backup` or `error`. It ends with the request; what was sent is kept
/// for the next one. What the guest of a full VM writes to meanwhile goes into a new layer, and `consistency`
/// tells what the backup is of, as with a snapshot.
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/backups", tag = "volumes", params(VolumePath),
    request_body = VolumeBackupRequest,
    responses((status = 200, description = "Lines of JSON.",
        body = BackupLine, content_type = "application/x-ndjson")),
)]
async fn make(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Body(request): Body<VolumeBackupRequest>,
) -> Result<Response, Refusal> {
    caller.only_operators()?;
    let location = Location::parse(&request.url)?;
    let key = key_of(&service, request.key_file.as_deref())?;
    let snapshot = request.snapshot;
    let name = request.name.or(snapshot.clone()).unwrap_or_default();
    if name.len() > 128 {
        let why = "a backup's name has at most 128 bytes";
        return Err(Refusal::invalid("bad_name", why));
    }
    let (volumes, scope) = (service.node.volumes().clone(), caller.scope.clone());
    let found = blocking(move || volumes.find(&scope, &volume)).await?;
    // A volume that a guest writes to gets a layer by being read, so what can be refused is refused before.
    let repository = Repository::open_or_create(&location, key.as_ref()).await?;
    repository.ensure_ready().await?;
    let backups = repository.snapshots().await?;
    let (node, scope, id) = (service.node.clone(), caller.scope, found.id.to_string());
    let is_kept = snapshot.is_some();
    let image = async move { node.volume_image(&scope, &id, snapshot).await };
    // It holds what it reads: nobody writes to that meanwhile.
    let VolumeImage {
        volume: id,
        image: reading,
        consistency,
    } = service.settle(image).await?;
    let about = About {
        name: found.name,
        account: found.account,
        filesystem: found.filesystem.to_string(),
        // A state that was kept may be of a filesystem whose writer did not end in order.
        unclean: found.unclean || is_kept || consistency.is_some(),
    };
    Ok(answer(&service, async move |progress, stop| {
        let request = BackupRequest {
            volume: id.to_string(),
            state: reading.state().map(str::to_owned),
            about: Some(about),
            name,
            progress,
            stop,
            ..BackupRequest::default()
        };
        let dirty = changed(&reading, &backups);
        let source = VolumeSource { reading, dirty };
        let made = repository.backup(Arc::new(source), request).await?;
        Ok(BackupLine::Backup {
            backup: Box::new(VolumeBackup {
                consistency,
                ..told(&made)
            }),
        })
    }))
}

/// List backups, the oldest first
#[utoipa::path(
    get, path = "/v1/backups", tag = "volumes", params(ListQuery),
    responses((status = 200, description = "All that are there.", body = Vec<VolumeBackup>)),
)]
async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<VolumeBackup>>, Refusal> {
    caller.only_operators()?;
    let key = key_of(&service, query.key_file.as_deref())?;
    let repository = Repository::open(&Location::parse(&query.url)?, key.as_ref()).await?;
    let all = repository.snapshots().await?;
    Ok(Json(all.iter().map(told).collect()))
}

/// Make a volume of a backup
///
/// It has the filesystem that the volume had, and is checked where its writer had not ended in order. Each chunk is
/// checked before it is written. A restore that broke off goes on where it ended, if the same backup is restored for the
/// same account within an hour while the daemon runs. The answer is a line of JSON for each step; the last one has
/// `volume` or `error`.
#[utoipa::path(
    post, path = "/v1/backups/restore", tag = "volumes", request_body = VolumeBackupRestore,
    responses((status = 200, description = "Lines of JSON.",
        body = BackupLine, content_type = "application/x-ndjson")),
)]
async fn restore(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<VolumeBackupRestore>,
) -> Result<Response, Refusal> {
    caller.only_operators()?;
    let location = Location::parse(&request.url)?;
    let key = key_of(&service, request.key_file.as_deref())?;
    let repository = Repository::open(&location, key.as_ref()).await?;
    let account = request.account.unwrap_or(caller.account);
    if !is_account_name(&account) {
        let message = format!("{account:?} cannot be an account's name");
        return Err(Refusal::invalid("bad_account", message));
    }
    let snapshot = repository.snapshot(&request.backup).await?;
    let volumes = service.node.volumes().clone();
    let staging = volumes.clone();
    let (owner, name) = (account.clone(), request.name.clone());
    // Its place and its room are held until it is a volume.
    let mut staged = blocking(move || {
        let new = NewVolume {
            account: &owner,
            name: &name,
            encrypted: None,
        };
        staging.stage_for(new, snapshot.size)
    })
    .await?;
    let (begun, stopping) = (service.begun_restores.clone(), service.stopping.clone());
    if let Some(file) = begun.take(&account, snapshot.id) {
        staged.go_on_with(file).map_err(VolumeError::Source)?;
    }
    let [file, kept] = [staged.file().try_clone(), staged.file().try_clone()];
    let file = file.map_err(VolumeError::Source)?;
    Ok(answer(&service, async move |progress, stop| {
        let restored = repository.restore_into(snapshot.id, file, staged.room(), progress);
        let restored = stop.run_until_cancelled(restored).await;
        let restored = restored.unwrap_or(Err(BackupError::Stopped));
        if let (Err(error), Ok(kept)) = (&restored, kept) {
            let is_cut = matches!(
                error,
                BackupError::Target { .. } | BackupError::TargetExists { .. }
            );
            if !is_cut {
                begun.keep(account.clone(), snapshot.id, kept, stopping);
            }
        }
        restored?;
        begun.forget(&account, snapshot.id);
        let made = blocking(move || {
            let new = NewVolume {
                account: &account,
                name: &request.name,
                encrypted: request.encrypted,
            };
            let how = Import {
                format: Some(DiskImageFormat::Raw),
                size: None,
            };
            volumes.import_with(new, staged.file(), (how, contents(snapshot.about.as_ref())))
        });
        let volume: Volume = made.await?;
        Ok(BackupLine::Volume {
            volume: Box::new(volume),
        })
    }))
}

/// What filesystem a backup has. Older ones do not say: their bytes do.
fn contents(about: Option<&About>) -> Contents {
    Contents {
        filesystem: about.and_then(filesystem),
        unclean: about.is_none_or(|about| about.unclean),
    }
}

/// What a later program knows, too, is nothing that is known here.
fn filesystem(about: &About) -> Option<Filesystem> {
    about.filesystem.parse().ok()
}

/// The key that a request means, or the node's own.
pub(super) fn key_of(service: &Service, said: Option<&str>) -> Result<Option<Key>, BackupError> {
    match (said, &service.backup_key) {
        (Some("none"), _) | (None, None) => Ok(None),
        (Some(path), _) => Key::read(Path::new(path)).map(Some),
        (None, Some(path)) => Key::read(path).map(Some),
    }
}

/// A volume as backups read it.
struct VolumeSource {
    reading: Reading,
    dirty: Option<Dirty>,
}

impl Source for VolumeSource {
    fn size(&self) -> u64 {
        self.reading.size()
    }

    fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        self.reading.allocated()
    }

    fn dirty(&self) -> Option<Dirty> {
        self.dirty.clone()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.reading.read_at(offset, buffer)
    }
}

/// What changed since the latest backup of a state that this one goes on from.
fn changed(reading: &Reading, backups: &[Snapshot]) -> Option<Dirty> {
    backups.iter().rev().find_map(|backup| {
        let ranges = reading.changed_since(backup.state.as_deref()?)?;
        Some(Dirty {
            since: backup.id,
            ranges,
        })
    })
}

/// What ends a backup or a restore.
pub(super) enum Failure {
    Backup(BackupError),
    Volume(VolumeError),
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        Self::Backup(error)
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        Self::Volume(error)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    spawn_blocking(work)
        .await
        .unwrap_or(Err(VolumeError::Panicked))
}

/// Does work that tells its progress, for as long as somebody reads it. Then it is told to stop.
pub(super) fn answer<F>(
    service: &Service,
    work: impl FnOnce(ProgressSink, CancellationToken) -> F,
) -> Response
where
    F: Future<Output = Result<BackupLine, Failure>> + Send + 'static,
{
    let (sender, lines) = mpsc::channel(WAITING);
    let (progress, stop) = (sender.clone(), CancellationToken::new());
    let progress = ProgressSink::new(move |step: Progress| {
        // A client that is slow gets fewer of them.
        let _ = progress.try_send(BackupLine::Progress {
            done: step.done,
            total: step.total,
            written: step.written,
        });
    });
    let work = work(progress, stop.clone());
    let work = service.work.track_future(async move {
        let last = work.await.unwrap_or_else(|failure| BackupLine::Failed {
            error: match failure {
                Failure::Backup(error) => Problem::of(&error),
                Failure::Volume(error) => Problem::of(&error),
            },
        });
        let _ = sender.send(last).await;
    });
    tokio::spawn(work);
    let (stop, stopping) = (stop.drop_guard(), service.stopping.clone());
    let body = stream::unfold(
        (lines, stop, stopping),
        |(mut lines, stop, stopping)| async {
            let line = tokio::select! {
                line = lines.recv() => line?,
                () = stopping.cancelled() => return None,
            };
            Some((write(&line), (lines, stop, stopping)))
        },
    );
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    (headers, axum::body::Body::from_stream(body)).into_response()
}

fn write(line: &BackupLine) -> io::Result<Bytes> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

pub(super) fn told(snapshot: &Snapshot) -> VolumeBackup {
    let about = snapshot.about.as_ref();
    VolumeBackup {
        id: snapshot.id.to_string(),
        volume: snapshot.volume.clone(),
        volume_name: about.map(|about| about.name.clone()),
        account: about.map(|about| about.account.clone()),
        filesystem: about.and_then(filesystem),
        name: snapshot.name.clone(),
        created_at: snapshot.time,
        size: snapshot.size,
        parent: snapshot.parent.map(|parent| parent.to_string()),
        read: snapshot.stats.read,
        stored: snapshot.stats.stored,
        consistency: None,
    }
}
