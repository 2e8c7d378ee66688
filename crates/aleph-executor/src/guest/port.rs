//! The two halves of one operation under way: what arrives, and a way to answer.

use super::error::AgentError;
use super::streams::Shared;
use super::{GuestUsage, OwnedStat};
use aleph_guest_proto::{FileInfo, ToGuest};
use aleph_types::ExitStatus;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// Bytes of data in a frame at most: about what a virtio-serial port moves at once.
const CHUNK: usize = 32 * 1024;

/// What arrives on one stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Started(u32),
    Data(Vec<u8>),
    ErrorData(Vec<u8>),
    Eof,
    Exited(ExitStatus),
    Failed { errno: u32, message: String },
    File(FileInfo),
    Open,
    Done,
    Stat(OwnedStat),
    Usage(GuestUsage),
}

impl StreamEvent {
    /// Whether it ends its stream, whatever that is.
    pub(super) fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Exited(_) | Self::Failed { .. } | Self::Done | Self::Stat(_) | Self::Usage(_)
        )
    }
}

/// One operation under way: what arrives, and a way to answer.
#[derive(Debug)]
pub(super) struct StreamHandle {
    pub(super) events: mpsc::UnboundedReceiver<StreamEvent>,
    /// Whether it is a kept command's: then nothing counts as passed on.
    pub(super) keep: bool,
    pub(super) port: StreamPort,
}

impl StreamHandle {
    /// The next thing that arrives. Data counts as passed on once it is returned. A guest that
    /// failed at the operation is an error.
    pub(super) async fn next(&mut self) -> Result<StreamEvent, AgentError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for readers; where the channel is closed, what had arrived comes first.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamEvent, AgentError>> {
        let Some(event) = ready!(self.events.poll_recv(cx)) else {
            return Poll::Ready(Err(self.port.shared.why_closed()));
        };
        Poll::Ready(match event {
            StreamEvent::Failed { errno, message } => Err(AgentError::Failed { errno, message }),
            event => {
                if let StreamEvent::Data(bytes) | StreamEvent::ErrorData(bytes) = &event
                    && !self.keep
                {
                    self.port.shared.passed_on(self.port.id, bytes.len());
                }
                Ok(event)
            }
        })
    }
}

/// The sending half of one operation.
#[derive(Debug, Clone)]
pub(super) struct StreamPort {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u32,
}

impl StreamPort {
    pub(super) fn send(&self, message: &ToGuest<'_>) -> Result<(), AgentError> {
        self.shared.send(self.id, message)
    }

    /// Says that no more data follows, once.
    pub(super) fn end(&self) -> Result<(), AgentError> {
        let mut table = self.shared.lock();
        if table.held {
            let is_closed = table.closed.is_some();
            let is_new = match table.streams.get_mut(&self.id) {
                Some(stream) => std::mem::replace(&mut stream.takes_input, false),
                // Whoever feeds the command over another connection hears of it.
                None => is_closed,
            };
            if is_new && !table.ends.contains(&self.id) {
                table.ends.push(self.id);
            }
            return Ok(());
        }
        match table.streams.get_mut(&self.id) {
            Some(stream) if stream.takes_input => stream.takes_input = false,
            _ => return table.closed.clone().map_or(Ok(()), Err),
        }
        drop(table);
        self.send(&ToGuest::Eof)
    }

    /// Whether its connection ended, or is about to, while data was held back.
    pub(super) fn is_held(&self) -> bool {
        self.shared.lock().held
    }

    /// Whether its end was held back too.
    pub(super) fn end_is_held(&self) -> bool {
        self.shared.lock().ends.contains(&self.id)
    }

    /// Sends what the window allows of `bytes`, which are not empty, or waits for credit; `None`
    /// where nobody takes them any more.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<Option<usize>, AgentError>> {
        let mut table = self.shared.lock();
        if let Some(why) = &table.closed {
            return Poll::Ready(Err(why.clone()));
        }
        let table = &mut *table;
        let Some(stream) = table.streams.get_mut(&self.id).filter(|s| s.takes_input) else {
            return Poll::Ready(Ok(None));
        };
        let may = if table.held {
            0
        } else {
            stream.send.available()
        };
        let n = bytes.len().min(may).min(CHUNK);
        if n == 0 {
            stream.wait(cx.waker());
            return Poll::Pending;
        }
        stream.send.take(n)?;
        ToGuest::Data(&bytes[..n])
            .encode(self.id, &mut table.out)
            .map_err(AgentError::Request)?;
        self.shared.has_output.notify_one();
        Poll::Ready(Ok(Some(n)))
    }

    /// Sends all of `bytes`, waiting for the guest's credit as needed. Bytes for an operation
    /// that has ended are dropped, as a pipe's are whose reader is gone.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            match poll_fn(|cx| self.poll_write(cx, bytes)).await? {
                Some(n) => bytes = &bytes[n..],
                None => break,
            }
        }
        Ok(())
    }
}

/// Gives a stream up when nobody holds it any more.
#[derive(Debug)]
pub(super) struct Lease(pub(super) StreamPort);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.shared.cancel(self.0.id);
    }
}
