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
        // Where its code lies is not what it is: a node's folder may move.
        let code = match &self.code {
            Code::Task {
                digest, runtime, ..
            } => ["task", digest, runtime],
            Code::Image { reference, digest } => ["image", digest, reference],
        };
        let numbers = [
            u64::from(self.memory.0),
            u64::from(self.temporary.0),
            u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            u64::from(self.isolation == Isolation::Invocation),
        ];
        let names = [&self.account, &self.function, &self.version, &self.handler];
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            // With its length before it, no text runs into the next.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        names.iter().for_each(|name| add(name.as_bytes()));
        code.iter().for_each(|part| add(part.as_bytes()));
        numbers.iter().for_each(|number| add(&number.to_le_bytes()));
        add(&(self.env.len() as u64).to_le_bytes());
        for (name, value) in &self.env {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        self.command.iter().for_each(|word| add(word.as_bytes()));
        let hash = hash.finalize();
        DeploymentId(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
