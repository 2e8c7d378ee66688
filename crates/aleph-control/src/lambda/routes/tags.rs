//! Tags of functions.

use super::{On, Reply, Route, nothing, ok};
use crate::lambda::error::LambdaError;
use crate::lambda::model;
use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

pub(super) fn routes() -> Vec<Route> {
    vec![("/2017-03-31/tags/{arn}", get(list).post(add).delete(remove))]
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tags {
    tags: BTreeMap<String, String>,
}

async fn list(on: On) -> Reply {
    ok(json!({ "Tags": on.function()?.head.tags }))
}

async fn add(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let Tags { tags } = model::parse(&body)?;
    on.change(move |function| {
        function.head.tags.extend(tags);
        model::check_tags(&function.head.tags)
    })
    .await?;
    nothing()
}

async fn remove(on: On, RawQuery(query): RawQuery) -> Reply {
    on.unqualified()?;
    let query = query.unwrap_or_default();
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&query)
        .map_err(|error| LambdaError::invalid(format!("The query cannot be read: {error}")))?;
    on.change(move |function| {
        for (_, key) in pairs.iter().filter(|(name, _)| name == "tagKeys") {
            function.head.tags.remove(key);
        }
        Ok(())
    })
    .await?;
    nothing()
}
