//! What runs: code, runtime, limits.

use aleph_types::MiB;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Names a deployment by all that decides how it runs: two that are equal share a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(String);

impl DeploymentId {
    /// Its text: 64 hex digits, good for a file's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a function's code is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Code {
    /// A read-only filesystem that guests mount at `/var/task`, made from a zip archive.
    Task {
        /// The filesystem's image.
        image: PathBuf,
        /// Its digest: two tasks of the same digest are the same.
        digest: String,
        /// The image of the runtime that it needs, such as `python3.11`.
        runtime: String,
    },
    /// An OCI image with the runtime client in it, by reference.
    Image {
        /// What it is called.
        reference: String,
        /// Its digest, once it is known.
        digest: String,
    },
}

/// How far invocations are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A clone serves one invocation after another, all of one deployment.
    #[default]
    Deployment,
    /// Each invocation has a clone of its own, which is destroyed after it.
    Invocation,
}

/// All that decides how a version of a function runs. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Whose it is. Clones are never shared between accounts.
    pub account: String,
    /// The function's name.
    pub function: String,
    /// Its version: a number, or `$LATEST`.
    pub version: String,
    /// Its code.
    pub code: Code,
    /// What the runtime calls, such as `app.handler`; empty where it needs none.
    pub handler: String,
    /// The function's own environment, over what the runtime contract sets.
    pub env: BTreeMap<String, String>,
    /// The program and its arguments, where not the runtime's own.
    pub command: Vec<String>,
    /// The guest's memory.
    pub memory: MiB,
    /// How long an invocation may take.
    pub timeout: Duration,
    /// How much `/tmp` may hold. It is in the guest's memory, and is never more than about half of
    /// what a runtime leaves of that.
    pub temporary: MiB,
    /// How far invocations are kept apart.
    pub isolation: Isolation,
}

impl Deployment {
    /// Names it.
    #[must_use]
    pub fn id(&self) -> DeploymentId {
        // Maps are sorted and fields are in order, so equal deployments have equal texts.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let hash = Sha256::digest(text);
        DeploymentId(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
