//! JSON as clients send and get it, and what of it is refused.
//!
//! Fields that no client of ours can mean anything by are ignored. What would change how a
//! function runs and cannot be had here (layers, VPCs, file systems, keys) is refused.

use super::arn::Identity;
use super::code::unhex;
use super::error::{Kind, LambdaError};
use super::function::{
    Alias, CodeRef, EventConfig, Function, LATEST, Progress, Settings, UrlConfig, Version,
};
use aleph_executor::functions::Isolation;
use aleph_types::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Seconds that an invocation may take.
const TIMEOUT: RangeInclusive<u32> = 1..=900;
/// MiB of a guest's memory.
const MEMORY: RangeInclusive<u32> = 128..=10_240;
/// MiB of `/tmp`.
const TEMPORARY: RangeInclusive<u32> = 512..=10_240;
/// Bytes of all variables of an environment.
const MOST_ENV: usize = 4096;
/// Tags of a function.
const MOST_TAGS: usize = 50;

/// `CreateFunction`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CreateFunction<'a> {
    #[serde(default)]
    pub(crate) function_name: String,
    #[serde(borrow, default)]
    pub(crate) code: CodeInput<'a>,
    #[serde(default)]
    pub(crate) package_type: Option<String>,
    #[serde(default)]
    pub(crate) publish: Option<bool>,
    #[serde(default)]
    pub(crate) tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) architectures: Option<Vec<String>>,
    #[serde(default)]
    code_signing_config_arn: Option<String>,
    #[serde(flatten)]
    pub(crate) settings: SettingsInput,
}

/// Where code comes from.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CodeInput<'a> {
    #[serde(borrow)]
    zip_file: Option<Cow<'a, str>>,
    image_uri: Option<String>,
    s3_bucket: Option<String>,
}

/// `UpdateFunctionCode`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(crate) struct UpdateCode<'a> {
    #[serde(borrow)]
    zip_file: Option<Cow<'a, str>>,
    image_uri: Option<String>,
    s3_bucket: Option<String>,
    pub(crate) architectures: Option<Vec<String>>,
    pub(crate) publish: Option<bool>,
    pub(crate) dry_run: Option<bool>,
    pub(crate) revision_id: Option<String>,
}

/// What `CreateFunction` and `UpdateFunctionConfiguration` set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SettingsInput {
    runtime: Option<String>,
    role: Option<String>,
    handler: Option<String>,
    description: Option<String>,
    timeout: Option<u32>,
    memory_size: Option<u32>,
    environment: Option<Environment>,
    ephemeral_storage: Option<EphemeralStorage>,
    image_config: Option<ImageConfig>,
    snap_start: Option<SnapStart>,
    tracing_config: Option<TracingConfig>,
    dead_letter_config: Option<DeadLetterConfig>,
    layers: Option<Vec<String>>,
    vpc_config: Option<VpcConfig>,
    file_system_configs: Option<Vec<Value>>,
    #[serde(rename = "KMSKeyArn")]
    kms_key_arn: Option<String>,
    /// Ours alone: how far invocations are kept apart.
    isolation: Option<Isolation>,
    pub(crate) revision_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Environment {
    variables: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EphemeralStorage {
    size: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ImageConfig {
    entry_point: Option<Vec<String>>,
    command: Option<Vec<String>>,
    working_directory: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SnapStart {
    apply_on: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TracingConfig {
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DeadLetterConfig {
    target_arn: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct VpcConfig {
    subnet_ids: Vec<String>,
    security_group_ids: Vec<String>,
}

/// `PublishVersion`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Publish {
    #[serde(rename = "CodeSha256")]
    pub(crate) code_sha256: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) revision_id: Option<String>,
}

/// `CreateAlias` and `UpdateAlias`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct AliasInput {
    pub(crate) name: Option<String>,
    pub(crate) function_version: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) routing_config: Option<Routing>,
    pub(crate) revision_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Routing {
    pub(crate) additional_version_weights: Option<BTreeMap<String, f64>>,
}

/// Of event invoke configurations.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EventInput {
    pub(crate) maximum_retry_attempts: Option<u32>,
    pub(crate) maximum_event_age_in_seconds: Option<u32>,
    destination_config: Option<Destinations>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Destinations {
    on_success: Option<Destination>,
    on_failure: Option<Destination>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Destination {
    destination: Option<String>,
}

/// Of function URLs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct UrlInput {
    pub(crate) auth_type: Option<String>,
    pub(crate) invoke_mode: Option<String>,
    pub(crate) cors: Option<Value>,
}

/// Reads a body.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, LambdaError> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("Could not parse request body into json: {error}");
        LambdaError::new(Kind::InvalidRequestContent, message)
    })
}

