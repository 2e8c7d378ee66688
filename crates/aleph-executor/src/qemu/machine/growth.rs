//! Processors and memory of a computer that runs.
//!
//! Memory comes as modules, each with the first number that is free. No module is taken from a guest, and a guest
//! may let go of any of them by itself, as of processors: so QEMU is asked what there is. What is left of a module
//! that a guest let go of, or that was given up half-way, is memory in no module, which goes before more is added.
//!
//! Memory in huge pages is filled as it is added, and for that time QEMU does nothing else: its guest stands still.
//! It comes in several modules ([`PART`]), between which the guest goes on.

use super::argv::memory_backend;
use super::blueprint::{Blueprint, HugePages, MEMORY_UNIT};
use super::error::MachineError;
use super::hotplug::{OBJECTS, PERIPHERAL};
use crate::hypervisor::{MachineSize, VmmError, filling};
use crate::qemu::driver::QemuVmm;
use aleph_types::MiB;
use serde_json::{Value, json};
use std::time::Duration;

/// How memory is called that was added.
const ADDED_MEMORY: &str = "ram-added";

/// How a module is called.
const MODULE: &str = "memory";

/// What is filled at a time, where there are modules enough.
const PART: MiB = MiB(8 << 10);

/// The most threads that fill memory at once, as QEMU has it (`MAX_MEM_PREALLOC_THREAD_COUNT`).
pub(crate) const MAX_FILLERS: u16 = 16;

/// How long memory may take that is filled at once, beside what it takes by its size.
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
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        let free = blueprint.modules().saturating_sub(taken);
        if free == 0 {
            return Err(MachineError::NoModule {
                modules: blueprint.modules(),
            });
        }
        self.forget_memory().await?;
        for part in parts(memory, left, free, blueprint.huge_pages) {
            self.plug_module(blueprint, part).await?;
        }
        Ok(())
    }

    async fn plug_module(&self, blueprint: &Blueprint, memory: MiB) -> Result<(), MachineError> {
        let names = [self.list(OBJECTS).await?, self.list(PERIPHERAL).await?].concat();
        let (backend, id) = free_names(&names);
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
        let limit = FILL + filling(memory);
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

/// The modules that memory is added as, of those that are free. `left`: how much can be added in all. What could come
/// later keeps its part of the modules.
fn parts(memory: MiB, left: MiB, free: u32, pages: Option<HugePages>) -> Vec<MiB> {
    let Some(pages) = pages else {
        // It is filled as its guest uses it.
        return vec![memory];
    };
    let its_part = u64::from(free) * u64::from(memory.0) / u64::from(left.0.max(1));
    let its_part = u32::try_from(its_part).unwrap_or(u32::MAX);
    let count = memory.0.div_ceil(PART.0).min(its_part).max(1);
    let unit = MEMORY_UNIT.max(pages.size()).0;
    let (each, more) = (memory.0 / unit / count, memory.0 / unit % count);
    let units = (0..count).map(|n| each + u32::from(n < more));
    units.map(|units| MiB(units * unit)).collect()
}

/// The names of the next module's memory, and of it, where these are taken.
fn free_names(taken: &[String]) -> (String, String) {
    let names = |n: usize| (format!("{ADDED_MEMORY}{n}"), format!("{MODULE}{n}"));
    let is_free = |(memory, module): &(String, String)| {
        let mut taken = taken.iter();
        !taken.any(|name| name == memory || name == module)
    };
    // Each name takes one number at most.
    let found = (0..=taken.len()).map(names).find(is_free);
    found.unwrap_or_else(|| names(taken.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_huge_pages_comes_in_parts() {
        const GIB: u32 = 1024;
        let sizes = |memory, left, free| {
            let parts = parts(MiB(memory), MiB(left), free, Some(HugePages::Size1G));
            let sizes: Vec<u32> = parts.iter().map(|part| part.0 / GIB).collect();
            let sum: u32 = parts.iter().map(|part| part.0).sum();
            assert_eq!(sum, memory);
            sizes
        };
        assert_eq!(sizes(8 * GIB, 256 * GIB, 32), [8]);
        assert_eq!(sizes(20 * GIB, 20 * GIB, 32), [7, 7, 6]);
        assert_eq!(sizes(256 * GIB, 256 * GIB, 32), [8; 32]);
        // What may come later has modules, too.
        assert_eq!(sizes(12 * GIB, 256 * GIB, 32), [12]);
        assert_eq!(sizes(512 * GIB, 1024 * GIB, 32), [32; 16]);
        assert_eq!(sizes(100 * GIB, 100 * GIB, 1), [100]);
        let small = parts(
            MiB(16384 + 128),
            MiB(16384 + 128),
            32,
            Some(HugePages::Size2M),
        );
        assert_eq!(small, [MiB(5504), MiB(5504), MiB(5504)]);
        // Nobody waits for what is not filled.
        let whole = MiB(512 * GIB);
        assert_eq!(parts(whole, whole, 32, None), [whole]);
    }

    #[test]
    fn a_module_has_the_first_number_that_is_free() {
        let next = |taken: &[&str]| {
            let taken: Vec<_> = taken.iter().map(|name| (*name).to_owned()).collect();
            free_names(&taken).1
        };
        assert_eq!(next(&[]), "memory0");
        assert_eq!(next(&["ram", "ram-added0", "memory0", "port0"]), "memory1");
        // Its guest let go of the first of two.
        assert_eq!(next(&["ram-added1", "memory1"]), "memory0");
        // Of a third one half is left.
        assert_eq!(
            next(&["ram-added0", "memory0", "ram-added1", "memory2"]),
            "memory3"
        );
    }
}
