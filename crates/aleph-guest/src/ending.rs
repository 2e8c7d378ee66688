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
    /// The last frames go out until this time.
    Delivering { until: u64 },
    /// There is nothing left to wait for.
    Over,
}

impl Ending {
    pub(crate) fn is_begun(self) -> bool {
        self != Self::None
    }

    /// The host wants the guest to end; gives whether processes are to be told. A host that asks
    /// again may shorten the time, never lengthen it, and one that asks while the last frames
    /// go out has seen enough of them, but where the end of a kept command `is_held`.
    pub(crate) fn shut_down(&mut self, kill_at: u64, is_held: bool) -> bool {
        match self {
            Self::None => {
                *self = Self::Terminating { kill_at };
                return true;
            }
            Self::Terminating { kill_at: before } => *before = kill_at.min(*before),
            Self::Delivering { .. } if !is_held => *self = Self::Over,
            Self::Delivering { .. } => {}
            Self::Killed { .. } | Self::Over => {}
        }
        false
    }

    /// The main command ended, and its last frame is queued.
    pub(crate) fn main_ended(&mut self, now: u64) {
        if *self == Self::None {
            *self = Self::Delivering {
                until: now + MAIN_DELIVERY_US,
            };
        }
    }

    /// The host has stored the end of a main command: what else is under way has only the usual
    /// time.
    pub(crate) fn main_stored(&mut self, now: u64) {
        if matches!(self, Self::None | Self::Delivering { .. }) {
            *self = Self::Delivering {
                until: now + DELIVERY_US,
            };
        }
    }

    /// Nobody who could hear of the main command's end is left, and it has ended.
    pub(crate) fn main_abandoned(&mut self) {
        if *self == Self::None {
            *self = Self::Over;
        }
    }

    /// No process is left. `is_held` where the end of a kept command waits to be stored: then
    /// the guest waits for a host, for as long as it takes.
    pub(crate) fn all_ended(&mut self, now: u64, is_held: bool) {
        if matches!(self, Self::Terminating { .. } | Self::Killed { .. }) {
            *self = Self::delivering(now, is_held);
        }
    }

    fn delivering(now: u64, is_held: bool) -> Self {
        let until = if is_held { u64::MAX } else { now + DELIVERY_US };
        Self::Delivering { until }
    }

    /// The host hung up: nobody is left to deliver to, but what a kept command has to say waits
    /// for the next one.
    pub(crate) fn hang_up(&mut self, is_held: bool) {
        if matches!(self, Self::Delivering { .. }) && !is_held {
            *self = Self::Over;
        }
    }

    /// The signal that every process gets now, if any.
    pub(crate) fn due(&mut self, now: u64, is_held: bool) -> Option<u8> {
        match *self {
            Self::Terminating { kill_at } if now >= kill_at => {
                *self = Self::Killed {
                    until: now + KILLED_US,
                };
                Some(sys::SIGKILL)
            }
            Self::Killed { until } if now >= until => {
                *self = Self::delivering(now, is_held);
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
            | Self::Delivering { until: at } => (at != u64::MAX).then_some(at),
        }
    }

    /// Whether the power goes off now; `is_delivered` where the host has all there is.
    pub(crate) fn is_over(self, now: u64, is_delivered: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Over => true,
            Self::Delivering { until } => now >= until || is_delivered(),
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
        assert!(ending.shut_down(1000, false));
        assert!(!ending.shut_down(5000, false), "they are told once");
        assert_eq!(
            ending.deadline(),
            Some(1000),
            "and have no longer for a second request"
        );
        assert_eq!(ending.due(999, false), None);
        assert_eq!(ending.due(1000, false), Some(sys::SIGKILL));
        assert_eq!(ending.due(1001, false), None);
        assert_eq!(ending.due(1000 + KILLED_US, false), None);
        assert!(ending.is_over(1000 + KILLED_US, || true));
        assert!(!ending.is_over(1000 + KILLED_US, || false));
        assert!(ending.is_over(1000 + KILLED_US + DELIVERY_US, || false));
    }

    #[test]
    fn what_a_kept_command_has_to_say_waits_for_a_host() {
        let mut ending = Ending::None;
        assert!(ending.shut_down(1000, true));
        ending.all_ended(10, true);
        ending.hang_up(true);
        assert!(!ending.shut_down(0, true), "nor is it cut short");
        assert_eq!(ending.deadline(), None);
        assert!(!ending.is_over(u64::MAX - 1, || false));
        ending.main_stored(20);
        assert!(!ending.is_over(20, || false));
        assert!(ending.is_over(20 + DELIVERY_US, || false));
    }

    #[test]
    fn a_main_command_that_nobody_waits_for_ends_the_guest() {
        let mut ending = Ending::None;
        ending.main_abandoned();
        assert!(ending.is_over(0, || false));
        let mut ending = Ending::None;
        ending.main_ended(0);
        assert!(!ending.is_over(0, || false));
        ending.hang_up(false);
        assert!(ending.is_over(0, || false));
    }

    #[test]
    fn a_host_that_has_seen_the_end_need_not_wait() {
        let mut ending = Ending::None;
        ending.main_ended(0);
        assert!(!ending.shut_down(9, false));
        assert!(ending.is_over(0, || false));
    }
}
