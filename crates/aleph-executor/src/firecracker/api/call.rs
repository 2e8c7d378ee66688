//! The changes that the API makes.

use super::fault::Problem;
use super::{
    Action, Balloon, BalloonHintingStart, BalloonStatisticsUpdate, BalloonUpdate, Body, BootSource,
    Check, CpuConfig, Drive, DriveUpdate, EntropyDevice, Invalid, Logger, MachineConfig,
    MemoryHotplug, MemoryHotplugUpdate, Metrics, MmdsConfig, MmdsData, NetworkInterface,
    NetworkInterfaceUpdate, Pmem, PmemUpdate, Serial, SnapshotCreate, SnapshotLoad, VmState, Vsock,
};
use crate::firecracker::{Feature, Version};
use bytes::Bytes;
use std::fmt;

/// The longest body that a Firecracker takes that was not told otherwise
/// (`--http-api-max-payload-size`). The MMDS's data has the same limit in all.
pub const MAX_PAYLOAD: usize = 51_200;

/// A method of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Asks.
    Get,
    /// Sets.
    Put,
    /// Changes.
    Patch,
    /// Takes away.
    Delete,
}

impl Method {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request of HTTP, valid for the version that it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub method: Method,
    /// To what; it needs no encoding.
    pub path: String,
    /// How: JSON of at most [`MAX_PAYLOAD`] bytes.
    pub body: Option<Bytes>,
}

/// One change, which Firecracker answers with 204.
///
/// Most are for the time before the guest boots. Those that end in `Update`, the deletions, the
/// balloon's and [`Call::VmState`] are for the time after; [`Call::SnapshotCreate`] is for a paused
/// guest. Drives, network interfaces and pmem devices can be put after boot with
/// [`Feature::DeviceHotplug`].
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `PUT /logger`
    Logger(Logger),
    /// `PUT /metrics`
    Metrics(Metrics),
    /// `PUT /serial`
    Serial(Serial),
    /// `PUT /machine-config`
    MachineConfig(MachineConfig),
    /// `PUT /cpu-config`
    CpuConfig(CpuConfig),
    /// `PUT /boot-source`
    BootSource(BootSource),
    /// `PUT /drives/{drive_id}`
    Drive(Drive),
    /// `PATCH /drives/{drive_id}`
    DriveUpdate(DriveUpdate),
    /// `DELETE /drives/{drive_id}`
    DriveDelete(String),
    /// `PUT /network-interfaces/{iface_id}`
    NetworkInterface(NetworkInterface),
    /// `PATCH /network-interfaces/{iface_id}`
    NetworkInterfaceUpdate(NetworkInterfaceUpdate),
    /// `DELETE /network-interfaces/{iface_id}`
    NetworkInterfaceDelete(String),
    /// `PUT /pmem/{id}`
    Pmem(Pmem),
    /// `PATCH /pmem/{id}`
    PmemUpdate(PmemUpdate),
    /// `DELETE /pmem/{id}`
    PmemDelete(String),
    /// `PUT /vsock`
    Vsock(Vsock),
    /// `PUT /entropy`
    Entropy(EntropyDevice),
    /// `PUT /balloon`
    Balloon(Balloon),
    /// `PATCH /balloon`
    BalloonUpdate(BalloonUpdate),
    /// `PATCH /balloon/statistics`
    BalloonStatisticsUpdate(BalloonStatisticsUpdate),
    /// `PATCH /balloon/hinting/start`
    BalloonHintingStart(BalloonHintingStart),
    /// `PATCH /balloon/hinting/stop`
    BalloonHintingStop,
    /// `PUT /hotplug/memory`
    MemoryHotplug(MemoryHotplug),
    /// `PATCH /hotplug/memory`
    MemoryHotplugUpdate(MemoryHotplugUpdate),
    /// `PUT /mmds/config`
    MmdsConfig(MmdsConfig),
    /// `PUT /mmds`
    MmdsData(MmdsData),
    /// `PATCH /mmds`, as RFC 7396 says
    MmdsDataUpdate(MmdsData),
    /// `PUT /actions`
    Action(Action),
    /// `PATCH /vm`
    VmState(VmState),
    /// `PUT /snapshot/create`
    SnapshotCreate(SnapshotCreate),
    /// `PUT /snapshot/load`
    SnapshotLoad(SnapshotLoad),
}

