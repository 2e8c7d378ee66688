//! Files that a guest maps as memory (virtio-pmem): `/pmem/{id}`, from 1.14 on.

use super::wire::is_false;
use super::{Body, Check, RateLimiter};
use crate::firecracker::Feature;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A file that the guest maps, past its own page cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Its id: letters, digits and underscores.
    pub id: String,
    /// The file, which may not be empty. What is mapped is rounded up to 2 MiB.
    pub path_on_host: PathBuf,
    /// Whether it is the guest's root.
    #[serde(default, skip_serializing_if = "is_false")]
    pub root_device: bool,
    /// Whether the guest may only read it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Limits of its flushes. From 1.16 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Body for Pmem {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::Pmem);
        check.id("id", &self.id);
        check.path("path_on_host", &self.path_on_host);
        if let Some(limiter) = &self.rate_limiter {
            check.uses("rate_limiter", Feature::PmemRateLimiter);
            check.within("rate_limiter", |check| limiter.check(check));
        }
    }
}

/// A change of a device while the guest runs. From 1.16 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemUpdate {
    /// Which.
    pub id: String,
    /// Other limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Body for PmemUpdate {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::PmemRateLimiter);
        check.id("id", &self.id);
        if let Some(limiter) = &self.rate_limiter {
            check.within("rate_limiter", |check| limiter.check(check));
        }
    }
}
