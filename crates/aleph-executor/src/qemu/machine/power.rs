//! The power button.
//!
//! Before a guest's system listens to it, pressing it does nothing, and nobody says so: it is pressed
//! again until the guest has shut down, which ends QEMU.

use crate::hypervisor::{BoxFuture, Power, VmmError};
use crate::qemu::driver::QemuVmm;
use std::time::Duration;

/// How long a guest has between two presses. A system that shuts down takes the second one for the
/// first.
const AGAIN: Duration = Duration::from_secs(5);

const POWERDOWN: &str = "system_powerdown";

impl Power for QemuVmm {
    fn powerdown(&self, limit: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let mut last = VmmError::Silent { command: POWERDOWN };
            let pressed = async {
                loop {
                    // One that is about to end does not answer any more.
                    if let Err(error) = self.command(POWERDOWN).await {
                        last = error;
                    }
                    if tokio::time::timeout(AGAIN, self.ended()).await.is_ok() {
                        return;
                    }
                }
            };
            let ended = tokio::time::timeout(limit, pressed).await;
            ended.map_err(|_| last)
        })
    }

    fn reset(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.command("system_reset").await.map(drop) })
    }
}
