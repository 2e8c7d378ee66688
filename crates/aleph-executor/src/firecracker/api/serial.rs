//! The serial console: `/serial`, from 1.14 on.

use super::{Body, Check, TokenBucket};
use crate::firecracker::Feature;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the guest's serial console goes. It is not in a snapshot: say it before each load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// A pipe with a name, or a file. Standard output where nothing is said; with it, standard input
    /// is no longer the console's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// A limit of its bytes. What is beyond it is dropped, and counted in the metrics. From 1.16 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

impl Body for Serial {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::Serial);
        if let Some(path) = &self.serial_out_path {
            check.path("serial_out_path", path);
        }
        if let Some(limiter) = &self.rate_limiter {
            check.uses("rate_limiter", Feature::SerialRateLimiter);
            check.within("rate_limiter", |check| limiter.check(check));
        }
    }
}
