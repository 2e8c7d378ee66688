//! Watching for a second Ctrl-C on a raw terminal.

use std::time::{Duration, Instant};

/// What a terminal in raw mode sends for Ctrl-C.
const CTRL_C: u8 = 3;

/// How long a first Ctrl-C counts.
const SPAN: Duration = Duration::from_secs(3);

/// On a raw terminal every key goes to the guest, Ctrl-C too, and programs there use it all the
/// time. So a second one kills the VM only when the guest has shown nothing since the first: a
/// guest that is alive at least echoes it.
#[derive(Debug, Default)]
pub(super) struct Keys {
    unanswered: Option<Instant>,
}

impl Keys {
    /// The guest showed something.
    pub(super) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// Keys were pressed; whether the VM is to be killed.
    pub(super) fn pressed(&mut self, keys: &[u8], now: Instant) -> bool {
        for _ in keys.iter().filter(|key| **key == CTRL_C) {
            match self.unanswered {
                Some(first) if now.duration_since(first) < SPAN => return true,
                _ => self.unanswered = Some(now),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unanswered_second_one_kills() {
        let now = Instant::now();
        let mut keys = Keys::default();
        assert!(!keys.pressed(b"ls\r", now));
        assert!(!keys.pressed(b"\x03", now));
        keys.answered();
        assert!(!keys.pressed(b"\x03", now), "the guest answered the first");
        assert!(keys.pressed(b"\x03", now), "and not this one");
        let mut keys = Keys::default();
        assert!(keys.pressed(b"\x03\x03", now));
        let mut keys = Keys::default();
        assert!(!keys.pressed(b"\x03", now));
        assert!(!keys.pressed(b"\x03", now + SPAN), "the first is long ago");
    }
}
