//! Memory that a guest does without, by virtio-balloon.

use crate::hypervisor::{Balloon, BoxFuture, VmmError};
use crate::qemu::driver::QemuVmm;
use aleph_types::MiB;
use serde_json::json;

impl QemuVmm {
    /// All memory of the machine, what was added included, in bytes.
    async fn memory(&self) -> Result<u64, VmmError> {
        let summary = self.command("query-memory-size-summary").await?;
        let bytes = |key: &str| summary[key].as_u64().unwrap_or(0);
        Ok(bytes("base-memory").saturating_add(bytes("plugged-memory")))
    }
}

impl Balloon for QemuVmm {
    fn ask(&self, memory: MiB) -> BoxFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let left = self.memory().await?.saturating_sub(memory.bytes());
            let value = json!({ "value": left });
            self.command_with("balloon", value).await.map(drop)
        })
    }

    fn given(&self) -> BoxFuture<'_, Result<MiB, VmmError>> {
        Box::pin(async {
            let all = self.memory().await?;
            let balloon = self.command("query-balloon").await?;
            let left = balloon["actual"].as_u64().unwrap_or(all);
            let given = all.saturating_sub(left) >> 20;
            Ok(MiB(u32::try_from(given).unwrap_or(u32::MAX)))
        })
    }
}
