//! Layers of a disk of a computer that runs, in the place of which it reads another one.
//!
//! The new layer is the node `disk-S.lN` over the file `disk-S.lfN`, as those are that are put over a disk
//! ([`live_disks`](super::live_disks)), but to be read only. It is set over the node that stays below it, and
//! then the one that stays over it is opened anew (`blockdev-reopen`) with the new one below it. QEMU holds
//! what is written back for that moment, writes out what it has of that node, and does all of it or nothing. At
//! last the nodes that nothing reads through any more go, and their files are closed.
//!
//! Done again, each step finds what it did: so whoever does not know how far somebody came does it again.
//!
//! # Which node is which layer
//! Layers that were put over a disk, or into it, have their numbers in their nodes' names. Those that it came
//! with are counted from the lowest one up, which is never taken out: `disk-S.bK` is the lowest, and the layer
//! that the guest wrote to first is `disk-S`. One whose node is missing is nobody's: nothing is set over it.

use super::blueprint::Device;
use super::error::MachineError;
use super::live_disks::driver_of;
use crate::hypervisor::{DiskChain, Layer, LayerOrigin, VmmError};
use crate::qemu::block::secrets_of;
use crate::qemu::driver::QemuVmm;
use serde_json::json;
use std::collections::BTreeMap;

/// What QEMU tells of a node.
#[derive(Debug, Clone, Default)]
struct Node {
    filename: String,
    is_read_only: bool,
}

/// The nodes that there are, by their names.
type Nodes = BTreeMap<String, Node>;

/// A layer's node, and that of its file where it has one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    node: String,
    file: Option<String>,
    /// By which name QEMU knows its key.
    secret: String,
}

/// The nodes of a disk's layers, in their order; `None` for one that there is not.
fn named(chain: &DiskChain, id: &str, there: &Nodes) -> Vec<Option<Named>> {
    let number = |name: &str| name.strip_prefix(id)?.strip_prefix(".b")?.parse().ok();
    let lowest: usize = there
        .keys()
        .filter_map(|name| number(name))
        .max()
        .unwrap_or(0);
    let mut below = 0;
    let mut found: Vec<_> = chain
        .layers
        .iter()
        .rev()
        .map(|layer| {
            let put = format!("{id}.l{}", layer.number);
            let (node, file, key) = match layer.origin {
                _ if there.contains_key(&put) => {
                    let n = layer.number;
                    (put, format!("{id}.lf{n}"), format!("l{n}"))
                }
                LayerOrigin::Put => return None,
                LayerOrigin::First => (id.to_owned(), format!("{id}.f0"), "0".to_owned()),
                LayerOrigin::Below => {
                    // There is one at least that is none of those below what was written first.
                    let n = lowest.checked_sub(below).filter(|n| *n > 0)?;
                    below += 1;
                    (format!("{id}.b{n}"), format!("{id}.f{n}"), n.to_string())
                }
            };
            there.contains_key(&node).then(|| Named {
                node,
                file: there.contains_key(&file).then_some(file),
                secret: format!("{}{key}", secrets_of(id)),
            })
        })
        .collect();
    found.reverse();
    found
}

impl QemuVmm {
    pub(super) async fn read_merged(
        &self,
        serial: &str,
        chain: &DiskChain,
        merged: Layer,
    ) -> Result<(), MachineError> {
        let device = Device::Disk(serial.to_owned());
        let id = device.id();
        let unknown = || MachineError::Unknown {
            what: device.to_string(),
        };
        let _changing = self.changing().await;
        self.top_of(&id).await?.ok_or_else(unknown)?;
        let there = self.nodes_there().await?;
        let names = named(chain, &id, &there);
        let end = chain.over + 1 + chain.holds;
        let (Some(Some(over)), Some(held), Some(Some(below))) = (
            names.get(chain.over),
            names.get(chain.over + 1..end),
            names.get(end),
        ) else {
            return Err(MachineError::Unknown {
                what: format!("{device} of these layers"),
            });
        };
        let (node, file) = (
            format!("{id}.l{}", chain.merged),
            format!("{id}.lf{}", chain.merged),
        );
        if !there.contains_key(&node) {
            let put = self.put_in(&id, chain.merged, &below.node, merged).await;
            if let Err(error) = put {
                self.forget_merged(&error, &node, &file).await;
                return Err(error.into());
            }
        }
        // All that it was opened with: what is left out would be as if it never was said. QEMU has it read only
        // where another layer was put over it.
        let is_read_only = there.get(&over.node).is_some_and(|node| node.is_read_only);
        let mut options = json!({
            "driver": "qcow2", "node-name": over.node, "file": over.file, "backing": node,
            "read-only": is_read_only, "discard": "unmap",
        });
        if chain.is_encrypted {
            options["encrypt"] = json!({"format": "luks", "key-secret": over.secret});
        }
        let reopened = json!({ "options": [options] });
        if let Err(error) = self.command_with("blockdev-reopen", reopened).await {
            self.forget_merged(&error, &node, &file).await;
            return Err(error.into());
        }
        // What is missing was closed before.
        let held: Vec<&Named> = held.iter().flatten().collect();
        self.close_layers(&held, &there).await;
        Ok(())
    }

