//! Removing what nobody needs.

use crate::lambda::Functions;
use crate::server::extract::Body;
use crate::server::{Caller, Refusal, Service};
use aleph_executor::node::{JobFilter, Scope};
use aleph_image::{Digest, PruneOptions};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(prune))
}

/// What to remove. Nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneRequest {
    /// Images without names, layers that a pull would fetch again, and partial downloads. Only
    /// for operators.
    pub images: bool,
    /// The same, and images with names, unless a job was started from them or a function
    /// needs them. Only for operators.
    pub all_images: bool,
    /// Jobs that ended for good, with their logs.
    pub jobs: bool,
    /// Logs of ended jobs, and of earlier starts.
    pub logs: bool,
    /// Only jobs and logs that are older than this. Images have no age.
    #[schema(minimum = 0, maximum = 4_294_967_295_u64)]
    pub older_than_seconds: u32,
    /// Tells what would be removed, and removes nothing.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PruneReport {
    /// Digests of images.
    pub images: Vec<String>,
    /// Digests of layers.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Digests of layers of which only a part had arrived.
    #[serde(default)]
    pub partial_downloads: Vec<String>,
    /// Ids of jobs.
    pub jobs: Vec<String>,
    /// Bytes on disk.
    pub bytes_freed: u64,
}

/// Remove what nobody needs
#[utoipa::path(
    post, path = "/v1/prune", tag = "node",
    request_body = PruneRequest,
    responses((status = 200, description = "What was removed.", body = PruneReport)),
)]
async fn prune(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<PruneRequest>,
) -> Result<Json<PruneReport>, Refusal> {
    if request.images || request.all_images {
        caller.only_operators()?;
    }
    let worker = service.clone();
    let report = service
        .settle(async move { remove(&worker, &caller.scope, &request).await })
        .await?;
    Ok(Json(report))
}

async fn remove(
    service: &Service,
    scope: &Scope,
    request: &PruneRequest,
) -> Result<PruneReport, Refusal> {
    let (dry, node) = (request.dry_run, &service.node);
    let age = Duration::from_secs(u64::from(request.older_than_seconds));
    let mut report = PruneReport::default();
    if request.jobs {
        let (jobs, bytes) = node.prune_jobs(scope, age, dry).await?;
        report.jobs = jobs.iter().map(ToString::to_string).collect();
        report.bytes_freed += bytes;
    }
    if request.logs {
        report.bytes_freed += node.prune_logs(scope, age, dry).await?;
    }
    // Last, so that images of jobs that went just now can go with them.
    if request.images || request.all_images {
        let options = PruneOptions {
            dry_run: dry,
            all: request.all_images,
            layers: true,
            keep: images_in_use(service).await,
        };
        let pruned = service.images.prune(options).await?;
        let digest = |image: &aleph_image::Image| image.digest().to_string();
        report.images = pruned.images.iter().map(digest).collect();
        report.layers = pruned.layers.iter().map(ToString::to_string).collect();
        report.partial_downloads = pruned.partial.iter().map(ToString::to_string).collect();
        report.bytes_freed += pruned.bytes;
    }
    Ok(report)
}

/// Images that jobs were started from, and that snapshots and functions need: jobs may be started
/// again, snapshots be gone on from, and templates of functions be made anew.
async fn images_in_use(service: &Service) -> BTreeSet<Digest> {
    let mut digests = BTreeSet::new();
    let mut filter = JobFilter {
        limit: 1000,
        ..JobFilter::default()
    };
    loop {
        let part = service.node.list(&Scope::All, &filter);
        let used = part
            .jobs
            .iter()
            .filter_map(|job| job.image_digest.as_deref());
        digests.extend(used.filter_map(|digest| digest.parse::<Digest>().ok()));
        match part.cursor {
            Some(cursor) => filter.cursor = Some(cursor),
            None => break,
        }
    }
    let snapshots = service.node.snapshots(&Scope::All).into_iter();
    digests.extend(snapshots.filter_map(|snapshot| snapshot.image_digest.parse::<Digest>().ok()));
    let (pinned, runtimes) = service
        .functions()
        .map(Functions::images)
        .unwrap_or_default();
    digests.extend(
        pinned
            .iter()
            .filter_map(|digest| digest.parse::<Digest>().ok()),
    );
    for runtime in runtimes {
        // One that is not there would be built.
        if let Ok(image) = service.images.resolve(&runtime).await {
            digests.insert(image.digest());
        }
    }
    digests
}
