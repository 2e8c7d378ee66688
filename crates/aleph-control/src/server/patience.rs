//! A connection that is not waited for without end.
//!
//! What is written to a client that does not read waits in the kernel's buffers, and then here.
//! A client that is known may take its time: it may be a pager that somebody reads. One of whom
//! nothing is known could hold its slot for ever with a question that needs no token, so that
//! its connection breaks when it has taken nothing for [`PATIENCE`].

use super::connection::Slot;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a stranger may take to read anything of what it asked for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A stream whose writes fail when a stranger does not read.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    slot: Slot,
    patience: Duration,
    /// When it ends, while a write waits.
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, slot: Slot, patience: Duration) -> Self {
        Self {
            stream,
            slot,
            patience,
            end: None,
        }
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || self.slot.is_known() {
            self.end = None;
            return written;
        }
        let patience = self.patience;
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(end.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::peer::Peer;
    use crate::server::connection::Slots;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SHORT: Duration = Duration::from_millis(20);

    fn slot() -> Slot {
        let address = "192.0.2.1:5".parse().unwrap();
        let slots = Slots::new(2, &Metrics::default());
        slots
            .take(&Peer::Remote {
                address,
                tls: false,
            })
            .unwrap()
    }

    #[tokio::test]
    async fn a_stranger_who_does_not_read_is_left() {
        let (ours, _theirs) = tokio::io::duplex(4);
        let mut stream = Patient::new(ours, slot(), SHORT);
        let error = stream.write_all(b"more than fits").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_known_client_is_waited_for() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let slot = slot();
        slot.know();
        let mut stream = Patient::new(ours, slot, SHORT);
        let writing = tokio::spawn(async move { stream.write_all(b"more than fits").await });
        sleep(SHORT * 5).await;
        let mut read = [0; 14];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"more than fits");
        writing.await.unwrap().unwrap();
    }
}