    async fn nodes_there(&self) -> Result<Nodes, VmmError> {
        let nodes = self.nodes().await?.into_iter();
        let nodes = nodes.filter_map(|node| {
            let name = node["node-name"].as_str()?.to_owned();
            let is_read_only = node["ro"].as_bool().unwrap_or_default();
            let filename = node["file"].as_str().unwrap_or_default().to_owned();
            let node = Node {
                filename,
                is_read_only,
            };
            Some((name, node))
        });
        Ok(nodes.collect())
    }

    /// Makes a layer's nodes, over one that stays.
    async fn put_in(
        &self,
        id: &str,
        number: i64,
        below: &str,
        layer: Layer,
    ) -> Result<(), VmmError> {
        let driver = driver_of(&layer.file);
        let filename = self.add_file(id, layer.file.into()).await?;
        let file = format!("{id}.lf{number}");
        let node = json!({
            "driver": driver, "node-name": file, "filename": filename,
            "read-only": true, "discard": "ignore",
        });
        self.command_with("blockdev-add", node).await?;
        let mut node = json!({
            "driver": "qcow2", "node-name": format!("{id}.l{number}"), "file": file,
            "backing": below, "read-only": true, "discard": "ignore",
        });
        if let Some(key) = layer.key {
            let secret = format!("{}l{number}", secrets_of(id));
            self.add_secret(id, &secret, key.into()).await?;
            node["encrypt"] = json!({"format": "luks", "key-secret": secret});
        }
        let added = self.command_with("blockdev-add", node).await;
        // The node has what it needs of it. What stays goes with the disk.
        let _ = self.forget_secrets(id).await;
        added.map(drop)
    }

    /// Takes the nodes of a layer away that nothing reads through. What was not answered may be carried out yet.
    async fn forget_merged(&self, why: &VmmError, node: &str, file: &str) {
        if why.is_open() {
            return;
        }
        let there = self.nodes_there().await.unwrap_or_default();
        let layer = Named {
            node: node.to_owned(),
            file: Some(file.to_owned()),
            secret: String::new(),
        };
        self.close_layers(&[&layer], &there).await;
    }

    /// Takes nodes away from the top down, and closes their files. One that is still used stays, and goes with
    /// its disk.
    async fn close_layers(&self, layers: &[&Named], there: &Nodes) {
        for layer in layers {
            for name in [Some(&layer.node), layer.file.as_ref()]
                .into_iter()
                .flatten()
            {
                let Some(there) = there.get(name) else {
                    continue;
                };
                let node = json!({ "node-name": name });
                if let Err(error) = self.command_with("blockdev-del", node).await {
                    tracing::debug!(node = %name, %error, "a layer's node stays");
                    break;
                }
                let is_file = layer.file.as_ref().is_none_or(|file| file == name);
                if let (true, Some(set)) = (is_file, set_of(&there.filename)) {
                    // Where it is gone already, that is refused.
                    let set = json!({ "fdset-id": set });
                    let _ = self.command_with("remove-fd", set).await;
                }
            }
        }
    }
}

