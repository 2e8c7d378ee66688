//! The part of the seam that is for disks of guests that run, and for their own agents.

use super::{BoxFuture, Layer};
use crate::qemu::machine::MachineError;
use std::io;
use tokio::net::UnixStream;

/// A disk as a machine that runs has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveDisk {
    /// What its guest sees as its size, in bytes.
    pub size: u64,
    /// The number of the layer that was put over it last while it ran; `None` where it is written to what
    /// it came with.
    pub layer: Option<i64>,
}

/// A layer of a disk, as somebody knows it by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLayer {
    /// Its number: that of [`LiveDisks::cover`] or [`LiveDisks::merge`], where it was put there while the
    /// machine ran.
    pub number: i64,
    /// Since when the machine has it.
    pub origin: LayerOrigin,
}

/// Since when a machine has a layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerOrigin {
    /// From its beginning, below what its guest wrote to first; or put there by a merge.
    Below,
    /// From its beginning: what its guest wrote to first.
    First,
    /// Put over the disk while it ran.
    Put,
}

/// Layers of a disk in the place of which one other is read that holds what they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChain {
    /// All its layers, from the top down, with those that the other one holds.
    pub layers: Vec<DiskLayer>,
    /// Which of them is over those, and stays.
    pub over: usize,
    /// How many the other one holds.
    pub holds: usize,
    /// The number of the other one.
    pub merged: i64,
    /// Whether the one over them is encrypted.
    pub is_encrypted: bool,
}

/// The facet of disks of a machine that runs.
///
/// The VMM itself is asked what there is: so whoever finds a machine after a crash learns what became of a
/// change that nobody heard the end of.
pub trait LiveDisks: Send + Sync {
    /// What a disk is; `None` where there is none of this serial number.
    fn disk<'a>(&'a self, serial: &'a str)
    -> BoxFuture<'a, Result<Option<LiveDisk>, MachineError>>;

    /// Puts an empty layer (qcow2, open for reading and writing) over a disk: what its guest writes from then
    /// on goes there, and what was there stays as it is. All at one moment, between two writes.
    ///
    /// # Errors
    /// Where there is no such disk. After [`VmmError::Silent`](super::VmmError::Silent) it may have happened
    /// all the same: [`LiveDisks::disk`] says.
    fn cover<'a>(
        &'a self,
        serial: &'a str,
        layer: i64,
        cover: Layer,
    ) -> BoxFuture<'a, Result<(), MachineError>>;

    /// Has the VMM let go of a layer that [`LiveDisks::disk`] says it did not put in place. One that it did
    /// stays.
    fn forget<'a>(&'a self, serial: &'a str, layer: i64) -> BoxFuture<'a, ()>;

    /// Reads one layer (qcow2, open for reading) in the place of several ones of a disk that it holds, and
    /// closes those. Done again it changes nothing.
    ///
    /// # Errors
    /// Where there is no such disk, or the VMM does not take the layer. After
    /// [`VmmError::Silent`](super::VmmError::Silent) it may have happened all the same; what the guest reads is
    /// the same either way.
    fn merge<'a>(
        &'a self,
        serial: &'a str,
        chain: &'a DiskChain,
        merged: Layer,
    ) -> BoxFuture<'a, Result<(), MachineError>>;
}

/// The facet of a port in the machine for QEMU's guest agent, which a guest may have.
pub trait GuestPort: Send + Sync {
    /// A connection to it. That there is one does not say that anybody answers.
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>>;
}