/// The same where an empty body means that nothing is said.
pub(crate) fn parse_or_default<T: DeserializeOwned + Default>(
    body: &[u8],
) -> Result<T, LambdaError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    parse(body)
}

/// Code as it was sent.
pub(crate) enum Sent {
    Zip(Vec<u8>),
    Image(String),
}

fn sent(zip: Option<Cow<'_, str>>, image: Option<String>, s3: bool) -> Result<Sent, LambdaError> {
    match (zip, image, s3) {
        (Some(zip), None, false) => {
            let zip = BASE64_STANDARD.decode(zip.as_bytes());
            let zip = zip.map_err(|error| {
                LambdaError::invalid(format!("ZipFile is not encoded in base64: {error}"))
            })?;
            Ok(Sent::Zip(zip))
        }
        (None, Some(uri), false) if !uri.is_empty() && uri.len() <= 1024 => Ok(Sent::Image(uri)),
        (None, None, true) => Err(LambdaError::invalid(
            "S3Bucket cannot be used: this node has no S3. Send the archive as ZipFile.",
        )),
        _ => Err(LambdaError::invalid(
            "Please provide a source for function code: one of ZipFile and ImageUri",
        )),
    }
}

impl CreateFunction<'_> {
    /// Its code; what it says of the kind of package has to agree.
    pub(crate) fn sent(&mut self) -> Result<Sent, LambdaError> {
        if self
            .code_signing_config_arn
            .as_ref()
            .is_some_and(|arn| !arn.is_empty())
        {
            return Err(unsupported("CodeSigningConfigArn"));
        }
        let code = std::mem::take(&mut self.code);
        let sent = sent(code.zip_file, code.image_uri, code.s3_bucket.is_some())?;
        match (&sent, self.package_type.as_deref()) {
            (_, None) | (Sent::Zip(_), Some("Zip")) | (Sent::Image(_), Some("Image")) => Ok(sent),
            (_, Some(other)) => Err(LambdaError::invalid(format!(
                "PackageType {other} does not go with the code that was sent"
            ))),
        }
    }
}

impl UpdateCode<'_> {
    pub(crate) fn sent(&mut self) -> Result<Sent, LambdaError> {
        let s3 = self.s3_bucket.is_some();
        sent(self.zip_file.take(), self.image_uri.take(), s3)
    }
}

fn unsupported(what: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "{what} cannot be used: this node has no such thing"
    ))
}

fn constraint(value: impl std::fmt::Display, at: &str, what: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "1 validation error detected: Value '{value}' at '{at}' failed to satisfy constraint: \
         Member must {what}"
    ))
}

fn within(value: u32, range: &RangeInclusive<u32>, at: &str) -> Result<u32, LambdaError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (range.start(), range.end());
    Err(constraint(
        value,
        at,
        &format!("have value between {least} and {most}"),
    ))
}

fn check_text(text: &str, most: usize, at: &str) -> Result<(), LambdaError> {
    if text.chars().count() <= most {
        return Ok(());
    }
    let what = format!("have length less than or equal to {most}");
    Err(constraint(text, at, &what))
}

