//! All of a guest's configuration: what `GET /vm/config` says, and what a configuration file holds.

use super::{
    Balloon, Body, BootSource, Check, CpuConfig, Drive, EntropyDevice, Logger, MachineConfig,
    MemoryHotplug, Metrics, MmdsConfig, NetworkInterface, Pmem, Vsock,
};
use crate::firecracker::Feature;
use serde::{Deserialize, Serialize};

/// The form of `--config-file`. A Firecracker that is started with one boots its guest at once.
///
/// The serial console and the MMDS's data have no place in it, and in older versions the CPU's
/// configuration has none either. After a load, what `GET /vm/config` says lacks the boot source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmConfiguration {
    /// `/boot-source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// `/drives`.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// `/machine-config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_config: Option<MachineConfig>,
    /// `/cpu-config`. From 1.13 on; before, the file has the name of another one there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<CpuConfig>,
    /// `/balloon`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// `/network-interfaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// `/vsock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// `/logger`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// `/metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// `/mmds/config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// `/entropy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyDevice>,
    /// `/pmem`. From 1.14 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<Pmem>,
    /// `/hotplug/memory`. From 1.14 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplug>,
}

impl Body for VmConfiguration {
    fn check(&self, check: &mut Check) {
        fn part(check: &mut Check, field: &str, body: Option<&impl Body>) {
            if let Some(body) = body {
                check.within(field, |check| body.check(check));
            }
        }
        check.refuse_if("boot-source", self.boot_source.is_none(), "is needed");
        part(check, "boot-source", self.boot_source.as_ref());
        check.each("drives", &self.drives, |check, it| it.check(check));
        part(check, "machine-config", self.machine_config.as_ref());
        if self.cpu_config.is_some() {
            check.uses("cpu-config", Feature::InlineCpuConfig);
        }
        part(check, "cpu-config", self.cpu_config.as_ref());
        part(check, "balloon", self.balloon.as_ref());
        check.each(
            "network-interfaces",
            &self.network_interfaces,
            |check, it| {
                it.check(check);
            },
        );
        part(check, "vsock", self.vsock.as_ref());
        part(check, "logger", self.logger.as_ref());
        part(check, "metrics", self.metrics.as_ref());
        part(check, "mmds-config", self.mmds_config.as_ref());
        part(check, "entropy", self.entropy.as_ref());
        check.each("pmem", &self.pmem, |check, it| it.check(check));
        part(check, "memory-hotplug", self.memory_hotplug.as_ref());
    }
}
