//! What is done every so often, for as long as a node is there, and sooner where something of a VM could
//! not be removed.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a process that was killed is still in a VM's group when its removal is given up | the next sweep comes a second later |
//! | it is there then, too | each further one waits twice as long, and never longer than there is between two sweeps |
//! | the node is to end meanwhile | it tries once more before it does; then the next node does |

use super::inner::{Inner, log_journal};
use aleph_types::{Timestamp, VmId};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How soon it is tried again to remove what could not be.
const AGAIN: Duration = Duration::from_secs(1);

/// Tends a node until it ends.
pub(super) async fn tend(inner: Weak<Inner>) {
    let Some((interval, mut remains)) = inner
        .upgrade()
        .map(|inner| (inner.config.sweep_interval, inner.remains.subscribe()))
    else {
        return;
    };
    let (mut due, mut pause) = (Instant::now() + interval, AGAIN);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = remain(&mut remains, pause) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        if *inner.leaving.borrow() {
            return;
        }
        inner.sweep().await;
        pause = match inner.look_at_remains().await {
            true => (pause * 2).min(interval),
            false => AGAIN,
        };
        if Instant::now() < due {
            continue;
        }
        due = Instant::now() + interval;
        inner.tend_volumes().await;
        let now = Timestamp::now().as_second();
        let events_kept = inner.config.events_kept;
        if let Err(error) = inner.journal.forget_old(events_kept, now).await {
            log_journal(&error);
        }
    }
}

/// Waits until there is something to remove again, and then for as long as it is let be.
async fn remain(remains: &mut watch::Receiver<BTreeSet<VmId>>, pause: Duration) {
    if remains.wait_for(|vms| !vms.is_empty()).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
}

impl Inner {
    /// Something of this VM could not be removed.
    pub(super) fn remains(&self, vm: VmId) {
        self.remains.send_modify(|vms| _ = vms.insert(vm));
    }

    /// Forgets those of which nothing is left, and says whether there are others.
    async fn look_at_remains(&self) -> bool {
        if self.remains.borrow().is_empty() {
            return false;
        }
        let rows = self.journal.vms().await.unwrap_or_else(|error| {
            log_journal(&error);
            Vec::new()
        });
        let rows: BTreeSet<VmId> = rows.into_iter().map(|row| row.vm).collect();
        let paths = &self.config.paths;
        self.remains.send_modify(|vms| {
            vms.retain(|vm| rows.contains(vm) || paths.vm_state(*vm).exists());
        });
        !self.remains.borrow().is_empty()
    }

    /// Tries for the last time to remove what could not be: nobody else may for a long time.
    pub(super) async fn remove_remains(self: &Arc<Self>) {
        if !self.remains.borrow().is_empty() {
            self.sweep_vms().await;
            self.forget_strays().await;
        }
    }
}
