//! What an account may have, and event sources, of which there are none.

use super::functions::MOST_CODE;
use super::{Reply, Route, ok};
use crate::lambda::Functions;
use crate::lambda::code::{MOST_UNPACKED, MOST_ZIPPED};
use crate::lambda::error::LambdaError;
use crate::lambda::gate::Ask;
use axum::extract::State;
use axum::routing::get;
use serde_json::json;

pub(super) fn routes() -> Vec<Route> {
    vec![
        ("/2016-08-19/account-settings", get(settings)),
        (
            "/2015-03-31/event-source-mappings",
            get(no_sources).post(no_source),
        ),
    ]
}

async fn settings(State(functions): State<Functions>, ask: Ask) -> Reply {
    let (count, size) = functions.registry.usage(&ask.account);
    let all = u64::from(functions.account_concurrency);
    let reserved = functions.registry.reserved(&ask.account);
    ok(json!({
        "AccountLimit": {
            "TotalCodeSize": MOST_CODE,
            "CodeSizeUnzipped": MOST_UNPACKED,
            "CodeSizeZipped": MOST_ZIPPED,
            "ConcurrentExecutions": all,
            "UnreservedConcurrentExecutions": all.saturating_sub(reserved),
        },
        "AccountUsage": { "TotalCodeSize": size, "FunctionCount": count },
    }))
}

async fn no_sources() -> Reply {
    ok(json!({ "EventSourceMappings": [] }))
}

async fn no_source() -> LambdaError {
    LambdaError::invalid("Event source mappings cannot be had: this node has no such sources")
}
