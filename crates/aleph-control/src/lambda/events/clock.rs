//! The time that events are measured by.

use aleph_types::Timestamp;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Milliseconds since 1970 by the host's clock as it was when the daemon began, and from then on by one
/// that never steps. So times that an earlier daemon wrote down mean the same to this one, and while
/// one runs, what it waits for takes as long as it should.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: i64,
    at: Instant,
}

impl Clock {
    fn begin(wall: impl FnOnce() -> i64) -> Self {
        Self {
            began: wall(),
            at: Instant::now(),
        }
    }

    fn after(&self, elapsed: Duration) -> i64 {
        let elapsed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        self.began.saturating_add(elapsed)
    }

    fn now(&self) -> i64 {
        self.after(self.at.elapsed())
    }
}

/// Now, in milliseconds since 1970. It never goes back within one daemon.
pub(crate) fn now() -> i64 {
    static CLOCK: LazyLock<Clock> =
        LazyLock::new(|| Clock::begin(|| Timestamp::now().as_millisecond()));
    CLOCK.now()
}

/// What the host's clock shows, in milliseconds since 1970: what calendars go by, and what others
/// are told.
pub(crate) fn wall() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_step_of_the_hosts_clock_is_not_seen() {
        const DAY: i64 = 86_400_000;
        let host = Cell::new(100 * DAY);
        let clock = Clock::begin(|| host.get());
        for step in [-DAY, DAY] {
            host.set(100 * DAY + step);
            let now = clock.now();
            assert!((100 * DAY..100 * DAY + DAY / 2).contains(&now), "{now}");
        }
        assert_eq!(clock.after(Duration::from_millis(1500)), 100 * DAY + 1500);
        assert!(clock.now() <= clock.now());
        // What an earlier daemon wrote down is by the host's clock.
        let host = Timestamp::now().as_millisecond();
        assert!(now().abs_diff(host) < 3_600_000);
    }
}
