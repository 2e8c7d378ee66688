//! Functions as they are kept: versions, aliases, and what was set for them.

use super::error::LambdaError;
use aleph_executor::functions::{Code, Deployment, Isolation};
use aleph_types::{MiB, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The version that can be changed.
pub(crate) const LATEST: &str = "$LATEST";

/// A function of an account.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Function {
    pub(crate) account: String,
    pub(crate) name: String,
    pub(crate) latest: Arc<Version>,
    /// What was published, by number.
    pub(crate) versions: BTreeMap<u64, Arc<Version>>,
    pub(crate) head: Head,
}

/// What a function has beside its versions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The number that was published last; a number is never used again.
    pub(crate) last_number: u64,
    pub(crate) aliases: BTreeMap<String, Alias>,
    /// At most so many invocations at once.
    pub(crate) reserved: Option<u32>,
    /// Clones that are kept ready, by version or alias.
    pub(crate) provisioned: BTreeMap<String, Provisioned>,
    /// How events are tried again, by version or alias.
    pub(crate) events: BTreeMap<String, EventConfig>,
    /// URLs, by alias, or `$LATEST`.
    pub(crate) urls: BTreeMap<String, UrlConfig>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A version of a function: what was published never changes but in how ready it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// `$LATEST`, or a number.
    pub(crate) version: String,
    /// Changes with each change.
    pub(crate) revision: String,
    pub(crate) modified: Timestamp,
    pub(crate) settings: Settings,
    pub(crate) code: CodeRef,
    /// What runs its invocations: of an earlier form while a change is prepared.
    pub(crate) serving: Option<Arc<Deployment>>,
    pub(crate) progress: Progress,
}

/// How far the last change has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// Its template is made.
    Preparing,
    /// It serves.
    Ready,
    /// It could not be prepared.
    Failed { code: String, reason: String },
}

/// Where a version's code is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CodeRef {
    /// A zip archive and the filesystem that was made of it.
    Zip {
        /// SHA-256 of the archive, in hex.
        sha256: String,
        size: u64,
        image: PathBuf,
        digest: String,
    },
    /// An OCI image.
    Image {
        uri: String,
        /// What it was when a version with it was first prepared, and stays; nothing until then.
        #[serde(default)]
        digest: Option<String>,
    },
}

/// What is set for a version.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) runtime: Option<String>,
    pub(crate) role: String,
    pub(crate) handler: Option<String>,
    pub(crate) description: String,
    pub(crate) timeout: u32,
    pub(crate) memory: u32,
    pub(crate) temporary: u32,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) entry_point: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) snap_start: bool,
    pub(crate) tracing: Option<String>,
    /// Whom to tell of events that failed: the ARN of a function.
    pub(crate) dead_letter: Option<String>,
    pub(crate) isolation: Isolation,
}

/// A name for a version, or for two by weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alias {
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) revision: String,
    /// Which part of invocations goes to another version.
    pub(crate) weights: BTreeMap<String, f64>,
}

/// Clones that are kept ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provisioned {
    pub(crate) clones: u32,
    pub(crate) modified: Timestamp,
}

/// How events are tried again, and who is told what became of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventConfig {
    pub(crate) modified: Timestamp,
    pub(crate) retries: Option<u32>,
    /// In seconds.
    pub(crate) age: Option<u32>,
    pub(crate) on_success: Option<String>,
    pub(crate) on_failure: Option<String>,
}

/// A URL of a function, as it was set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UrlConfig {
    pub(crate) created: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) auth: String,
    pub(crate) mode: String,
    pub(crate) cors: Option<serde_json::Value>,
    /// What stands for the function in the URL.
    pub(crate) id: String,
}

impl Head {
    /// How many clones are kept ready of all versions and aliases together, but for one of them.
    pub(crate) fn all_provisioned(&self, except: Option<&str>) -> u64 {
        let all = self.provisioned.iter();
        let counted = all.filter(|(qualifier, _)| Some(qualifier.as_str()) != except);
        counted.map(|(_, one)| u64::from(one.clones)).sum()
    }
}

impl Version {
    /// What would run it as it is now.
    pub(crate) fn deployment(&self, account: &str, function: &str) -> Deployment {
        let Settings {
            runtime,
            handler,
            timeout,
            memory,
            temporary,
            env,
            entry_point,
            command,
            isolation,
            ..
        } = &self.settings;
        let code = match &self.code {
            CodeRef::Zip { image, digest, .. } => Code::Task {
                image: image.clone(),
                digest: digest.clone(),
                runtime: runtime.clone().unwrap_or_default(),
            },
            CodeRef::Image { uri, digest } => Code::Image {
                reference: uri.clone(),
                digest: digest.clone().unwrap_or_default(),
            },
        };
        Deployment {
            account: account.to_owned(),
            function: function.to_owned(),
            version: self.version.clone(),
            code,
            handler: handler.clone().unwrap_or_default(),
            env: env.clone(),
            command: entry_point.iter().chain(command).cloned().collect(),
            memory: MiB(*memory),
            timeout: Duration::from_secs(u64::from(*timeout)),
            temporary: MiB(*temporary),
            isolation: *isolation,
        }
    }

