//! A connection whose end is noticed a turn late.
//!
//! A client that says all it has to say and ends its direction at once is done with writing, and
//! not gone. The library takes that end for a client that went away, and may see it before it has
//! even begun with the request: what that asked for would be lost. With this in between, the
//! request is begun with first. A client that is really gone is noticed all the same.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See above.
#[derive(Debug)]
pub(super) struct LateEnd<C> {
    connection: C,
    /// Whether the end was seen, and kept back once.
    is_seen: bool,
}

impl<C> LateEnd<C> {
    pub(super) fn new(connection: C) -> Self {
        Self {
            connection,
            is_seen: false,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for LateEnd<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(cx, buffer))?;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        if is_end && !std::mem::replace(&mut self.is_seen, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for LateEnd<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