impl Call {
    /// Its method.
    #[must_use]
    pub const fn method(&self) -> Method {
        match self {
            Self::DriveUpdate(_)
            | Self::NetworkInterfaceUpdate(_)
            | Self::PmemUpdate(_)
            | Self::BalloonUpdate(_)
            | Self::BalloonStatisticsUpdate(_)
            | Self::BalloonHintingStart(_)
            | Self::BalloonHintingStop
            | Self::MemoryHotplugUpdate(_)
            | Self::MmdsDataUpdate(_)
            | Self::VmState(_) => Method::Patch,
            Self::DriveDelete(_) | Self::NetworkInterfaceDelete(_) | Self::PmemDelete(_) => {
                Method::Delete
            }
            _ => Method::Put,
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        let (resource, id) = match self {
            Self::Logger(_) => ("/logger", None),
            Self::Metrics(_) => ("/metrics", None),
            Self::Serial(_) => ("/serial", None),
            Self::MachineConfig(_) => ("/machine-config", None),
            Self::CpuConfig(_) => ("/cpu-config", None),
            Self::BootSource(_) => ("/boot-source", None),
            Self::Drive(drive) => ("/drives", Some(&drive.drive_id)),
            Self::DriveUpdate(drive) => ("/drives", Some(&drive.drive_id)),
            Self::DriveDelete(id) => ("/drives", Some(id)),
            Self::NetworkInterface(it) => ("/network-interfaces", Some(&it.iface_id)),
            Self::NetworkInterfaceUpdate(it) => ("/network-interfaces", Some(&it.iface_id)),
            Self::NetworkInterfaceDelete(id) => ("/network-interfaces", Some(id)),
            Self::Pmem(pmem) => ("/pmem", Some(&pmem.id)),
            Self::PmemUpdate(pmem) => ("/pmem", Some(&pmem.id)),
            Self::PmemDelete(id) => ("/pmem", Some(id)),
            Self::Vsock(_) => ("/vsock", None),
            Self::Entropy(_) => ("/entropy", None),
            Self::Balloon(_) | Self::BalloonUpdate(_) => ("/balloon", None),
            Self::BalloonStatisticsUpdate(_) => ("/balloon/statistics", None),
            Self::BalloonHintingStart(_) => ("/balloon/hinting/start", None),
            Self::BalloonHintingStop => ("/balloon/hinting/stop", None),
            Self::MemoryHotplug(_) | Self::MemoryHotplugUpdate(_) => ("/hotplug/memory", None),
            Self::MmdsConfig(_) => ("/mmds/config", None),
            Self::MmdsData(_) | Self::MmdsDataUpdate(_) => ("/mmds", None),
            Self::Action(_) => ("/actions", None),
            Self::VmState(_) => ("/vm", None),
            Self::SnapshotCreate(_) => ("/snapshot/create", None),
            Self::SnapshotLoad(_) => ("/snapshot/load", None),
        };
        match id {
            Some(id) => format!("{resource}/{id}"),
            None => resource.to_owned(),
        }
    }

    /// The request for a version.
    ///
    /// # Errors
    /// [`Invalid`], with all that is wrong with it for that version.
    pub fn request(&self, version: Version) -> Result<Request, Invalid> {
        self.validate(version)?;
        let body = self.body(version).transpose();
        let mut check = Check::new(version);
        match &body {
            Ok(Some(body)) if body.len() > MAX_PAYLOAD => {
                let (bytes, max) = (body.len(), MAX_PAYLOAD);
                check.fault("", Problem::TooLong { bytes, max });
            }
            Ok(_) => {}
            // Paths that are not UTF-8 are all that JSON cannot hold, and those are found above.
            Err(_) => check.fault("", Problem::NotUtf8),
        }
        check.end()?;
        Ok(Request {
            method: self.method(),
            path: self.path(),
            body: body.ok().flatten().map(Bytes::from),
        })
    }

    fn body(&self, version: Version) -> Option<Result<Vec<u8>, serde_json::Error>> {
        use serde_json::to_vec;
        Some(match self {
            Self::Logger(it) => to_vec(it),
            Self::Metrics(it) => to_vec(it),
            Self::Serial(it) => to_vec(it),
            Self::MachineConfig(it) => to_vec(it),
            Self::CpuConfig(it) => to_vec(it),
            Self::BootSource(it) => to_vec(it),
            Self::Drive(it) => to_vec(it),
            Self::DriveUpdate(it) => to_vec(it),
            Self::NetworkInterface(it) => to_vec(it),
            Self::NetworkInterfaceUpdate(it) => to_vec(it),
            Self::Pmem(it) => to_vec(it),
            Self::PmemUpdate(it) => to_vec(it),
            Self::Vsock(it) => to_vec(it),
            Self::Entropy(it) => to_vec(it),
            Self::Balloon(it) => to_vec(it),
            Self::BalloonUpdate(it) => to_vec(it),
            Self::BalloonStatisticsUpdate(it) => to_vec(it),
            Self::BalloonHintingStart(it) => to_vec(it),
            Self::MemoryHotplug(it) => to_vec(it),
            Self::MemoryHotplugUpdate(it) => to_vec(it),
            Self::MmdsConfig(it) => to_vec(it),
            Self::MmdsData(it) | Self::MmdsDataUpdate(it) => to_vec(it),
            Self::Action(it) => to_vec(it),
            Self::VmState(it) => to_vec(it),
            Self::SnapshotCreate(it) => to_vec(it),
            Self::SnapshotLoad(it) => to_vec(&it.for_version(version)),
            Self::BalloonHintingStop
            | Self::DriveDelete(_)
            | Self::NetworkInterfaceDelete(_)
            | Self::PmemDelete(_) => return None,
        })
    }
}

impl Body for Call {
    fn check(&self, check: &mut Check) {
        match self {
            Self::Logger(it) => it.check(check),
            Self::Metrics(it) => it.check(check),
            Self::Serial(it) => it.check(check),
            Self::MachineConfig(it) => it.check(check),
            Self::CpuConfig(it) => it.check(check),
            Self::BootSource(it) => it.check(check),
            Self::Drive(it) => it.check(check),
            Self::DriveUpdate(it) => it.check(check),
            Self::NetworkInterface(it) => it.check(check),
            Self::NetworkInterfaceUpdate(it) => it.check(check),
            Self::Pmem(it) => it.check(check),
            Self::PmemUpdate(it) => it.check(check),
            Self::Vsock(it) => it.check(check),
            Self::Entropy(it) => it.check(check),
            Self::Balloon(it) => it.check(check),
            Self::BalloonUpdate(it) => it.check(check),
            Self::BalloonStatisticsUpdate(it) => it.check(check),
            Self::BalloonHintingStart(it) => it.check(check),
            Self::BalloonHintingStop => check.uses("", Feature::FreePageHinting),
            Self::MemoryHotplug(it) => it.check(check),
            Self::MemoryHotplugUpdate(it) => it.check(check),
            Self::MmdsConfig(it) => it.check(check),
            Self::MmdsData(it) | Self::MmdsDataUpdate(it) => it.check(check),
            Self::Action(it) => it.check(check),
            Self::VmState(it) => it.check(check),
            Self::SnapshotCreate(it) => it.check(check),
            Self::SnapshotLoad(it) => it.check(check),
            Self::DriveDelete(id) => deletion(check, "drive_id", id),
            Self::NetworkInterfaceDelete(id) => deletion(check, "iface_id", id),
            Self::PmemDelete(id) => deletion(check, "id", id),
        }
    }
}

fn deletion(check: &mut Check, field: &str, id: &str) {
    check.uses("", Feature::DeviceHotplug);
    check.id(field, id);
}
