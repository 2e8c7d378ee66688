//! TCP connections to a guest's loopback address.

use super::bytes::{GuestReader, GuestWriter};
use super::error::AgentError;
use super::port::{Lease, StreamEvent};
use super::streams::Shared;
use aleph_guest_proto::ToGuest;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a port of a guest. Each direction ends by itself: shutting the writer down
/// leaves the reader open. When both halves are dropped it is closed.
#[derive(Debug)]
pub struct Connection {
    reader: GuestReader,
    writer: GuestWriter,
}

/// Waits until the connection stands.
pub(super) async fn connect(shared: &Arc<Shared>, port: u16) -> Result<Connection, AgentError> {
    let mut stream = shared.open(&ToGuest::Connect { port }, false)?;
    let lease = Arc::new(Lease(stream.port.clone()));
    match stream.next().await? {
        StreamEvent::Open => {}
        _ => {
            return Err(AgentError::Protocol(
                "a connection that was not made".into(),
            ));
        }
    }
    Ok(Connection {
        writer: GuestWriter::new(stream.port.clone(), Arc::clone(&lease)),
        reader: GuestReader::new(stream, lease),
    })
}

impl Connection {
    /// The two directions, for two tasks.
    #[must_use]
    pub fn into_split(self) -> (GuestReader, GuestWriter) {
        (self.reader, self.writer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
