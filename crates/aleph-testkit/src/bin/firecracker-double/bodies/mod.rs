//! The bodies of requests and answers: names, order and types of fields are the protocol's, as
//! what a refusal says follows from them.

mod device;
mod snapshot;

pub(crate) use device::*;
pub(crate) use snapshot::*;

use crate::gate::{Body, Field, always};
use crate::version::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    pub(crate) kernel_image_path: String,
    pub(crate) initrd_path: Option<String>,
    pub(crate) boot_args: Option<String>,
}
impl Body for BootSource {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) enum HugePages {
    #[default]
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    None,
}

fn no_template(template: &Option<CpuTemplate>) -> bool {
    matches!(template, None | Some(CpuTemplate::None))
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: usize,
    #[serde(default)]
    pub(crate) smt: bool,
    #[serde(default, skip_serializing_if = "no_template")]
    pub(crate) cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: HugePages,
}

impl Body for Machine {
    fn too_new(&self, version: Version) -> Option<(&'static str, &'static [&'static str])> {
        huge_pages_too_new(Some(self.huge_pages), version)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineUpdate {
    pub(crate) vcpu_count: Option<u8>,
    pub(crate) mem_size_mib: Option<usize>,
    pub(crate) smt: Option<bool>,
    pub(crate) cpu_template: Option<CpuTemplate>,
    pub(crate) track_dirty_pages: Option<bool>,
    pub(crate) huge_pages: Option<HugePages>,
}

impl Body for MachineUpdate {
    fn too_new(&self, version: Version) -> Option<(&'static str, &'static [&'static str])> {
        huge_pages_too_new(self.huge_pages, version)
    }
}

impl From<Machine> for MachineUpdate {
    fn from(machine: Machine) -> Self {
        Self {
            vcpu_count: Some(machine.vcpu_count),
            mem_size_mib: Some(machine.mem_size_mib),
            smt: Some(machine.smt),
            cpu_template: machine.cpu_template,
            track_dirty_pages: Some(machine.track_dirty_pages),
            huge_pages: Some(machine.huge_pages),
        }
    }
}

fn huge_pages_too_new(
    pages: Option<HugePages>,
    version: Version,
) -> Option<(&'static str, &'static [&'static str])> {
    let refused = pages == Some(HugePages::Transparent) && !version.has(17);
    refused.then_some(("Transparent", &["None", "2M"]))
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    pub(crate) log_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "level")]
    pub(crate) level: Option<String>,
    pub(crate) show_level: Option<bool>,
    pub(crate) show_log_origin: Option<bool>,
    pub(crate) module: Option<String>,
}
impl Body for Logger {}

fn level<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(reader)? else {
        return Ok(None);
    };
    match crate::logger::Level::parse(&text) {
        Some(_) => Ok(Some(text)),
        None => Err(serde::de::Error::custom("Invalid LevelFilter")),
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Metrics {
    pub(crate) metrics_path: PathBuf,
    #[serde(default)]
    pub(crate) emit_id: bool,
    pub(crate) properties: Option<BTreeMap<String, String>>,
}
impl Body for Metrics {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) enum MmdsVersion {
    #[default]
    V1,
    V2,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MmdsConfig {
    #[serde(default)]
    pub(crate) version: MmdsVersion,
    pub(crate) network_interfaces: Vec<String>,
    pub(crate) ipv4_address: Option<std::net::Ipv4Addr>,
    #[serde(default)]
    pub(crate) imds_compat: bool,
}

impl Body for MmdsConfig {
    const FIELDS: &'static [Field] = &[
        ("version", always),
        ("network_interfaces", always),
        ("ipv4_address", always),
        ("imds_compat", |v| v.has(13)),
    ];
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActionBody {
    pub(crate) action_type: ActionType,
}
impl Body for ActionBody {}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    pub(crate) state: VmState,
}
impl Body for Vm {}

impl Body for Value {}

/// Changes of what the guest's processor shows, which are taken and not made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the emulator's processor is what it is")]
pub(crate) struct CpuConfig {
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<Value>,
    #[serde(default)]
    msr_modifiers: Vec<Value>,
}
impl Body for CpuConfig {}
