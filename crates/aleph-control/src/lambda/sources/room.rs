//! How many messages of streams an account has under way at once.
//!
//! Each account has its own, so that none stands in the way of another.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Events that run at once. One that waits to be tried again is none of them.
const EVENTS: usize = 32;
/// What messages may have together that run or wait to, in KiB.
const KIB: u32 = 64 * 1024;

/// The room of an account.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) events: Semaphore,
    kib: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        let kib = usize::try_from(KIB).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            events: Semaphore::new(EVENTS),
            kib: Arc::new(Semaphore::new(kib)),
        }
    }
}

impl Room {
    /// Waits until there is room for messages of so many bytes; `None` where it is not wanted any
    /// more.
    pub(super) async fn hold(
        &self,
        bytes: usize,
        stop: &CancellationToken,
    ) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).map_or(KIB, |kib| kib.min(KIB));
        tokio::select! {
            held = Arc::clone(&self.kib).acquire_many_owned(kib) => held.ok(),
            () = stop.cancelled() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_is_bounded_and_nobody_waits_for_ever() {
        let (room, stop) = (Room::default(), CancellationToken::new());
        let all = room.hold(usize::MAX, &stop).await.unwrap();
        assert_eq!(room.kib.available_permits(), 0);
        stop.cancel();
        assert!(room.hold(1, &stop).await.is_none());
        drop(all);
        let stop = CancellationToken::new();
        let _one = room.hold(1, &stop).await.unwrap();
        assert_eq!(room.kib.available_permits(), 64 * 1024 - 1);
    }
}
