//! What happens on the node, as server-sent events.

use crate::server::extract::{Query, bad_query};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::node::{EventReader, Scope};
use aleph_types::{Event, JobId};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(events))
}

/// How many stored events are given at once.
const PART: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Only events after the one with this id, the stored ones first. From now on when absent.
    /// The header `Last-Event-ID` goes before it.
    #[param(minimum = 0)]
    since_id: Option<u64>,
    /// Only of this job.
    #[param(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    job: Option<String>,
    /// Only of these kinds, separated by commas; `job` stands for all that begin with `job.`.
    #[param(
        max_length = 256,
        pattern = "^[a-z_.]+(,[a-z_.]+)*$",
        example = "job.running"
    )]
    kind: Option<String>,
    /// `false` gives the stored ones as a JSON array, at most 1000 of them.
    follow: Option<bool>,
}

/// Hear what happens
#[utoipa::path(
    get, path = "/v1/events", tag = "node",
    params(
        EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, minimum = 0,
            description = "The id of the last event that was heard."),
    ),
    responses((status = 200, description = "Events.", content(
        (Event = "text/event-stream"),
        ([Event] = "application/json"),
    ))),
)]
async fn events(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let last = match headers.get("last-event-id") {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| bad_query("Last-Event-ID is no id of an event"))?,
        ),
    };
    let after: Option<u64> = last.or(query.since_id);
    // The journal counts in 64 bits with a sign; nothing is after more.
    if after.is_some_and(|id| i64::try_from(id).is_err()) {
        return Err(bad_query("there is no such event id"));
    }
    let job = match query.job.as_deref() {
        None => None,
        // A job that is gone has events still.
        Some(text) => match text.parse::<JobId>() {
            Ok(id) => Some(id),
            Err(_) => Some(service.find(&caller, text)?),
        },
    };
    let filter = Filter {
        scope: caller.scope,
        job,
        kinds: query
            .kind
            .iter()
            .flat_map(|text| text.split(','))
            .map(str::to_owned)
            .collect(),
    };
    if query.follow == Some(false) {
        let stored = stored(&service, &filter, after.unwrap_or(0)).await?;
        return Ok(Json(stored).into_response());
    }
    let reader = service.node.events(after);
    let told = told(reader, filter, service.stopping.clone());
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(told).keep_alive(keep_alive).into_response())
}

/// Which events a client hears.
#[derive(Debug)]
struct Filter {
    scope: Scope,
    job: Option<JobId>,
    kinds: Vec<String>,
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        // What belongs to no account is for operators.
        let own = match &event.account {
            Some(account) => self.scope.covers(account),
            None => self.scope == Scope::All,
        };
        let kind = |kind: &String| {
            let rest = event.kind.strip_prefix(kind.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        own && self.job.is_none_or(|job| event.job == Some(job))
            && (self.kinds.is_empty() || self.kinds.iter().any(kind))
    }
}

async fn stored(service: &Service, filter: &Filter, after: u64) -> Result<Vec<Event>, Refusal> {
    let (mut wanted, mut after) = (Vec::new(), after);
    loop {
        let part = service.node.stored_events(after, PART).await?;
        let Some(last) = part.last().map(|event| event.id) else {
            return Ok(wanted);
        };
        after = last;
        wanted.extend(part.into_iter().filter(|event| filter.wants(event)));
        if wanted.len() >= PART {
            wanted.truncate(PART);
            return Ok(wanted);
        }
    }
}

/// The events of a client, one at a time.
fn told(
    reader: EventReader,
    filter: Filter,
    stopping: CancellationToken,
) -> impl stream::Stream<Item = Result<sse::Event, Infallible>> {
    stream::unfold(
        (reader, filter, stopping),
        |(mut reader, filter, stopping)| async {
            loop {
                let event = tokio::select! {
                    event = reader.next() => event?,
                    () = stopping.cancelled() => return None,
                };
                if !filter.wants(&event) {
                    continue;
                }
                // Nothing in an event cannot be JSON.
                let Ok(data) = serde_json::to_string(&event) else {
                    continue;
                };
                let told = sse::Event::default()
                    .id(event.id.to_string())
                    .event(&event.kind)
                    .data(data);
                return Some((Ok(told), (reader, filter, stopping)));
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, account: Option<&str>) -> Event {
        Event {
            id: 1,
            time: aleph_types::Timestamp::UNIX_EPOCH,
            kind: kind.into(),
            job: Some(JobId::from_bits(5)),
            name: None,
            account: account.map(str::to_owned),
            message: None,
        }
    }

    #[test]
    fn an_account_hears_its_own_jobs_only() {
        let filter = |scope| Filter {
            scope,
            job: None,
            kinds: Vec::new(),
        };
        let own = filter(Scope::Account("a".into()));
        assert!(own.wants(&event("job.running", Some("a"))));
        assert!(!own.wants(&event("job.running", Some("b"))));
        assert!(!own.wants(&event("image.pulled", None)));
        assert!(filter(Scope::All).wants(&event("image.pulled", None)));
    }

    #[test]
    fn kinds_and_jobs_are_told_apart() {
        let filter = |kinds: &[&str], job| Filter {
            scope: Scope::All,
            job,
            kinds: kinds.iter().map(|k| (*k).to_owned()).collect(),
        };
        let running = event("job.running", None);
        assert!(filter(&["job"], None).wants(&running));
        assert!(filter(&["image", "job.running"], None).wants(&running));
        assert!(!filter(&["job.run"], None).wants(&running));
        assert!(filter(&[], Some(JobId::from_bits(5))).wants(&running));
        assert!(!filter(&[], Some(JobId::from_bits(6))).wants(&running));
    }
}
