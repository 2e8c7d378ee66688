//! Where Firecracker's own figures go: `/metrics`.

use super::wire::is_false;
use super::{Body, Check};
use crate::firecracker::Feature;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The metrics, a line of JSON each minute and at each flush. They can be set once only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A pipe with a name, or a file; before 1.14 it has to be there.
    pub metrics_path: PathBuf,
    /// Whether each line has the id of the instance. From 1.17 on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub emit_id: bool,
    /// What else each line has. From 1.17 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}

impl Metrics {
    /// Metrics that go to a file or pipe.
    #[must_use]
    pub fn to(metrics_path: impl Into<PathBuf>) -> Self {
        Self {
            metrics_path: metrics_path.into(),
            emit_id: false,
            properties: None,
        }
    }
}

impl Body for Metrics {
    /// Firecracker ignores what it does not know here. We refuse it: nobody would miss what is not
    /// in the metrics.
    fn check(&self, check: &mut Check) {
        check.path("metrics_path", &self.metrics_path);
        if self.emit_id {
            check.uses("emit_id", Feature::MetricsLabels);
        }
        if self.properties.is_some() {
            check.uses("properties", Feature::MetricsLabels);
        }
    }
}
