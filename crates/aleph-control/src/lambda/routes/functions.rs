//! Functions: create, look at, list, change, delete.

use super::{On, Query, Reply, Route, json, listed, nothing, ok};
use crate::lambda::arn::is_function_name;
use crate::lambda::error::{Kind, LambdaError};
use crate::lambda::function::{CodeRef, Function, Head, LATEST, Progress, Version};
use crate::lambda::gate::Ask;
use crate::lambda::model::{self, CreateFunction, Sent, SettingsInput, UpdateCode};
use crate::lambda::{Functions, random_id};
use aleph_types::Timestamp;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, put};
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of code that an account keeps.
pub(super) const MOST_CODE: u64 = 75 * 1024 * 1024 * 1024;

pub(super) fn routes() -> Vec<Route> {
    vec![
        ("/2015-03-31/functions", get(list).post(create)),
        ("/2015-03-31/functions/{name}", get(show).delete(delete)),
        (
            "/2015-03-31/functions/{name}/configuration",
            get(configuration).put(configure),
        ),
        ("/2015-03-31/functions/{name}/code", put(upload)),
    ]
}

impl Functions {
    /// Code that was sent, as it is kept.
    async fn take_code(
        &self,
        sent: Sent,
        account: &str,
        dry: bool,
    ) -> Result<CodeRef, LambdaError> {
        match sent {
            Sent::Image(uri) => Ok(CodeRef::Image { uri, digest: None }),
            Sent::Zip(zip) => {
                let (_, used) = self.registry.usage(account);
                if used.saturating_add(u64::try_from(zip.len()).unwrap_or(u64::MAX)) > MOST_CODE {
                    let message = format!("Code storage limit exceeded: {MOST_CODE} bytes");
                    return Err(LambdaError::new(Kind::CodeStorageExceeded, message));
                }
                self.code.add(zip, dry).await
            }
        }
    }
}

async fn create(State(functions): State<Functions>, ask: Ask, body: Bytes) -> Reply {
    let mut wanted: CreateFunction<'_> = model::parse(&body)?;
    let name = match functions
        .identity
        .target(&ask.account, &wanted.function_name)?
    {
        target if target.qualifier.is_none() && is_function_name(&target.name) => target.name,
        _ => {
            return Err(LambdaError::invalid(
                "A function is created without a qualifier",
            ));
        }
    };
    let sent = wanted.sent()?;
    model::check_architectures(wanted.architectures.as_deref())?;
    let tags = wanted.tags.take().unwrap_or_default();
    model::check_tags(&tags)?;
    let mut settings = model::default_settings();
    let CreateFunction {
        publish,
        settings: input,
        ..
    } = wanted;
    input.apply(&mut settings, &functions.runtimes)?;
    model::check_complete(&settings, &sent)?;
    if functions.registry.get(&ask.account, &name).is_some() {
        return Err(LambdaError::conflict(format!(
            "Function already exist: {name}"
        )));
    }
    drop(body);
    let worker = functions.clone();
    let work = async move {
        let functions = worker;
        // Until the function is there, nobody takes its code for nobody's.
        let uploading = functions.code.uploads.read().await;
        let code = functions.take_code(sent, &ask.account, false).await?;
        let latest = Version {
            version: LATEST.into(),
            revision: random_id(),
            modified: Timestamp::now(),
            settings,
            code,
            serving: None,
            progress: Progress::Preparing,
        };
        let mut function = Function {
            account: ask.account,
            name,
            latest: Arc::new(latest),
            versions: BTreeMap::new(),
            head: Head {
                tags,
                ..Head::default()
            },
        };
        let shown = match publish {
            Some(true) => function.publish(None),
            _ => LATEST.into(),
        };
        let function = functions.registry.create(function).await?;
        drop(uploading);
        for version in function.all_versions() {
            functions.prepare(&function, version);
        }
        Ok((function, shown))
    };
    let (function, shown) = functions.settle(work).await?;
    let qualifier = (shown != LATEST).then_some(shown.as_str());
    json(
        StatusCode::CREATED,
        functions.described(&function, &shown, qualifier)?,
    )
}

impl Functions {
    /// The configuration of a version.
    pub(super) fn described(
        &self,
        function: &Function,
        version: &str,
        qualifier: Option<&str>,
    ) -> Result<Value, LambdaError> {
        let version = function
            .version(version)
            .ok_or_else(|| LambdaError::internal("a version is gone"))?;
        let identity = &self.identity;
        Ok(model::configuration(identity, function, version, qualifier))
    }
}

