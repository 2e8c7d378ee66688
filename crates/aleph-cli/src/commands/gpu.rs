//! `aleph gpu`.

use crate::context::Context;
use crate::output::{Column, Listing, plain, print, print_json, print_json_line, say};
use aleph_control::Config;
use aleph_executor::gpu::{
    self, GpuState, Gpus, HostTree, Inventory, MigInstance, Misfit, NvmlReader, PciAddress,
};
use aleph_types::JobId;
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to do with GPUs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Gpu {
    /// List the GPUs of this host
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeConfig,
    },
    /// Take a GPU back, with all that its job has, from a node that is no more
    Release {
        /// Its address, such as 0000:18:00.0
        address: PciAddress,
        /// Print a line of JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeConfig,
    },
    /// Take a GPU out of quarantine, once it can be reset and answers again
    Unquarantine {
        /// Its address, such as 0000:18:00.0
        address: PciAddress,
        /// Print a line of JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeConfig,
    },
}

/// Where the node's settings are.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeConfig {
    /// The node's configuration [default: /etc/aleph/aleph.toml, if it is there]
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "ALEPH_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

/// A row of the list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    /// A GPU, and why no job can have it now.
    Gpu {
        #[serde(flatten)]
        gpu: &'a gpu::Gpu,
        /// None where one can.
        unavailable: Option<String>,
    },
    /// A part of one that MIG divides, and why none can ever.
    Instance {
        /// That of the GPU, and the number of the part.
        address: String,
        #[serde(flatten)]
        part: &'a MigInstance,
        state: &'static str,
        reason: String,
        unavailable: String,
    },
}

impl Gpu {
    /// Works on this host's devices and the record of who has them. Nodes may run or not.
    pub(super) fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Ls { json, node } => {
                let gpus = node.gpus(context)?;
                let inventory = gpus.inventory()?;
                let mut misfits = gpu::misfits(&inventory, &gpus.config().allowed);
                let gpus = listed(&inventory, &mut misfits, gpus.config().enabled);
                if json {
                    print_json(&gpus)?;
                } else {
                    print(table(&gpus))?;
                }
            }
            Self::Release {
                address,
                json,
                node,
            } => {
                let released = node.gpus(context)?.release_device(address)?;
                for (gpu, why) in &released.quarantined {
                    say(&format!(
                        "aleph: {gpu} is in quarantine now: {}",
                        plain(why)
                    ));
                }
                if json {
                    print_json_line(&json!({ "address": address, "assigned": false }))?;
                } else {
                    print(address)?;
                }
            }
            Self::Unquarantine {
                address,
                json,
                node,
            } => {
                node.gpus(context)?.end_quarantine(address)?;
                if json {
                    print_json_line(&json!({ "address": address, "quarantined": false }))?;
                } else {
                    print(address)?;
                }
            }
        }
        Ok(0)
    }
}

impl NodeConfig {
    fn gpus(&self, context: &Context) -> Result<Gpus> {
        if context.api.host.is_some() {
            bail!("GPUs are listed on their own host: say it there, without --host");
        }
        let config = Config::load(self.config.as_deref())?;
        let gpus = Gpus::new(HostTree::default(), config.executor.gpu);
        Ok(gpus.asking(NvmlReader::this()))
    }
}

/// The state of what no job can ever have as it is.
const NOT_PLACEABLE: &str = "not_placeable";

fn listed<'a>(
    inventory: &'a Inventory,
    misfits: &mut BTreeMap<PciAddress, Misfit>,
    enabled: bool,
) -> Vec<Listed<'a>> {
    let is_off = || (!enabled).then(|| "needs enable_gpu = true".to_owned());
    let mut listed = Vec::new();
    for gpu in inventory.gpus() {
        let misfit = misfits.remove(&gpu.address);
        listed.push(Listed::Gpu {
            gpu,
            unavailable: misfit.map(|why| why.to_string()).or_else(is_off),
        });
        let parts = inventory.instances().iter();
        let parts = parts.filter(|part| part.parent == gpu.address);
        listed.extend(parts.map(|part| {
            let reason = Misfit::MigInstance.to_string();
            Listed::Instance {
                address: part.name(),
                part,
                state: NOT_PLACEABLE,
                unavailable: reason.clone(),
                reason,
            }
        }));
    }
    listed
}

