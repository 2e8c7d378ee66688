//! The disk that templates may take.
//!
//! The memory of a template is a sparse file that the guest fills as it initialises, and code of
//! accounts runs in that guest. So all of it counts before it is begun, for as long as it is made.

use super::template::TemplateError;
use crate::host::free_disk;
use aleph_types::MiB;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stays free, whatever functions do: for the journal, logs and what else a node writes.
const MARGIN: MiB = MiB(512);

/// What templates in the making take of the disk, all of them together.
#[derive(Debug, Default)]
pub(crate) struct Rooms(Mutex<u64>);

/// The room of one of them, in bytes, for as long as this lives.
#[derive(Debug)]
pub(super) struct Room {
    rooms: Arc<Rooms>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.rooms.lock() -= self.bytes;
    }
}

impl Rooms {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a template with this memory on the filesystem of a folder. Where nobody
    /// knows how much is free, there is room.
    pub(super) fn take(
        self: &Arc<Self>,
        folder: &Path,
        memory: MiB,
    ) -> Result<Room, TemplateError> {
        self.take_of(free_disk(folder).unwrap_or(u64::MAX), memory)
    }

    fn take_of(self: &Arc<Self>, free: u64, memory: MiB) -> Result<Room, TemplateError> {
        let mut taken = self.lock();
        // Some of what is taken is written already, and is not free either: rather too little.
        let left = free.saturating_sub(MARGIN.bytes()).saturating_sub(*taken);
        let bytes = memory.bytes();
        if bytes > left {
            return Err(TemplateError::Disk {
                needed: memory,
                free: MiB::from_bytes(left),
            });
        }
        *taken += bytes;
        drop(taken);
        Ok(Room {
            rooms: Arc::clone(self),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_making_counts_and_a_margin_stays() {
        let rooms = Arc::new(Rooms::default());
        let free = MiB(MARGIN.0 + 300).bytes();
        let first = rooms.take_of(free, MiB(200)).unwrap();
        let refused = rooms.take_of(free, MiB(101)).unwrap_err();
        let TemplateError::Disk { needed, free: left } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!((needed, left), (MiB(101), MiB(100)));
        let second = rooms.take_of(free, MiB(100)).unwrap();
        drop(first);
        assert!(rooms.take_of(free, MiB(200)).is_ok());
        drop(second);
        assert!(rooms.take_of(free, MiB(300)).is_ok());
        assert!(rooms.take_of(free, MiB(301)).is_err());
        assert!(rooms.take_of(MARGIN.bytes() - 1, MiB(1)).is_err());
    }
}
