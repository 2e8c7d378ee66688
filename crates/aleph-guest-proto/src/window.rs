//! Flow control: how much one direction of a stream may have under way.

use core::fmt;

/// What a sender may send before its receiver returns credit, in bytes.
pub const WINDOW: u32 = 256 * 1024;

/// A side that broke the rules of flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowError {
    /// Data beyond the window.
    Overrun,
    /// Credit for bytes that were never sent.
    FalseCredit,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "more data than the stream's window",
            Self::FalseCredit => "credit for data that was never sent",
        })
    }
}

impl core::error::Error for WindowError {}

/// The sender's half: what it may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow(u32);

impl Default for SendWindow {
    fn default() -> Self {
        Self(WINDOW)
    }
}

impl SendWindow {
    /// How many bytes may be sent now.
    #[must_use]
    pub fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Takes `n` bytes off the window, before they are sent.
    ///
    /// # Errors
    /// [`WindowError::Overrun`] where it has fewer: nothing is taken.
    pub fn take(&mut self, n: usize) -> Result<(), WindowError> {
        let n = u32::try_from(n).map_err(|_| WindowError::Overrun)?;
        self.0 = self.0.checked_sub(n).ok_or(WindowError::Overrun)?;
        Ok(())
    }

    /// Adds credit that the receiver returned.
    ///
    /// # Errors
    /// [`WindowError::FalseCredit`] where it is more than is under way.
    pub fn credit(&mut self, n: u32) -> Result<(), WindowError> {
        let sum = self.0.checked_add(n).filter(|sum| *sum <= WINDOW);
        self.0 = sum.ok_or(WindowError::FalseCredit)?;
        Ok(())
    }
}

/// The receiver's half: what it has got and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceiveWindow {
    pending: u32,
    passed: u32,
}

impl ReceiveWindow {
    /// Counts `n` bytes that arrived.
    ///
    /// # Errors
    /// [`WindowError::Overrun`] where the sender had no credit for them.
    pub fn received(&mut self, n: usize) -> Result<(), WindowError> {
        let n = u32::try_from(n).map_err(|_| WindowError::Overrun)?;
        let pending = self.pending.checked_add(n).ok_or(WindowError::Overrun)?;
        if pending + self.passed > WINDOW {
            return Err(WindowError::Overrun);
        }
        self.pending = pending;
        Ok(())
    }

    /// Counts `n` bytes that were passed on, and gives the credit to return to the sender: in
    /// quarters of a window, so that credit costs few frames.
    pub fn passed_on(&mut self, n: usize) -> Option<u32> {
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.pending);
        self.pending -= n;
        self.passed += n;
        (self.passed >= WINDOW / 4).then(|| core::mem::take(&mut self.passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credit_that_nobody_owes_is_refused() {
        assert_eq!(
            SendWindow::default().credit(1),
            Err(WindowError::FalseCredit)
        );
    }

    proptest! {
        /// Whatever the order of sending and passing on, no side ever breaks a rule, no more
        /// than a window is under way, and a drained stream can always send again.
        #[test]
        fn the_two_halves_agree(steps in prop::collection::vec((any::<bool>(), 0..WINDOW), 0..200)) {
            let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
            let mut in_flight = 0_usize;
            for (send, n) in steps {
                let n = usize::try_from(n).unwrap();
                if send {
                    let n = n.min(sender.available());
                    sender.take(n).unwrap();
                    receiver.received(n).unwrap();
                    in_flight += n;
                } else {
                    let n = n.min(in_flight);
                    in_flight -= n;
                    if let Some(credit) = receiver.passed_on(n) {
                        sender.credit(credit).unwrap();
                    }
                }
                prop_assert!(in_flight <= usize::try_from(WINDOW).unwrap());
            }
            if let Some(credit) = receiver.passed_on(in_flight) {
                sender.credit(credit).unwrap();
            }
            prop_assert!(sender.available() > 0);
        }

        #[test]
        fn an_overrun_is_seen(extra in 1..WINDOW) {
            let mut receiver = ReceiveWindow::default();
            receiver.received(usize::try_from(WINDOW).unwrap()).unwrap();
            prop_assert_eq!(
                receiver.received(usize::try_from(extra).unwrap()),
                Err(WindowError::Overrun)
            );
        }
    }
}
