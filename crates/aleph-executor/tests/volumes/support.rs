//! What the tests of volumes share.

use aleph_executor::volumes::{
    BackendChoice, Layers, NewVolume, Owner, VolumeError, Volumes, VolumesConfig,
};
use aleph_types::{Classify, Filesystem, Incarnation, JobId, MiB, Volume, VolumeAccess};
use anyhow::{Result, ensure};
use std::process::Command;

pub(crate) fn config(backend: BackendChoice) -> VolumesConfig {
    VolumesConfig {
        backend,
        ..VolumesConfig::default()
    }
}

pub(crate) const BACKENDS: [BackendChoice; 2] = [BackendChoice::Files, BackendChoice::Qcow2];

pub(crate) fn named(name: &str) -> NewVolume<'_> {
    NewVolume { account: "a", name }
}

pub(crate) fn owner() -> Owner {
    Owner {
        job: JobId::random(),
        incarnation: Incarnation::default(),
    }
}

/// Writes to a volume as a VMM does: through QEMU's block layer, by the files that an attachment gives.
pub(crate) fn qemu_io(layers: &Layers, commands: &[String]) -> Result<String> {
    use std::os::fd::AsRawFd;
    let file = |fd: i32| {
        serde_json::json!({"driver": "file", "locking": "off",
            "filename": format!("/proc/{}/fd/{fd}", std::process::id())})
    };
    let mut below = serde_json::Value::Null;
    for (place, layer) in layers.backing.iter().enumerate().rev() {
        let format = match place + 1 == layers.backing.len() {
            true => "raw",
            false => "qcow2",
        };
        let mut node = serde_json::json!({"driver": format, "file": file(layer.as_raw_fd())});
        if format == "qcow2" {
            node["backing"] = below;
        }
        below = node;
    }
    let is_raw = layers.backing.is_empty();
    let format = if is_raw { "raw" } else { "qcow2" };
    let mut node = serde_json::json!({"driver": format, "file": file(layers.top.as_raw_fd())});
    if !is_raw {
        node["backing"] = below;
    }
    let mut command = Command::new("qemu-io");
    if layers.read_only {
        command.arg("-r");
    }
    for line in commands {
        command.args(["-c", line]);
    }
    let output = command.arg(format!("json:{node}")).output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success() && !said.contains("rror"), "{said}");
    Ok(said)
}

/// Writes `byte` over the sector at `sector`, in a lease of its own.
pub(crate) fn write(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    let line = format!("write -P {byte} {} 512", sector * 512);
    qemu_io(&attached.layers, &[line])?;
    drop(attached);
    volumes.release(&owner, true)?;
    Ok(())
}

/// Checks that the sector at `sector` has `byte`.
pub(crate) fn reads(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::ReadOnly)?;
    let line = format!("read -P {byte} {} 512", sector * 512);
    let said = qemu_io(&attached.layers, &[line])?;
    drop(attached);
    volumes.release(&owner, true)?;
    ensure!(
        !said.contains("verification failed"),
        "{name} {sector}: {said}"
    );
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
