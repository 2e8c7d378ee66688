//! What the API tells of a VMM.

use crate::bodies::{
    Balloon, Drive, Entropy, HotplugMemory, Logger, Machine, Metrics, MmdsConfig, Nic, Pmem, Vsock,
};
use crate::fault::Fault;
use crate::version::Version;
use crate::vmm::{Phase, Vmm};
use serde::Serialize;
use serde_json::Value;

/// JSON of something.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|error| error.to_string().into())
}

/// What instance it is, and how far.
pub(crate) fn instance(vmm: &Vmm) -> String {
    let state = match vmm.phase {
        Phase::NotStarted { .. } => "Not started",
        Phase::Running(_) => "Running",
        Phase::Paused { .. } => "Paused",
    };
    format!(
        r#"{{"id":"{}","state":"{state}","vmm_version":"{}","app_name":"Firecracker"}}"#,
        vmm.id, vmm.version
    )
}

/// Which version it is.
pub(crate) fn version(version: Version) -> String {
    format!(r#"{{"firecracker_version":"{version}"}}"#)
}

/// A balloon, in the fields that the version has.
pub(crate) fn balloon(balloon: &Balloon, version: Version) -> Result<String, Fault> {
    if version.has(14) {
        return json(balloon);
    }
    Ok(format!(
        r#"{{"amount_mib":{},"deflate_on_oom":{},"stats_polling_interval_s":{}}}"#,
        balloon.amount_mib, balloon.deflate_on_oom, balloon.stats_polling_interval_s
    ))
}

/// A kernel, or what is left of it after a snapshot was loaded.
#[derive(Debug, Default, Serialize)]
struct Boot<'a> {
    kernel_image_path: &'a str,
    initrd_path: Option<&'a str>,
    boot_args: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Configuration<'a> {
    balloon: Option<&'a Balloon>,
    drives: Vec<&'a Drive>,
    boot_source: Boot<'a>,
    cpu_config: Option<&'a Value>,
    logger: Option<&'a Logger>,
    machine_config: &'a Machine,
    metrics: Option<&'a Metrics>,
    mmds_config: Option<&'a MmdsConfig>,
    network_interfaces: Vec<&'a Nic>,
    vsock: Option<&'a Vsock>,
    entropy: Option<&'a Entropy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pmem: Option<&'a [Pmem]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_hotplug: Option<Option<&'a HotplugMemory>>,
}

/// All that it is configured with.
pub(crate) fn configuration(vmm: &Vmm) -> Result<String, Fault> {
    let all = &vmm.resources;
    let boot = all.boot.as_ref().map(|boot| Boot {
        kernel_image_path: &boot.config.kernel_image_path,
        initrd_path: boot.config.initrd_path.as_deref(),
        boot_args: boot.config.boot_args.as_deref(),
    });
    let later = vmm.version.has(14);
    json(&Configuration {
        balloon: all.balloon.as_ref(),
        drives: all.drives.iter().map(|drive| &drive.config).collect(),
        boot_source: boot.unwrap_or_default(),
        cpu_config: None,
        logger: None,
        machine_config: &all.machine,
        metrics: None,
        mmds_config: all.mmds.as_ref(),
        network_interfaces: all.nics.iter().map(|nic| &nic.config).collect(),
        vsock: all.vsock.as_ref().map(|vsock| &vsock.config),
        entropy: all.entropy.as_ref(),
        pmem: later.then_some(&all.pmem),
        memory_hotplug: later.then_some(all.hotplug.as_ref()),
    })
}
