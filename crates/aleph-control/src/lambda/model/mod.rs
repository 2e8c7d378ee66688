//! JSON as clients send and get it, and what of it is refused.
//!
//! Fields that no client of ours can mean anything by are ignored. What would change how a
//! function runs and cannot be had here (layers, VPCs, file systems, keys) is refused.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | requests |
//! | `settings` | what is set for a version |
//! | `answer` | answers |

mod answer;
mod settings;

pub(crate) use answer::{alias, configuration, event_config, hex_of, repository, time, url_config};
pub(crate) use settings::{SettingsInput, check_complete, default_settings};

use super::error::{Kind, LambdaError};
use super::function::EventConfig;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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

pub(crate) fn constraint(value: impl std::fmt::Display, at: &str, what: &str) -> LambdaError {
    LambdaError::invalid(format!(
        "1 validation error detected: Value '{value}' at '{at}' failed to satisfy constraint: \
         Member must {what}"
    ))
}

pub(crate) fn within(
    value: u32,
    range: &RangeInclusive<u32>,
    at: &str,
) -> Result<u32, LambdaError> {
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

pub(crate) fn check_text(text: &str, most: usize, at: &str) -> Result<(), LambdaError> {
    if text.chars().count() <= most {
        return Ok(());
    }
    let what = format!("have length less than or equal to {most}");
    Err(constraint(text, at, &what))
}

/// Whom to tell of an event: a function of this node.
pub(crate) fn destination(arn: Option<String>) -> Result<Option<String>, LambdaError> {
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
