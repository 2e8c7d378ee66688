//! When a job starts again after it ended.

use crate::InvalidJob;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which ends lead to a new start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// None.
    #[default]
    No,
    /// A failure: a code other than 0, a signal, a guest or VMM that broke, a host that
    /// rebooted.
    OnFailure,
    /// Every end but a stop that was asked for; after a reboot of the host too.
    UnlessStopped,
    /// The same, and a job that was stopped starts again with the node.
    Always,
}

/// When a job starts again, and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// Which ends lead to a new start.
    pub policy: Restart,
    /// How many new starts there are at most in a row; a run of ten minutes begins a new row.
    /// No limit when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// The wait before the first new start, in seconds. It doubles with each in a row.
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    pub backoff_seconds: u32,
    /// The longest wait, in seconds.
    #[cfg_attr(feature = "schema", schema(maximum = 86_400))]
    pub max_backoff_seconds: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            policy: Restart::No,
            max_retries: None,
            backoff_seconds: 1,
            max_backoff_seconds: 300,
        }
    }
}

impl RestartPolicy {
    /// The wait before a new start, after so many in a row.
    ///
    /// ```
    /// # use aleph_types::RestartPolicy;
    /// let policy = RestartPolicy::default();
    /// assert_eq!(policy.backoff(0).as_secs(), 1);
    /// assert_eq!(policy.backoff(3).as_secs(), 8);
    /// assert_eq!(policy.backoff(60).as_secs(), 300);
    /// ```
    #[must_use]
    pub fn backoff(&self, in_a_row: u32) -> Duration {
        let doubled = u64::from(self.backoff_seconds).saturating_mul(1 << in_a_row.min(20));
        Duration::from_secs(doubled.min(u64::from(self.max_backoff_seconds)))
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidJob> {
        let day = 86_400;
        if self.backoff_seconds == 0 || self.max_backoff_seconds > day {
            return Err(InvalidJob::BadText {
                field: "restart.backoff_seconds",
                value: self.backoff_seconds.to_string(),
            });
        }
        Ok(())
    }
}
