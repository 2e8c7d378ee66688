//! Volumes: make, list, look at, grow, keep states of, remove, and their images in and out.

use crate::server::extract::{Body, Query, Segment, Segments};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::volumes::{Import, MAX_SIZE, NewVolume, Source, Staged, VolumeError, Volumes};
use aleph_types::{
    DiskImageFormat, ErrorClass, MiB, Volume, VolumeId, VolumeRequest, VolumeResize,
    VolumeSnapshotRequest, VolumeUndelete,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::BodyExt;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What an image travels as.
const IMAGE: &str = "application/octet-stream";
/// How long a client may take for the next piece of an image, either way.
const PIECE_TIME: Duration = Duration::from_secs(60);
/// How many bytes a second a client takes at least, over the whole of an image: 1 Mbit/s.
const LEAST_RATE: u64 = 128 * 1024;
/// How much of an image is read at a time.
const PIECE: usize = 256 * 1024;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(import))
        .routes(routes!(get, remove))
        .routes(routes!(resize))
        .routes(routes!(undelete))
        .routes(routes!(snapshot))
        .routes(routes!(remove_snapshot))
        .routes(routes!(restore))
        .routes(routes!(export))
}

/// The volume in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "it describes; `Segment` is what reads the path")]
pub(super) struct VolumePath {
    /// Its name, its full id, or 4 or more hex digits that begin it alone, with or without `0x`.
    #[param(
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    volume: String,
}

/// The snapshot of a volume in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "it describes; `Segments` is what reads the path")]
struct SnapshotPath {
    /// The volume, as elsewhere.
    #[param(
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    volume: String,
    /// The snapshot's name.
    #[param(
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    snapshot: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Whether those are told, too, that were removed and can be had back.
    #[serde(default)]
    deleted: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Whether it is gone at once, and cannot be had back.
    #[serde(default)]
    now: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ImportQuery {
    /// The new volume's name.
    #[param(
        min_length = 1,
        max_length = 63,
        pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    name: String,
    /// What the image is; by its bytes, when absent.
    #[serde(default)]
    #[param(inline)]
    format: Option<DiskImageFormat>,
    /// The volume's size, such as 20g, where it is to be larger than the image's.
    #[serde(default)]
    #[param(pattern = "^[0-9]{1,9}[mMgG]$")]
    size: Option<String>,
    /// Whether the volume is encrypted; as the node's configuration says, when absent.
    #[serde(default)]
    encrypted: Option<bool>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// How the image is written down; raw when absent.
    #[serde(default)]
    #[param(inline)]
    format: Option<DiskImageFormat>,
    /// A snapshot of the volume; as it is now, when absent.
    #[serde(default)]
    #[param(min_length = 1, max_length = 63)]
    snapshot: Option<String>,
}

/// Does something with volumes, which blocks. It goes on when the client goes away.
async fn with<T: Send + 'static>(
    service: &Service,
    work: impl FnOnce(&Volumes) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Refusal> {
    let volumes = service.node.volumes().clone();
    let done = service.settle(async move {
        let done = spawn_blocking(move || work(&volumes)).await;
        done.unwrap_or(Err(VolumeError::Panicked))
    });
    done.await
}

/// The same with the volume that a caller means.
async fn with_one<T: Send + 'static>(
    service: &Service,
    caller: &Caller,
    reference: String,
    work: impl FnOnce(&Volumes, VolumeId) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Refusal> {
    let scope = caller.scope.clone();
    with(service, move |volumes| {
        let id = volumes.find(&scope, &reference)?.id;
        work(volumes, id)
    })
    .await
}

/// The same with one that is no job's root disk.
async fn with_spare<T: Send + 'static>(
    service: &Service,
    caller: &Caller,
    reference: String,
    work: impl FnOnce(&Volumes, VolumeId) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Refusal> {
    let (scope, node) = (caller.scope.clone(), service.node.clone());
    with(service, move |volumes| {
        let volume = volumes.find(&scope, &reference)?;
        node.ensure_no_root(&volume)?;
        work(volumes, volume.id)
    })
    .await
}

/// List volumes, by name
#[utoipa::path(
    get, path = "/v1/volumes", tag = "volumes", params(ListQuery),
    responses((status = 200, description = "All that the caller has.", body = Vec<Volume>)),
)]
async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Volume>>, Refusal> {
    let scope = caller.scope;
    with(&service, move |volumes| volumes.list(&scope, query.deleted))
        .await
        .map(Json)
}

