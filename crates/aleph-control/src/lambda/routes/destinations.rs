//! How events are tried again, and who is told what became of them.

use super::{On, Reply, Route, listed, nothing, ok};
use crate::lambda::error::LambdaError;
use crate::lambda::function::{EventConfig, Function, LATEST};
use crate::lambda::model::{self, EventInput};
use aleph_types::Timestamp;
use axum::body::Bytes;
use axum::routing::get;

pub(super) fn routes() -> Vec<Route> {
    vec![
        (
            "/2019-09-25/functions/{name}/event-invoke-config",
            get(show).put(put).post(update).delete(delete),
        ),
        (
            "/2019-09-25/functions/{name}/event-invoke-config/list",
            get(list),
        ),
    ]
}

fn key(on: &On, function: &Function) -> Result<String, LambdaError> {
    on.existing_qualifier(function)?;
    Ok(on.qualifier().unwrap_or(LATEST).to_owned())
}

fn missing(on: &On) -> LambdaError {
    LambdaError::not_found(format!(
        "The function {} doesn't have an EventInvokeConfig",
        on.arn()
    ))
}

fn arn(on: &On, qualifier: &str) -> String {
    let identity = &on.functions.identity;
    identity.arn(&on.ask.account, &on.target.name, Some(qualifier))
}

async fn set(on: On, body: Bytes, anew: bool) -> Reply {
    let input: EventInput = model::parse_or_default(&body)?;
    let key = key(&on, &*on.function()?)?;
    let (place, gone) = (key.clone(), missing(&on));
    let changed = on.change(move |function| {
        let now = Timestamp::now();
        let empty = EventConfig {
            modified: now,
            retries: None,
            age: None,
            on_success: None,
            on_failure: None,
        };
        let mut config = match function.head.events.get(&place) {
            _ if anew => empty,
            Some(config) => EventConfig {
                modified: now,
                ..config.clone()
            },
            None => return Err(gone),
        };
        input.apply(&mut config)?;
        function.head.events.insert(place, config.clone());
        Ok(config)
    });
    let (_, config) = changed.await?;
    ok(model::event_config(&arn(&on, &key), &config))
}

async fn put(on: On, body: Bytes) -> Reply {
    set(on, body, true).await
}

async fn update(on: On, body: Bytes) -> Reply {
    set(on, body, false).await
}

async fn show(on: On) -> Reply {
    let function = on.function()?;
    let key = key(&on, &function)?;
    let config = function.head.events.get(&key);
    let config = config.ok_or_else(|| missing(&on))?;
    ok(model::event_config(&arn(&on, &key), config))
}

async fn delete(on: On) -> Reply {
    let key = key(&on, &*on.function()?)?;
    let gone = missing(&on);
    on.change(move |function| match function.head.events.remove(&key) {
        Some(_) => Ok(()),
        None => Err(gone),
    })
    .await?;
    nothing()
}

async fn list(on: On) -> Reply {
    let function = on.function()?;
    let all = function.head.events.iter();
    let page = on
        .query
        .page(all.map(|(key, one)| (key.clone(), (key, one))))?;
    let items = page.items.into_iter();
    let items = items.map(|(key, config)| model::event_config(&arn(&on, key), config));
    listed("FunctionEventInvokeConfigs", items.collect(), page.next)
}
