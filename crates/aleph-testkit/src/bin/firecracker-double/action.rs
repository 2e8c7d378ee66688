//! What can be asked of the API.

use crate::bodies::{
    Balloon, BalloonStatisticsUpdate, BalloonUpdate, BootSource, CreateSnapshot, Drive,
    DriveUpdate, Entropy, HotplugMemory, LoadSnapshot, Logger, MachineUpdate, MemoryBackend,
    Metrics, MmdsConfig, Nic, NicUpdate, Pmem, PmemUpdate, Serial, Vsock,
};
use serde_json::Value;

/// What can be asked for.
#[derive(Debug)]
pub(crate) enum Action {
    Info,
    Version,
    FullConfig,
    MachineConfig,
    BalloonConfig,
    BalloonStatistics,
    HintingStatus,
    Mmds,
    HotplugMemory,
    SetBootSource(BootSource),
    SetLogger(Logger),
    SetMetrics(Metrics),
    SetSerial(Serial),
    SetCpuConfig,
    SetMachine(MachineUpdate),
    SetDrive(Drive),
    SetNic(Nic),
    SetPmem(Pmem),
    SetVsock(Vsock),
    SetEntropy(Entropy),
    SetBalloon(Balloon),
    SetMmdsConfig(MmdsConfig),
    SetHotplugMemory(HotplugMemory),
    PutMmds(Value),
    PatchMmds(Value),
    Start,
    FlushMetrics,
    CtrlAltDel,
    Pause,
    Resume,
    CreateSnapshot(CreateSnapshot),
    LoadSnapshot(LoadSnapshot, MemoryBackend),
    UpdateDrive(DriveUpdate),
    UpdateNic(NicUpdate),
    UpdatePmem(PmemUpdate),
    UpdateBalloon(BalloonUpdate),
    UpdateBalloonStatistics(BalloonStatisticsUpdate),
    StartHinting,
    StopHinting,
    UpdateHotplugMemory,
    Unplug(Kind, String),
}

impl Action {
    /// Where metrics count it: the group and the name there.
    pub(crate) fn counted(&self) -> (&'static str, &'static str) {
        const PUT: &str = "put_api_requests";
        const PATCH: &str = "patch_api_requests";
        const GET: &str = "get_api_requests";
        match self {
            Self::Info => (GET, "instance_info_count"),
            Self::Version => (GET, "vmm_version_count"),
            Self::MachineConfig => (GET, "machine_cfg_count"),
            Self::Mmds => (GET, "mmds_count"),
            Self::FullConfig => (GET, "vm_config_count"),
            Self::BalloonConfig | Self::BalloonStatistics | Self::HintingStatus => {
                (GET, "balloon_count")
            }
            Self::HotplugMemory => (GET, "hotplug_memory_count"),
            Self::SetBootSource(_) => (PUT, "boot_source_count"),
            Self::SetLogger(_) => (PUT, "logger_count"),
            Self::SetMetrics(_) => (PUT, "metrics_count"),
            Self::SetSerial(_) => (PUT, "serial_count"),
            Self::SetCpuConfig => (PUT, "cpu_cfg_count"),
            Self::SetMachine(_) => (PUT, "machine_cfg_count"),
            Self::SetDrive(_) => (PUT, "drive_count"),
            Self::SetNic(_) => (PUT, "network_count"),
            Self::SetPmem(_) => (PUT, "pmem_count"),
            Self::SetVsock(_) => (PUT, "vsock_count"),
            Self::SetEntropy(_) => (PUT, "entropy_count"),
            Self::SetBalloon(_) => (PUT, "balloon_count"),
            Self::SetMmdsConfig(_) | Self::PutMmds(_) => (PUT, "mmds_count"),
            Self::SetHotplugMemory(_) => (PUT, "hotplug_memory_count"),
            Self::Start | Self::FlushMetrics | Self::CtrlAltDel => (PUT, "actions_count"),
            Self::CreateSnapshot(_) | Self::LoadSnapshot(..) => (PUT, "snapshot_count"),
            Self::PatchMmds(_) => (PATCH, "mmds_count"),
            Self::Pause | Self::Resume => (PATCH, "vm_count"),
            Self::UpdateDrive(_) => (PATCH, "drive_count"),
            Self::UpdateNic(_) => (PATCH, "network_count"),
            Self::UpdatePmem(_) => (PATCH, "pmem_count"),
            Self::UpdateHotplugMemory => (PATCH, "hotplug_memory_count"),
            Self::UpdateBalloon(_)
            | Self::UpdateBalloonStatistics(_)
            | Self::StartHinting
            | Self::StopHinting => (PATCH, "balloon_count"),
            Self::Unplug(..) => ("delete_api_requests", "device_count"),
        }
    }
}

/// Kinds of devices that can be unplugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Drive,
    Pmem,
    Nic,
}