/// The variables that the runtime contract sets.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "_HANDLER"
            | "_X_AMZN_TRACE_ID"
            | "AWS_DEFAULT_REGION"
            | "AWS_REGION"
            | "AWS_EXECUTION_ENV"
            | "AWS_LAMBDA_FUNCTION_NAME"
            | "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"
            | "AWS_LAMBDA_FUNCTION_VERSION"
            | "AWS_LAMBDA_INITIALIZATION_TYPE"
            | "AWS_LAMBDA_LOG_GROUP_NAME"
            | "AWS_LAMBDA_LOG_STREAM_NAME"
            | "AWS_LAMBDA_RUNTIME_API"
            | "LAMBDA_TASK_ROOT"
            | "LAMBDA_RUNTIME_DIR"
    )
}

fn check_env(variables: &BTreeMap<String, String>) -> Result<(), LambdaError> {
    let size: usize = variables.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MOST_ENV {
        return Err(LambdaError::invalid(format!(
            "Lambda was unable to configure your environment variables because the environment \
             variables you have provided exceeded the {MOST_ENV} bytes limit"
        )));
    }
    for (name, value) in variables {
        let mut bytes = name.bytes();
        let first = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let good = first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good || value.contains('\0') {
            return Err(constraint(
                name,
                "environment.variables",
                "satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+",
            ));
        }
        if is_reserved(name) {
            return Err(LambdaError::invalid(format!(
                "Lambda was unable to configure your environment variables because the \
                 environment variables you have provided contains reserved keys that are \
                 currently not supported for modification. Reserved keys used in this request: \
                 {name}"
            )));
        }
    }
    Ok(())
}

impl SettingsInput {
    /// Puts what is said over what is set.
    pub(crate) fn apply(
        self,
        settings: &mut Settings,
        runtimes: &[String],
    ) -> Result<(), LambdaError> {
        if self.layers.is_some_and(|layers| !layers.is_empty()) {
            return Err(unsupported("Layers"));
        }
        if self
            .vpc_config
            .is_some_and(|vpc| !(vpc.subnet_ids.is_empty() && vpc.security_group_ids.is_empty()))
        {
            return Err(unsupported("VpcConfig"));
        }
        if self.file_system_configs.is_some_and(|fs| !fs.is_empty()) {
            return Err(unsupported("FileSystemConfigs"));
        }
        if self.kms_key_arn.is_some_and(|arn| !arn.is_empty()) {
            return Err(unsupported("KMSKeyArn"));
        }
        if let Some(runtime) = self.runtime {
            if !runtimes.contains(&runtime) {
                let what = format!("satisfy enum value set: [{}]", runtimes.join(", "));
                return Err(constraint(runtime, "runtime", &what));
            }
            settings.runtime = Some(runtime);
        }
        if let Some(role) = self.role {
            check_text(&role, 10_000, "role")?;
            settings.role = role;
        }
        if let Some(handler) = self.handler {
            check_text(&handler, 128, "handler")?;
            if handler.contains(char::is_whitespace) {
                let what = "satisfy regular expression pattern: [^\\s]+";
                return Err(constraint(handler, "handler", what));
            }
            settings.handler = Some(handler).filter(|handler| !handler.is_empty());
        }
        if let Some(description) = self.description {
            check_text(&description, 256, "description")?;
            settings.description = description;
        }
        if let Some(timeout) = self.timeout {
            settings.timeout = within(timeout, &TIMEOUT, "timeout")?;
        }
        if let Some(memory) = self.memory_size {
            settings.memory = within(memory, &MEMORY, "memorySize")?;
        }
        if let Some(storage) = self.ephemeral_storage {
            settings.temporary = within(storage.size, &TEMPORARY, "ephemeralStorage.size")?;
        }
        if let Some(environment) = self.environment {
            check_env(&environment.variables)?;
            settings.env = environment.variables;
        }
        if let Some(image) = self.image_config {
            if image
                .working_directory
                .is_some_and(|folder| !folder.is_empty())
            {
                return Err(unsupported("ImageConfig.WorkingDirectory"));
            }
            settings.entry_point = image.entry_point.unwrap_or_default();
            settings.command = image.command.unwrap_or_default();
        }
        if let Some(snap) = self.snap_start {
            settings.snap_start = snap.apply_on.as_deref() == Some("PublishedVersions");
        }
        if let Some(tracing) = self.tracing_config {
            settings.tracing = tracing.mode;
        }
        if let Some(letters) = self.dead_letter_config {
            settings.dead_letter = destination(letters.target_arn)?;
        }
        if let Some(isolation) = self.isolation {
            settings.isolation = isolation;
        }
        Ok(())
    }
}

