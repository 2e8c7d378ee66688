//! Images of the node.

use crate::server::extract::{Body, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_image::oci::PullEvent;
use aleph_image::{Config, Image};
use aleph_types::{Problem, PullPolicy, Timestamp};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(pull))
        .routes(routes!(get, remove))
}

/// How many lines of progress wait for a slow client; more are left out.
const WAITING: usize = 64;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// What it is known by.
    pub digest: String,
    /// The names that lead to it.
    pub names: Vec<String>,
    /// Its size in bytes.
    pub size: u64,
    /// The format of its filesystem.
    pub filesystem: String,
    /// When this node made it.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// What to run in it where a job does not say.
    pub config: ImageConfig,
}

/// What to run in an image where a job does not say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ImageConfig {
    /// The beginning of the command.
    pub entrypoint: Vec<String>,
    /// The command, or the end of it.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The signal that asks the command to end, as the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Notes of whoever made it.
    pub labels: BTreeMap<String, String>,
    /// Ports that the command may listen on, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
}

impl From<&Image> for ImageInfo {
    fn from(image: &Image) -> Self {
        let record = image.record();
        let created = i64::try_from(record.created).ok();
        Self {
            digest: image.digest().to_string(),
            names: image.names().to_vec(),
            size: record.size,
            filesystem: image.filesystem().to_string(),
            created_at: created
                .and_then(|seconds| Timestamp::from_second(seconds).ok())
                .unwrap_or(Timestamp::UNIX_EPOCH),
            config: (&record.config).into(),
        }
    }
}

impl From<&Config> for ImageConfig {
    fn from(config: &Config) -> Self {
        Self {
            entrypoint: config.entrypoint.clone(),
            command: config.cmd.clone(),
            env: config.env.clone(),
            workdir: config.workdir.clone(),
            user: config.user.clone(),
            stop_signal: config.stop_signal.clone(),
            labels: config.labels.clone(),
            exposed_ports: config.exposed_ports.clone(),
        }
    }
}

/// List images
#[utoipa::path(
    get, path = "/v1/images", tag = "images",
    responses((status = 200, description = "All images.", body = [ImageInfo])),
)]
async fn list(State(service): State<Service>) -> Result<Json<Vec<ImageInfo>>, Refusal> {
    let images = service.images.list().await?;
    Ok(Json(images.iter().map(ImageInfo::from).collect()))
}

/// Look at an image
#[utoipa::path(
    get, path = "/v1/images/{*reference}", tag = "images",
    params(("reference" = String, Path, min_length = 1, max_length = 512,
        description = "A name or a digest, or 8 or more digits that begin a digest alone.")),
    responses((status = 200, description = "The image.", body = ImageInfo)),
)]
async fn get(
    State(service): State<Service>,
    Segment(reference): Segment,
) -> Result<Json<ImageInfo>, Refusal> {
    let image = service.images.resolve(&reference).await?;
    Ok(Json((&image).into()))
}

/// Remove a name, and its image with the last of them
///
/// Only for operators: all accounts share the node's images.
#[utoipa::path(
    delete, path = "/v1/images/{*reference}", tag = "images",
    params(("reference" = String, Path, min_length = 1, max_length = 512,
        description = "A name or a digest.")),
    responses((status = 204, description = "It is removed.")),
)]
async fn remove(
    State(service): State<Service>,
    caller: Caller,
    Segment(reference): Segment,
) -> Result<StatusCode, Refusal> {
    caller.only_operators()?;
    let (node, images) = (service.node.clone(), service.images.clone());
    let removal = service.settle(async move {
        images.remove(&reference).await.inspect(|_| {
            node.tell("image.removed", format!("{reference} was removed"));
        })
    });
    removal.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image as docker names it, such as `debian:12` or `ghcr.io/org/app:1.0`.
    #[schema(min_length = 1, max_length = 512)]
    pub reference: String,
    /// Whether an image that is there is asked for again. `never` makes no sense here.
    #[serde(default)]
    pub policy: PullPolicy,
}

