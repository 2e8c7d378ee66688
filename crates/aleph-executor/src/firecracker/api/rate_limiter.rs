//! Rate limiters of devices.

use super::wire::milliseconds;
use super::{Body, Check};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The most tokens: the API description's `int64`.
const MAX_TOKENS: u64 = i64::MAX as u64;

/// The longest time of refilling. Firecracker counts it in nanoseconds, in 64 bits, and has **no**
/// limit at all where that overflows.
const MAX_REFILL: Duration = Duration::from_millis(u64::MAX / 1_000_000);

/// Limits the bytes and the operations of a device, each by itself. In an update, what is left out
/// stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations, or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// So many tokens in so much time.
///
/// ```
/// # use aleph_executor::firecracker::api::TokenBucket;
/// # use std::time::Duration;
/// // 10 MiB a second.
/// let bucket = TokenBucket::new(10 << 20, Duration::from_secs(1));
/// # assert_eq!(serde_json::to_string(&bucket).unwrap(), r#"{"size":10485760,"refill_time":1000}"#);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many there are when it is full: bytes, or operations.
    pub size: u64,
    /// How many there are beyond that once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// How long an empty one takes to be full; whole milliseconds.
    #[serde(with = "milliseconds")]
    pub refill_time: Duration,
}

impl TokenBucket {
    /// No limit. In an update this takes a limit away.
    pub const OFF: Self = Self::new(0, Duration::ZERO);

    /// A bucket without a burst.
    #[must_use]
    pub const fn new(size: u64, refill_time: Duration) -> Self {
        Self {
            size,
            one_time_burst: None,
            refill_time,
        }
    }
}

impl Body for RateLimiter {
    fn check(&self, check: &mut Check) {
        for (field, bucket) in [("bandwidth", &self.bandwidth), ("ops", &self.ops)] {
            if let Some(bucket) = bucket {
                check.within(field, |check| bucket.check(check));
            }
        }
    }
}

impl Body for TokenBucket {
    fn check(&self, check: &mut Check) {
        check.range("size", self.size, 0, MAX_TOKENS);
        let burst = self.one_time_burst.unwrap_or(0);
        check.range("one_time_burst", burst, 0, MAX_TOKENS);
        let milliseconds = u64::try_from(self.refill_time.as_millis()).unwrap_or(u64::MAX);
        let most = u64::try_from(MAX_REFILL.as_millis()).unwrap_or(u64::MAX);
        check.range("refill_time", milliseconds, 0, most);
        check.refuse_if(
            "refill_time",
            !self.refill_time.subsec_nanos().is_multiple_of(1_000_000),
            "has to be whole milliseconds",
        );
        check.refuse_if(
            "",
            (self.size == 0) != self.refill_time.is_zero(),
            "a size without a refill_time, or one without the other, is no limit at all; \
             say so with both 0",
        );
    }
}