/// Make a volume: an empty one, or a copy
///
/// An empty one has a size and a filesystem. A copy is of another volume, which must not be attached for
/// writing, or of a snapshot. With qcow2 a copy takes the same short time however much there is, unless what it is of
/// has 16 layers.
#[utoipa::path(
    post, path = "/v1/volumes", tag = "volumes", request_body = VolumeRequest,
    responses((status = 201, description = "It is made.", body = Volume)),
)]
async fn create(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<VolumeRequest>,
) -> Result<(StatusCode, Json<Volume>), Refusal> {
    let made = with(&service, move |volumes| {
        let VolumeRequest {
            name,
            size,
            filesystem,
            from,
            encrypted,
        } = request;
        let new = NewVolume {
            account: &caller.account,
            name: &name,
            encrypted,
        };
        let Some(from) = from else {
            let size = size.ok_or(VolumeError::BadRequest(
                "the volume has no size, and is no copy of one that has",
            ))?;
            return volumes.create(new, size, filesystem.unwrap_or_default());
        };
        if filesystem.is_some() {
            let why = "a copy has what it is a copy of, and no filesystem of its own";
            return Err(VolumeError::BadRequest(why));
        }
        let id = volumes.find(&caller.scope, &from.volume)?.id;
        let source = match &from.snapshot {
            Some(name) => Source::Snapshot(id, name),
            None => Source::Volume(id),
        };
        volumes.clone_of(new, source, size)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Make a volume of a disk image
///
/// The body is a raw disk or a qcow2 file. One that names another file (a backing file, an external data
/// file) is refused with `bad_qcow2`, and what is no disk image with `not_an_image`.
#[utoipa::path(
    post, path = "/v1/volumes/import", tag = "volumes", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "It is made.", body = Volume)),
)]
async fn import(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<ImportQuery>,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<Volume>), Refusal> {
    let size = query.size.as_deref().map(str::parse::<MiB>).transpose();
    let size = size.map_err(|error| Refusal::invalid("bad_query", error.to_string()))?;
    let (account, name) = (caller.account.clone(), query.name.clone());
    let staged = with(&service, move |volumes| {
        let (account, name) = (account.as_str(), name.as_str());
        let encrypted = query.encrypted;
        volumes.stage(NewVolume {
            account,
            name,
            encrypted,
        })
    })
    .await?;
    let image = receive(&service.stopping, staged, body).await?;
    let made = with(&service, move |volumes| {
        let new = NewVolume {
            account: &caller.account,
            name: &query.name,
            encrypted: query.encrypted,
        };
        let format = query.format;
        volumes.import(new, &image, Import { format, size })
    })
    .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Gathers an image in a file.
async fn receive(
    stopping: &CancellationToken,
    mut staged: Staged,
    mut body: axum::body::Body,
) -> Result<File, Refusal> {
    let began = Instant::now();
    loop {
        let least = began + PIECE_TIME + Duration::from_secs(staged.len() / LEAST_RATE);
        let late = least.min(Instant::now() + PIECE_TIME);
        let piece = tokio::select! {
            piece = timeout_at(late, body.frame()) => piece,
            () = stopping.cancelled() => return Err(Refusal::stopping()),
        };
        let Ok(piece) = piece else {
            let (status, class) = (StatusCode::REQUEST_TIMEOUT, ErrorClass::Invalid);
            let message = "the image stopped coming";
            return Err(Refusal::new(status, class, "body_timeout", message));
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|error| VolumeError::Source(io::Error::other(error)))?;
        let Ok(bytes) = piece.into_data() else {
            continue;
        };
        if staged.len().saturating_add(bytes.len() as u64) > MAX_SIZE.bytes() {
            let (status, class) = (StatusCode::PAYLOAD_TOO_LARGE, ErrorClass::Invalid);
            let message = format!("the image is larger than {MAX_SIZE}");
            return Err(Refusal::new(status, class, "too_large", message));
        }
        let written = spawn_blocking(move || staged.write_all(&bytes).map(|()| staged)).await;
        staged = match written {
            Ok(written) => written.map_err(Volumes::staging_error)?,
            Err(_) => return Err(Refusal::internal("a request panicked")),
        };
    }
    match spawn_blocking(move || staged.finish()).await {
        Ok(image) => Ok(image.map_err(Volumes::staging_error)?),
        Err(_) => Err(Refusal::internal("a request panicked")),
    }
}

/// Look at a volume
#[utoipa::path(
    get, path = "/v1/volumes/{volume}", tag = "volumes", params(VolumePath),
    responses((status = 200, description = "The volume.", body = Volume)),
)]
async fn get(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
) -> Result<Json<Volume>, Refusal> {
    let found = with(&service, move |volumes| {
        volumes.find(&caller.scope, &volume)
    });
    found.await.map(Json)
}

