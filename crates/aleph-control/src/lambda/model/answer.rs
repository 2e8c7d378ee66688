//! Answers in JSON.

use super::architecture;
use crate::lambda::arn::Identity;
use crate::lambda::code::unhex;
use crate::lambda::function::{
    Alias, CodeRef, EventConfig, Function, LATEST, Progress, UrlConfig, Version,
};
use aleph_executor::functions::Isolation;
use aleph_types::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// A time in the form that most of the API has.
pub(crate) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string()
}

/// The digits of a digest: `CodeSha256` of an image.
pub(crate) fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// The reference of an image without its tag or digest.
pub(crate) fn repository(uri: &str) -> &str {
    let uri = uri
        .split_once('@')
        .map_or(uri, |(repository, _)| repository);
    // A colon before the last slash is that of a port.
    let name = uri.rfind('/').map_or(0, |at| at + 1);
    let tag = uri[name..].find(':').map(|at| name + at);
    &uri[..tag.unwrap_or(uri.len())]
}

/// `FunctionConfiguration`.
pub(crate) fn configuration(
    identity: &Identity,
    function: &Function,
    version: &Version,
    qualifier: Option<&str>,
) -> Value {
    let settings = &version.settings;
    let mut all = json!({
        "FunctionName": function.name,
        "FunctionArn": identity.arn(&function.account, &function.name, qualifier),
        "Role": settings.role,
        "Description": settings.description,
        "Timeout": settings.timeout,
        "MemorySize": settings.memory,
        "LastModified": time(version.modified),
        "Version": version.version,
        "TracingConfig": { "Mode": settings.tracing.as_deref().unwrap_or("PassThrough") },
        "RevisionId": version.revision,
        "State": version.state(),
        "LastUpdateStatus": match version.progress {
            Progress::Preparing => "InProgress",
            Progress::Ready => "Successful",
            Progress::Failed { .. } => "Failed",
        },
        "Architectures": [architecture()],
        "EphemeralStorage": { "Size": settings.temporary },
        "SnapStart": {
            "ApplyOn": if settings.snap_start { "PublishedVersions" } else { "None" },
            "OptimizationStatus": match (settings.snap_start, &version.progress) {
                (true, Progress::Ready) if version.version != LATEST => "On",
                _ => "Off",
            },
        },
        "LoggingConfig": {
            "LogFormat": "Text",
            "LogGroup": format!("/aws/lambda/{}", function.name),
        },
    });
    let mut set = |key: &str, value: Value| all[key] = value;
    match &version.code {
        CodeRef::Zip { sha256, size, .. } => {
            let hash = BASE64_STANDARD.encode(unhex(sha256).unwrap_or_default());
            set("CodeSha256", hash.into());
            set("CodeSize", (*size).into());
            set("PackageType", "Zip".into());
        }
        CodeRef::Image { digest, .. } => {
            if let Some(digest) = digest {
                set("CodeSha256", hex_of(digest).into());
            }
            set("CodeSize", 0.into());
            set("PackageType", "Image".into());
        }
    }
    if let Some(runtime) = &settings.runtime {
        set("Runtime", runtime.as_str().into());
    }
    if let Some(handler) = &settings.handler {
        set("Handler", handler.as_str().into());
    }
    if !settings.env.is_empty() {
        set("Environment", json!({ "Variables": settings.env }));
    }
    if let Some(arn) = &settings.dead_letter {
        set("DeadLetterConfig", json!({ "TargetArn": arn }));
    }
    if !(settings.entry_point.is_empty() && settings.command.is_empty()) {
        let (entry, command) = (&settings.entry_point, &settings.command);
        let config = json!({ "EntryPoint": entry, "Command": command });
        set("ImageConfigResponse", json!({ "ImageConfig": config }));
    }
    if settings.isolation != Isolation::default() {
        set("Isolation", json!(settings.isolation));
    }
    match (&version.progress, version.state()) {
        (Progress::Failed { code, reason }, state) => {
            set("LastUpdateStatusReasonCode", code.as_str().into());
            set("LastUpdateStatusReason", reason.as_str().into());
            if state == "Failed" {
                set("StateReasonCode", code.as_str().into());
                set("StateReason", reason.as_str().into());
            }
        }
        (_, "Pending") => {
            set("StateReasonCode", "Creating".into());
            set("StateReason", "The function is being created.".into());
        }
        _ => {}
    }
    all
}

/// `AliasConfiguration`.
pub(crate) fn alias(identity: &Identity, function: &Function, name: &str, alias: &Alias) -> Value {
    let mut all = json!({
        "AliasArn": identity.arn(&function.account, &function.name, Some(name)),
        "Name": name,
        "FunctionVersion": alias.version,
        "Description": alias.description,
        "RevisionId": alias.revision,
    });
    if !alias.weights.is_empty() {
        all["RoutingConfig"] = json!({ "AdditionalVersionWeights": alias.weights });
    }
    all
}

/// `FunctionEventInvokeConfig`.
pub(crate) fn event_config(arn: &str, config: &EventConfig) -> Value {
    let side = |arn: &Option<String>| match arn {
        Some(arn) => json!({ "Destination": arn }),
        None => json!({}),
    };
    let mut all = json!({
        "LastModified": config.modified.as_second(),
        "FunctionArn": arn,
        "DestinationConfig": {
            "OnSuccess": side(&config.on_success), "OnFailure": side(&config.on_failure),
        },
    });
    if let Some(retries) = config.retries {
        all["MaximumRetryAttempts"] = retries.into();
    }
    if let Some(age) = config.age {
        all["MaximumEventAgeInSeconds"] = age.into();
    }
    all
}

/// `FunctionUrlConfig`.
pub(crate) fn url_config(arn: &str, url: &str, config: &UrlConfig) -> Value {
    let mut all = json!({
        "FunctionUrl": url,
        "FunctionArn": arn,
        "AuthType": config.auth,
        "InvokeMode": config.mode,
        "CreationTime": time(config.created),
        "LastModifiedTime": time(config.modified),
    });
    if let Some(cors) = &config.cors {
        all["Cors"] = cors.clone();
    }
    all
}