/// A line of a pull's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PullLine {
    /// How far it is.
    Progress {
        /// `resolved`, `waiting`, `present`, `downloading`, `downloaded`, `unpacking`,
        /// `unpacked` or `writing`.
        status: String,
        /// The digest of the layer, where it is about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layer: Option<String>,
        /// Bytes that are done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        current: Option<u64>,
        /// Bytes that there are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// The image is there: the last line.
    Done {
        /// The image.
        image: Box<ImageInfo>,
    },
    /// It could not be had: the last line.
    Failed {
        /// Why not.
        error: Problem,
    },
}

/// Pull an image
///
/// The answer is a line of JSON for each step. The last one has `image` or `error`. The pull
/// ends with the request; what has arrived is kept for the next one. Accounts may pull only from
/// the registries that the node's operator listed for them; others are refused with 403
/// `registry_not_allowed`.
#[utoipa::path(
    post, path = "/v1/images/pull", tag = "images",
    request_body = PullRequest,
    responses((status = 200, description = "Lines of JSON.",
        body = PullLine, content_type = "application/x-ndjson")),
)]
async fn pull(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<PullRequest>,
) -> Result<Response, Refusal> {
    if request.policy == PullPolicy::Never {
        return Err(Refusal::invalid("bad_policy", "a pull cannot be never"));
    }
    let account = !caller.is_operator();
    if account {
        let images = &service.images;
        images.allow_use(&request.reference, request.policy).await?;
    }
    let (sender, lines) = mpsc::channel(WAITING);
    let work = service
        .work
        .track_future(work(service.clone(), request, account, sender));
    let work = AbortOnDropHandle::new(tokio::spawn(work));
    let stopping = service.stopping.clone();
    let body = stream::unfold(
        (lines, work, stopping),
        |(mut lines, work, stopping)| async {
            let line = tokio::select! {
                line = lines.recv() => line?,
                () = stopping.cancelled() => return None,
            };
            Some((write(&line), (lines, work, stopping)))
        },
    );
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, axum::body::Body::from_stream(body)).into_response())
}

fn write(line: &PullLine) -> io::Result<Bytes> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

async fn work(
    service: Service,
    request: PullRequest,
    account: bool,
    lines: mpsc::Sender<PullLine>,
) {
    let PullRequest { reference, policy } = request;
    let there = match policy {
        PullPolicy::Always => None,
        _ => service.images.resolve(&reference).await.ok(),
    };
    let last = match there {
        Some(image) => Ok(image),
        None => {
            let progress = lines.clone();
            let pulled = service.images.pull(&reference, account, move |event| {
                // A client that is slow gets fewer of them.
                let _ = progress.try_send(line(&event));
            });
            pulled.await.inspect(|image| {
                let message = format!("{reference} was pulled: {}", image.digest());
                service.node.tell("image.pulled", message);
            })
        }
    };
    let last = match &last {
        Ok(image) => PullLine::Done {
            image: Box::new(image.into()),
        },
        Err(error) => PullLine::Failed {
            error: Problem::of(error),
        },
    };
    let _ = lines.send(last).await;
}

fn line(event: &PullEvent) -> PullLine {
    let (status, layer, current, total) = match event {
        PullEvent::Resolved { layers, .. } => {
            let total = layers.iter().map(|layer| layer.size).sum();
            ("resolved", None, None, Some(total))
        }
        PullEvent::Waiting => ("waiting", None, None, None),
        PullEvent::Layer {
            digest,
            step,
            done,
            total,
            ..
        } => (
            step.name(),
            Some(digest.to_string()),
            Some(*done),
            Some(*total),
        ),
        PullEvent::Writing { done, total } => ("writing", None, Some(*done), Some(*total)),
    };
    PullLine::Progress {
        status: status.into(),
        layer,
        current,
        total,
    }
}