fn table(gpus: &[Listed<'_>]) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ADDRESS"),
        Column::Text("TYPE"),
        Column::Number("VRAM"),
        Column::Number("GROUP"),
        Column::Number("NUMA"),
        Column::Text("DRIVER"),
        Column::Text("STATE"),
        Column::Text("NOT FOR JOBS, SINCE IT"),
    ]);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for listed in gpus {
        let (gpu, unavailable) = match listed {
            Listed::Gpu { gpu, unavailable } => (gpu, unavailable),
            Listed::Instance {
                address,
                part,
                reason,
                ..
            } => {
                listing.row([
                    address.clone(),
                    plain(&part.gpu_type),
                    or_none(part.vram.map(|vram| vram.to_string())),
                    or_none(None),
                    or_none(part.numa_node.map(|node| node.to_string())),
                    or_none(part.driver.as_deref().map(plain)),
                    NOT_PLACEABLE.replace('_', " "),
                    plain(reason),
                ]);
                continue;
            }
        };
        let state = match &gpu.state {
            GpuState::Free => "free".to_owned(),
            GpuState::Host => "host".to_owned(),
            GpuState::Assigned { tenant } => format!("of job {}", short(&tenant.job)),
            GpuState::Quarantined { .. } => "quarantined".to_owned(),
        };
        listing.row([
            gpu.address.to_string(),
            plain(&gpu.gpu_type),
            or_none(gpu.vram.map(|vram| vram.to_string())),
            or_none(gpu.iommu_group.map(|group| group.to_string())),
            or_none(gpu.numa_node.map(|node| node.to_string())),
            or_none(gpu.driver.as_deref().map(plain)),
            plain(&state),
            plain(unavailable.as_deref().unwrap_or_default()),
        ]);
    }
    listing
}

