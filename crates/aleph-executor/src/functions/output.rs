//! What a function writes: the end of it, by invocation.

use crate::guest::{AgentError, ExecEvent, ExecHandle};
use aleph_types::ExitStatus;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How much of an invocation's output is kept, in bytes.
pub(super) const TAIL: usize = 4096;

/// What one guest's runtime writes, and how it ended.
#[derive(Debug)]
pub(super) struct Output {
    tail: Mutex<Tail>,
    ended: watch::Sender<Option<Ended>>,
    /// How often it was asked whether all that has come is taken in, and how often it was.
    asked: watch::Sender<u64>,
    settled: watch::Sender<u64>,
}

/// What was written since somebody took it.
#[derive(Debug, Default)]
struct Tail {
    end: VecDeque<u8>,
    written: u64,
}

/// How a runtime ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// With its guest, of which this is known.
    Gone(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "the runtime ended with {status}"),
            Self::Gone(why) => f.write_str(why),
        }
    }
}

impl Output {
    pub(super) fn new() -> Self {
        Self {
            tail: Mutex::default(),
            ended: watch::Sender::new(None),
            asked: watch::Sender::new(0),
            settled: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what it wrote: the end of it is kept.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        tail.written += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (tail.end.len() + bytes.len()).saturating_sub(TAIL);
        tail.end.drain(..excess);
        tail.end.extend(bytes);
    }

    /// How many bytes it wrote since they were taken last.
    pub(super) fn written(&self) -> u64 {
        self.lock().written
    }

    /// Waits until all is taken in that has come from the guest by now, or it has ended.
    pub(super) async fn settle(&self) {
        let mut settled = self.settled.subscribe();
        let mut turn = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            turn = *asked;
        });
        tokio::select! {
            _ = settled.wait_for(|settled| *settled >= turn) => {}
            _ = self.ended() => {}
        }
    }

    /// For whoever takes in what has come: waits until somebody asks whether that is all.
    pub(super) async fn asked(&self) -> u64 {
        let settled = *self.settled.borrow();
        let mut asked = self.asked.subscribe();
        // The sender is in this very object.
        let found = asked.wait_for(|asked| *asked > settled).await;
        found.map_or(settled, |asked| *asked)
    }

    /// For the same: that is all.
    pub(super) fn settled(&self, asked: u64) {
        self.settled.send_replace(asked);
    }

    /// What it wrote last, up to now; what comes then is counted anew.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock()).end.into()
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

/// Takes in what the runtime writes, until it ends.
pub(super) async fn pump(main: &mut ExecHandle, output: &Output) {
    loop {
        let event = tokio::select! {
            biased;
            event = main.next() => event,
            // Nothing waits.
            asked = output.asked() => {
                output.settled(asked);
                continue;
            }
        };
        match event {
            Ok(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                output.push(&bytes);
                let _ = main.stored(main.position());
            }
            Ok(ExecEvent::Started(_)) => {}
            Ok(ExecEvent::Exited(status)) => {
                output.end(Ended::Exited(status));
                return;
            }
            Err(AgentError::Failed { message, .. }) => {
                output.end(Ended::Gone(message));
                return;
            }
            Err(error) => {
                output.end(Ended::Gone(error.to_string()));
                return;
            }
        }
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

    #[tokio::test]
    async fn all_that_has_come_is_taken_in_before_it_is_settled() {
        let output = Output::new();
        let taking_in = async {
            output.settled(output.asked().await);
            output.push(b"one");
            output.settled(output.asked().await);
        };
        let asking = async {
            output.settle().await;
            output.settle().await;
            output.take()
        };
        let ((), taken) = tokio::join!(taking_in, asking);
        assert_eq!(taken, b"one");
        output.end(Ended::Gone("gone".into()));
        output.settle().await;
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
