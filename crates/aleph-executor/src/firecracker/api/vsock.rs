//! The vsock device: `/vsock`.

use super::{Body, Check};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The least address of a guest: those below are the hypervisor's, the local one and the host's.
const MIN_CID: u64 = 3;

/// The most: the one above stands for any.
const MAX_CID: u64 = u32::MAX as u64 - 1;

/// A guest's vsock, which ends in Unix sockets of the host.
///
/// Firecracker binds `uds_path` at once. Who connects there and says `CONNECT <port>\n` is connected
/// to that port of the guest, after an answer `OK <number>\n`. What the guest connects to on port
/// *n* of the host comes to `uds_path` with `_n` appended, where somebody has to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, 3 or more. It is seen within the guest alone: VMs may share one.
    pub guest_cid: u32,
    /// Where the socket is bound, which may hold nothing yet.
    pub uds_path: PathBuf,
}

impl Body for Vsock {
    fn check(&self, check: &mut Check) {
        check.range("guest_cid", self.guest_cid, MIN_CID, MAX_CID);
        check.socket("uds_path", &self.uds_path);
    }
}
