//! A connection, as whoever speaks over it has it.

use super::Handle;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, RecvError};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that a program in the guest opened.
///
/// What is written leaves the process before the call returns, as far as the guest's window goes.
/// Dropping it closes it: what was written still goes out.
#[derive(Debug)]
pub(in super::super) struct Stream {
    pub(super) handle: Arc<Handle>,
    pub(super) socket: SocketHandle,
    /// What another stack had read of it, and was not answered.
    pub(super) earlier: Vec<u8>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !self.earlier.is_empty() {
            let length = self.earlier.len().min(buffer.remaining());
            buffer.put_slice(&self.earlier[..length]);
            self.earlier.drain(..length);
            return Poll::Ready(Ok(()));
        }
        let shared = &self.handle.shared;
        let mut core = shared.core();
        if core.is_over {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let socket = core.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let unfilled = buffer.initialize_unfilled();
        let length = match socket.recv_slice(unfilled) {
            Ok(0) => {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            }
            Ok(length) => length,
            Err(RecvError::Finished) => return Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        };
        if let Some(connection) = core.connection(self.socket) {
            connection.has_read(&unfilled[..length]);
        }
        buffer.advance(length);
        // The guest may wait to hear that there is room again.
        shared.turn(&mut core);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let shared = &self.handle.shared;
        let mut core = shared.core();
        if core.is_over {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let socket = core.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let length = match socket.send_slice(bytes) {
            Ok(0) => {
                socket.register_send_waker(context.waker());
                return Poll::Pending;
            }
            Ok(length) => length,
            Err(tcp::SendError::InvalidState) => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        };
        if let Some(connection) = core.connection(self.socket) {
            connection.has_written(&bytes[..length]);
        }
        shared.turn(&mut core);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All that was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &self.handle.shared;
        let mut core = shared.core();
        core.sockets.get_mut::<tcp::Socket<'_>>(self.socket).close();
        shared.turn(&mut core);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        let mut core = shared.core();
        core.leave(self.socket);
        shared.turn(&mut core);
    }
}
