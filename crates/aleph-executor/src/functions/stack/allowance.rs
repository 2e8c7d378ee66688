//! How many of a guest's frames are read.
//!
//! Reading costs this process one to five microseconds each, whatever is in them, and a guest can send
//! them without end. A token bucket: what is not used is saved, up to a burst. Those that are not read
//! wait in the link, and then in the guest.

use smoltcp::time::Instant;

/// Frames a second: 450 MB of whole ones, or up to a quarter of a core.
const RATE: u64 = 50_000;
/// How many may come at once: 6 MB and its acknowledgements are 1,000.
const BURST: u64 = 8192;
/// In what time the bucket counts.
const SECOND: u64 = 1_000_000;

/// What a guest may still send. Time comes in as a value, and never goes back.
#[derive(Debug)]
pub(super) struct Allowance {
    /// In millionths of a frame.
    left: u64,
    at: Instant,
}

impl Allowance {
    /// A whole burst.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST * SECOND,
            at: now,
        }
    }

    /// Takes so many frames at the most.
    pub(super) fn take(&mut self, now: Instant, most: usize) -> usize {
        let passed = (now - self.at).total_micros();
        self.at = now;
        self.left = self
            .left
            .saturating_add(passed.saturating_mul(RATE))
            .min(BURST * SECOND);
        let there = usize::try_from(self.left / SECOND).unwrap_or(usize::MAX);
        let taken = there.min(most);
        self.left -= frames(taken);
        taken
    }

    /// Takes back those that did not come.
    pub(super) fn give_back(&mut self, unread: usize) {
        self.left = (self.left + frames(unread)).min(BURST * SECOND);
    }
}

fn frames(count: usize) -> u64 {
    u64::try_from(count)
        .unwrap_or(u64::MAX)
        .saturating_mul(SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = 8192;

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_burst_is_had_at_once_and_then_so_many_a_second() {
        let mut allowance = Allowance::new(at(0));
        assert_eq!(allowance.take(at(0), WHOLE + 1), WHOLE);
        assert_eq!(allowance.take(at(0), 1), 0);
        // Asking often wins nothing, and loses nothing.
        let often: usize = (1..=100).map(|ms| allowance.take(at(ms), WHOLE)).sum();
        assert_eq!(often, 5000);
        let odd: usize = (0..1000)
            .map(|n| allowance.take(at(100) + smoltcp::time::Duration::from_micros(n), WHOLE))
            .sum();
        assert_eq!(odd, 49);
    }

    #[test]
    fn what_did_not_come_is_not_lost_and_no_more_than_a_burst_is_saved() {
        let mut allowance = Allowance::new(at(0));
        assert_eq!(allowance.take(at(0), 64), 64);
        allowance.give_back(60);
        assert_eq!(allowance.take(at(0), WHOLE), WHOLE - 4);
        assert_eq!(allowance.take(at(3_600_000), usize::MAX), WHOLE);
    }
}
