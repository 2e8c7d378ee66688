//! What a job asks of GPUs.

use crate::{InvalidJob, MiB};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// GPUs that a job asks for: each of them whole, for the job alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuRequest {
    /// Which: a model (`h200`), a maker (`nvidia`), or vendor and device (`10de:2335`). Any where it
    /// is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9:._-]+$")
    )]
    pub gpu_type: Option<String>,
    /// How much memory each has at least.
    #[serde(
        default,
        rename = "gpuVramMiB",
        skip_serializing_if = "Option::is_none"
    )]
    pub vram: Option<MiB>,
    /// How many: 1 to 64.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub count: u32,
}

const fn one() -> u32 {
    1
}

impl Default for GpuRequest {
    fn default() -> Self {
        Self {
            gpu_type: None,
            vram: None,
            count: one(),
        }
    }
}

impl GpuRequest {
    /// More than any host has.
    pub const MOST: u32 = 64;

    /// Checks what came by serde.
    ///
    /// # Errors
    /// The first field that nobody could mean.
    pub(crate) fn check(&self) -> Result<(), InvalidJob> {
        let bad = |field, value: String| Err(InvalidJob::BadText { field, value });
        if let Some(gpu_type) = &self.gpu_type
            && a_type(gpu_type).is_err()
        {
            return bad("gpus.gpuType", gpu_type.clone());
        }
        if self.vram == Some(MiB(0)) {
            return bad("gpus.gpuVramMiB", "0".into());
        }
        if !(1..=Self::MOST).contains(&self.count) {
            return bad("gpus.count", self.count.to_string());
        }
        Ok(())
    }
}

/// A text that asks for no GPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseGpuRequestError {
    /// There is no such key.
    #[error("{0:?} is nothing that can be asked of GPUs: write type=, vram= or count=")]
    Key(String),
    /// A key is there twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// Not a type.
    #[error("{0:?} is not a type of GPU: write a model such as h200, or ids such as 10de:2335")]
    Type(String),
    /// Not an amount of memory.
    #[error("vram: {0}")]
    Vram(#[from] crate::ParseSizeError),
    /// Not a number of GPUs.
    #[error("{0:?} is not a number of GPUs: write 1 to {most}", most = GpuRequest::MOST)]
    Count(String),
}

/// Reads `type=h200,vram=80G,count=2` in any order, each of them once or not at all, and docker's
/// plain number of GPUs.
///
/// ```
/// # use aleph_types::{GpuRequest, MiB};
/// let asked: GpuRequest = "type=h200,vram=80G,count=2".parse()?;
/// assert_eq!((asked.vram, asked.count), (Some(MiB(80 * 1024)), 2));
/// assert_eq!("2".parse::<GpuRequest>()?.count, 2);
/// # Ok::<(), aleph_types::ParseGpuRequestError>(())
/// ```
impl FromStr for GpuRequest {
    type Err = ParseGpuRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut gpu_type, mut vram, mut count) = (None, None, None);
        for item in text.split(',') {
            let (key, value) = match item.split_once('=') {
                Some((key, value)) => (key.trim(), value.trim()),
                None if item.trim().bytes().all(|b| b.is_ascii_digit()) => ("count", item.trim()),
                None => return Err(ParseGpuRequestError::Key(item.trim().to_owned())),
            };
            let is_new = match key {
                "type" => gpu_type.replace(a_type(value)?).is_none(),
                "vram" => vram.replace(value.parse()?).is_none(),
                "count" => count.replace(a_count(value)?).is_none(),
                _ => return Err(ParseGpuRequestError::Key(key.to_owned())),
            };
            if !is_new {
                let names = ["type", "vram", "count"];
                let name = names.into_iter().find(|name| *name == key);
                return Err(ParseGpuRequestError::Twice(name.unwrap_or_default()));
            }
        }
        Ok(Self {
            gpu_type,
            vram,
            count: count.unwrap_or(one()),
        })
    }
}

fn a_type(text: &str) -> Result<String, ParseGpuRequestError> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b":-_.".contains(&b);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(valid) {
        return Err(ParseGpuRequestError::Type(text.to_owned()));
    }
    Ok(text.to_ascii_lowercase())
}

fn a_count(text: &str) -> Result<u32, ParseGpuRequestError> {
    let count = text.parse().ok();
    count
        .filter(|count| (1..=GpuRequest::MOST).contains(count))
        .ok_or_else(|| ParseGpuRequestError::Count(text.to_owned()))
}

/// As it is read.
impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gpu_type) = &self.gpu_type {
            write!(f, "type={gpu_type},")?;
        }
        if let Some(vram) = self.vram {
            write!(f, "vram={}M,", vram.0)?;
        }
        write!(f, "count={}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_a_round_trip() {
        for text in [
            "type=h200,vram=81920M,count=2",
            "count=1",
            "vram=24576M,count=64",
        ] {
            let request: GpuRequest = text.parse().unwrap();
            assert_eq!(request.to_string(), text);
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<GpuRequest>(&json).unwrap(), request);
        }
        let all = r#"{"gpuType":"h200","gpuVramMiB":81920,"count":2}"#;
        let request: GpuRequest = serde_json::from_str(all).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), all);
    }

    #[test]
    fn what_asks_for_no_gpus_is_refused() {
        for text in [
            "",
            "all",
            "type=",
            "type=h 200",
            "type=../h200",
            "vram=80Q",
            "count=0",
            "count=65",
            "count=-1",
            "type=a,type=b",
            "colour=red",
            "1,2",
        ] {
            assert!(text.parse::<GpuRequest>().is_err(), "{text:?}");
        }
    }
}
