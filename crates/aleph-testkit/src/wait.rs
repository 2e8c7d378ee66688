//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value, and returns it.
///
/// # Panics
/// When it has not within `limit`; `what` says what was waited for.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            began.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
