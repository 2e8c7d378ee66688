//! Bytes on their way into a guest and out of it, as readers and writers.
//!
//! Each holds at most a window ([`aleph_guest_proto::WINDOW`]) and waits for its other side. A
//! half that is dropped before its end gives the operation up, in the guest too.

use super::error::AgentError;
use super::port::{Lease, StreamEvent, StreamHandle, StreamPort};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that come out of a guest: an archive, or what a connection says. It ends as files do;
/// what the guest failed at is an error whose source is an [`AgentError`].
#[derive(Debug)]
pub struct GuestReader {
    stream: StreamHandle,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    _lease: Arc<Lease>,
}

impl GuestReader {
    pub(super) fn new(stream: StreamHandle, lease: Arc<Lease>) -> Self {
        Self {
            stream,
            chunk: Vec::new(),
            at: 0,
            ended: false,
            _lease: lease,
        }
    }

    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// What the guest failed at, or a channel that closes.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, AgentError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await?;
        let chunk = std::mem::take(&mut self.chunk);
        let at = std::mem::take(&mut self.at);
        Ok(match at {
            _ if chunk.is_empty() => None,
            0 => Some(chunk),
            at => Some(chunk[at..].to_vec()),
        })
    }

    /// Sees to it that there are bytes, or the end is reached.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AgentError>> {
        while self.at == self.chunk.len() && !self.ended {
            match ready!(self.stream.poll_next(cx))? {
                StreamEvent::Data(bytes) => (self.chunk, self.at) = (bytes, 0),
                StreamEvent::Eof | StreamEvent::Done => self.ended = true,
                _ => {}
            }
        }
        if self.at == self.chunk.len() {
            (self.chunk, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for GuestReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_chunk(cx))?;
        let n = buffer.remaining().min(self.chunk.len() - self.at);
        buffer.put_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Poll::Ready(Ok(()))
    }
}

/// Bytes that go into a guest. Shutting it down says that no more follow. Where the guest has
/// given up it is a broken pipe.
#[derive(Debug)]
pub struct GuestWriter {
    port: StreamPort,
    _lease: Arc<Lease>,
}

impl GuestWriter {
    pub(super) fn new(port: StreamPort, lease: Arc<Lease>) -> Self {
        Self {
            port,
            _lease: lease,
        }
    }

    pub(super) fn end(&self) -> Result<(), AgentError> {
        self.port.end()
    }
}

impl AsyncWrite for GuestWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Poll::Ready(match ready!(self.port.poll_write(cx, bytes)) {
            Ok(Some(n)) => Ok(n),
            Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(error.into()),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end().map_err(io::Error::from))
    }
}
