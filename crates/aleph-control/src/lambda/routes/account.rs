//! What an account may have.

use super::functions::MOST_CODE;
use super::{Reply, Route, ok};
use crate::lambda::Functions;
use crate::lambda::code::{MOST_UNPACKED, MOST_ZIPPED};
use crate::lambda::gate::Ask;
use axum::extract::State;
use axum::routing::get;
use serde_json::json;

pub(super) fn routes() -> Vec<Route> {
    vec![("/2016-08-19/account-settings", get(settings))]
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
