//! Memory that a guest gives back: `/balloon`, its statistics, and free page hinting.

use super::wire::is_false;
use super::{Body, Check};
use crate::firecracker::Feature;
use aleph_types::MiB;
use serde::{Deserialize, Serialize};

/// The most memory in a balloon: its pages of 4 KiB are counted in 32 bits.
const MAX_AMOUNT: u64 = (u32::MAX >> 8) as u64;

/// A balloon device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How much the guest is to give back.
    pub amount_mib: MiB,
    /// Whether the guest may take it again when it would run out of memory.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 is never, and can become nothing
    /// else after boot.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest can be asked, now and then, for the pages that it does not use. From
    /// 1.14 on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free_page_hinting: bool,
    /// Whether the guest tells of pages as it frees them, and they are given back at once. From 1.14
    /// on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free_page_reporting: bool,
}

impl Body for Balloon {
    fn check(&self, check: &mut Check) {
        check.range("amount_mib", self.amount_mib.0, 0, MAX_AMOUNT);
        if self.free_page_hinting {
            check.uses("free_page_hinting", Feature::FreePageHinting);
        }
        if self.free_page_reporting {
            check.uses("free_page_reporting", Feature::FreePageReporting);
        }
    }
}

/// Another size of the balloon while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How much the guest is to give back.
    pub amount_mib: MiB,
}

impl Body for BalloonUpdate {
    fn check(&self, check: &mut Check) {
        check.range("amount_mib", self.amount_mib.0, 0, MAX_AMOUNT);
    }
}

/// Another interval of the statistics while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsUpdate {
    /// In seconds. It cannot become 0, nor anything else where it was 0.
    pub stats_polling_interval_s: u16,
}

impl Body for BalloonStatisticsUpdate {
    fn check(&self, check: &mut Check) {
        check.range(
            "stats_polling_interval_s",
            self.stats_polling_interval_s,
            1,
            u64::from(u16::MAX),
        );
    }
}

/// A run of free page hinting. From 1.14 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonHintingStart {
    /// Whether Firecracker tells the guest that it is done with the pages once the guest has told of
    /// all. Without it, that is said by stopping the run.
    pub acknowledge_on_stop: bool,
}

impl Body for BalloonHintingStart {
    fn check(&self, check: &mut Check) {
        check.uses("", Feature::FreePageHinting);
    }
}

/// What `/balloon/statistics` says: of the size, and what the guest told last. A guest tells of what
/// its kernel counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BalloonStatistics {
    /// The size that was asked for, in pages of 4 KiB.
    pub target_pages: u64,
    /// The size that it has, in pages of 4 KiB.
    pub actual_pages: u64,
    /// The size that was asked for, in MiB.
    pub target_mib: u64,
    /// The size that it has, in MiB.
    pub actual_mib: u64,
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults with I/O.
    pub major_faults: Option<u64>,
    /// Page faults without.
    pub minor_faults: Option<u64>,
    /// Bytes without any use.
    pub free_memory: Option<u64>,
    /// Bytes in all.
    pub total_memory: Option<u64>,
    /// Bytes that new programs can have without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of caches that can be given back at once.
    pub disk_caches: Option<u64>,
    /// Huge pages that were handed out.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory. This and what follows from 1.14 on.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stall: Option<u64>,
    /// Pages looked at in the background.
    pub async_scan: Option<u64>,
    /// Pages looked at while an allocation waited.
    pub direct_scan: Option<u64>,
    /// Pages reclaimed in the background.
    pub async_reclaim: Option<u64>,
    /// Pages reclaimed while an allocation waited.
    pub direct_reclaim: Option<u64>,
}

/// What `/balloon/hinting/status` says: numbers of virtio's free page hinting. 0 is the end of a run
/// to be acknowledged, 1 that the pages are done with, any other is a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct BalloonHintingStatus {
    /// What the host asked for last.
    pub host_cmd: u32,
    /// What the guest answers to; `None` before it has answered.
    pub guest_cmd: Option<u32>,
}
