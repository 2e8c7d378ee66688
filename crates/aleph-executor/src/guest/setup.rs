//! What makes a booted guest ready for commands.

use super::error::AgentError;
use super::network::GuestNetwork;
use super::order::MountRequest;
use aleph_guest_proto::{MountsBuf, Root, Setup, ToGuest, Upper};
use std::time::SystemTime;

/// What makes a booted guest ready for commands.
#[derive(Debug, Clone)]
pub struct SetupRequest {
    /// Its hostname.
    pub hostname: String,
    /// The image's filesystem as mount(2) names it.
    pub filesystem: String,
    /// What writes go to.
    pub upper: UpperKind,
    /// Whether it powers off when we hang up: where nobody will come back to it.
    pub poweroff_on_hangup: bool,
    /// Its network, where it has one. A guest before version
    /// [`Versions::NETWORK`](aleph_guest_proto::Versions::NETWORK) cannot have one.
    pub network: Option<GuestNetwork>,
    /// What it mounts beside its root, in this order; a guest before version
    /// [`Versions::MOUNTS`](aleph_guest_proto::Versions::MOUNTS) cannot.
    pub mounts: Vec<MountRequest>,
}

impl SetupRequest {
    /// The message, with entropy and time of now.
    pub(super) fn with_message<T>(
        &self,
        send: impl FnOnce(&ToGuest<'_>) -> T,
    ) -> Result<T, AgentError> {
        let upper = match self.upper {
            UpperKind::Memory => Upper::Memory,
            UpperKind::Disk => Upper::Disk(SCRATCH_SERIAL.as_bytes()),
        };
        let mounts = self.mounts.iter().map(MountRequest::as_message);
        let mounts = MountsBuf::new(mounts).map_err(AgentError::Request)?;
        Ok(send(&ToGuest::Setup(Setup {
            hostname: self.hostname.as_bytes(),
            unix_ns: unix_ns(),
            entropy: &random::<64>()?,
            root: Root {
                image_serial: IMAGE_SERIAL.as_bytes(),
                filesystem: self.filesystem.as_bytes(),
                upper,
            },
            poweroff_on_hangup: self.poweroff_on_hangup,
            network: self.network.as_ref().map(GuestNetwork::as_message),
            mounts: mounts.as_mounts(),
        })))
    }
}

/// What takes the writes over the read-only image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperKind {
    /// The guest's memory.
    Memory,
    /// The scratch disk.
    Disk,
}

/// Serial number of the block device with the image.
pub(crate) const IMAGE_SERIAL: &str = "rootfs";
/// Serial number of the scratch disk.
pub(crate) const SCRATCH_SERIAL: &str = "scratch";

/// The host's wall clock.
pub(super) fn unix_ns() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

/// Fresh random bytes of the host's.
pub(super) fn random<const N: usize>() -> Result<[u8; N], AgentError> {
    use std::io::Read;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
