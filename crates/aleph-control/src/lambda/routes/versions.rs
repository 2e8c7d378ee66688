//! Versions: publish and list.

use super::functions::check_revision;
use super::{On, Reply, Route, json, listed};
use crate::lambda::code::unhex;
use crate::lambda::error::LambdaError;
use crate::lambda::function::{CodeRef, Function, LATEST};
use crate::lambda::model::{self, Publish};
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

pub(super) fn routes() -> Vec<Route> {
    vec![(
        "/2015-03-31/functions/{name}/versions",
        get(list).post(publish),
    )]
}

async fn publish(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let wanted: Publish = model::parse_or_default(&body)?;
    let arn = on.plain_arn();
    let changed = on.change(move |function| {
        function.only_at_rest(&arn)?;
        check_revision(wanted.revision_id.as_deref(), &function.latest.revision)?;
        check_code(wanted.code_sha256.as_deref(), function)?;
        // What was published last is not published twice.
        let newest = function.versions.values().next_back();
        if let Some(newest) = newest
            && wanted.description.is_none()
            && newest.is_same_as(&function.latest)
        {
            return Ok((newest.version.clone(), false));
        }
        Ok((function.publish(wanted.description), true))
    });
    let (function, (number, new)) = changed.await?;
    if let Some(version) = function.version(&number).filter(|_| new) {
        on.functions.prepare(&function, version);
    }
    let shown = on.functions.described(&function, &number, Some(&number))?;
    json(StatusCode::CREATED, shown)
}

fn check_code(wanted: Option<&str>, function: &Function) -> Result<(), LambdaError> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(());
    };
    let there = match &function.latest.code {
        CodeRef::Zip { sha256, .. } => BASE64_STANDARD.encode(unhex(sha256).unwrap_or_default()),
        CodeRef::Image { digest, .. } => {
            model::hex_of(digest.as_deref().unwrap_or_default()).to_owned()
        }
    };
    if wanted == there {
        return Ok(());
    }
    Err(LambdaError::invalid(format!(
        "CodeSHA256 ({wanted}) is different from current CodeSHA256 in {LATEST} ({there}). Please \
         try again with the CodeSHA256 in {LATEST}."
    )))
}

async fn list(on: On) -> Reply {
    let function = on.function()?;
    let versions = function
        .all_versions()
        .map(|version| (version.version.clone(), version));
    let page = on.query.page(versions)?;
    let items = page.items.into_iter().map(|version| {
        let qualifier = Some(version.version.as_str());
        on.functions
            .described(&function, &version.version, qualifier)
    });
    listed("Versions", items.collect::<Result<_, _>>()?, page.next)
}