impl Function {
    /// Makes a version of what is latest, and gives its number.
    pub(super) fn publish(&mut self, description: Option<String>) -> String {
        self.head.last_number += 1;
        let number = self.head.last_number;
        let mut version = Version {
            version: number.to_string(),
            revision: random_id(),
            modified: Timestamp::now(),
            serving: None,
            progress: Progress::Preparing,
            ..Version::clone(&self.latest)
        };
        if let Some(description) = description {
            version.settings.description = description;
        }
        self.versions.insert(number, Arc::new(version));
        number.to_string()
    }
}

async fn list(State(functions): State<Functions>, ask: Ask, query: Query) -> Reply {
    let most = query.most()?;
    let (page, more) = functions.registry.list(&ask.account, query.marker(), most);
    let next = page.last().filter(|_| more).map(|last| last.name.clone());
    let everything = query.function_version.as_deref() == Some("ALL");
    let mut items = Vec::new();
    for function in &page {
        let shown = function.all_versions();
        for version in shown.take(if everything { usize::MAX } else { 1 }) {
            let qualifier = everything.then_some(version.version.as_str());
            items.push(functions.described(function, &version.version, qualifier)?);
        }
    }
    listed("Functions", items, next)
}

/// The configuration of what was named.
fn described(on: &On) -> Result<(Arc<Function>, Value), LambdaError> {
    let function = on.function()?;
    let version = function
        .resolve(on.qualifier(), || 1.0)
        .ok_or_else(|| LambdaError::no_function(&on.arn()))?;
    let shown = on
        .functions
        .described(&function, &version.version, on.qualifier())?;
    Ok((Arc::clone(&function), shown))
}

async fn show(on: On) -> Reply {
    let (function, configuration) = described(&on)?;
    let version = function.resolve(on.qualifier(), || 1.0);
    let code = match version.map(|version| &version.code) {
        Some(CodeRef::Image { uri, digest }) => {
            let mut code = value!({ "RepositoryType": "OCI", "ImageUri": uri });
            if let Some(digest) = digest {
                let resolved = format!("{}@{digest}", model::repository(uri));
                code["ResolvedImageUri"] = resolved.into();
            }
            code
        }
        // The archive stays on the node: there is nowhere to fetch it from.
        _ => value!({ "RepositoryType": "NODE" }),
    };
    let mut all = value!({ "Configuration": configuration, "Code": code });
    if !function.head.tags.is_empty() {
        all["Tags"] = value!(function.head.tags);
    }
    if let Some(reserved) = function.head.reserved {
        all["Concurrency"] = value!({ "ReservedConcurrentExecutions": reserved });
    }
    ok(all)
}

async fn configuration(on: On) -> Reply {
    ok(described(&on)?.1)
}

async fn configure(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let mut input: SettingsInput = model::parse_or_default(&body)?;
    let revision = input.revision_id.take();
    let arn = on.plain_arn();
    let runtimes = on.functions.runtimes.clone();
    let changed = on.change(move |function| {
        function.only_at_rest(&arn)?;
        check_revision(revision.as_deref(), &function.latest.revision)?;
        let latest = Arc::make_mut(&mut function.latest);
        input.apply(&mut latest.settings, &runtimes)?;
        touch(latest);
        Ok(())
    });
    let (function, ()) = changed.await?;
    on.functions.prepare(&function, &function.latest);
    ok(on.functions.described(&function, LATEST, None)?)
}

/// A version that has changed and is to be prepared.
fn touch(version: &mut Version) {
    version.revision = random_id();
    version.modified = Timestamp::now();
    version.progress = Progress::Preparing;
}

/// Refuses a change of what somebody else has changed since.
pub(super) fn check_revision(wanted: Option<&str>, there: &str) -> Result<(), LambdaError> {
    match wanted {
        Some(wanted) if wanted != there => Err(LambdaError::changed_since()),
        _ => Ok(()),
    }
}

