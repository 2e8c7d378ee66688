//! Mappings of event sources.

use super::{Query, Reply, Route, Segments, json, listed, ok};
use crate::lambda::Functions;
use crate::lambda::error::LambdaError;
use crate::lambda::gate::Ask;
use crate::lambda::sources::SourceInput;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::get;
use serde::Deserialize;

pub(super) fn routes() -> Vec<Route> {
    vec![
        ("/2015-03-31/event-source-mappings", get(list).post(create)),
        (
            "/2015-03-31/event-source-mappings/{uuid}",
            get(show).put(update).delete(delete),
        ),
    ]
}

/// What a list is to have.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    function_name: Option<String>,
    event_source_arn: Option<String>,
}

fn id(Segments(segments): Segments) -> String {
    segments.into_iter().next().unwrap_or_default()
}

async fn create(State(functions): State<Functions>, ask: Ask, body: Bytes) -> Reply {
    let input = SourceInput::read(&body)?;
    let all = functions.clone();
    let work = async move { all.create_source(&ask.account, input).await };
    json(StatusCode::ACCEPTED, functions.settle(work).await?)
}

async fn show(State(functions): State<Functions>, ask: Ask, segments: Segments) -> Reply {
    ok(functions.source(&ask.account, &id(segments))?)
}

async fn update(
    State(functions): State<Functions>,
    ask: Ask,
    segments: Segments,
    body: Bytes,
) -> Reply {
    let input = SourceInput::read(&body)?;
    let (all, id) = (functions.clone(), id(segments));
    let work = async move { all.update_source(&ask.account, &id, input).await };
    json(StatusCode::ACCEPTED, functions.settle(work).await?)
}

async fn delete(State(functions): State<Functions>, ask: Ask, segments: Segments) -> Reply {
    let (all, id) = (functions.clone(), id(segments));
    let work = async move { all.delete_source(&ask.account, &id).await };
    json(StatusCode::ACCEPTED, functions.settle(work).await?)
}

async fn list(State(functions): State<Functions>, ask: Ask, query: Query, uri: Uri) -> Reply {
    let wanted: Wanted = serde_urlencoded::from_str(uri.query().unwrap_or_default())
        .map_err(|error| LambdaError::invalid(format!("The query cannot be read: {error}")))?;
    let target = match wanted
        .function_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        Some(name) => Some(functions.identity.target(&ask.account, name)?),
        None => None,
    };
    // No source of this node has an ARN.
    let others = wanted.event_source_arn.is_some_and(|arn| !arn.is_empty());
    let named = target
        .as_ref()
        .map(|t| (t.name.as_str(), t.qualifier.as_deref()));
    let mut all = functions.list_sources(&ask.account, named);
    all.retain(|_| !others);
    let page = query.page(all.into_iter())?;
    listed("EventSourceMappings", page.items, page.next)
}
