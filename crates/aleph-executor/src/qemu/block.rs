//! Disks as QEMU's block nodes, as a pure function of what they are made of.
//!
//! Each layer is named explicitly, with the file that it is read from, and the lowest one is said to have
//! nothing below it: so what an image's header says of other files is never followed. A disk's image may
//! be a guest's own, with `/etc/shadow` as what it is based on.
//!
//! Sources: `BlockdevOptions` in QEMU's `qapi/block-core.json`; the header in its `docs/interop/qcow2.txt`.

use super::machine::MachineError;
use crate::hypervisor::{Disk, DiskFormat, Layer};
use rustix::fs::{FileType, OFlags};
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// What decides a disk's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive<'a> {
    /// Its serial number.
    pub serial: &'a str,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Its layers, its own first.
    pub layers: Vec<Kind>,
}

/// What one layer's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// In QEMU's format; else it holds the disk as it is.
    pub is_qcow2: bool,
    /// A block device.
    pub is_device: bool,
    /// Encrypted, which only what is in QEMU's format is.
    pub is_encrypted: bool,
}

/// The longest serial number that a guest sees (`VIRTIO_BLK_ID_BYTES`).
const SERIAL: usize = 20;

impl<'a> Drive<'a> {
    /// One that a regular file holds as it is.
    #[must_use]
    pub fn raw(serial: &'a str, read_only: bool) -> Self {
        let kind = Kind {
            is_qcow2: false,
            is_device: false,
            is_encrypted: false,
        };
        Self {
            serial,
            read_only,
            layers: vec![kind],
        }
    }

    /// That of a disk, whose files are looked at.
    ///
    /// # Errors
    /// [`MachineError::Disk`] where QEMU could not use one of them, or would open another one by its
    /// header.
    pub fn of(disk: &'a Disk) -> Result<Self, MachineError> {
        let fault = |why: &str| MachineError::Disk {
            serial: disk.serial.to_string(),
            why: why.to_owned(),
        };
        let is_name = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
        if disk.serial.is_empty() || disk.serial.len() > SERIAL {
            return Err(fault("its serial number has no 1 to 20 letters"));
        }
        if !disk.serial.bytes().all(is_name) {
            return Err(fault(
                "its serial number has other letters than a-z, A-Z, 0-9, - and _",
            ));
        }
        let below: &[Layer] = match &disk.format {
            DiskFormat::Raw => &[],
            DiskFormat::Qcow2 { backing } => backing,
        };
        let is_top_qcow2 = matches!(disk.format, DiskFormat::Qcow2 { .. });
        let mut layers = vec![
            kind(
                &disk.file,
                (is_top_qcow2, disk.key.is_some()),
                !disk.read_only,
            )
            .map_err(|why| fault(&format!("its file {why}")))?,
        ];
        for (n, layer) in below.iter().enumerate() {
            if !layer.is_qcow2 && n + 1 < below.len() {
                return Err(fault("a layer that holds it as it is has one below it"));
            }
            let kind = kind(&layer.file, (layer.is_qcow2, layer.key.is_some()), false);
            layers.push(kind.map_err(|why| fault(&format!("layer {} below it {why}", n + 1)))?);
        }
        Ok(Self {
            serial: &disk.serial,
            read_only: disk.read_only,
            layers,
        })
    }

    /// Its nodes, the lowest first; the last has the name that is given. `file` says where the file of
    /// each layer is, which is asked in the order of the layers.
    pub fn nodes(&self, name: &str, mut file: impl FnMut() -> String) -> Vec<Value> {
        let files: Vec<String> = self.layers.iter().map(|_| file()).collect();
        let mut nodes = Vec::with_capacity(2 * self.layers.len());
        let mut below = Value::Null;
        for (n, (kind, file)) in self.layers.iter().zip(files).enumerate().rev() {
            let node_name = match n {
                0 => name.to_owned(),
                n => format!("{name}.b{n}"),
            };
            let is_written = n == 0 && !self.read_only;
            let file_node = if kind.is_qcow2 {
                format!("{name}.f{n}")
            } else {
                node_name.clone()
            };
            nodes.push(json!({
                "driver": if kind.is_device { "host_device" } else { "file" },
                "node-name": file_node,
                "filename": file,
                "read-only": !is_written,
                "discard": if is_written { "unmap" } else { "ignore" },
            }));
            if kind.is_qcow2 {
                let mut node = json!({
                    "driver": "qcow2",
                    "node-name": node_name,
                    "file": file_node,
                    "backing": below,
                    "read-only": !is_written,
                    "discard": if is_written { "unmap" } else { "ignore" },
                });
                if kind.is_encrypted {
                    let secret = secret(name, n);
                    node["encrypt"] = json!({"format": "luks", "key-secret": secret});
                }
                nodes.push(node);
            }
            below = node_name.into();
        }
        nodes
    }

    /// The names of the objects that hold the keys of its layers, for nodes of this name.
    pub fn secrets(&self, name: &str) -> Vec<String> {
        let layers = self.layers.iter().enumerate();
        let encrypted = layers.filter(|(_, kind)| kind.is_encrypted);
        encrypted.map(|(n, _)| secret(name, n)).collect()
    }
}

/// What the name of each object with a key of a disk begins with.
pub(super) fn secrets_of(name: &str) -> String {
    format!("{name}.k")
}

