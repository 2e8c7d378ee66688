//! Disks of a computer that runs: what they are, and layers that are put over them.
//!
//! A layer that is put over the disk `disk-S` is the node `disk-S.lN`, by its number N, over the file
//! `disk-S.lfN` of a set of descriptors. The disk's first node has no such number. So QEMU itself knows which
//! layer a guest writes to, over the end of whoever put it there; with the disk's device its nodes and files
//! are taken away, as those of any disk.

use super::blueprint::Device;
use super::error::MachineError;
use crate::hypervisor::{BoxFuture, DiskChain, GuestPort, Layer, LiveDisk, LiveDisks, VmmError};
use crate::qemu::block::secrets_of;
use crate::qemu::driver::QemuVmm;
use crate::qemu::machine::Full;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use tokio::net::UnixStream;

/// What QEMU says where a disk cannot be written out (`QERR_IO_ERROR` in its `qapi/qmp/qerror.h`).
const IO_ERROR: &str = "IO error";

/// What a disk is read from and written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Top {
    /// Its node.
    pub(super) node: String,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// Finds a disk in what QEMU tells of all its block devices.
fn top_in(devices: &Value, id: &str) -> Option<Top> {
    // The device's own part of the path, whatever its kind adds behind it.
    let place = format!("/machine/peripheral/{id}");
    let is_its = |path: &str| {
        path.strip_prefix(&place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut devices = devices.as_array()?.iter();
    let device = devices.find(|device| device["qdev"].as_str().is_some_and(is_its))?;
    let inserted = &device["inserted"];
    Some(Top {
        node: inserted["node-name"].as_str()?.to_owned(),
        size: inserted["image"]["virtual-size"].as_u64()?,
    })
}

/// By which driver QEMU opens a file.
pub(super) fn driver_of(file: &File) -> &'static str {
    let is_device = file
        .metadata()
        .is_ok_and(|meta| meta.file_type().is_block_device());
    match is_device {
        true => "host_device",
        false => "file",
    }
}

/// The number of the layer that a node is.
fn layer_of(node: &str, id: &str) -> Option<i64> {
    node.strip_prefix(id)?.strip_prefix(".l")?.parse().ok()
}

impl QemuVmm {
    /// What a disk is read from and written to; `None` where there is none.
    pub(super) async fn top_of(&self, id: &str) -> Result<Option<Top>, VmmError> {
        Ok(top_in(&self.command("query-block").await?, id))
    }

    /// Puts a layer's nodes in place.
    async fn put_over(
        &self,
        top: &Top,
        id: &str,
        layer: i64,
        cover: Layer,
    ) -> Result<(), VmmError> {
        let name = format!("{id}.l{layer}");
        let driver = driver_of(&cover.file);
        let filename = self.add_file(id, cover.file.into()).await?;
        let file_node = format!("{id}.lf{layer}");
        let node = json!({
            "driver": driver, "node-name": file_node, "filename": filename,
            "read-only": false, "discard": "unmap",
        });
        self.command_with("blockdev-add", node).await?;
        // What its header says is below it is not followed: that is said by what comes next.
        let mut node = json!({
            "driver": "qcow2", "node-name": name, "file": file_node, "backing": null,
            "read-only": false, "discard": "unmap",
        });
        let is_encrypted = cover.key.is_some();
        if let Some(key) = cover.key {
            let secret = format!("{}l{layer}", secrets_of(id));
            self.add_secret(id, &secret, key.into()).await?;
            node["encrypt"] = json!({"format": "luks", "key-secret": secret});
        }
        self.command_with("blockdev-add", node).await?;
        let over = json!({ "node": top.node, "overlay": name });
        self.command_with("blockdev-snapshot", over).await?;
        if is_encrypted {
            // The node has what it needs of it. What stays goes with the disk.
            let _ = self.forget_secrets(id).await;
        }
        Ok(())
    }

    /// Takes away what is left of a layer that was not put in place.
    async fn forget_layer(&self, id: &str, layer: i64) {
        for name in [format!("{id}.l{layer}"), format!("{id}.lf{layer}")] {
            let node = json!({ "node-name": name });
            // Where there is none, that is refused. Its file goes with the disk.
            let _ = self.command_with("blockdev-del", node).await;
        }
    }
}

impl LiveDisks for QemuVmm {
    fn disk<'a>(
        &'a self,
        serial: &'a str,
    ) -> BoxFuture<'a, Result<Option<LiveDisk>, MachineError>> {
        Box::pin(async move {
            let id = Device::Disk(serial.to_owned()).id();
            let top = self.top_of(&id).await?;
            Ok(top.map(|top| LiveDisk {
                size: top.size,
                layer: layer_of(&top.node, &id),
            }))
        })
    }

    fn cover<'a>(
        &'a self,
        serial: &'a str,
        layer: i64,
        cover: Layer,
    ) -> BoxFuture<'a, Result<(), MachineError>> {
        Box::pin(async move {
            let device = Device::Disk(serial.to_owned());
            let id = device.id();
            let _changing = self.changing().await;
            let top = self.top_of(&id).await?.ok_or(MachineError::Unknown {
                what: device.to_string(),
            })?;
            match self.put_over(&top, &id, layer, cover).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    if !error.is_open() {
                        self.forget_layer(&id, layer).await;
                    }
                    Err(match error {
                        // It writes out what is below first, and keeps to itself what it read of the reason.
                        VmmError::Refused { why, .. } if why.contains(IO_ERROR) => {
                            let what = device.to_string();
                            MachineError::Failing { what }
                        }
                        error => error.into(),
                    })
                }
            }
        })
    }

    fn forget<'a>(&'a self, serial: &'a str, layer: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let id = Device::Disk(serial.to_owned()).id();
            let _changing = self.changing().await;
            // QEMU refuses it of a node that is in use.
            self.forget_layer(&id, layer).await;
        })
    }

    fn merge<'a>(
        &'a self,
        serial: &'a str,
        chain: &'a DiskChain,
        merged: Layer,
    ) -> BoxFuture<'a, Result<(), MachineError>> {
        Box::pin(self.read_merged(serial, chain, merged))
    }
}

impl GuestPort for QemuVmm {
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            let name = self.full.as_ref().and_then(Full::guest_port);
            let name = name.ok_or(io::ErrorKind::Unsupported)?;
            crate::socket::connect(&self.run_dir.join(name)).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_device() {
        let disk = |path: &str, node: &str| {
            json!({ "device": "", "qdev": path, "inserted": {
                "node-name": node, "image": { "virtual-size": 4096 } } })
        };
        let devices = json!([
            { "device": "none" },
            disk("/machine/peripheral/disk-a2/virtio-backend", "disk-a2"),
            disk("/machine/peripheral/disk-a/virtio-backend", "disk-a.l17"),
        ]);
        let top = top_in(&devices, "disk-a").unwrap();
        assert_eq!((top.node.as_str(), top.size), ("disk-a.l17", 4096));
        assert_eq!(layer_of(&top.node, "disk-a"), Some(17));
        assert_eq!(layer_of("disk-a2", "disk-a2"), None);
        assert_eq!(layer_of("disk-a.b1", "disk-a"), None);
        assert_eq!(top_in(&devices, "disk-b"), None);
    }
}
