//! Packets between device and driver (virtio 1.2, 5.10.6).

use std::num::Wrapping;

/// The host's CID.
pub(crate) const HOST: u64 = 2;

/// Bytes of a connection that wait here at most for the host to read them.
pub(crate) const BUFFER: u32 = 64 * 1024;

/// The type of a connection of bytes: the only one that there is.
pub(crate) const STREAM: u16 = 1;

/// Says in a [`op::SHUTDOWN`] that its sender takes no more.
pub(crate) const NO_RECEIVE: u32 = 1;
/// Says in a [`op::SHUTDOWN`] that its sender sends no more.
pub(crate) const NO_SEND: u32 = 2;

/// What a packet is for.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Which connection: a port of the host's, and one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// A packet from the guest, without its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FromGuest {
    pub(crate) ports: Ports,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// How much the guest has room for.
    pub(crate) allocated: u32,
    /// How much of what it was sent its program has read.
    pub(crate) forwarded: Wrapping<u32>,
}

/// A packet to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToGuest {
    pub(crate) ports: Ports,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) forwarded: u32,
    pub(crate) data: Vec<u8>,
}

impl ToGuest {
    /// One without data.
    pub(crate) fn bare(ports: Ports, op: u16) -> Self {
        Self {
            ports,
            op,
            flags: 0,
            forwarded: 0,
            data: Vec::new(),
        }
    }
}
