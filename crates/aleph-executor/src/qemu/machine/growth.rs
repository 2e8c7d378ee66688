//! Processors and memory of a computer that runs.
//!
//! Memory comes as modules, each one more than there are: none is ever taken away. What of one is left that
//! was given up half-way is memory in no module.

use super::argv::memory_backend;
use super::blueprint::MEMORY_UNIT;
use super::error::MachineError;
use super::hotplug::OBJECTS;
use crate::hypervisor::{MachineSize, VmmError};
use crate::qemu::driver::QemuVmm;
use aleph_types::MiB;
use serde_json::{Value, json};
use std::time::Duration;

/// How memory is called that was added.
const ADDED_MEMORY: &str = "ram-added";

/// The most threads that fill memory at once, as QEMU has it (`MAX_MEM_PREALLOC_THREAD_COUNT`).
pub(crate) const MAX_FILLERS: u16 = 16;

/// How long memory may take that is filled at once, beside a second for each GiB.
const FILL: Duration = Duration::from_secs(60);

impl QemuVmm {
    pub(super) async fn plug_memory(&self, memory: MiB) -> Result<(), MachineError> {
        if memory.0 == 0 || !memory.0.is_multiple_of(MEMORY_UNIT.0) {
            return Err(MachineError::Invalid(format!(
                "memory is added in units of {} MiB, and {} MiB is none of them",
                MEMORY_UNIT.0, memory.0
            )));
        }
        let _changing = self.changing().await;
        let blueprint = self.blueprint()?;
        if let Some(pages) = blueprint.huge_pages
            && !memory.0.is_multiple_of(pages.size().0)
        {
            return Err(MachineError::Invalid(format!(
                "its memory is in pages of {} MiB, and {} MiB is no number of them",
                pages.size().0,
                memory.0
            )));
        }
        let modules = self.command("query-memory-devices").await?;
        let there = modules.as_array().into_iter().flatten();
        let sizes = there.filter_map(|module| module["data"]["size"].as_u64());
        let added: u64 = sizes.sum();
        let left = blueprint.memory_room.bytes().saturating_sub(added) >> 20;
        let left = MiB(u32::try_from(left).unwrap_or(u32::MAX));
        if left < memory {
            return Err(MachineError::no_memory(left, memory));
        }
        let taken = modules.as_array().map_or(0, Vec::len);
        if taken >= usize::try_from(blueprint.modules()).unwrap_or(usize::MAX) {
            return Err(MachineError::NoModule {
                modules: blueprint.modules(),
            });
        }
        // Each is one more than there are: none is ever taken away.
        let n = modules.as_array().map_or(0, Vec::len);
        let (backend, id) = (format!("{ADDED_MEMORY}{n}"), format!("memory{n}"));
        let mut object = json!({
            "qom-type": memory_backend(blueprint.huge_pages).0,
            "id": backend,
            "size": memory.bytes(),
        });
        if let Some(pages) = blueprint.huge_pages {
            object["hugetlb"] = true.into();
            object["hugetlbsize"] = pages.size().bytes().into();
            object["prealloc"] = true.into();
            object["prealloc-threads"] = blueprint.cpus.min(MAX_FILLERS).into();
        }
        // Pages are filled with zeroes before it answers.
        let limit = FILL + Duration::from_secs(u64::from(memory.0 / 1024));
        self.forget_memory().await?;
        let added = self.command_within("object-add", object, limit);
        if let Err(error) = added.await {
            let _ = self
                .command_with("object-del", json!({ "id": backend }))
                .await;
            return Err(error.into());
        }
        let module = json!({ "driver": "pc-dimm", "id": id, "memdev": backend, "node": 0 });
        if let Err(error) = self.command_with("device_add", module).await {
            let _ = self
                .command_with("object-del", json!({ "id": backend }))
                .await;
            return Err(error.into());
        }
        Ok(())
    }

    pub(super) async fn plug_cpus(&self, cpus: u16) -> Result<(), MachineError> {
        let _changing = self.changing().await;
        let places = self.command("query-hotpluggable-cpus").await?;
        let places = places.as_array().into_iter().flatten();
        let mut free: Vec<&Value> = places
            .filter(|place| place.get("qom-path").is_none())
            .collect();
        if free.len() < usize::from(cpus) {
            return Err(MachineError::NoRoom {
                what: "processors",
                left: u64::try_from(free.len()).unwrap_or(u64::MAX),
                wanted: cpus.into(),
            });
        }
        let part = |place: &Value, key: &str| place["props"][key].as_u64().unwrap_or(0);
        let parts = ["socket-id", "core-id", "thread-id"];
        free.sort_by_key(|place| parts.map(|key| part(place, key)));
        for place in free.into_iter().take(usize::from(cpus)) {
            let mut device = place["props"].clone();
            let where_it_is = parts.map(|key| part(place, key).to_string());
            device["driver"] = place["type"].clone();
            device["id"] = format!("cpu-{}", where_it_is.join("-")).into();
            self.command_with("device_add", device).await?;
        }
        Ok(())
    }

    /// What there is by now.
    pub(super) async fn plugged(&self) -> Result<MachineSize, MachineError> {
        let _changing = self.changing().await;
        self.blueprint()?;
        self.forget_memory().await?;
        let places = self.command("query-hotpluggable-cpus").await?;
        let places = places.as_array().into_iter().flatten();
        let taken = places.filter(|place| place.get("qom-path").is_some());
        let memory = self.command("query-memory-size-summary").await?;
        let part = |name: &str| memory[name].as_u64().unwrap_or(0);
        let bytes = part("base-memory").saturating_add(part("plugged-memory"));
        Ok(MachineSize {
            cpus: u16::try_from(taken.count()).unwrap_or(u16::MAX),
            memory: MiB::from_bytes(bytes),
        })
    }

    /// Takes away memory that is in no module: what is left of a change that was given up half-way.
    async fn forget_memory(&self) -> Result<(), VmmError> {
        let modules = self.command("query-memory-devices").await?;
        let is_used = |name: &str| {
            let path = format!("{OBJECTS}/{name}");
            let mut modules = modules.as_array().into_iter().flatten();
            modules.any(|module| module["data"]["memdev"] == path)
        };
        for name in self.list(OBJECTS).await? {
            if name.starts_with(ADDED_MEMORY) && !is_used(&name) {
                self.command_with("object-del", json!({ "id": name }))
                    .await?;
            }
        }
        Ok(())
    }
}