/// A job's id as other tables have it.
fn short(job: &str) -> String {
    let id = job.parse::<JobId>();
    id.map_or_else(|_| job.to_owned(), JobId::short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_executor::gpu::{
        Allowed, GpuConfig, Names, Nvml, NvmlError, NvmlGpu, NvmlInstance, Record,
    };
    use std::result::Result;

    const HGX: &str = include_str!("../../../aleph-executor/tests/gpu/hgx_h200.txt");

    #[test]
    fn a_host_with_eight_gpus_lists_them() {
        let dir = tempfile::tempdir().unwrap();
        aleph_testkit::expand_pci_tree(HGX, dir.path()).unwrap();
        let tree = HostTree::recorded(dir.path());
        let inventory = Inventory::read(&tree, &Names::none(), &Record::default()).unwrap();
        let allowed = Allowed {
            devices: None,
            groups: Some((0..40).collect()),
        };
        let mut misfits = gpu::misfits(&inventory, &allowed);
        let off = listed(&inventory, &mut misfits, false);
        let why = off.iter().map(|listed| match listed {
            Listed::Gpu { unavailable, .. } => unavailable.as_deref(),
            Listed::Instance { unavailable, .. } => Some(unavailable.as_str()),
        });
        let why: Vec<_> = why.collect();
        assert_eq!(why[0], Some("shows the console of the host"));
        assert_eq!(why[1], Some("needs enable_gpu = true"));
        let mut misfits = gpu::misfits(&inventory, &allowed);
        let gpus = listed(&inventory, &mut misfits, true);
        insta::assert_snapshot!(table(&gpus).in_width(160), @r"
        ADDRESS       TYPE          VRAM  GROUP  NUMA  DRIVER  STATE  NOT FOR JOBS, SINCE IT
        0000:03:00.0  1a03:2000        -      2     0  ast     host   shows the console of the host
        0000:18:00.0  h200       141 GiB     14     0  nvidia  host
        0000:3a:00.0  h200       141 GiB     20     0  nvidia  host
        0000:4b:00.0  h200       141 GiB     26     0  nvidia  host
        0000:5c:00.0  h200       141 GiB     32     0  nvidia  host
        0000:9a:00.0  h200       141 GiB     38     1  nvidia  host
        0000:ba:00.0  h200       141 GiB     44     1  nvidia  host   is not among gpu_devices and iommu_group
        0000:ca:00.0  h200       141 GiB     50     1  nvidia  host   is not among gpu_devices and iommu_group
        0000:da:00.0  h200       141 GiB     56     1  nvidia  host   is not among gpu_devices and iommu_group
        ");
        let json = serde_json::to_value(&gpus[1]).unwrap();
        for (key, value) in [
            ("address", json!("0000:18:00.0")),
            ("type", json!("h200")),
            ("vram", json!({ "mib": 144_384, "source": "model" })),
            ("iommu_group", json!(14)),
            ("numa_node", json!(0)),
            ("driver", json!("nvidia")),
            ("state", json!("host")),
            ("unavailable", json!(null)),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
    }

    /// NVIDIA's library, which says of one GPU that it is divided.
    #[derive(Debug)]
    struct Divided;

    impl Nvml for Divided {
        fn gpus(&self) -> Result<Vec<NvmlGpu>, NvmlError> {
            let part = |index, profile: &str| NvmlInstance {
                index,
                uuid: Some(format!("MIG-{index}")),
                profile: Some(profile.into()),
                memory: Some(16 << 30),
            };
            Ok(vec![NvmlGpu {
                address: "0000:18:00.0".parse().unwrap(),
                ids: (0x10de, 0x2335),
                uuid: None,
                name: None,
                memory: None,
                mig: Some(true),
                instances: vec![part(0, "1g.18gb"), part(3, "1g.18gb+me")],
            }])
        }
    }

    #[test]
    fn parts_that_mig_makes_are_listed_behind_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        aleph_testkit::expand_pci_tree(HGX, dir.path()).unwrap();
        let gpus = Gpus::new(HostTree::recorded(dir.path()), GpuConfig::default());
        let inventory = gpus.asking(Divided).inventory().unwrap();
        let mut misfits = gpu::misfits(&inventory, &Allowed::default());
        let rows = listed(&inventory, &mut misfits, true);
        let text = table(&rows).in_width(200).to_string();
        let lines: Vec<String> = text
            .lines()
            .skip(2)
            .take(4)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let reason = "is a MIG instance: it reaches a VM only as a vGPU of its maker's host driver";
        assert_eq!(
            lines,
            [
                "0000:18:00.0 h200 141 GiB 14 0 nvidia host is divided by MIG: nvidia-smi -mig 0 ends that",
                &format!("0000:18:00.0/mig0 h200-1g.18gb 16 GiB - 0 nvidia not placeable {reason}"),
                &format!(
                    "0000:18:00.0/mig3 h200-1g.18gb+me 16 GiB - 0 nvidia not placeable {reason}"
                ),
                "0000:3a:00.0 h200 141 GiB 20 0 nvidia host",
            ]
        );
        let json = serde_json::to_value(&rows[2]).unwrap();
        assert_eq!(
            json,
            json!({
                "address": "0000:18:00.0/mig0",
                "parent": "0000:18:00.0",
                "index": 0,
                "type": "h200-1g.18gb",
                "profile": "1g.18gb",
                "uuid": "MIG-0",
                "vram": {"mib": 16384, "source": "nvml"},
                "numa_node": 0,
                "driver": "nvidia",
                "state": "not_placeable",
                "reason": reason,
                "unavailable": reason,
            })
        );
    }
}
