//! Changing a computer that runs.
//!
//! QEMU itself is asked which slots are free and which disks there are: so nothing is kept beside it that
//! could be wrong after a restart of the node, or where an earlier change was given up half-way. What is
//! left of such a one is taken away before the next one of the same name.
//!
//! A device is gone when QEMU's list of them lacks it (QEMU tells it by an event too, `DEVICE_DELETED`,
//! which is lost where nobody is connected). Linux lets go of any disk, and says nothing where its driver
//! does not answer: waiting has a bound.

use super::argv::port;
use super::blueprint::{Blueprint, Device};
use super::error::MachineError;
use crate::hypervisor::{BoxFuture, Disk, Hotplug, MachineSize, Nic, VmmError};
use crate::process::path_of_file;
use crate::qemu::argv::mac_text;
use crate::qemu::block::{self, Drive, secrets_of};
use crate::qemu::driver::QemuVmm;
use aleph_types::MiB;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::time::Instant;

/// The path of devices that have a name.
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// The path of objects that are no devices.
pub(super) const OBJECTS: &str = "/objects";

/// How often it is looked whether a device is gone.
const LOOK: Duration = Duration::from_millis(20);

/// How often a guest that keeps a device is asked again: one that booted meanwhile has not heard.
const AGAIN: Duration = Duration::from_secs(5);

/// How long files of a device may stay in use after it is gone.
const RELEASE: Duration = Duration::from_secs(5);

impl Hotplug for QemuVmm {
    fn attach_disk(&self, disk: Disk) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async move {
            let serial = disk.serial.clone();
            let device = Device::Disk(serial.to_string());
            let id = device.id();
            let drive = Drive::of(&disk)?;
            let (layers, read_only) = (drive.layers.clone(), drive.read_only);
            let _changing = self.changing().await;
            let slot = self.free_slot_for(&device).await?;
            self.forget_disk(&id).await?;
            let attached = async {
                let drive = Drive {
                    serial: &serial,
                    read_only,
                    layers,
                };
                let mut files = Vec::with_capacity(drive.layers.len());
                let mut secrets = drive.secrets(&id).into_iter();
                for file in block::files(disk) {
                    if files.len() < drive.layers.len() {
                        files.push(self.add_file(&id, file).await?);
                    } else if let Some(secret) = secrets.next() {
                        self.add_secret(&id, &secret, file).await?;
                    }
                }
                files.reverse();
                for node in drive.nodes(&id, || files.pop().unwrap_or_default()) {
                    self.command_with("blockdev-add", node).await?;
                }
                let device = json!({
                    "driver": "virtio-blk-pci",
                    "id": id,
                    "bus": port(slot),
                    "drive": id,
                    "serial": serial,
                    "werror": "enospc",
                    "rerror": "report",
                });
                self.command_with("device_add", device).await?;
                // The nodes have what they need of them.
                self.forget_secrets(&id).await
            };
            if let Err(error) = attached.await {
                // What was not answered may be carried out yet: the next change of this disk looks.
                if !error.is_open() {
                    let _ = self.forget_disk(&id).await;
                }
                return Err(error.into());
            }
            Ok(())
        })
    }

    fn detach_disk<'a>(
        &'a self,
        serial: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<(), MachineError>> {
        Box::pin(async move {
            let device = Device::Disk(serial.to_owned());
            self.unplug(&device, limit).await?;
            let end = Instant::now() + RELEASE;
            loop {
                let _changing = self.changing().await;
                // Somebody has attached another one of this name meanwhile.
                if self.is_there(&device.id()).await? {
                    return Ok(());
                }
                match self.forget_disk(&device.id()).await {
                    Ok(()) => return Ok(()),
                    // What the device still had in flight ends meanwhile.
                    Err(_) if Instant::now() < end => tokio::time::sleep(LOOK).await,
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }

    fn resize_disk<'a>(
        &'a self,
        serial: &'a str,
        bytes: u64,
    ) -> BoxFuture<'a, Result<(), MachineError>> {
        Box::pin(async move {
            let device = Device::Disk(serial.to_owned());
            let _changing = self.changing().await;
            let unknown = || MachineError::Unknown {
                what: device.to_string(),
            };
            let top = self.top_of(&device.id()).await?.ok_or_else(unknown)?;
            let size = top.size;
            if bytes < size {
                return Err(MachineError::Disk {
                    serial: serial.to_owned(),
                    why: format!("it has {size} bytes, and disks do not get smaller"),
                });
            }
            let size = json!({ "node-name": top.node, "size": bytes });
            Ok(self.command_with("block_resize", size).await.map(drop)?)
        })
    }

    fn attach_nic(&self, nic: Nic) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async move {
            let device = Device::Nic(nic.mac);
            let id = device.id();
            if nic.queues.is_empty() {
                let why = "a network device without a queue".into();
                return Err(MachineError::Invalid(why));
            }
            let _changing = self.changing().await;
            let slot = self.free_slot_for(&device).await?;
            self.forget_nic(&id).await;
            let queues = nic.queues.len();
            let attached = async {
                let mut names = Vec::with_capacity(queues);
                for (n, queue) in nic.queues.into_iter().enumerate() {
                    let name = format!("{id}-{n}");
                    self.hand_over("getfd", json!({ "fdname": name }), queue)
                        .await?;
                    names.push(name);
                }
                let end = json!({
                    "type": "tap",
                    "id": id,
                    if queues == 1 { "fd" } else { "fds" }: names.join(":"),
                    "vhost": false,
                });
                self.command_with("netdev_add", end).await?;
                let mut device = json!({
                    "driver": "virtio-net-pci",
                    "id": id,
                    "bus": port(slot),
                    "netdev": id,
                    "mac": mac_text(nic.mac),
                    "romfile": "",
                });
                if queues > 1 {
                    device["mq"] = true.into();
                    device["vectors"] = (2 * queues + 2).into();
                }
                self.command_with("device_add", device).await
            };
            if let Err(error) = attached.await {
                self.forget_nic(&id).await;
                for n in 0..queues {
                    let name = json!({ "fdname": format!("{id}-{n}") });
                    let _ = self.command_with("closefd", name).await;
                }
                return Err(error.into());
            }
            Ok(())
        })
    }

    fn detach_nic(&self, mac: [u8; 6], limit: Duration) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(async move {
            let device = Device::Nic(mac);
            self.unplug(&device, limit).await?;
            let _changing = self.changing().await;
            if !self.is_there(&device.id()).await? {
                self.forget_nic(&device.id()).await;
            }
            Ok(())
        })
    }

    fn add_memory(&self, memory: MiB) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(self.plug_memory(memory))
    }

    fn add_cpus(&self, cpus: u16) -> BoxFuture<'_, Result<(), MachineError>> {
        Box::pin(self.plug_cpus(cpus))
    }

    fn size(&self) -> BoxFuture<'_, Result<MachineSize, MachineError>> {
        Box::pin(self.plugged())
    }
}

