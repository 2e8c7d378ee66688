//! What a guest uses.

use super::error::AgentError;
use super::port::StreamEvent;
use super::streams::Shared;
use aleph_guest_proto::{ToGuest, Usage};
use std::sync::Arc;
use std::time::Duration;

/// What a guest says that it uses. It is the guest's word, and no more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuestUsage {
    /// Memory that its kernel manages, in bytes.
    pub memory_total: u64,
    /// Memory that programs could still get, in bytes.
    pub memory_available: u64,
    /// Size of the filesystem that takes writes, in bytes.
    pub disk_total: u64,
    /// How much of it is used.
    pub disk_used: u64,
    /// Time since its kernel began.
    pub uptime: Duration,
    /// Load over the last minute.
    pub load: f64,
    /// Processes, without kernel threads and the agent.
    pub processes: u32,
}

impl From<&Usage> for GuestUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            memory_total: usage.memory_total,
            memory_available: usage.memory_available,
            disk_total: usage.disk_total,
            disk_used: usage.disk_used,
            uptime: Duration::from_micros(usage.uptime_us),
            load: f64::from(usage.load_hundredths) / 100.0,
            processes: usage.processes,
        }
    }
}

pub(super) async fn usage(shared: &Arc<Shared>) -> Result<GuestUsage, AgentError> {
    let mut stream = shared.open(&ToGuest::Usage, false)?;
    match stream.next().await? {
        StreamEvent::Usage(usage) => Ok(usage),
        _ => Err(AgentError::Protocol("another answer than was asked".into())),
    }
}
