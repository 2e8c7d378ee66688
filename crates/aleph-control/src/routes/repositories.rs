//! The care of places for backups: looking whether they are whole, removing backups, getting space back.
//!
//! For operators, as backups are.

use super::backups::{Failure, answer, key_of, told};
use crate::server::extract::Body;
use crate::server::{Caller, Refusal, Service};
use aleph_backup::{
    BackupError, Depth, Id, Location, PruneOptions, PruneReport, Repository, Retention, Snapshot,
    VerifyReport,
};
use aleph_types::{
    BackupForgetRequest, BackupLine, BackupPruneRequest, BackupRetention, BackupVerification,
    BackupsForgotten, BackupsPruned, BackupsVerified, ErrorClass,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use std::collections::HashSet;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(verify))
        .routes(routes!(forget))
        .routes(routes!(prune))
}

/// Open the place that a request means, as an operator.
async fn open(
    service: &Service,
    caller: &Caller,
    (url, key_file): (&str, Option<&str>),
) -> Result<Repository, Refusal> {
    caller.only_operators()?;
    let location = Location::parse(url)?;
    let key = key_of(service, key_file)?;
    Ok(Repository::open(&location, key.as_ref()).await?)
}

/// Look whether backups are whole
///
/// All that backups need is there, and with `read_data` each byte is what was written. What is damaged is
/// remembered there, and the next backups store it anew. The answer is a line of JSON for each step; the last one has
/// `verified` or `error`. Damage is no error: `verified` has it.
#[utoipa::path(
    post, path = "/v1/backups/verify", tag = "volumes", request_body = BackupVerification,
    responses((status = 200, description = "Lines of JSON.",
        body = BackupLine, content_type = "application/x-ndjson")),
)]
async fn verify(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<BackupVerification>,
) -> Result<Response, Refusal> {
    let place = (request.url.as_str(), request.key_file.as_deref());
    let repository = open(&service, &caller, place).await?;
    let depth = match request.read_data {
        true => Depth::Full,
        false => Depth::Structure,
    };
    Ok(answer(&service, async move |progress, stop| {
        let verified = stop.run_until_cancelled(repository.verify(depth, &progress));
        let verified = verified.await.unwrap_or(Err(BackupError::Stopped));
        let verified = found(verified.map_err(Failure::from)?);
        Ok(BackupLine::Verified { verified })
    }))
}

fn found(report: VerifyReport) -> BackupsVerified {
    BackupsVerified {
        backups: wide(report.snapshots),
        packs: wide(report.packs),
        read: report.read,
        damage: report
            .damage
            .into_iter()
            .map(|damage| damage.what)
            .collect(),
        broken: report.broken.iter().map(Id::to_string).collect(),
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Remove backups
///
/// Those that are named, or those that no rule keeps, each volume for itself. The others keep all they need. Space
/// comes back with the next prunes.
#[utoipa::path(
    post, path = "/v1/backups/forget", tag = "volumes", request_body = BackupForgetRequest,
    responses((status = 200, description = "What was removed, and what stays.", body = BackupsForgotten)),
)]
async fn forget(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<BackupForgetRequest>,
) -> Result<Json<BackupsForgotten>, Refusal> {
    let place = (request.url.as_str(), request.key_file.as_deref());
    let repository = open(&service, &caller, place).await?;
    let rules = request.keep.map(retention);
    let why = match (request.backups.as_slice(), &rules) {
        ([], None) => Some("name backups, or say what to keep"),
        ([_, ..], Some(_)) => Some("name backups or say what to keep, not both"),
        ([_, ..], None) if request.volume.is_some() => Some("a volume goes with what to keep"),
        (_, Some(rules)) if rules.is_empty() => Some("a rule that keeps nothing is not meant"),
        _ => None,
    };
    if let Some(why) = why {
        return Err(Refusal::invalid("bad_forget", why));
    }
    let mut all = repository.snapshots().await?;
    if let Some(volume) = &request.volume {
        all.retain(|snapshot| snapshot.volume == *volume);
        if all.is_empty() {
            let (status, class) = (StatusCode::NOT_FOUND, ErrorClass::NotFound);
            let message = format!("there are no backups of the volume {volume:?}");
            let refusal = Refusal::new(status, class, "backup_no_volume", message);
            return Err(refusal.advise("List what is there: `aleph volume backups URL`."));
        }
    }
    let gone: HashSet<Id> = match rules {
        Some(rules) => rules.forgets(&all).into_iter().collect(),
        None => {
            let mut gone = HashSet::new();
            for reference in &request.backups {
                gone.insert(repository.snapshot_id(reference).await?);
            }
            gone
        }
    };
    if !request.dry_run {
        let gone: Vec<Id> = gone.iter().copied().collect();
        repository.forget(&gone).await?;
    }
    let (forgotten, kept): (Vec<&Snapshot>, Vec<&Snapshot>) =
        all.iter().partition(|snapshot| gone.contains(&snapshot.id));
    let readable: HashSet<Id> = all.iter().map(|snapshot| snapshot.id).collect();
    Ok(Json(BackupsForgotten {
        damaged: gone.difference(&readable).map(Id::to_string).collect(),
        forgotten: forgotten.into_iter().map(told).collect(),
        kept: kept.into_iter().map(told).collect(),
    }))
}

fn retention(keep: BackupRetention) -> Retention {
    let BackupRetention {
        last,
        hourly,
        daily,
        weekly,
        monthly,
        yearly,
    } = keep;
    Retention {
        last,
        hourly,
        daily,
        weekly,
        monthly,
        yearly,
    }
}

/// Get back the space of what no backup needs
///
/// Nobody else backs up to the place meanwhile. What is found to be needed by nobody is deleted by a later call,
/// once its grace is over. The answer is a line of JSON for each step; the last one has `pruned` or `error`.
#[utoipa::path(
    post, path = "/v1/backups/prune", tag = "volumes", request_body = BackupPruneRequest,
    responses((status = 200, description = "Lines of JSON.",
        body = BackupLine, content_type = "application/x-ndjson")),
)]
async fn prune(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<BackupPruneRequest>,
) -> Result<Response, Refusal> {
    let place = (request.url.as_str(), request.key_file.as_deref());
    let repository = open(&service, &caller, place).await?;
    let mut options = PruneOptions::default();
    if let Some(grace) = request.grace_seconds {
        options.grace = Duration::from_secs(grace);
    }
    if request.unlock {
        repository.unlock().await?;
    }
    Ok(answer(&service, async move |progress, stop| {
        let pruned = stop.run_until_cancelled(repository.prune(options, &progress));
        let pruned = pruned.await.unwrap_or(Err(BackupError::Stopped));
        let pruned = done(pruned.map_err(Failure::from)?);
        Ok(BackupLine::Pruned { pruned })
    }))
}

fn done(report: PruneReport) -> BackupsPruned {
    BackupsPruned {
        kept: wide(report.kept),
        repacked: wide(report.repacked),
        trashed: wide(report.trashed),
        deleted: wide(report.deleted),
        freed: report.freed,
    }
}