impl QemuVmm {
    pub(super) fn blueprint(&self) -> Result<&Blueprint, MachineError> {
        let full = self.full.as_ref().map(|full| &full.blueprint);
        full.ok_or_else(|| MachineError::Unknown {
            what: "slots: it is a microVM".into(),
        })
    }

    /// Waits until nobody else changes the machine.
    pub(super) async fn changing(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.full {
            Some(full) => Some(full.changes.lock().await),
            None => None,
        }
    }

    /// The names of what is at a path of QEMU's objects.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<String>, VmmError> {
        let list = self
            .command_with("qom-list", json!({ "path": path }))
            .await?;
        let names = list.as_array().into_iter().flatten();
        let names = names.filter_map(|property| property["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    pub(super) async fn is_there(&self, id: &str) -> Result<bool, VmmError> {
        Ok(self.list(PERIPHERAL).await?.iter().any(|name| name == id))
    }

    /// The slot that a device which is to come gets.
    async fn free_slot_for(&self, device: &Device) -> Result<usize, MachineError> {
        let record = &self.blueprint()?.slots;
        let slots = record.len();
        if self.is_there(&device.id()).await? {
            let what = device.to_string();
            return Err(MachineError::Conflict { what });
        }
        // Its own, then one that is nobody's by the record, then any.
        let mut order: Vec<usize> = (0..slots).collect();
        order.sort_by_key(|slot| match &record[*slot] {
            Some(owner) if owner == device => 0,
            None => 1,
            Some(_) => 2,
        });
        for slot in order {
            // A port's bus has the port's name. What is on it are its children.
            let port = port(slot);
            let bus = self.list(&format!("{PERIPHERAL}/{port}/{port}")).await?;
            if !bus.iter().any(|name| name.starts_with("child[")) {
                return Ok(slot);
            }
        }
        Err(MachineError::NoSlot { slots })
    }

    /// Has the guest let go of a device.
    async fn unplug(&self, device: &Device, limit: Duration) -> Result<(), MachineError> {
        let id = device.id();
        let end = Instant::now() + limit;
        let mut asked: Option<Instant> = None;
        while self.is_there(&id).await? {
            let now = Instant::now();
            // However little time there is, the guest is asked.
            if asked.is_some() && now >= end {
                let what = device.to_string();
                return Err(MachineError::Kept { what, limit });
            }
            if asked.is_none_or(|asked| now >= asked + AGAIN) {
                // It is gone meanwhile, or is being taken away, or was not heard of: seen at the next look.
                let _ = self.command_with("device_del", json!({ "id": id })).await;
                asked = Some(now);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Gives QEMU a file for a device; where its nodes find it.
    pub(super) async fn add_file(&self, id: &str, file: OwnedFd) -> Result<String, VmmError> {
        let added = self
            .hand_over("add-fd", json!({ "opaque": id }), file)
            .await?;
        Ok(format!("/dev/fdset/{}", added["fdset-id"]))
    }

    /// Gives QEMU a key for a device, by a descriptor: it is in no command.
    pub(super) async fn add_secret(
        &self,
        id: &str,
        name: &str,
        key: OwnedFd,
    ) -> Result<(), VmmError> {
        let added = self
            .hand_over("add-fd", json!({ "opaque": secrets_of(id) }), key)
            .await?;
        // It opens such a file by itself, not by the set that it is in.
        let number = added["fd"].as_i64().and_then(|fd| i32::try_from(fd).ok());
        let secret = json!({
            "qom-type": "secret",
            "id": name,
            "file": path_of_file(number.unwrap_or(-1)),
        });
        self.command_with("object-add", secret).await.map(drop)
    }

    /// Takes away the keys of a device, which only who opens its nodes needs.
    pub(super) async fn forget_secrets(&self, id: &str) -> Result<(), VmmError> {
        let begins = secrets_of(id);
        for name in self.list(OBJECTS).await? {
            if name.starts_with(&begins) {
                self.command_with("object-del", json!({ "id": name }))
                    .await?;
            }
        }
        self.forget_files(&begins).await
    }

    /// Closes the files that were given for something.
    async fn forget_files(&self, whose: &str) -> Result<(), VmmError> {
        let sets = self.command("query-fdsets").await?;
        for set in sets.as_array().into_iter().flatten() {
            let files = set["fds"].as_array();
            let is_its = |file: &Value| file["opaque"] == whose;
            if files.is_some_and(|files| files.iter().any(is_its)) {
                let set = json!({ "fdset-id": set["fdset-id"] });
                self.command_with("remove-fd", set).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn nodes(&self) -> Result<Vec<Value>, VmmError> {
        let flat = json!({ "flat": true });
        let nodes = self.command_with("query-named-block-nodes", flat).await?;
        Ok(match nodes {
            Value::Array(nodes) => nodes,
            _ => Vec::new(),
        })
    }

    /// Takes away all nodes and files of a disk whose device is not there.
    async fn forget_disk(&self, id: &str) -> Result<(), VmmError> {
        let below = format!("{id}.");
        let nodes = self.nodes().await?;
        let mut names: Vec<&str> = nodes
            .iter()
            .filter_map(|node| node["node-name"].as_str())
            .filter(|name| *name == id || name.starts_with(&below))
            .collect();
        // A node that another one uses stays: from the top down, each pass takes one at least.
        let mut refused = None;
        for _ in 0..names.len() {
            let mut kept = Vec::new();
            for name in names {
                let node = json!({ "node-name": name });
                match self.command_with("blockdev-del", node).await {
                    Ok(_) => {}
                    Err(error @ VmmError::Refused { .. }) => {
                        refused = Some(error);
                        kept.push(name);
                    }
                    Err(error) => return Err(error),
                }
            }
            names = kept;
        }
        if let (Some(error), false) = (refused, names.is_empty()) {
            return Err(error);
        }
        self.forget_secrets(id).await?;
        self.forget_files(id).await
    }

    async fn forget_nic(&self, id: &str) {
        // Where there is none, that is refused.
        let _ = self.command_with("netdev_del", json!({ "id": id })).await;
    }
}
