//! What a guest is told to do, and says no more of than that it is done: what templates and clones
//! take.

use super::error::AgentError;
use super::network::GuestNetwork;
use super::port::{StreamEvent, StreamHandle};
use super::setup::{random, unix_ns};
use super::streams::Shared;
use aleph_guest_proto::{CONTROL, Mount, Network, Resume, ToGuest, Versions};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A filesystem that a guest mounts beside its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// Serial number of its block device; empty where it needs none.
    pub serial: String,
    /// The filesystem as mount(2) names it.
    pub filesystem: String,
    /// Where to; made where it is missing.
    pub target: String,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// The filesystem's own options, with commas between them.
    pub options: String,
}

impl MountRequest {
    pub(super) fn as_message(&self) -> Mount<'_> {
        Mount {
            serial: self.serial.as_bytes(),
            filesystem: self.filesystem.as_bytes(),
            target: self.target.as_bytes(),
            read_only: self.read_only,
            options: self.options.as_bytes(),
        }
    }
}

/// What a clone has of its own. Entropy and time are added as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneRequest {
    /// Its hostname.
    pub hostname: String,
    /// A number that no other clone of its template has.
    pub generation: u64,
    /// Its machine id.
    pub machine_id: [u8; 16],
    /// Its network, where it has one.
    pub network: Option<GuestNetwork>,
}

/// Something that a guest was told and has not said to be done.
#[derive(Debug)]
pub struct Ordered(StreamHandle);

impl Ordered {
    /// Waits until it is done.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with what the guest could not do, or a channel that closes.
    pub async fn done(mut self) -> Result<(), AgentError> {
        match self.0.next().await? {
            StreamEvent::Done => Ok(()),
            _ => Err(AgentError::Protocol("another answer than was asked".into())),
        }
    }
}

pub(super) fn order(shared: &Arc<Shared>, message: &ToGuest<'_>) -> Result<Ordered, AgentError> {
    Ok(Ordered(shared.open(message, false)?))
}

pub(super) fn mount(shared: &Arc<Shared>, mount: &MountRequest) -> Result<Ordered, AgentError> {
    order(shared, &ToGuest::Mount(mount.as_message()))
}

pub(super) fn resume(shared: &Arc<Shared>, clone: &CloneRequest) -> Result<Ordered, AgentError> {
    let network: Option<Network<'_>> = clone.network.as_ref().map(GuestNetwork::as_message);
    let message = ToGuest::Resume(Resume {
        hostname: clone.hostname.as_bytes(),
        entropy: &random::<64>()?,
        generation: clone.generation,
        machine_id: clone.machine_id,
        network,
        unix_ns: unix_ns(),
    });
    order(shared, &message)
}

/// A guest of an older version has no word for it, and goes on with a clock that is late.
pub(super) fn set_clock(shared: &Shared) -> Result<(), AgentError> {
    if shared.version() < Versions::SNAPSHOTS {
        return Ok(());
    }
    shared.send(CONTROL, &ToGuest::Clock { unix_ns: unix_ns() })
}