fn secret(name: &str, layer: usize) -> String {
    format!("{}{layer}", secrets_of(name))
}

/// The files of a disk, in the order of its layers, and then those with the keys of them.
pub(super) fn files(disk: Disk) -> impl Iterator<Item = OwnedFd> {
    let below = match disk.format {
        DiskFormat::Raw => Vec::new(),
        DiskFormat::Qcow2 { backing } => backing,
    };
    let (mut files, mut keys) = (vec![OwnedFd::from(disk.file)], vec![disk.key]);
    for layer in below {
        files.push(layer.file.into());
        keys.push(layer.key);
    }
    let keys = keys.into_iter().flatten().map(OwnedFd::from);
    files.into_iter().chain(keys)
}

fn kind(
    file: &File,
    (is_qcow2, is_encrypted): (bool, bool),
    is_written: bool,
) -> Result<Kind, String> {
    if is_encrypted && !is_qcow2 {
        return Err("has a key, and is not in QEMU's format".into());
    }
    let looked = |error: io::Error| format!("cannot be looked at: {error}");
    let flags = rustix::fs::fcntl_getfl(file).map_err(|error| looked(error.into()))?;
    let wanted = if is_written {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    if flags & OFlags::RWMODE != wanted || flags.contains(OFlags::PATH) {
        return Err(if is_written {
            "is not open for reading and writing".into()
        } else {
            "is not open for reading alone".into()
        });
    }
    let mode = rustix::fs::fstat(file).map_err(|error| looked(error.into()))?;
    let is_device = match FileType::from_raw_mode(mode.st_mode) {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => return Err("is no regular file and no block device".into()),
    };
    if is_qcow2 {
        check_header(file)?;
    }
    Ok(Kind {
        is_qcow2,
        is_device,
        is_encrypted,
    })
}

/// What begins an image in QEMU's format.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// The bit of `incompatible_features` for data in a file of its own, which the header names.
const EXTERNAL_DATA: u64 = 1 << 2;

fn check_header(file: &File) -> Result<(), String> {
    let mut header = [0; 80];
    file.read_exact_at(&mut header, 0)
        .map_err(|_| "is no image in QEMU's format".to_owned())?;
    let word = |at: usize| {
        header[at..at + 4]
            .iter()
            .fold(0, |w, b| w << 8 | u64::from(*b))
    };
    if &header[..4] != MAGIC {
        return Err("is no image in QEMU's format".into());
    }
    // Version 2 has no features.
    if word(4) >= 3 && (word(72) << 32 | word(76)) & EXTERNAL_DATA != 0 {
        return Err("keeps its data in another file, which its header names".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn numbered() -> impl FnMut() -> String {
        let mut n = 2;
        move || {
            n += 1;
            format!("/dev/fdset/{n}")
        }
    }

    #[test]
    fn a_chain_of_images_names_every_file() {
        let (qcow2, raw) = (true, false);
        let kind = |is_qcow2, is_device| Kind {
            is_qcow2,
            is_device,
            is_encrypted: false,
        };
        let drive = Drive {
            serial: "root",
            read_only: false,
            layers: vec![kind(qcow2, false), kind(qcow2, false), kind(raw, true)],
        };
        let nodes = drive.nodes("disk-root", numbered());
        insta::assert_snapshot!(serde_json::to_string_pretty(&nodes).unwrap());
        let encrypted = Kind {
            is_encrypted: true,
            ..kind(qcow2, false)
        };
        let half = Drive {
            layers: vec![encrypted, kind(raw, false)],
            ..drive
        };
        let nodes = half.nodes("disk-root", numbered());
        let secret = &nodes[2]["encrypt"]["key-secret"];
        assert_eq!(secret, half.secrets("disk-root")[0].as_str());
        assert_eq!(half.secrets("disk-root").len(), 1);
        let alone = Drive {
            layers: vec![kind(qcow2, false)],
            ..half
        };
        let nodes = alone.nodes("disk-root", numbered());
        assert!(nodes[1]["backing"].is_null(), "{nodes:?}");
        assert!(nodes[1].as_object().unwrap().contains_key("backing"));
    }

    #[test]
    fn a_file_that_qemu_could_not_use_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let said = |disk: Disk| Drive::of(&disk).unwrap_err().to_string();
        fs::write(&path, [0; 512]).unwrap();
        let read = || File::open(&path).unwrap();
        let said_of_readable = said(Disk::raw("data", read(), false));
        assert!(said_of_readable.contains("not open for reading and writing"));
        assert!(said(Disk::raw("a/b", read(), true)).contains("other letters"));
        assert!(said(Disk::raw("a".repeat(21), read(), true)).contains("1 to 20"));
        let folder = File::open(dir.path()).unwrap();
        assert!(said(Disk::raw("data", folder, true)).contains("no regular file"));
        let qcow2 = |backing: Vec<Layer>| Disk {
            format: DiskFormat::Qcow2 { backing },
            ..Disk::raw("data", read(), true)
        };
        assert!(said(qcow2(Vec::new())).contains("no image in QEMU's format"));

        let mut header = [0; 512];
        header[..4].copy_from_slice(MAGIC);
        header[7] = 3;
        fs::write(&path, header).unwrap();
        Drive::of(&qcow2(Vec::new())).unwrap();
        header[79] = 4;
        fs::write(&path, header).unwrap();
        assert!(said(qcow2(Vec::new())).contains("keeps its data in another file"));
    }
}
