//! What the tests of volumes share.

use aleph_executor::volumes::{
    BackendChoice, LayerFormat, Layers, NewVolume, Owner, Passphrase, VolumeError, Volumes,
    VolumesConfig,
};
use aleph_types::{Classify, Filesystem, Incarnation, JobId, MiB, Volume, VolumeAccess};
use anyhow::{Result, ensure};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::process::Command;

pub(crate) fn config(backend: BackendChoice) -> VolumesConfig {
    VolumesConfig {
        backend,
        thin_pool: match backend {
            BackendChoice::LvmThin => POOL.parse().ok(),
            _ => None,
        },
        ..VolumesConfig::default()
    }
}

/// The pool of tests in a VM.
pub(crate) const POOL: &str = "group-1/pool";

/// How many layers there are in a node's state folder, and in the pool.
pub(crate) fn layers(state: &std::path::Path, backend: BackendChoice) -> Result<usize> {
    let files = std::fs::read_dir(state.join("volumes/layers"))?.count();
    if backend != BackendChoice::LvmThin {
        return Ok(files);
    }
    let listed = Command::new("/usr/sbin/lvm")
        .args(["lvs", "--noheadings", "--select", "tags=aleph"])
        .output()?;
    ensure!(listed.status.success(), "lvs: {listed:?}");
    let listed = String::from_utf8_lossy(&listed.stdout);
    Ok(files
        + listed
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count())
}

pub(crate) const BACKENDS: [BackendChoice; 2] = [BackendChoice::Files, BackendChoice::Qcow2];

pub(crate) fn named(name: &str) -> NewVolume<'_> {
    NewVolume {
        account: "a",
        name,
        encrypted: None,
    }
}

pub(crate) fn owner() -> Owner {
    Owner {
        job: JobId::random(),
        incarnation: Incarnation::default(),
    }
}

/// Writes to a volume as a VMM does: through QEMU's block layer, by the files that an attachment gives.
pub(crate) fn qemu_io(layers: &Layers, commands: &[String]) -> Result<String> {
    let keys = layers.backing.iter().map(|layer| layer.key.as_ref());
    let keys = [layers.key.as_ref()].into_iter().chain(keys);
    let keys = keys.map(|key| key.map(Passphrase::file).transpose());
    qemu_io_with(
        layers,
        &keys.collect::<std::io::Result<Vec<_>>>()?,
        commands,
    )
}

/// The same with other keys.
pub(crate) fn qemu_io_with(
    layers: &Layers,
    keys: &[Option<File>],
    commands: &[String],
) -> Result<String> {
    let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let below = layers
        .backing
        .iter()
        .map(|layer| (&layer.file, layer.format));
    let all = [(&layers.top, layers.format)].into_iter().chain(below);
    let mut command = Command::new("qemu-io");
    let mut below = serde_json::Value::Null;
    for (place, ((file, format), key)) in all
        .zip(keys)
        .enumerate()
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let is_device = file.metadata()?.file_type().is_block_device();
        let driver = if is_device { "host_device" } else { "file" };
        let file = serde_json::json!({"driver": driver, "locking": "off", "filename": path(file)});
        let mut node = serde_json::json!({"driver": "raw", "file": file});
        if format == LayerFormat::Qcow2 {
            node["driver"] = "qcow2".into();
            node["backing"] = below;
        }
        if let Some(key) = key {
            let name = format!("k{place}");
            command.args(["--object", &format!("secret,id={name},file={}", path(key))]);
            node["encrypt"] = serde_json::json!({"format": "luks", "key-secret": name});
        }
        below = node;
    }
    if layers.read_only {
        command.arg("-r");
    }
    for line in commands {
        command.args(["-c", line]);
    }
    let output = command.arg(format!("json:{below}")).output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success() && !said.contains("rror"), "{said}");
    Ok(said)
}

/// The device that is a disk as it is: who looks at that needs no QEMU, which takes its time in a VM.
fn device(layers: &Layers) -> Result<Option<&File>> {
    let is_device = layers.top.metadata()?.file_type().is_block_device();
    Ok((is_device && layers.format == LayerFormat::Raw).then_some(&layers.top))
}

/// Writes `byte` over the sector at `sector`, in a lease of its own.
pub(crate) fn write(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    if let Some(device) = device(&attached.layers)? {
        device.write_all_at(&[byte; 512], sector * 512)?;
        device.sync_all()?;
    } else {
        let line = format!("write -P {byte} {} 512", sector * 512);
        qemu_io(&attached.layers, &[line])?;
    }
    drop(attached);
    volumes.release(&owner, true)?;
    Ok(())
}

/// Checks that the sector at `sector` has `byte`.
pub(crate) fn reads(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::ReadOnly)?;
    if let Some(device) = device(&attached.layers)? {
        let mut found = [0; 512];
        device.read_exact_at(&mut found, sector * 512)?;
        ensure!(found == [byte; 512], "{name} {sector}: {:?}", &found[..4]);
    } else {
        let line = format!("read -P {byte} {} 512", sector * 512);
        let said = qemu_io(&attached.layers, &[line])?;
        ensure!(
            !said.contains("verification failed"),
            "{name} {sector}: {said}"
        );
    }
    drop(attached);
    volumes.release(&owner, true)?;
    Ok(())
}

pub(crate) fn empty(volumes: &Volumes, name: &str, size: u32) -> Result<Volume> {
    Ok(volumes.create(named(name), MiB(size), Filesystem::None)?)
}

pub(crate) fn code<T: std::fmt::Debug>(
    result: std::result::Result<T, VolumeError>,
) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "none")
}

/// A folder in memory, where this host has such: what syncs a thousand times waits for no disk there.
pub(crate) fn memory() -> Result<tempfile::TempDir> {
    let shm = std::path::Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir());
    Ok(dir?)
}
