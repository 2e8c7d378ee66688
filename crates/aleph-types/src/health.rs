//! How to tell that a job works.

use crate::InvalidJob;
use serde::{Deserialize, Serialize};

/// What is tried in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// A command that ends with code 0.
    Exec(Vec<String>),
    /// A TCP port of the guest's loopback address that accepts a connection.
    Tcp {
        /// Which port.
        #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 65_535))]
        port: u16,
    },
    /// An HTTP server on the guest's loopback address that answers GET with a status from 200
    /// to 399.
    Http {
        /// Which port.
        #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 65_535))]
        port: u16,
        /// Which path.
        #[serde(default = "slash")]
        #[cfg_attr(feature = "schema", schema(pattern = "^/[!-~]*$"))]
        path: String,
    },
}

fn slash() -> String {
    "/".into()
}

/// How to tell that a job works, and how often to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// The time between two tries, in seconds.
    #[serde(default = "ten")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 86_400))]
    pub interval_seconds: u32,
    /// How long a try may take, in seconds.
    #[serde(default = "five")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 86_400))]
    pub timeout_seconds: u32,
    /// How many tries in a row have to fail before the job counts as unhealthy.
    #[serde(default = "three")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 86_400))]
    pub retries: u32,
    /// How long after the start failures do not count, in seconds.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(maximum = 86_400))]
    pub start_period_seconds: u32,
    /// Whether an unhealthy job is stopped, as a failure, so that its restart policy applies.
    #[serde(default)]
    pub restart_unhealthy: bool,
}

fn ten() -> u32 {
    10
}

fn five() -> u32 {
    5
}

fn three() -> u32 {
    3
}

/// What the last tries said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No try has counted yet.
    Starting,
    /// The last try succeeded.
    Healthy,
    /// As many tries as the check says have failed.
    Unhealthy,
}

impl HealthCheck {
    pub(crate) fn validate(&self) -> Result<(), InvalidJob> {
        let bad = |field, value: String| Err(InvalidJob::BadText { field, value });
        let day = 86_400;
        for (field, n) in [
            ("health.interval_seconds", self.interval_seconds),
            ("health.timeout_seconds", self.timeout_seconds),
            ("health.retries", self.retries),
        ] {
            if n == 0 || n > day {
                return bad(field, n.to_string());
            }
        }
        if self.start_period_seconds > day {
            return bad(
                "health.start_period_seconds",
                self.start_period_seconds.to_string(),
            );
        }
        match &self.probe {
            Probe::Exec(argv) if argv.first().is_none_or(String::is_empty) => {
                bad("health.probe.exec", String::new())
            }
            Probe::Exec(argv) if argv.iter().any(|a| a.contains('\0')) => {
                bad("health.probe.exec", argv.join(" "))
            }
            Probe::Tcp { port: 0 } | Probe::Http { port: 0, .. } => {
                bad("health.probe.port", "0".into())
            }
            Probe::Http { path, .. }
                if !path.starts_with('/') || path.contains(char::is_whitespace) =>
            {
                bad("health.probe.path", path.clone())
            }
            _ => Ok(()),
        }
    }
}
