//! The entropy device: `/entropy`.

use super::{Body, Check, RateLimiter};
use serde::{Deserialize, Serialize};

/// A source of random bytes (virtio-rng).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyDevice {
    /// Limits of what the guest takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Body for EntropyDevice {
    fn check(&self, check: &mut Check) {
        if let Some(limiter) = &self.rate_limiter {
            check.within("rate_limiter", |check| limiter.check(check));
        }
    }
}