async fn upload(on: On, body: Bytes) -> Reply {
    on.unqualified()?;
    let mut wanted: UpdateCode<'_> = model::parse(&body)?;
    let sent = wanted.sent()?;
    model::check_architectures(wanted.architectures.as_deref())?;
    let (publish, dry) = (
        wanted.publish.unwrap_or(false),
        wanted.dry_run.unwrap_or(false),
    );
    let revision = wanted.revision_id.take();
    drop(wanted);
    drop(body);
    let function = on.function()?;
    // What is cheap to find wrong is found before the code is unpacked.
    let arn = on.plain_arn();
    function.only_at_rest(&arn)?;
    check_revision(revision.as_deref(), &function.latest.revision)?;
    let is_image = matches!(function.latest.code, CodeRef::Image { .. });
    if is_image != matches!(sent, Sent::Image(_)) {
        return Err(LambdaError::invalid(
            "The kind of a function's package cannot be changed",
        ));
    }
    let (functions, ask) = (on.functions.clone(), on.ask.clone());
    let name = on.target.name.clone();
    let work = async move {
        let uploading = functions.code.uploads.read().await;
        let code = functions.take_code(sent, &ask.account, dry).await?;
        if dry {
            let mut function = Function::clone(&function);
            Arc::make_mut(&mut function.latest).code = code;
            return Ok((Arc::new(function), LATEST.to_owned()));
        }
        let change = move |function: &mut Function| {
            function.only_at_rest(&arn)?;
            check_revision(revision.as_deref(), &function.latest.revision)?;
            let latest = Arc::make_mut(&mut function.latest);
            latest.code = code;
            touch(latest);
            Ok(match publish {
                true => function.publish(None),
                false => LATEST.to_owned(),
            })
        };
        let changed = functions
            .registry
            .change(&ask.account, &name, change)
            .await?;
        drop(uploading);
        let (function, shown) = changed;
        functions.prepare(&function, &function.latest);
        if let Some(version) = function.version(&shown).filter(|v| v.version != LATEST) {
            functions.prepare(&function, version);
        }
        Ok((function, shown))
    };
    let (function, shown) = on.functions.settle(work).await?;
    let qualifier = (shown != LATEST).then_some(shown.as_str());
    ok(on.functions.described(&function, &shown, qualifier)?)
}

async fn delete(on: On) -> Reply {
    match on.qualifier() {
        None => delete_all(on).await,
        Some(LATEST) => Err(LambdaError::invalid(
            "$LATEST version cannot be deleted without deleting the function.",
        )),
        Some(_) => delete_version(on).await,
    }
}

async fn delete_all(on: On) -> Reply {
    on.function()?;
    let functions = on.functions.clone();
    let (account, name) = (on.ask.account.clone(), on.target.name.clone());
    let work = async move {
        let function = functions.registry.remove(&account, &name).await?;
        functions.metrics.forget(&account, &name);
        let versions = function.all_versions();
        versions.for_each(|version| functions.preparations.give_up(version));
        let served = function.all_versions().filter_map(|v| v.serving.clone());
        functions.retire(served.collect()).await;
        functions.remove_unused_code().await;
        Ok(())
    };
    on.functions.settle(work).await?;
    nothing()
}

async fn delete_version(on: On) -> Reply {
    let qualifier = on.qualifier().unwrap_or_default().to_owned();
    let arn = on.arn();
    let functions = on.functions.clone();
    let (account, name) = (on.ask.account.clone(), on.target.name.clone());
    on.function()?;
    let work = async move {
        let change = move |function: &mut Function| {
            if function.head.aliases.contains_key(&qualifier) {
                return Err(LambdaError::invalid(
                    "Deletion of aliases is not supported: delete the alias with DeleteAlias",
                ));
            }
            let version = function.version(&qualifier).cloned();
            let version = version.ok_or_else(|| LambdaError::no_function(&arn))?;
            let leads = |(_, alias): &(&String, &crate::lambda::function::Alias)| {
                alias.version == qualifier || alias.weights.contains_key(&qualifier)
            };
            if let Some((alias, _)) = function.head.aliases.iter().find(leads) {
                return Err(LambdaError::conflict(format!(
                    "Function version {qualifier} cannot be deleted: alias {alias} leads to it"
                )));
            }
            function
                .versions
                .retain(|_, other| other.version != qualifier);
            function.head.provisioned.remove(&qualifier);
            function.head.events.remove(&qualifier);
            Ok(version)
        };
        let changed = functions.registry.change(&account, &name, change).await;
        let (_, version) = changed?;
        functions.preparations.give_up(&version);
        functions
            .retire(version.serving.iter().cloned().collect())
            .await;
        functions.remove_unused_code().await;
        Ok(())
    };
    on.functions.settle(work).await?;
    nothing()
}
