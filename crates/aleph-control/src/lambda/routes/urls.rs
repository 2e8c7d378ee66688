//! URLs of functions, as they are set up. What serves them is [`url`](crate::lambda::url).

use super::{On, Reply, Route, json, listed, nothing, ok};
use crate::lambda::error::LambdaError;
use crate::lambda::function::{Function, LATEST, UrlConfig};
use crate::lambda::model::{self, UrlInput};
use crate::lambda::random_id;
use crate::lambda::url::Cors;
use aleph_types::Timestamp;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::Value;

pub(super) fn routes() -> Vec<Route> {
    vec![
        (
            "/2021-10-31/functions/{name}/url",
            get(show).post(create).put(update).delete(delete),
        ),
        ("/2021-10-31/functions/{name}/urls", get(list)),
    ]
}

/// An alias, or the function as a whole; no numbered version.
fn key(on: &On, function: &Function) -> Result<String, LambdaError> {
    on.existing_qualifier(function)?;
    match on.qualifier() {
        None => Ok(LATEST.into()),
        Some(alias) if function.head.aliases.contains_key(alias) => Ok(alias.to_owned()),
        Some(_) => Err(LambdaError::invalid(
            "A function URL belongs to a function or to an alias of it",
        )),
    }
}

fn choice(
    value: Option<String>,
    choices: [&str; 2],
    at: &str,
) -> Result<Option<String>, LambdaError> {
    match value {
        Some(value) if !choices.contains(&value.as_str()) => Err(LambdaError::invalid(format!(
            "1 validation error detected: Value '{value}' at '{at}' failed to satisfy constraint: \
             Member must satisfy enum value set: [{}, {}]",
            choices[0], choices[1]
        ))),
        value => Ok(value),
    }
}

fn read(body: &[u8]) -> Result<UrlInput, LambdaError> {
    let mut input: UrlInput = model::parse_or_default(body)?;
    input.auth_type = choice(input.auth_type, ["NONE", "AWS_IAM"], "authType")?;
    let modes = ["BUFFERED", "RESPONSE_STREAM"];
    input.invoke_mode = choice(input.invoke_mode, modes, "invokeMode")?;
    if let Some(cors) = &input.cors {
        Cors::read(cors)?;
    }
    Ok(input)
}

fn shown(on: &On, key: &str, config: &UrlConfig) -> Value {
    let identity = &on.functions.identity;
    let qualifier = (key != LATEST).then_some(key);
    let arn = identity.arn(&on.ask.account, &on.target.name, qualifier);
    let url = on.functions.url_of(&config.id);
    model::url_config(&arn, &url, config)
}

fn missing() -> LambdaError {
    LambdaError::not_found("The resource you requested does not exist.")
}

async fn create(on: On, body: Bytes) -> Reply {
    let input = read(&body)?;
    let auth = input.auth_type.ok_or_else(|| {
        LambdaError::invalid("1 validation error detected: 'authType' must not be null")
    })?;
    let key = key(&on, &*on.function()?)?;
    let place = key.clone();
    let now = Timestamp::now();
    let config = UrlConfig {
        created: now,
        modified: now,
        auth,
        mode: input.invoke_mode.unwrap_or_else(|| "BUFFERED".into()),
        cors: input.cors,
        id: random_id().replace('-', ""),
    };
    let kept = config.clone();
    on.change(move |function| {
        if function.head.urls.contains_key(&place) {
            return Err(LambdaError::conflict(
                "Failed to create function url config: one exists already",
            ));
        }
        function.head.urls.insert(place, kept);
        Ok(())
    })
    .await?;
    json(StatusCode::CREATED, shown(&on, &key, &config))
}

async fn show(on: On) -> Reply {
    let function = on.function()?;
    let key = key(&on, &function)?;
    let config = function.head.urls.get(&key).ok_or_else(missing)?;
    ok(shown(&on, &key, config))
}

async fn update(on: On, body: Bytes) -> Reply {
    let input = read(&body)?;
    let key = key(&on, &*on.function()?)?;
    let place = key.clone();
    let changed = on.change(move |function| {
        let config = function.head.urls.get_mut(&place).ok_or_else(missing)?;
        if let Some(auth) = input.auth_type {
            config.auth = auth;
        }
        if let Some(mode) = input.invoke_mode {
            config.mode = mode;
        }
        if input.cors.is_some() {
            config.cors = input.cors;
        }
        config.modified = Timestamp::now();
        Ok(config.clone())
    });
    let (_, config) = changed.await?;
    ok(shown(&on, &key, &config))
}

async fn delete(on: On) -> Reply {
    let key = key(&on, &*on.function()?)?;
    on.change(move |function| match function.head.urls.remove(&key) {
        Some(_) => Ok(()),
        None => Err(missing()),
    })
    .await?;
    nothing()
}

async fn list(on: On) -> Reply {
    let function = on.function()?;
    let all = function.head.urls.iter();
    let page = on
        .query
        .page(all.map(|(key, one)| (key.clone(), (key, one))))?;
    let items = page
        .items
        .into_iter()
        .map(|(key, config)| shown(&on, key, config));
    listed("FunctionUrlConfigs", items.collect(), page.next)
}