/// Whom to tell of an event: a function of this node.
fn destination(arn: Option<String>) -> Result<Option<String>, LambdaError> {
    let Some(arn) = arn.filter(|arn| !arn.is_empty()) else {
        return Ok(None);
    };
    let parts: Vec<&str> = arn.split(':').collect();
    if !matches!(parts.as_slice(), ["arn", _, "lambda", _, _, "function", ..]) {
        return Err(LambdaError::invalid(format!(
            "The provided destination {arn} is invalid: this node can tell functions only"
        )));
    }
    Ok(Some(arn))
}

/// Whether all that a function needs is set.
pub(crate) fn check_complete(settings: &Settings, code: &Sent) -> Result<(), LambdaError> {
    if settings.role.is_empty() {
        return Err(constraint("", "role", "not be null"));
    }
    if let Sent::Zip(_) = code {
        if settings.runtime.is_none() {
            return Err(LambdaError::invalid(
                "Runtime is mandatory for functions created with deployment packages.",
            ));
        }
        if settings.handler.is_none() {
            return Err(LambdaError::invalid(
                "Handler is mandatory for functions created with deployment packages.",
            ));
        }
    }
    Ok(())
}

/// What a function that says nothing else has.
pub(crate) fn default_settings() -> Settings {
    Settings {
        timeout: 3,
        memory: 128,
        temporary: 512,
        ..Settings::default()
    }
}

/// The architecture of this host, as clients call it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    }
}

/// Refuses code for other machines.
pub(crate) fn check_architectures(wanted: Option<&[String]>) -> Result<(), LambdaError> {
    match wanted {
        None => Ok(()),
        Some([one]) if one == architecture() => Ok(()),
        Some(other) => Err(LambdaError::invalid(format!(
            "Architectures {other:?} cannot be had: this node is {}",
            architecture()
        ))),
    }
}

pub(crate) fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), LambdaError> {
    if tags.len() > MOST_TAGS {
        return Err(LambdaError::invalid(format!(
            "A function has at most {MOST_TAGS} tags"
        )));
    }
    for (key, value) in tags {
        if key.is_empty() {
            return Err(constraint(
                key,
                "tags",
                "have length greater than or equal to 1",
            ));
        }
        check_text(key, 128, "tags")?;
        check_text(value, 256, "tags")?;
    }
    Ok(())
}

impl EventInput {
    /// Puts what is said over what is set.
    pub(crate) fn apply(self, config: &mut EventConfig) -> Result<(), LambdaError> {
        if let Some(retries) = self.maximum_retry_attempts {
            config.retries = Some(within(retries, &(0..=2), "maximumRetryAttempts")?);
        }
        if let Some(age) = self.maximum_event_age_in_seconds {
            config.age = Some(within(age, &(60..=21_600), "maximumEventAgeInSeconds")?);
        }
        if let Some(destinations) = self.destination_config {
            let of = |side: Option<Destination>| destination(side.and_then(|to| to.destination));
            config.on_success = of(destinations.on_success)?;
            config.on_failure = of(destinations.on_failure)?;
        }
        Ok(())
    }
}

/// A time in the form that most of the API has.
pub(crate) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string()
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
        CodeRef::Image { .. } => {
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
