//! The folder of a template: what is written beside it, and one in which it is made.

use super::error::{TemplateError, at};
use crate::functions::contract::Contract;
use crate::functions::deployment::DeploymentId;
use crate::functions::host::Host;
use crate::functions::stack::Kept;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The form of what is written: another one is made anew.
pub(super) const FORM: u32 = 3;

/// What is written beside a template.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) form: u32,
    /// What it depends on: it goes on nowhere else.
    pub(super) compatible_with: String,
    pub(super) image_digest: String,
    pub(super) contract: Contract,
    pub(super) main_stream: u32,
    pub(super) main_received: u64,
    /// What its runtime is connected with.
    pub(super) connections: Vec<Kept>,
}

/// What is written beside a template that is there and can be begun from.
pub(super) fn read(dir: &Path, compatible_with: &str, image_digest: &str) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(dir.join("template.json")).ok()?).ok()?;
    let is_ours = record.form == FORM
        && record.compatible_with == compatible_with
        && record.image_digest == image_digest;
    is_ours.then_some(record)
}

/// Removes what was being made when an earlier process ended.
pub(in crate::functions) fn remove_unfinished(host: &Host) {
    let entries = fs::read_dir(host.templates())
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp-")
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a half-made template stays");
        }
    }
}

/// Removes the templates of all deployments but these. What is being made stays.
pub(in crate::functions) fn retain(host: &Host, kept: &HashSet<DeploymentId>) {
    let kept: HashSet<&str> = kept.iter().map(DeploymentId::as_str).collect();
    let entries = fs::read_dir(host.templates())
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".tmp-") || kept.contains(&*name) {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => tracing::info!(deployment = %name, "a template of no version is removed"),
            Err(error) => {
                tracing::warn!(path = %entry.path().display(), %error, "a template of no version stays");
            }
        }
    }
}

/// A folder in which a template is made. It goes where the template does not become one.
pub(super) struct Work(pub(super) PathBuf);

impl Work {
    pub(super) fn begin(host: &Host) -> Result<Self, TemplateError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let templates = host.templates();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = templates.join(format!(".tmp-{}-{n}", std::process::id()));
        let private = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
        private(&templates)
            .and_then(|()| private(&path))
            .map_err(at("make", &path))?;
        Ok(Self(path))
    }

    /// Makes it durable, and then a template.
    pub(super) fn finish(self, record: &Record, dir: &Path) -> Result<(), TemplateError> {
        let path = self.0.join("template.json");
        let json = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json))
            .map_err(at("write", &path))?;
        for name in ["memory", "state", "template.json"] {
            let path = self.0.join(name);
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(at("write out", &path))?;
        }
        // One of an older form or host may be there.
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("replace", dir)(error));
            }
            _ => {}
        }
        fs::rename(&self.0, dir).map_err(at("name", dir))?;
        let parent = dir.parent().unwrap_or(dir);
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(at("write out", parent))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Where it became a template there is nothing of this name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
