//! Memory that comes and goes (virtio-mem): `/hotplug/memory`, from 1.14 on.

use super::fault::Problem;
use super::{Body, Check};
use crate::firecracker::Feature;
use aleph_types::MiB;
use serde::{Deserialize, Serialize};

/// The smallest block, and that of a device of which nothing is said.
const BLOCK: MiB = MiB(2);

/// The smallest slot, and that of a device of which nothing is said.
const SLOT: MiB = MiB(128);

/// The device that memory is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    /// The most that can be plugged; whole slots.
    pub total_size_mib: MiB,
    /// The step in which the guest takes and gives; a power of two, 2 MiB at least.
    #[serde(default = "block")]
    pub block_size_mib: MiB,
    /// The step in which the host maps it; whole blocks, 128 MiB at least.
    #[serde(default = "slot")]
    pub slot_size_mib: MiB,
}

const fn block() -> MiB {
    BLOCK
}

const fn slot() -> MiB {
    SLOT
}

impl MemoryHotplug {
    /// So much at most, in steps of Firecracker's choice.
    #[must_use]
    pub const fn up_to(total_size_mib: MiB) -> Self {
        Self {
            total_size_mib,
            block_size_mib: BLOCK,
            slot_size_mib: SLOT,
        }
    }
}

impl Body for MemoryHotplug {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::MemoryHotplug);
        let (total, slot, block) = (
            self.total_size_mib.0,
            self.slot_size_mib.0,
            self.block_size_mib.0,
        );
        let most = u64::from(u32::MAX);
        check.range("block_size_mib", block, u64::from(BLOCK.0), most);
        check.refuse_if(
            "block_size_mib",
            !block.is_power_of_two(),
            "has to be a power of two",
        );
        check.range("slot_size_mib", slot, u64::from(SLOT.0), most);
        check.multiple("slot_size_mib", slot, block);
        if total < slot {
            let (value, min) = (u64::from(total), u64::from(slot));
            let max = most;
            check.fault("total_size_mib", Problem::OutOfRange { value, min, max });
        }
        check.multiple("total_size_mib", total, slot);
    }
}

/// How much is to be plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugUpdate {
    /// Whole blocks, the device's total at most.
    pub requested_size_mib: MiB,
}

impl Body for MemoryHotplugUpdate {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::MemoryHotplug);
    }
}

/// What `GET /hotplug/memory` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct MemoryHotplugStatus {
    /// The most that can be plugged.
    pub total_size_mib: MiB,
    /// The host's step.
    pub slot_size_mib: MiB,
    /// The guest's step.
    pub block_size_mib: MiB,
    /// What the guest has taken.
    pub plugged_size_mib: MiB,
    /// What it was asked to have.
    pub requested_size_mib: MiB,
}