/// Remove a volume
///
/// It can be had back until the time that `purged_at` tells, unless it is to be gone at once. One that a
/// job has is refused with 409 `volume_attached`, and the root disk of a job that there is with
/// `root_disk`.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}", tag = "volumes", params(VolumePath, RemoveQuery),
    responses((status = 204, description = "It is removed.")),
)]
async fn remove(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, Refusal> {
    let now = query.now;
    let removed = move |volumes: &Volumes, id| volumes.remove(id, now);
    with_spare(&service, &caller, volume, removed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a volume larger
///
/// What is on it grows when its guest says so, as with `resize2fs` or `xfs_growfs`. The guest of a full VM
/// that runs sees the new size at once; a volume that is attached in another way is refused with
/// `volume_attached`.
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/resize", tag = "volumes", params(VolumePath),
    request_body = VolumeResize,
    responses((status = 200, description = "It has its new size.", body = Volume)),
)]
async fn resize(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Body(request): Body<VolumeResize>,
) -> Result<Json<Volume>, Refusal> {
    let (node, scope) = (service.node.clone(), caller.scope);
    let resized = async move { node.resize_volume(&scope, &volume, request.size).await };
    service.settle(resized).await.map(Json)
}

/// Have a volume back that was removed
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/undelete", tag = "volumes", params(VolumePath),
    request_body = VolumeUndelete,
    responses((status = 200, description = "It is there again.", body = Volume)),
)]
async fn undelete(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Body(request): Body<VolumeUndelete>,
) -> Result<Json<Volume>, Refusal> {
    let back = move |volumes: &Volumes, id| volumes.undelete(id, request.name.as_deref());
    with_one(&service, &caller, volume, back).await.map(Json)
}

/// Keep a volume's present state
///
/// With qcow2 this takes the same short time however much there is; only where the volume has 16 layers, as after
/// 15 snapshots in a row, its disk is copied in whole. A guest of a full VM that writes to it meanwhile goes on
/// in a new layer, and `consistency` tells what is kept: with `filesystem` the guest's filesystems stood still
/// (it runs QEMU's guest agent), with `crash` it is as after a loss of power. Its layers are merged meanwhile, and
/// one of 16 waits for that; where they cannot be merged it is refused, with `volume_too_deep`.
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/snapshots", tag = "volumes", params(VolumePath),
    request_body = VolumeSnapshotRequest,
    responses((status = 201, description = "It is kept.", body = Volume)),
)]
async fn snapshot(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Body(request): Body<VolumeSnapshotRequest>,
) -> Result<(StatusCode, Json<Volume>), Refusal> {
    let (node, scope) = (service.node.clone(), caller.scope);
    let kept = async move { node.snapshot_volume(&scope, &volume, &request.name).await };
    Ok((StatusCode::CREATED, Json(service.settle(kept).await?)))
}

/// Forget a state that was kept
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "volumes",
    params(SnapshotPath),
    responses((status = 204, description = "It is forgotten.")),
)]
async fn remove_snapshot(
    State(service): State<Service>,
    caller: Caller,
    Segments(volume, snapshot): Segments,
) -> Result<StatusCode, Refusal> {
    let forgotten = move |volumes: &Volumes, id| volumes.remove_snapshot(id, &snapshot);
    with_one(&service, &caller, volume, forgotten).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Have a volume go on from a state that was kept
///
/// What it held since then is gone. Its snapshots stay. The root disk of a job that there is, is refused
/// with 409 `root_disk`.
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/restore", tag = "volumes", params(VolumePath),
    request_body = VolumeSnapshotRequest,
    responses((status = 200, description = "It holds what it held then.", body = Volume)),
)]
async fn restore(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Body(request): Body<VolumeSnapshotRequest>,
) -> Result<Json<Volume>, Refusal> {
    let restored = move |volumes: &Volumes, id| volumes.restore(id, &request.name);
    with_spare(&service, &caller, volume, restored)
        .await
        .map(Json)
}

/// Take a volume as a disk image
///
/// An encrypted one is raw, and comes in the clear.
#[utoipa::path(
    get, path = "/v1/volumes/{volume}/export", tag = "volumes", params(VolumePath, ExportQuery),
    responses((status = 200, description = "The image.",
        body = Vec<u8>, content_type = "application/octet-stream")),
)]
async fn export(
    State(service): State<Service>,
    caller: Caller,
    Segment(volume): Segment,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Refusal> {
    let format = query.format.unwrap_or(DiskImageFormat::Raw);
    let image = move |volumes: &Volumes, id| volumes.export(id, query.snapshot.as_deref(), format);
    let image = with_one(&service, &caller, volume, image).await?;
    let length = image.length;
    let pieces = sent(image, length, service.stopping.clone());
    let headers = [
        (CONTENT_TYPE, IMAGE.to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, axum::body::Body::from_stream(pieces)).into_response())
}

/// The bytes of an image on their way to a client. One that takes none of them any more, or too few, is not
/// waited for: an image holds its volume, and room on the node's disk.
///
/// An image that breaks off breaks the response off, so that nobody takes it for whole.
fn sent<I: Read + Send + 'static>(
    image: I,
    length: u64,
    stopping: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = send(image, length, &sender, &stopping).await {
            tracing::debug!(%error, "an image was not sent");
            let _ = sender.try_send(Err(error));
        }
    });
    stream::try_unfold((pieces, length), async |(mut pieces, left)| {
        match pieces.recv().await {
            Some(piece) => {
                let piece: Bytes = piece?;
                let left = left.saturating_sub(piece.len() as u64);
                Ok(Some((piece, (pieces, left))))
            }
            None if left == 0 => Ok(None),
            None => Err(io::Error::other("the image was not taken in time")),
        }
    })
}