    /// What serves it now: a change of it was prepared.
    pub(crate) fn serve(&mut self, deployment: Arc<Deployment>) {
        if let (CodeRef::Image { digest, .. }, Code::Image { digest: found, .. }) =
            (&mut self.code, &deployment.code)
        {
            *digest = Some(found.clone());
        }
        self.serving = Some(deployment);
        self.progress = Progress::Ready;
    }

    /// Whether a deployment is what is prepared for it.
    pub(crate) fn will_be(&self, deployment: &Deployment) -> bool {
        if self.progress != Progress::Preparing {
            return false;
        }
        let mut wanted = self.deployment(&deployment.account, &deployment.function);
        // Until it is found out, its image may be any.
        if let (Code::Image { digest, .. }, Code::Image { digest: found, .. }) =
            (&mut wanted.code, &deployment.code)
            && digest.is_empty()
        {
            digest.clone_from(found);
        }
        wanted.id() == deployment.id()
    }

    /// `Pending`, `Active` or `Failed`.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.serving, &self.progress) {
            (Some(_), _) | (None, Progress::Ready) => "Active",
            (None, Progress::Preparing) => "Pending",
            (None, Progress::Failed { .. }) => "Failed",
        }
    }

    /// Whether traces that begin with it are recorded.
    pub(crate) fn is_traced(&self) -> bool {
        self.settings.tracing.as_deref() == Some("Active")
    }

    /// Whether two versions are the same but for their number.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.settings == other.settings && self.code == other.code
    }
}

impl Function {
    /// A version or alias; `None` where there is none.
    ///
    /// `dice` gives a number from 0 to 1 where an alias leads to two versions.
    pub(crate) fn resolve(
        &self,
        qualifier: Option<&str>,
        dice: impl FnOnce() -> f64,
    ) -> Option<&Arc<Version>> {
        let qualifier = qualifier.unwrap_or(LATEST);
        if let Some(version) = self.version(qualifier) {
            return Some(version);
        }
        let alias = self.head.aliases.get(qualifier)?;
        let mut left = if alias.weights.is_empty() {
            1.0
        } else {
            dice()
        };
        for (version, weight) in &alias.weights {
            left -= weight;
            if left < 0.0 {
                return self.version(version);
            }
        }
        self.version(&alias.version)
    }

    /// A version by its number or as `$LATEST`.
    pub(crate) fn version(&self, version: &str) -> Option<&Arc<Version>> {
        if version == LATEST {
            return Some(&self.latest);
        }
        // One that has a leading zero is the number of nothing.
        let number: u64 = version.parse().ok()?;
        let found = self.versions.get(&number)?;
        (found.version == version).then_some(found)
    }

    /// All versions.
    pub(crate) fn all_versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        std::iter::once(&self.latest).chain(self.versions.values())
    }

    /// The place of a version, to change it.
    pub(crate) fn version_mut(&mut self, version: &str) -> Option<&mut Version> {
        let place = if version == LATEST {
            &mut self.latest
        } else {
            self.versions.get_mut(&version.parse().ok()?)?
        };
        Some(Arc::make_mut(place))
    }

    /// How many clones are kept ready of a version.
    pub(crate) fn provisioned(&self, version: &str) -> u32 {
        let clones = self.head.provisioned.iter().filter(|(qualifier, _)| {
            let alias = self.head.aliases.get(*qualifier);
            alias.map_or(qualifier.as_str(), |alias| &alias.version) == version
        });
        clones.map(|(_, provisioned)| provisioned.clones).sum()
    }

    /// How events for a version or alias are tried again.
    pub(crate) fn event_config(&self, qualifier: Option<&str>) -> Option<&EventConfig> {
        let qualifier = qualifier.unwrap_or(LATEST);
        self.head.events.get(qualifier)
    }

    /// Bytes of code, once for each version.
    pub(crate) fn code_size(&self) -> u64 {
        let size = |version: &Arc<Version>| match &version.code {
            CodeRef::Zip { size, .. } => *size,
            CodeRef::Image { .. } => 0,
        };
        self.all_versions().map(size).sum()
    }

    /// Refuses a change while another is under way.
    pub(crate) fn only_at_rest(&self, arn: &str) -> Result<(), LambdaError> {
        if self.latest.progress != Progress::Preparing {
            return Ok(());
        }
        Err(LambdaError::conflict(match &self.latest.serving {
            Some(_) => format!(
                "The operation cannot be performed at this time. An update is in progress for \
                 resource: {arn}"
            ),
            None => "The operation cannot be performed at this time. The function is currently in \
                     the following state: Pending"
                .into(),
        }))
    }
}
