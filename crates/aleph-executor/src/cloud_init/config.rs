//! The node's own documents.

use super::spec::{Filesystem, GuestSpec, Owner, USER, Volume};
use super::{CloudInitError, unit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

/// How the node's part is merged with what the user's parts left: lists go after the user's,
/// mappings are merged key by key, and of two texts the node's is taken.
const AFTER: &str = "dict(no_replace,recurse_list,recurse_str)+list(append)+str()";
/// The same with lists before the user's.
const BEFORE: &str = "dict(no_replace,recurse_list,recurse_str)+list(prepend)+str()";

/// What comes after the user's part: later files with the same path win.
#[derive(Serialize)]
struct Main {
    merge_how: &'static str,
    hostname: String,
    updates: Updates,
    disable_network_activation: bool,
    users: [User; 1],
    write_files: Vec<WriteFile>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    packages: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_update: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs_setup: Vec<FsSetup>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<[String; 6]>,
}

/// What comes before it: all of `runcmd` is one script, and the user's part may end it.
#[derive(Serialize)]
struct First {
    merge_how: &'static str,
    runcmd: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct User {
    name: &'static str,
    gecos: &'static str,
    shell: &'static str,
    sudo: &'static str,
    lock_passwd: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_authorized_keys: Vec<String>,
}

#[derive(Serialize)]
struct WriteFile {
    path: String,
    permissions: String,
    owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    content: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    defer: bool,
}

#[derive(Serialize)]
struct FsSetup {
    device: String,
    filesystem: &'static str,
    partition: &'static str,
    overwrite: bool,
}

#[derive(Serialize)]
struct VendorData {
    growpart: GrowPart,
    resize_rootfs: bool,
    ssh_pwauth: bool,
    ssh_genkeytypes: [&'static str; 2],
    manage_etc_hosts: &'static str,
}

/// When a guest takes what its seed says of its network.
#[derive(Serialize)]
struct Updates {
    network: UpdatesWhen,
}

#[derive(Serialize)]
struct UpdatesWhen {
    when: [&'static str; 2],
}

#[derive(Serialize)]
struct GrowPart {
    mode: &'static str,
    devices: [&'static str; 1],
}

#[derive(Serialize)]
struct MetaData {
    #[serde(rename = "instance-id")]
    instance_id: String,
    #[serde(rename = "local-hostname")]
    local_hostname: String,
}

/// Text in which every string is quoted, so that none reads as something else in YAML 1.1, which
/// cloud-init speaks.
pub(super) fn yaml(document: &impl Serialize) -> Result<String, CloudInitError> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    serde_saphyr::to_string_with_options(document, options).map_err(CloudInitError::Yaml)
}

fn cloud_config(document: &impl Serialize) -> Result<String, CloudInitError> {
    Ok(format!("#cloud-config\n{}", yaml(document)?))
}

/// The document that is merged after the user's.
pub(super) fn main(spec: &GuestSpec) -> Result<String, CloudInitError> {
    cloud_config(&Main {
        merge_how: AFTER,
        hostname: spec.hostname(),
        // Its address is another one after each start. What is written before the network comes up
        // needs nobody who brings it up once more, and waits for it.
        disable_network_activation: true,
        updates: Updates {
            network: UpdatesWhen {
                when: ["boot-new-instance", "boot"],
            },
        },
        users: [User {
            name: USER,
            gecos: "Aleph",
            shell: "/bin/bash",
            sudo: "ALL=(ALL) NOPASSWD:ALL",
            lock_passwd: true,
            ssh_authorized_keys: spec.ssh_keys.clone(),
        }],
        write_files: files(spec)?,
        packages: spec.packages.clone(),
        package_update: (!spec.packages.is_empty()).then_some(true),
        fs_setup: spec.volumes.iter().filter_map(fs_setup).collect(),
        mounts: spec.volumes.iter().map(mount).collect(),
    })
}

/// The document whose commands are put before the user's; `None` where there are none.
pub(super) fn first(spec: &GuestSpec) -> Result<Option<String>, CloudInitError> {
    let mut runcmd = Vec::new();
    for file in &spec.files {
        // cloud-init looks owners up by name.
        if let Owner::Ids { uid, gid } = file.owner {
            runcmd.push(words(&["chown", &format!("{uid}:{gid}"), "--", &file.path]));
        }
        // Giving a file to somebody takes these from it, and cloud-init does that last.
        if file.mode & 0o6000 != 0 {
            runcmd.push(words(&[
                "chmod",
                &format!("{:04o}", file.mode),
                "--",
                &file.path,
            ]));
        }
    }
    if spec.command.is_some() {
        runcmd.push(words(&["systemctl", "daemon-reload"]));
        runcmd.push(words(&["systemctl", "enable", unit::UNIT]));
        // It waits for the stage in which this runs, which must not wait for it.
        runcmd.push(words(&["systemctl", "start", "--no-block", unit::UNIT]));
    }
    if runcmd.is_empty() {
        return Ok(None);
    }
    let document = First {
        merge_how: BEFORE,
        runcmd,
    };
    cloud_config(&document).map(Some)
}

/// Defaults, which the user's part overrides as cloud-init has it for vendor-data.
pub(super) fn vendor_data(spec: &GuestSpec) -> Result<String, CloudInitError> {
    cloud_config(&VendorData {
        growpart: GrowPart {
            mode: if spec.grow_root { "auto" } else { "off" },
            devices: ["/"],
        },
        resize_rootfs: spec.grow_root,
        ssh_pwauth: false,
        // Keys of RSA take an emulated guest a long time, and every client has one of these.
        ssh_genkeytypes: ["ed25519", "ecdsa"],
        // Or sudo asks a name server for the guest's own name.
        manage_etc_hosts: "localhost",
    })
}

/// Who the guest is.
pub(super) fn meta_data(spec: &GuestSpec) -> Result<String, CloudInitError> {
    yaml(&MetaData {
        instance_id: format!("{}-{}", spec.job, spec.generation),
        local_hostname: spec.hostname(),
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn files(spec: &GuestSpec) -> Result<Vec<WriteFile>, CloudInitError> {
    let root = || "root:root".to_owned();
    let mut own = vec![(unit::ENV_FILE, "0600", unit::environment(spec)?)];
    if let Some(command) = &spec.command {
        own.push((unit::UNIT_FILE, "0644", unit::unit(command)));
    }
    let mut files = Vec::new();
    if spec.takes_more {
        files.push(WriteFile {
            path: unit::RULES_FILE.into(),
            permissions: "0644".into(),
            owner: root(),
            encoding: None,
            content: unit::RULES.into(),
            defer: false,
        });
    }
    for (path, permissions, content) in own {
        // At once, for what reads them early, and again after the user's that come late.
        for defer in [false, true] {
            files.push(WriteFile {
                path: path.into(),
                permissions: permissions.into(),
                owner: root(),
                encoding: None,
                content: content.clone(),
                defer,
            });
        }
    }
    for file in &spec.files {
        let (encoding, content) = match file.content.expose_text() {
            Ok(text) if is_plain(text) => (None, text.to_owned()),
            _ => (Some("b64"), BASE64.encode(file.content.expose())),
        };
        files.push(WriteFile {
            path: file.path.clone(),
            permissions: format!("{:04o}", file.mode),
            owner: match &file.owner {
                Owner::Named { user, group } => format!("{user}:{group}"),
                Owner::Ids { .. } => root(),
            },
            encoding,
            content,
            // Users, packages and mounted volumes come later than files that are not.
            defer: true,
        });
    }
    Ok(files)
}

/// Whether a person reads it better than base64.
fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| !c.is_control() || matches!(c, '\n' | '\t'))
}

fn device(volume: &Volume) -> String {
    format!("/dev/disk/by-id/virtio-{}", volume.serial)
}

/// With `partition: none` cloud-init formats what it finds, data or not. With `any` it takes what
/// is there: a file system of this kind is kept, and another one is not replaced.
fn fs_setup(volume: &Volume) -> Option<FsSetup> {
    (!volume.read_only).then(|| FsSetup {
        device: device(volume),
        filesystem: volume.filesystem.name(),
        partition: "any",
        overwrite: false,
    })
}

fn mount(volume: &Volume) -> [String; 6] {
    let options = match (volume.read_only, volume.filesystem) {
        (false, _) => "defaults,nofail",
        // A journal is not replayed on a disk that cannot be written to.
        (true, Filesystem::Ext4) => "ro,noload,nofail",
        (true, Filesystem::Xfs) => "ro,norecovery,nofail",
    };
    let pass = if volume.read_only { "0" } else { "2" };
    [
        device(volume),
        volume.mount.clone(),
        volume.filesystem.name().into(),
        options.into(),
        "0".into(),
        pass.into(),
    ]
}