async fn send<I: Read + Send + 'static>(
    mut image: I,
    length: u64,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    stopping: &CancellationToken,
) -> io::Result<()> {
    let began = Instant::now();
    let mut left = length;
    while left > 0 {
        let (piece, rest) = spawn_blocking(move || read(image, left))
            .await
            .map_err(io::Error::other)??;
        image = rest;
        left -= piece.len() as u64;
        let least = began + PIECE_TIME + Duration::from_secs((length - left) / LEAST_RATE);
        let taken = timeout_at(
            least.min(Instant::now() + PIECE_TIME),
            sender.send(Ok(piece)),
        );
        match stopping.run_until_cancelled(taken).await {
            None => return Err(io::Error::other("the node is shutting down")),
            Some(Err(late)) => return Err(late.into()),
            // Nobody listens any more.
            Some(Ok(Err(_))) => return Ok(()),
            Some(Ok(Ok(()))) => {}
        }
    }
    Ok(())
}

/// The next bytes of an image that has `left` more.
fn read<I: Read>(mut image: I, left: u64) -> io::Result<(Bytes, I)> {
    let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
    image.read_exact(&mut piece)?;
    Ok((piece.into(), image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_executor::volumes::VolumesConfig;
    use aleph_types::Classify;
    use futures_util::StreamExt;
    use tokio::sync::oneshot;

    /// An image without an end, that tells when it is let go of.
    struct Image(#[allow(dead_code, reason = "its end is what counts")] oneshot::Sender<()>);

    impl Read for Image {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(7);
            Ok(buffer.len())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_trickles_in_gives_its_place_back() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path(), VolumesConfig::default()).unwrap();
        let stage = || {
            volumes.stage(NewVolume {
                account: "a",
                name: "data",
                encrypted: None,
            })
        };
        // A byte now and then, for ever.
        let drops = stream::unfold((), async |()| {
            tokio::time::sleep(PIECE_TIME / 3).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        });
        let body = axum::body::Body::from_stream(drops);
        let stopping = CancellationToken::new();
        let refused = receive(&stopping, stage().unwrap(), body).await;
        let status = refused.unwrap_err().into_response().status();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        // Two at a time are an account's.
        let held = [stage().unwrap(), stage().unwrap()];
        assert_eq!(stage().unwrap_err().code(), "too_many_images");
        drop(held);
        stage().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_is_let_go_of_when_its_client_stalls() {
        let (held, gone) = oneshot::channel();
        let length = 4 * PIECE as u64;
        let pieces = sent(Image(held), length, CancellationToken::new());
        let mut pieces = std::pin::pin!(pieces);
        assert_eq!(pieces.next().await.unwrap().unwrap().len(), PIECE);
        let began = Instant::now();
        gone.await.unwrap_err();
        assert!(began.elapsed() >= PIECE_TIME);
        // What had left by then comes, and then it breaks off: there is no end that looks whole.
        let rest: Vec<_> = pieces.collect().await;
        let (last, some) = rest.split_last().unwrap();
        assert!(last.is_err() && some.len() < 3, "{rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_too_little_is_not_waited_for_in_all_eternity() {
        let (held, mut gone) = oneshot::channel();
        let length = 1 << 40;
        let pieces = sent(Image(held), length, CancellationToken::new());
        let mut pieces = std::pin::pin!(pieces);
        let mut taken = 0;
        while gone.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            pieces.next().await.unwrap().unwrap();
            tokio::time::sleep(PIECE_TIME / 2).await;
            taken += 1;
            assert!(taken < 20, "half a minute for each quarter of a MiB");
        }
    }

    #[tokio::test]
    async fn an_image_that_is_taken_arrives_whole() {
        let bytes: Vec<u8> = (0..=250).cycle().take(PIECE * 3 + 17).collect();
        let image = io::Cursor::new(bytes.clone());
        let pieces = sent(image, bytes.len() as u64, CancellationToken::new());
        let pieces: Vec<_> = pieces.map(Result::unwrap).collect().await;
        assert!(pieces.concat() == bytes, "it is another one");
    }
}
