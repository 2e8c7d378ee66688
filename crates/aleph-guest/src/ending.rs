//! How a guest comes to its end.

use crate::sys;

/// Between KILL and giving up on processes that do not go, in microseconds.
const KILLED_US: u64 = 2_000_000;

/// How long the last frames may take to reach the host, in microseconds. What the channel has
/// taken, the VMM still delivers after the power went off, but for what the host is too slow to
/// read; its credit shows that it is not.
const DELIVERY_US: u64 = 5_000_000;

/// The same after the main command's end, in microseconds: the host is there and decides. It may
/// pass output on to a reader who takes his time, and none of it may be lost.
const MAIN_DELIVERY_US: u64 = 24 * 3600 * 1_000_000;

/// Where a guest is on its way to power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Not on the way.
    None,
    /// Every process was told to end, and is killed at this time.
    Terminating { kill_at: u64 },
    /// Every process was killed; nobody is waited for after this time.
    Killed { until: u64 },
    /// The last frames go out until this time; `for_main` where the main command's end is
    /// among them.
    Delivering { until: u64, for_main: bool },
    /// There is nothing left to wait for.
    Over,
}

impl Ending {
    pub(crate) fn is_begun(self) -> bool {
        self != Self::None
    }

    /// The host wants the guest to end; gives whether processes are to be told. A host that asks
    /// again may shorten the time, never lengthen it, and one that asks while the last frames
    /// go out has seen enough of them.
    pub(crate) fn shut_down(&mut self, kill_at: u64) -> bool {
        match self {
            Self::None => {
                *self = Self::Terminating { kill_at };
                return true;
            }
            Self::Terminating { kill_at: before } => *before = kill_at.min(*before),
            Self::Delivering { .. } => *self = Self::Over,
            Self::Killed { .. } | Self::Over => {}
        }
        false
    }

    /// The main command ended, and its last frame is queued.
    pub(crate) fn main_ended(&mut self, now: u64) {
        if *self == Self::None {
            *self = Self::Delivering {
                until: now + MAIN_DELIVERY_US,
                for_main: true,
            };
        }
    }

    /// No process is left.
    pub(crate) fn all_ended(&mut self, now: u64) {
        if matches!(self, Self::Terminating { .. } | Self::Killed { .. }) {
            *self = Self::Delivering {
                until: now + DELIVERY_US,
                for_main: false,
            };
        }
    }

    /// The host hung up: nobody is left to deliver to, unless it went before it had the main
    /// command's end, which then waits for the next one. `main_told` where that end went out.
    pub(crate) fn hang_up(&mut self, main_told: bool) {
        if let Self::Delivering { for_main, .. } = *self {
            *self = if for_main && !main_told {
                Self::None
            } else {
                Self::Over
            };
        }
    }

    /// The signal that every process gets now, if any.
    pub(crate) fn due(&mut self, now: u64) -> Option<u8> {
        match *self {
            Self::Terminating { kill_at } if now >= kill_at => {
                *self = Self::Killed {
                    until: now + KILLED_US,
                };
                Some(sys::SIGKILL)
            }
            Self::Killed { until } if now >= until => {
                *self = Self::Delivering {
                    until: now + DELIVERY_US,
                    for_main: false,
                };
                None
            }
            _ => None,
        }
    }

    /// When [`Ending::due`] or [`Ending::is_over`] change without an event.
    pub(crate) fn deadline(self) -> Option<u64> {
        match self {
            Self::None | Self::Over => None,
            Self::Terminating { kill_at: at }
            | Self::Killed { until: at }
            | Self::Delivering { until: at, .. } => Some(at),
        }
    }

    /// Whether the power goes off now; `is_delivered` where the host has all there is.
    pub(crate) fn is_over(self, now: u64, is_delivered: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Over => true,
            Self::Delivering { until, .. } => now >= until || is_delivered(),
            Self::None | Self::Terminating { .. } | Self::Killed { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_killed_and_given_up_in_turn() {
        let mut ending = Ending::None;
        assert!(ending.shut_down(1000));
        assert!(!ending.shut_down(5000), "they are told once");
        assert_eq!(
            ending.deadline(),
            Some(1000),
            "and have no longer for a second request"
        );
        assert_eq!(ending.due(999), None);
        assert_eq!(ending.due(1000), Some(sys::SIGKILL));
        assert_eq!(ending.due(1001), None);
        assert_eq!(ending.due(1000 + KILLED_US), None);
        assert!(ending.is_over(1000 + KILLED_US, || true));
        assert!(!ending.is_over(1000 + KILLED_US, || false));
        assert!(ending.is_over(1000 + KILLED_US + DELIVERY_US, || false));
    }

    #[test]
    fn an_end_that_nobody_heard_of_waits_for_the_next_host() {
        let mut ending = Ending::None;
        ending.main_ended(0);
        ending.hang_up(false);
        assert_eq!(ending, Ending::None);
        ending.main_ended(0);
        ending.hang_up(true);
        assert!(ending.is_over(0, || false));
    }

    #[test]
    fn a_host_that_has_seen_the_end_need_not_wait() {
        let mut ending = Ending::None;
        ending.main_ended(0);
        assert!(!ending.shut_down(9));
        assert!(ending.is_over(0, || false));
    }
}
