//! The JSON documents that describe an image: index, manifest, configuration.
//!
//! The forms are those of the OCI image specification 1.1 and of docker's image manifest version
//! 2, schema 2, which agree in all that is read here. Fields that are not known are ignored, one
//! that is there twice is an error, and `null` is as good as absent, as docker writes it.

use crate::digest::Digest;
use crate::image::Config;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// More layers than any builder makes (docker stops at 127).
const MOST_LAYERS: usize = 512;

pub(crate) const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(crate) const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Why a document is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no proper form: the registry's fault.
    Form(String),
    /// It is proper, and of something that cannot be run.
    Unsupported(String),
    /// It is for these platforms and not for ours.
    Platform(Vec<String>),
}

/// A blob's digest and size, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

/// The host's architecture, in the names of Go, which the specification uses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
}

/// What a reference leads to.
#[derive(Debug)]
pub(crate) enum Document {
    /// Images for several platforms.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// An image's configuration: what it runs, and the digests of its layers without compression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) config: Config,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Platform {
    /// What this program runs on.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: String::new(),
        }
    }

    pub(crate) fn shown(&self) -> String {
        if self.variant.is_empty() {
            format!("{}/{}", self.os, self.architecture)
        } else {
            format!("{}/{}/{}", self.os, self.architecture, self.variant)
        }
    }

    /// How well it suits `self`; the least is the best.
    ///
    /// Levels above the first of amd64 need processors that not every host has.
    fn rank(&self, offered: &Self) -> Option<u8> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        match (&*offered.architecture, &*offered.variant) {
            (_, "") => Some(0),
            ("amd64", "v1") | ("arm64", "v8") => Some(1),
            _ => None,
        }
    }
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Any {
            #[serde(default)]
            schema_version: u32,
            #[serde(default, deserialize_with = "or_default")]
            media_type: String,
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        let any: Any = serde_json::from_slice(bytes).map_err(form)?;
        if any.schema_version != 2 {
            return Err(Fault::Unsupported(format!(
                "its manifest has the schema version {}, and only 2 is known",
                any.schema_version
            )));
        }
        let kind = &*any.media_type;
        match (any.manifests, any.config, any.layers) {
            (Some(manifests), None, None) if kind.is_empty() || INDEX_TYPES.contains(&kind) => {
                Ok(Self::Index(manifests))
            }
            (None, Some(config), Some(layers))
                if kind.is_empty() || MANIFEST_TYPES.contains(&kind) =>
            {
                Manifest::checked(config, layers).map(Self::Manifest)
            }
            _ => Err(Fault::Form(format!(
                "it is neither a manifest nor an index (its type is {kind:?})"
            ))),
        }
    }
}

/// The image of an index that suits `host` best.
pub(crate) fn choose(manifests: &[Descriptor], host: &Platform) -> Result<Descriptor, Fault> {
    let suits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref()?;
        let is_manifest = MANIFEST_TYPES.contains(&&*descriptor.media_type);
        host.rank(platform).filter(|_| is_manifest)
    };
    let best = manifests
        .iter()
        .filter(|descriptor| suits(descriptor).is_some())
        .min_by_key(suits);
    best.cloned().ok_or_else(|| {
        let platforms = manifests.iter().filter_map(|d| d.platform.as_ref());
        let mut offered: Vec<String> = platforms
            .filter(|platform| platform.os != "unknown")
            .map(|platform| escaped(&platform.shown()))
            .take(32)
            .collect();
        offered.dedup();
        Fault::Platform(offered)
    })
}

impl Manifest {
    fn checked(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, Fault> {
        if !CONFIG_TYPES.contains(&&*config.media_type) {
            return Err(Fault::Unsupported(format!(
                "it is no image of a file system, but {:?}",
                config.media_type
            )));
        }
        if layers.len() > MOST_LAYERS {
            return Err(Fault::Unsupported(format!(
                "it has {} layers, and at most {MOST_LAYERS} are taken",
                layers.len()
            )));
        }
        match layers
            .iter()
            .find(|layer| !LAYER_TYPES.contains(&&*layer.media_type))
        {
            Some(other) => Err(Fault::Unsupported(format!(
                "it has a layer of the type {:?}",
                other.media_type
            ))),
            None => Ok(Self { config, layers }),
        }
    }
}

impl Configuration {
    pub(crate) fn parse(bytes: &[u8], host: &Platform) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            os: String,
            #[serde(default, deserialize_with = "or_default")]
            variant: String,
            #[serde(default, deserialize_with = "or_default")]
            config: Inner,
            rootfs: Rootfs,
        }
        #[derive(Deserialize)]
        struct Rootfs {
            #[serde(default, deserialize_with = "or_default")]
            diff_ids: Vec<Digest>,
        }
        let whole: Whole = serde_json::from_slice(bytes).map_err(form)?;
        let platform = Platform {
            architecture: whole.architecture,
            os: whole.os,
            variant: whole.variant,
        };
        if host.rank(&platform).is_none() {
            return Err(Fault::Platform(vec![escaped(&platform.shown())]));
        }
        Ok(Self {
            config: whole.config.into(),
            diff_ids: whole.rootfs.diff_ids,
        })
    }
}

/// `config` of the configuration.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Inner {
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

