//! What is set for a version, and what of it is refused.

use super::{Sent, check_text, constraint, destination, unsupported, within};
use crate::lambda::error::LambdaError;
use crate::lambda::function::Settings;
use aleph_executor::functions::Isolation;
use serde::Deserialize;
use serde_json::Value;
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
