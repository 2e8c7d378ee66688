//! Volumes on real files, with the real `qemu-img` and `mke2fs`: each back end, hostile images, leases,
//! locks, quotas, a full disk.

use aleph_executor::node::Scope;
use aleph_executor::volumes::{
    BackendChoice, Import, Layers, MAX_DEPTH, NewVolume, Owner, Source, VolumeError, VolumeQuota,
    Volumes, VolumesConfig,
};
use aleph_types::{
    Classify, DiskImageFormat, ErrorClass, Filesystem, Incarnation, JobId, MiB, Timestamp, Volume,
    VolumeAccess, VolumeState,
};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn config(backend: BackendChoice) -> VolumesConfig {
    VolumesConfig {
        backend,
        ..VolumesConfig::default()
    }
}

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Files, BackendChoice::Qcow2];

fn named(name: &str) -> NewVolume<'_> {
    NewVolume { account: "a", name }
}

fn owner() -> Owner {
    Owner {
        job: JobId::random(),
        incarnation: Incarnation::default(),
    }
}

/// Writes to a volume as a VMM does: through QEMU's block layer, by the files that an attachment gives.
fn qemu_io(layers: &Layers, commands: &[String]) -> Result<String> {
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
fn write(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
    let owner = owner();
    let attached = volumes.attach("a", name, &owner, VolumeAccess::Exclusive)?;
    let line = format!("write -P {byte} {} 512", sector * 512);
    qemu_io(&attached.layers, &[line])?;
    drop(attached);
    volumes.release(&owner, true)?;
    Ok(())
}

/// Checks that the sector at `sector` has `byte`.
fn reads(volumes: &Volumes, name: &str, sector: u64, byte: u8) -> Result<()> {
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

fn empty(volumes: &Volumes, name: &str, size: u32) -> Result<Volume> {
    Ok(volumes.create(named(name), MiB(size), Filesystem::None)?)
}

fn code<T: std::fmt::Debug>(result: std::result::Result<T, VolumeError>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "none")
}

#[test]
fn states_are_kept_copied_and_had_back() -> Result<()> {
    for backend in BACKENDS {
        let dir = tempfile::tempdir()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let data = empty(&volumes, "data", 64)?;
        write(&volumes, "data", 7, 1)?;
        volumes.snapshot(data.id, "one")?;
        assert_eq!(code(volumes.snapshot(data.id, "one")), "name_taken");
        write(&volumes, "data", 7, 2)?;
        volumes.clone_of(named("copy"), Source::Volume(data.id), None)?;
        let old = Source::Snapshot(data.id, "one");
        volumes.clone_of(named("old"), old, Some(MiB(128)))?;
        write(&volumes, "copy", 8, 3)?;
        write(&volumes, "data", 7, 4)?;
        reads(&volumes, "data", 7, 4)?;
        reads(&volumes, "data", 8, 0)?;
        reads(&volumes, "copy", 7, 2)?;
        reads(&volumes, "copy", 8, 3)?;
        reads(&volumes, "old", 7, 1)?;
        reads(&volumes, "old", 200_000, 0).context("it is larger than what it is a copy of")?;
        volumes.restore(data.id, "one")?;
        reads(&volumes, "data", 7, 1)?;
        // Growing keeps what there is, and what comes with it is zeros.
        assert_eq!(volumes.resize(data.id, MiB(96))?.size, MiB(96));
        assert_eq!(code(volumes.resize(data.id, MiB(64))), "bad_volume_size");
        write(&volumes, "data", 190_000, 9)?;
        reads(&volumes, "data", 190_000, 9)?;
        reads(&volumes, "data", 190_001, 0)?;
        volumes.restore(data.id, "one")?;
        assert_eq!(volumes.get(data.id)?.size, MiB(64));
        // All but the layers that something leads to are gone.
        for name in ["data", "copy"] {
            volumes.remove(volumes.find(&Scope::All, name)?.id, true)?;
        }
        reads(&volumes, "old", 7, 1)?;
        volumes.remove(volumes.find(&Scope::All, "old")?.id, true)?;
        let left = fs::read_dir(dir.path().join("volumes/layers"))?.count();
        assert_eq!(left, 0, "{backend:?}");
    }
    Ok(())
}
