//! The handlers, by what they are about.
//!
//! A handler says what it takes and gives in its attributes, from which the OpenAPI document is
//! made. What every route can answer besides (400, 401, 500 and so on) is added to the document
//! in one place, [`crate::openapi`].

#![allow(
    unused_qualifications,
    reason = "what the attributes of handlers expand to has them"
)]

mod actions;
mod archive;
mod attach;
mod backups;
mod events;
mod exec;
mod health;
mod images;
mod job_volumes;
mod jobs;
mod logs;
mod node;
mod prune;
mod repositories;
mod resize;
mod screen;
mod session;
mod snapshots;
mod stats;
mod tokens;
mod volumes;

pub use images::{ImageConfig, ImageInfo, PullLine, PullRequest};
pub use prune::{PruneReport, PruneRequest};
pub use tokens::{NewToken, TokenInfo, TokenRequest};

use crate::server::Service;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;

/// Routes for which somebody has to be known.
pub(crate) fn guarded() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .merge(jobs::routes())
        .merge(actions::routes())
        .merge(snapshots::routes())
        .merge(volumes::routes())
        .merge(job_volumes::routes())
        .merge(resize::routes())
        .merge(backups::routes())
        .merge(repositories::routes())
        .merge(stats::routes())
        .merge(logs::routes())
        .merge(exec::routes())
        .merge(attach::routes())
        .merge(screen::routes())
        .merge(archive::routes())
        .merge(events::routes())
        .merge(images::routes())
        .merge(node::routes())
        .merge(prune::routes())
        .merge(tokens::routes())
}

/// Routes for everybody.
pub(crate) fn open() -> OpenApiRouter<Service> {
    health::routes()
}

/// The job in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "it describes; `Segment` is what reads the path")]
pub(crate) struct JobPath {
    /// Its full id, 4 or more hex digits that begin it alone (with or without `0x`), or its
    /// name.
    #[param(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    job: String,
}

/// Seconds as a time.
pub(crate) fn seconds(seconds: u32) -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(seconds))
}
