//! Aliases: names for versions, which may lead a part of invocations to a second one.

use super::functions::check_revision;
use super::{On, Reply, Route, Segments, json, listed, nothing, ok};
use crate::lambda::Functions;
use crate::lambda::arn::is_alias_name;
use crate::lambda::error::LambdaError;
use crate::lambda::function::{Alias, Function, LATEST};
use crate::lambda::model::{self, AliasInput, Routing};
use crate::lambda::random_id;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use std::collections::BTreeMap;

/// Aliases of a function.
const MOST_ALIASES: usize = 1000;

pub(super) fn routes() -> Vec<Route> {
    vec![
        (
            "/2015-03-31/functions/{name}/aliases",
            get(list).post(create),
        ),
        (
            "/2015-03-31/functions/{name}/aliases/{alias}",
            get(show).put(update).delete(delete),
        ),
    ]
}

fn missing(on: &On, alias: &str) -> LambdaError {
    LambdaError::not_found(format!("Cannot find alias arn: {}:{alias}", on.plain_arn()))
}

fn alias_of(segments: &Segments) -> String {
    segments.0.get(1).cloned().unwrap_or_default()
}

/// Weights that make sense: other versions, parts of one.
fn weights(
    routing: Option<Routing>,
    function: &Function,
    alias: &str,
) -> Result<BTreeMap<String, f64>, LambdaError> {
    let weights = routing.and_then(|routing| routing.additional_version_weights);
    let weights = weights.unwrap_or_default();
    if weights.len() > 1 {
        return Err(LambdaError::invalid(
            "Number of items in AdditionalVersionWeights cannot be greater than 1",
        ));
    }
    for (version, weight) in &weights {
        if !(0.0..=1.0).contains(weight) {
            return Err(LambdaError::invalid(format!(
                "Weight {weight} of version {version} must be between 0 and 1"
            )));
        }
        if version == alias || version == LATEST || alias == LATEST {
            return Err(LambdaError::invalid(format!(
                "An alias cannot lead to {alias} and {version}: two published versions that differ \
                 are needed"
            )));
        }
        if function.version(version).is_none() {
            return Err(LambdaError::not_found(format!(
                "Function not found: {}:{version}",
                function.name
            )));
        }
    }
    Ok(weights)
}

fn check_version(on_arn: &str, function: &Function, version: &str) -> Result<(), LambdaError> {
    match function.version(version) {
        Some(_) => Ok(()),
        None => Err(LambdaError::no_function(&format!("{on_arn}:{version}"))),
    }
}

async fn create(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let wanted: AliasInput = model::parse(&body)?;
    let name = wanted.name.clone().unwrap_or_default();
    if !is_alias_name(&name) {
        return Err(LambdaError::invalid(format!(
            "1 validation error detected: Value '{name}' at 'name' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: (?!^[0-9]+$)([a-zA-Z0-9-_]+)"
        )));
    }
    let arn = on.plain_arn();
    let key = name.clone();
    let changed = on.change(move |function| {
        let version = wanted.function_version.unwrap_or_default();
        check_version(&arn, function, &version)?;
        if function.head.aliases.contains_key(&key) {
            return Err(LambdaError::conflict(format!(
                "Alias already exists: {arn}:{key}"
            )));
        }
        if function.head.aliases.len() >= MOST_ALIASES {
            return Err(LambdaError::invalid(format!(
                "A function has at most {MOST_ALIASES} aliases"
            )));
        }
        let alias = Alias {
            weights: weights(wanted.routing_config, function, &version)?,
            version,
            description: wanted.description.unwrap_or_default(),
            revision: random_id(),
        };
        function.head.aliases.insert(key, alias.clone());
        Ok(alias)
    });
    let (function, alias) = changed.await?;
    let shown = model::alias(&on.functions.identity, &function, &name, &alias);
    json(StatusCode::CREATED, shown)
}

async fn show(on: On, segments: Segments) -> Reply {
    let function = on.function()?;
    let name = alias_of(&segments);
    let alias = function.head.aliases.get(&name);
    let alias = alias.ok_or_else(|| missing(&on, &name))?;
    ok(model::alias(
        &on.functions.identity,
        &function,
        &name,
        alias,
    ))
}

async fn update(on: On, segments: Segments, body: Bytes) -> Reply {
    let wanted: AliasInput = model::parse_or_default(&body)?;
    let name = alias_of(&segments);
    let (key, gone) = (name.clone(), missing(&on, &name));
    let arn = on.plain_arn();
    let before = on.function()?;
    let changed = on.change(move |function| {
        let alias = function.head.aliases.get(&key).cloned();
        let mut alias = alias.ok_or(gone)?;
        check_revision(wanted.revision_id.as_deref(), &alias.revision)?;
        if let Some(version) = wanted.function_version {
            check_version(&arn, function, &version)?;
            alias.version = version;
        }
        if let Some(description) = wanted.description {
            alias.description = description;
        }
        if wanted.routing_config.is_some() {
            alias.weights = weights(wanted.routing_config, function, &alias.version)?;
        }
        alias.revision = random_id();
        function.head.aliases.insert(key, alias.clone());
        Ok(alias)
    });
    let (function, alias) = changed.await?;
    on.functions.provision_again(&before, &function);
    ok(model::alias(
        &on.functions.identity,
        &function,
        &name,
        &alias,
    ))
}

async fn delete(on: On, segments: Segments) -> Reply {
    let name = alias_of(&segments);
    let before = on.function()?;
    let changed = on.change(move |function| {
        // One that is not there is as gone as one that was deleted.
        function.head.aliases.remove(&name);
        function.head.provisioned.remove(&name);
        function.head.events.remove(&name);
        function.head.urls.remove(&name);
        Ok(())
    });
    let (function, ()) = changed.await?;
    on.functions.provision_again(&before, &function);
    nothing()
}

async fn list(on: On) -> Reply {
    let function = on.function()?;
    let wanted = on.query.function_version.as_deref();
    let aliases = function.head.aliases.iter();
    let aliases = aliases
        .filter(|(_, alias)| wanted.is_none_or(|version| alias.version == version))
        .map(|(name, alias)| (name.clone(), (name, alias)));
    let page = on.query.page(aliases)?;
    let identity = &on.functions.identity;
    let items = page
        .items
        .into_iter()
        .map(|(name, alias)| model::alias(identity, &function, name, alias));
    listed("Aliases", items.collect(), page.next)
}

impl Functions {
    /// Asks for as many clones of each version as are to be ready now.
    pub(super) fn provision_again(&self, before: &Function, after: &Function) {
        for version in after.all_versions() {
            let (old, new) = (
                before.provisioned(&version.version),
                after.provisioned(&version.version),
            );
            if let Some(serving) = version.serving.clone().filter(|_| old != new) {
                self.runner.provision(serving, new);
            }
        }
    }
}
