//! Files on their way into a guest and out of it.

use super::error::AgentError;
use super::port::{Lease, StreamEvent};
use super::streams::Shared;
use aleph_guest_proto::{Put, ToGuest};
use std::sync::Arc;

/// What a file in a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMeta {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

pub(super) async fn put(
    shared: &Arc<Shared>,
    path: &str,
    meta: FileMeta,
    bytes: &[u8],
) -> Result<(), AgentError> {
    let FileMeta { mode, uid, gid } = meta;
    let request = ToGuest::Put(Put {
        path: path.as_bytes(),
        mode,
        uid,
        gid,
    });
    let mut stream = shared.open(&request, false)?;
    let _lease = Lease(stream.port.clone());
    stream.port.write(bytes).await?;
    stream.port.end()?;
    loop {
        if let StreamEvent::Done = stream.next().await? {
            return Ok(());
        }
    }
}

pub(super) async fn get(
    shared: &Arc<Shared>,
    path: &str,
    limit: usize,
) -> Result<(FileMeta, Vec<u8>), AgentError> {
    let mut stream = shared.open(
        &ToGuest::Get {
            path: path.as_bytes(),
        },
        false,
    )?;
    let _lease = Lease(stream.port.clone());
    let (mut meta, mut bytes) = (None, Vec::new());
    loop {
        match stream.next().await? {
            StreamEvent::File(info) => {
                meta = Some(FileMeta {
                    mode: info.mode,
                    uid: info.uid,
                    gid: info.gid,
                });
            }
            StreamEvent::Data(chunk) if bytes.len() + chunk.len() > limit => {
                let message = format!("{path} is larger than {limit} bytes");
                return Err(AgentError::Failed { errno: 0, message });
            }
            StreamEvent::Data(chunk) => bytes.extend(chunk),
            StreamEvent::Eof => {
                let meta = meta.ok_or(AgentError::Protocol("a file without its header".into()))?;
                return Ok((meta, bytes));
            }
            _ => {}
        }
    }
}