impl From<Inner> for Config {
    fn from(inner: Inner) -> Self {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            entrypoint: inner.entrypoint,
            cmd: inner.cmd,
            // A name without a value means nothing here: no environment is inherited.
            env: inner
                .env
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            workdir: some(inner.working_dir),
            user: some(inner.user),
            stop_signal: some(inner.stop_signal),
            labels: inner.labels,
            exposed_ports: inner.exposed_ports.into_keys().collect(),
        }
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[allow(clippy::needless_pass_by_value, reason = "it maps errors")]
fn form(error: serde_json::Error) -> Fault {
    Fault::Form(escaped(&error.to_string()))
}

/// What a registry chose, for a message: in one line, and not too long.
pub(crate) fn escaped(text: &str) -> String {
    text.escape_debug().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn amd64() -> Platform {
        Platform {
            architecture: "amd64".into(),
            os: "linux".into(),
            variant: String::new(),
        }
    }

    fn digest(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn parse(value: &serde_json::Value) -> Result<Document, Fault> {
        Document::parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_image_for_the_host_is_chosen() {
        let entry = |n: u8, os: &str, arch: &str, variant: serde_json::Value| {
            json!({"mediaType": MANIFEST_TYPES[0], "digest": digest(n), "size": 1,
                   "platform": {"os": os, "architecture": arch, "variant": variant}})
        };
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": [
            entry(1, "linux", "arm64", "v8".into()),
            entry(2, "linux", "amd64", "v3".into()),
            entry(3, "linux", "amd64", "v1".into()),
            entry(4, "windows", "amd64", json!(null)),
            entry(5, "linux", "amd64", json!(null)),
            entry(6, "unknown", "unknown", json!(null)),
        ]});
        let Document::Index(manifests) = parse(&index).unwrap() else {
            panic!("no index")
        };
        assert_eq!(
            choose(&manifests, &amd64()).unwrap().digest,
            Digest::of(&[5])
        );
        assert_eq!(
            choose(&manifests[..3], &amd64()).unwrap().digest,
            Digest::of(&[3])
        );
        let Err(Fault::Platform(offered)) = choose(&manifests[..2], &amd64()) else {
            panic!("chosen")
        };
        assert_eq!(offered, ["linux/arm64/v8", "linux/amd64/v3"]);
    }

    #[test]
    fn what_is_no_image_is_told_apart() {
        let layer = json!({"mediaType": LAYER_TYPES[1], "digest": digest(1), "size": 1});
        let config = json!({"mediaType": CONFIG_TYPES[0], "digest": digest(2), "size": 1});
        let good = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        assert!(matches!(parse(&good), Ok(Document::Manifest(_))));
        for (key, value, unsupported) in [
            ("schemaVersion", json!(1), true),
            (
                "config",
                json!({"mediaType": "application/vnd.cncf.helm.config.v1+json",
                              "digest": digest(2), "size": 1}),
                true,
            ),
            (
                "layers",
                json!([{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
                               "digest": digest(2), "size": 1}]),
                true,
            ),
            (
                "layers",
                json!([layer])
                    .as_array()
                    .unwrap()
                    .iter()
                    .cycle()
                    .take(513)
                    .cloned()
                    .collect(),
                true,
            ),
            (
                "layers",
                json!([{"mediaType": LAYER_TYPES[0], "digest": "sha256:1", "size": 1}]),
                false,
            ),
            (
                "layers",
                json!([{"mediaType": LAYER_TYPES[0], "digest": digest(1), "size": -1}]),
                false,
            ),
            ("mediaType", json!("text/html"), false),
            ("manifests", json!([]), false),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let fault = parse(&bad).unwrap_err();
            assert_eq!(
                matches!(fault, Fault::Unsupported(_)),
                unsupported,
                "{key}: {fault:?}"
            );
        }
        let twice = good
            .to_string()
            .replace("\"layers\":", "\"config\":null,\"layers\":");
        let Err(Fault::Form(why)) = Document::parse(twice.as_bytes()) else {
            panic!("taken")
        };
        assert!(why.contains("duplicate field"), "{why}");
    }

    #[test]
    fn a_configuration_is_honoured() {
        let text = json!({
            "architecture": "amd64", "os": "linux", "history": [],
            "config": {
                "Env": ["PATH=/bin:/usr/bin", "EMPTY=", "A=b=c", "NOTHING"],
                "Cmd": ["sh"], "Entrypoint": null, "User": "1000:1000", "WorkingDir": "/srv",
                "StopSignal": "SIGQUIT", "Labels": {"a": "b"}, "OnBuild": null,
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(1)]},
        });
        let read = Configuration::parse(text.to_string().as_bytes(), &amd64()).unwrap();
        assert_eq!(read.diff_ids, [Digest::of(&[1])]);
        let config = read.config;
        assert_eq!(config.env["PATH"], "/bin:/usr/bin");
        assert_eq!((&*config.env["EMPTY"], &*config.env["A"]), ("", "b=c"));
        assert_eq!(config.env.len(), 3);
        assert_eq!(
            (config.cmd, config.entrypoint),
            (vec!["sh".to_owned()], vec![])
        );
        assert_eq!(config.user.unwrap(), "1000:1000");
        assert_eq!(config.workdir.unwrap(), "/srv");
        assert_eq!(config.stop_signal.unwrap(), "SIGQUIT");
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.exposed_ports, ["53/udp", "80/tcp"]);

        let bare = json!({"architecture": "amd64", "os": "linux", "config": null,
                          "rootfs": {"diff_ids": null}});
        let read = Configuration::parse(bare.to_string().as_bytes(), &amd64()).unwrap();
        assert_eq!(read.config, Config::default());
        let other = text.to_string().replace("amd64", "s390x");
        let refused = Configuration::parse(other.as_bytes(), &amd64());
        assert_eq!(refused, Err(Fault::Platform(vec!["linux/s390x".into()])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes);
            let _ = Configuration::parse(&bytes, &amd64());
        }
    }
}
