//! Images made by the test: an OCI layout, byte by byte.

#![allow(dead_code, reason = "each test program uses its own part")]

use aleph_image::Digest;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Plain,
    Gzip,
    Zstd,
}

/// A layer, packed, and the digest of what it is without that.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: String,
    pub(crate) media_type: String,
}

impl Layer {
    pub(crate) fn new(tar: &[u8], packed: Packed) -> Self {
        let (bytes, ending) = match packed {
            Packed::Plain => (tar.to_vec(), ""),
            Packed::Gzip => {
                let fast = flate2::Compression::fast();
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), fast);
                gzip.write_all(tar).unwrap();
                (gzip.finish().unwrap(), "+gzip")
            }
            Packed::Zstd => (zstd::encode_all(tar, 3).unwrap(), "+zstd"),
        };
        Self {
            bytes,
            diff_id: Digest::of(tar).to_string(),
            media_type: format!("{LAYER}{ending}"),
        }
    }

    pub(crate) fn gzip(tar: Tar) -> Self {
        Self::new(&tar.bytes(), Packed::Gzip)
    }
}

/// A folder in the form of the OCI image layout.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// An image of layers for amd64, or what this host is.
    pub(crate) fn image(&self, layers: &[Layer], config: &Value) -> Value {
        self.image_for(architecture(), layers, config)
    }

    pub(crate) fn image_for(&self, arch: &str, layers: &[Layer], config: &Value) -> Value {
        let diff_ids: Vec<&str> = layers.iter().map(|l| &*l.diff_id).collect();
        let config = json!({"architecture": arch, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(&layer.media_type, &layer.bytes))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config,
            "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    pub(crate) fn index(&self, manifests: &[(&str, Value)]) -> Value {
        let entries: Vec<Value> = manifests
            .iter()
            .map(|(arch, manifest)| {
                let mut entry = manifest.clone();
                entry["platform"] = json!({"os": "linux", "architecture": arch});
                entry
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    /// Makes `tag` lead to a manifest or index, alone.
    pub(crate) fn tag(&self, tag: &str, descriptor: &Value) -> &Path {
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        &self.dir
    }
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// A tar archive whose entries nobody looks at while they are written.
pub(crate) struct Tar {
    builder: Builder<Vec<u8>>,
    /// Mode, user and group of the next entry.
    owned: Option<(u32, u64, u64)>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            owned: None,
        }
    }

    /// The next entry has this mode, user and group.
    pub(crate) fn owned(self, mode: u32, uid: u64, gid: u64) -> Self {
        let owned = Some((mode, uid, gid));
        Self { owned, ..self }
    }

    pub(crate) fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let (mode, uid, gid) = self.owned.take().unwrap_or((0o644, 0, 0));
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_234_567_890);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.builder
            .append_pax_extensions([(&*key, value)])
            .unwrap();
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.owned(0o755, 0, 0)
            .entry(EntryType::Directory, path, "", b"")
    }

    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", content.as_ref())
    }

    pub(crate) fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, path, to, b"")
    }

    pub(crate) fn link(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Link, path, to, b"")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

/// Bytes that do not compress, the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; length];
    for byte in &mut bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[0];
    }
    bytes
}
