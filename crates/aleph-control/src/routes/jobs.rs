//! Jobs: make, list, look at, remove.

use super::JobPath;
use crate::server::extract::{Query, Segment, Specification, bad_query};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::node::{CreateOptions, JobFilter};
use aleph_types::{Job, JobList, JobSpec, JobState};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, destroy))
}

/// How many jobs a list has where the request does not say.
const DEFAULT_LIMIT: usize = 100;
/// How many it can have.
const MAX_LIMIT: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct CreateQuery {
    /// Whether the job starts at once.
    #[param(inline, required = false)]
    start: bool,
}

impl Default for CreateQuery {
    fn default() -> Self {
        Self { start: true }
    }
}

/// Take a job
///
/// It is taken where the node has room for it. Names an account can use once. A job of an
/// account whose image would have to be fetched from a registry that is not for accounts is
/// refused with 403 `registry_not_allowed`.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    params(
        CreateQuery,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 128,
            pattern = "^[!-~]+$",
            description = "Names the request: the same one again gives the same job."),
    ),
    request_body(content(
        (JobSpec = "application/json"),
        (JobSpec = "application/yaml"),
        (JobSpec = "application/toml"),
    )),
    responses(
        (status = 201, description = "The job was taken.", body = Job),
        (status = 200, description = "The key was used for the same job before.", body = Job),
    ),
)]
async fn create(
    State(service): State<Service>,
    caller: Caller,
    query: Query<CreateQuery>,
    headers: HeaderMap,
    Specification(spec): Specification,
) -> Result<Response, Refusal> {
    // What a guest with a disk of its own boots is a volume of its account, and comes from no registry.
    if !caller.is_operator() && !spec.has_own_disk() {
        service.images.allow_use(&spec.image, spec.pull).await?;
    }
    let options = CreateOptions {
        account: caller.account,
        start: query.0.start,
        idempotency_key: idempotency_key(&headers)?,
    };
    let node = service.node.clone();
    let created = service
        .settle(async move { node.create(spec, options).await })
        .await?;
    let status = if created.new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(created.job)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let message = "the Idempotency-Key has to be 1 to 128 printable ASCII characters";
        return Err(Refusal::invalid("bad_idempotency_key", message));
    }
    Ok(Some(text.to_owned()))
}

/// What a list of jobs is asked for. It describes; `filter` reads the query, because a label can
/// come many times.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
struct ListQuery {
    /// Only in one of these states, separated by commas. Any when absent.
    #[param(
        max_length = 256,
        pattern = "^[a-z]+(,[a-z]+)*$",
        example = "running,paused"
    )]
    state: Option<String>,
    /// Only with this label: `name` or `name=value`. It can be given many times.
    #[param(max_items = 64, example = json!(["tier=web"]))]
    label: Option<Vec<String>>,
    /// Only with a name that begins so.
    #[param(max_length = 63)]
    name: Option<String>,
    /// `false` leaves out jobs that ended for good.
    all: Option<bool>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// The `cursor` of the part before.
    #[param(max_length = 256)]
    cursor: Option<String>,
}

/// List jobs, the newest first
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(ListQuery),
    responses((status = 200, description = "A part of the list.", body = JobList)),
)]
async fn list(
    State(service): State<Service>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<JobList>, Refusal> {
    let filter = filter(uri.query().unwrap_or_default())?;
    Ok(Json(service.node.list(&caller.scope, &filter)))
}

fn filter(query: &str) -> Result<JobFilter, Refusal> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| bad_query(error.to_string()))?;
    let mut filter = JobFilter {
        limit: DEFAULT_LIMIT,
        ..JobFilter::default()
    };
    let mut all = true;
    let mut seen = Vec::new();
    for (key, value) in pairs {
        if key != "label" && seen.contains(&key) {
            return Err(bad_query(format!("{key} is there twice")));
        }
        match key.as_str() {
            "state" => filter.states = states(&value)?,
            "label" => filter.labels.push(label(&value)?),
            "name" => filter.name_prefix = Some(value).filter(|name| !name.is_empty()),
            "all" => all = parse_bool(&value).ok_or_else(|| bad_query("all is true or false"))?,
            "limit" => {
                let limit = value.parse().ok();
                let inside = limit.filter(|n| (1..=MAX_LIMIT).contains(n));
                filter.limit = inside
                    .ok_or_else(|| bad_query(format!("limit is between 1 and {MAX_LIMIT}")))?;
            }
            "cursor" => filter.cursor = Some(value),
            other => return Err(bad_query(format!("there is no parameter {other:?}"))),
        }
        seen.push(key);
    }
    if !all && filter.states.is_empty() {
        let lives = JobState::ALL.into_iter().filter(|state| !state.is_over());
        filter.states = lives.collect();
    }
    Ok(filter)
}

fn parse_bool(text: &str) -> Option<bool> {
    text.parse().ok()
}

fn label(text: &str) -> Result<(String, Option<String>), Refusal> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(bad_query(format!("the label {text:?} has no name")));
    }
    Ok((name.to_owned(), value))
}

/// States by their names, separated by commas; `ended` stands for those of jobs that are over.
pub(super) fn states(text: &str) -> Result<Vec<JobState>, Refusal> {
    let mut states = Vec::new();
    for name in text.split(',') {
        if name == "ended" {
            states.extend([JobState::Exited, JobState::Failed, JobState::Destroyed]);
        } else {
            let state = name.parse::<JobState>();
            states.push(state.map_err(|error| bad_query(error.to_string()))?);
        }
    }
    Ok(states)
}

/// Look at a job
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}",
    tag = "jobs",
    params(JobPath),
    responses((status = 200, description = "The job.", body = Job)),
)]
async fn get(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
) -> Result<Json<Job>, Refusal> {
    let id = service.find(&caller, &job)?;
    Ok(Json(service.node.job(id)?))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct DestroyQuery {
    /// Whether a job that runs is killed.
    #[param(required = false)]
    force: bool,
}

/// Remove a job, with its logs
#[utoipa::path(
    delete,
    path = "/v1/jobs/{job}",
    tag = "jobs",
    params(JobPath, DestroyQuery),
    responses((status = 204, description = "It is removed.")),
)]
async fn destroy(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    query: Query<DestroyQuery>,
) -> Result<StatusCode, Refusal> {
    let id = service.find(&caller, &job)?;
    let node = service.node.clone();
    service
        .settle(async move { node.destroy(id, query.0.force).await })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let text = "state=running,ended&label=a%3Db&label=c&name=web&limit=5&cursor=x";
        let want = JobFilter {
            states: vec![
                JobState::Running,
                JobState::Exited,
                JobState::Failed,
                JobState::Destroyed,
            ],
            labels: vec![("a".into(), Some("b".into())), ("c".into(), None)],
            name_prefix: Some("web".into()),
            limit: 5,
            cursor: Some("x".into()),
        };
        assert_eq!(filter(text).unwrap(), want);
        assert_eq!(filter("").unwrap().limit, 100);
        let live = filter("all=false").unwrap().states;
        assert!(live.contains(&JobState::Created) && !live.contains(&JobState::Exited));
    }

    #[test]
    fn wrong_filters_are_refused() {
        for text in [
            "state=walking",
            "state=",
            "label==x",
            "limit=0",
            "limit=1001",
            "limit=x",
            "all=maybe",
            "nme=x",
            "limit=1&limit=2",
        ] {
            let refusal = filter(text).unwrap_err();
            assert_eq!(refusal.problem.code, "bad_query", "{text}");
        }
    }
}
