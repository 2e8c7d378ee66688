//! What the API can be asked for.

use super::{
    Balloon, BalloonHintingStatus, BalloonStatistics, FirecrackerVersion, InstanceInfo,
    MachineConfig, MemoryHotplugStatus, MmdsData, VmConfiguration,
};
use crate::firecracker::Feature;
use serde::de::DeserializeOwned;

/// What a `GET` answers, with 200.
///
/// What Firecracker says of itself and its guest is read for what is known of it: a later patch may
/// say more. What was configured is read strictly.
pub trait Answer: DeserializeOwned {
    /// Where it is asked for.
    const PATH: &'static str;

    /// What a version may lack.
    const FEATURE: Option<Feature> = None;
}

impl Answer for InstanceInfo {
    const PATH: &'static str = "/";
}

impl Answer for FirecrackerVersion {
    const PATH: &'static str = "/version";
}

impl Answer for VmConfiguration {
    const PATH: &'static str = "/vm/config";
}

impl Answer for MachineConfig {
    const PATH: &'static str = "/machine-config";
}

impl Answer for MmdsData {
    const PATH: &'static str = "/mmds";
}

impl Answer for Balloon {
    const PATH: &'static str = "/balloon";
}

impl Answer for BalloonStatistics {
    const PATH: &'static str = "/balloon/statistics";
}

impl Answer for BalloonHintingStatus {
    const PATH: &'static str = "/balloon/hinting/status";
    const FEATURE: Option<Feature> = Some(Feature::FreePageHinting);
}

impl Answer for MemoryHotplugStatus {
    const PATH: &'static str = "/hotplug/memory";
    const FEATURE: Option<Feature> = Some(Feature::MemoryHotplug);
}
