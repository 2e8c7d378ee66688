//! The power button.
//!
//! Before a guest's system listens to it, pressing it does nothing, and nobody says so: it is pressed
//! again until the guest has shut down, which ends QEMU.

use crate::hypervisor::{BoxFuture, Power, Vmm, VmmError};
use crate::qemu::driver::QemuVmm;
use std::time::Duration;

/// How long a guest has between two presses. A system that shuts down takes the second one for the
/// first.
const AGAIN: Duration = Duration::from_secs(5);

const POWERDOWN: &str = "system_powerdown";

impl Power for QemuVmm {
    fn powerdown(&self, limit: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let pressed = async {
                loop {
                    match self.command(POWERDOWN).await {
                        Ok(_) => {}
                        // It has just ended, or is about to.
                        Err(_) if self.has_ended() => {}
                        Err(VmmError::Refused { .. } | VmmError::Silent { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    if tokio::time::timeout(AGAIN, self.ended()).await.is_ok() {
                        return Ok(());
                    }
                }
            };
            let silent = VmmError::Silent { command: POWERDOWN };
            tokio::time::timeout(limit, pressed)
                .await
                .unwrap_or(Err(silent))
        })
    }

    fn reset(&self) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.command("system_reset").await.map(drop) })
    }
}
