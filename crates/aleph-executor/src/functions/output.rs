//! What a function writes: the end of it, by invocation.

use aleph_types::ExitStatus;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How much of an invocation's output is kept, in bytes.
pub(super) const TAIL: usize = 4096;

/// What one guest's runtime writes, and how it ended.
#[derive(Debug)]
pub(super) struct Output {
    tail: Mutex<VecDeque<u8>>,
    ended: watch::Sender<Option<Ended>>,
}

/// How a runtime ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// With its guest, of which this is known.
    Gone(String),
}

impl Output {
    pub(super) fn new() -> Self {
        Self {
            tail: Mutex::default(),
            ended: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what it wrote: the end of it is kept.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (tail.len() + bytes.len()).saturating_sub(TAIL);
        tail.drain(..excess);
        tail.extend(bytes);
    }

    /// What it wrote last, up to now; what comes then is counted anew.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock()).into()
    }

    pub(super) fn end(&self, ended: Ended) {
        self.ended.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(ended);
            }
            first
        });
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        let found = ended.wait_for(Option::is_some).await;
        // The sender is in this very object.
        found
            .ok()
            .and_then(|found| found.clone())
            .unwrap_or_else(|| Ended::Gone("the clone is gone".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let output = Output::new();
        output.push(b"one ");
        output.push(b"two");
        assert_eq!(output.take(), b"one two");
        output.push(&[b'x'; 5000]);
        output.push(b"end");
        let tail = output.take();
        assert_eq!(tail.len(), TAIL);
        assert!(tail.ends_with(b"xend"));
        assert!(output.take().is_empty());
    }

    #[test]
    fn the_first_end_counts() {
        let output = Output::new();
        output.end(Ended::Exited(ExitStatus::Code(3)));
        output.end(Ended::Gone("later".into()));
        assert!(output.has_ended());
        assert_eq!(
            *output.ended.borrow(),
            Some(Ended::Exited(ExitStatus::Code(3)))
        );
    }
}
