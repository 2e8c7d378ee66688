//! Archives and facts of a guest's files.

use super::bytes::{GuestReader, GuestWriter};
use super::error::AgentError;
use super::port::{Lease, StreamEvent, StreamHandle};
use super::streams::Shared;
use aleph_guest_proto::{FileKind, FileStat, ToGuest};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWrite;

/// What is at a path in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedStat {
    /// What kind it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed last.
    pub modified: SystemTime,
    /// What a link points to; empty otherwise.
    pub target: Vec<u8>,
}

impl From<&FileStat<'_>> for OwnedStat {
    fn from(stat: &FileStat<'_>) -> Self {
        let since = Duration::from_nanos(stat.modified_ns.unsigned_abs());
        let modified = if stat.modified_ns < 0 {
            SystemTime::UNIX_EPOCH - since
        } else {
            SystemTime::UNIX_EPOCH + since
        };
        Self {
            kind: stat.kind,
            size: stat.size,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            modified,
            target: stat.target.to_vec(),
        }
    }
}

pub(super) async fn stat(
    shared: &Arc<Shared>,
    path: &[u8],
    follow: bool,
) -> Result<OwnedStat, AgentError> {
    let mut stream = shared.open(&ToGuest::Stat { path, follow }, false)?;
    match stream.next().await? {
        StreamEvent::Stat(stat) => Ok(stat),
        _ => Err(AgentError::Protocol("another answer than was asked".into())),
    }
}

pub(super) fn pack(
    shared: &Arc<Shared>,
    path: &[u8],
    name: &[u8],
) -> Result<GuestReader, AgentError> {
    let stream = shared.open(&ToGuest::Pack { path, name }, false)?;
    let lease = Arc::new(Lease(stream.port.clone()));
    Ok(GuestReader::new(stream, lease))
}

pub(super) fn unpack(
    shared: &Arc<Shared>,
    path: &[u8],
    owners: bool,
) -> Result<UnpackSink, AgentError> {
    let stream = shared.open(&ToGuest::Unpack { path, owners }, false)?;
    let lease = Arc::new(Lease(stream.port.clone()));
    Ok(UnpackSink {
        writer: GuestWriter::new(stream.port.clone(), lease),
        stream,
    })
}

/// An archive on its way into a guest. Write it, then call [`UnpackSink::finish`], also after
/// writing failed: it says why.
#[derive(Debug)]
pub struct UnpackSink {
    writer: GuestWriter,
    stream: StreamHandle,
}

impl UnpackSink {
    /// Ends the archive and waits until all of it is written.
    ///
    /// # Errors
    /// What the guest could not write, or found wrong in the archive; what it wrote before stays.
    pub async fn finish(mut self) -> Result<(), AgentError> {
        self.writer.end()?;
        loop {
            if let StreamEvent::Done = self.stream.next().await? {
                return Ok(());
            }
        }
    }
}

impl AsyncWrite for UnpackSink {
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