/// The set of descriptors that a file's name stands for.
fn set_of(filename: &str) -> Option<u64> {
    filename.strip_prefix("/dev/fdset/")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::DiskLayer;

    fn there(names: &[&str]) -> Nodes {
        let named = names.iter();
        named
            .map(|name| ((*name).to_owned(), Node::default()))
            .collect()
    }

    fn chain(layers: &[(i64, LayerOrigin)]) -> DiskChain {
        let layers = layers.iter().map(|(number, origin)| DiskLayer {
            number: *number,
            origin: *origin,
        });
        DiskChain {
            layers: layers.collect(),
            over: 0,
            holds: 1,
            merged: 0,
            is_encrypted: false,
        }
    }

    /// The ends of the nodes' names; `-` where there is none.
    fn names(layers: &[(i64, LayerOrigin)], nodes: &[&str]) -> String {
        let named = named(&chain(layers), "disk-a", &there(nodes)).into_iter();
        let ends = named.map(|layer| match layer {
            Some(layer) => layer.node.replace("disk-a", ""),
            None => "-".to_owned(),
        });
        ends.collect::<Vec<_>>().join(" ")
    }

    const OLD: LayerOrigin = LayerOrigin::Below;
    const FIRST: LayerOrigin = LayerOrigin::First;
    const PUT: LayerOrigin = LayerOrigin::Put;

    #[test]
    fn each_layer_has_its_node() {
        // Put over a disk of one file.
        let nodes = [
            "disk-a",
            "disk-a.l7",
            "disk-a.lf7",
            "disk-a.l9",
            "disk-b.b4",
        ];
        let layers = [(9, PUT), (7, PUT), (2, FIRST)];
        assert_eq!(names(&layers, &nodes), ".l9 .l7 ");
        // Put over one that came with three others.
        let nodes = [
            "disk-a",
            "disk-a.f0",
            "disk-a.b1",
            "disk-a.b2",
            "disk-a.b3",
            "disk-a.l9",
        ];
        let layers = [(9, PUT), (5, FIRST), (4, OLD), (3, OLD), (1, OLD)];
        assert_eq!(names(&layers, &nodes), ".l9  .b1 .b2 .b3");
        // What it wrote to first and the next one were merged into 12.
        let nodes = ["disk-a.b2", "disk-a.b3", "disk-a.l9", "disk-a.l12"];
        let layers = [(9, PUT), (12, OLD), (3, OLD), (1, OLD)];
        assert_eq!(names(&layers, &nodes), ".l9 .l12 .b2 .b3");
        // As they came with the next start.
        let nodes = [
            "disk-a",
            "disk-a.b1",
            "disk-a.b2",
            "disk-a.b3",
            "disk-a.l20",
        ];
        let layers = [(20, PUT), (9, FIRST), (12, OLD), (3, OLD), (1, OLD)];
        assert_eq!(names(&layers, &nodes), ".l20  .b1 .b2 .b3");
    }

    #[test]
    fn a_layer_whose_node_is_missing_is_no_other_one() {
        // Closed before the records said so: 7, and what was written first.
        let nodes = ["disk-a.b1", "disk-a.l9", "disk-a.l12"];
        let layers = [(9, PUT), (7, PUT), (2, FIRST), (1, OLD)];
        assert_eq!(names(&layers, &nodes), ".l9 - - .b1");
        // More than it ever came with.
        let layers = [(9, PUT), (2, FIRST), (1, OLD), (0, OLD)];
        assert_eq!(names(&layers, &nodes), ".l9 - - .b1");
    }

    #[test]
    fn a_layer_has_its_file_and_its_key() {
        let nodes = [
            "disk-a",
            "disk-a.f0",
            "disk-a.b1",
            "disk-a.l9",
            "disk-a.lf9",
        ];
        let layers = chain(&[(9, PUT), (5, FIRST), (1, OLD)]);
        let found: Vec<_> = named(&layers, "disk-a", &there(&nodes))
            .into_iter()
            .map(Option::unwrap)
            .collect();
        let files: Vec<_> = found.iter().map(|layer| layer.file.as_deref()).collect();
        assert_eq!(files, [Some("disk-a.lf9"), Some("disk-a.f0"), None]);
        let secrets: Vec<_> = found.iter().map(|layer| layer.secret.as_str()).collect();
        assert_eq!(secrets, ["disk-a.kl9", "disk-a.k0", "disk-a.k1"]);
        assert_eq!(set_of("/dev/fdset/12"), Some(12));
        assert_eq!(set_of("/dev/vg/lv"), None);
    }
}
