//! A crash in every step: a process does a fixed list of operations and is killed at one place; whoever
//! opens the volumes next finds what there was before the operation, or after it, and nothing else.

use crate::support::{config, empty, layers, memory, named, write};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{Import, Source, Volumes, VolumesConfig};
use aleph_types::{DiskImageFormat, Filesystem, MiB, VolumeId};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

pub(crate) const ROOT: &str = "ALEPH_VOLUMES_TEST_ROOT";
const BACKEND: &str = "ALEPH_VOLUMES_TEST_BACKEND";

/// Where a process may die: the name of each change of the records, and of other steps.
const PLACES: &[&str] = &[
    "volumes.sweep:before",
    "volume.intend:before",
    "volume.intend:after",
    "layer.fill:made",
    "volume.ready:before",
    "volume.ready:after",
    "volume.attach:before",
    "volume.attach:after",
    "volume.release:before",
    "volume.branch:before",
    "volume.branch:after",
    "volume.freeze:before",
    "volume.freeze:after",
    "volume.snapshot:before",
    "volume.resize:before",
    "volume.resize:after",
    "volume.resize:grown",
    "volume.restore:before",
    "volume.restore:after",
    "volume.forget_snapshot:after",
    "volume.remove:before",
    "volume.remove:after",
    "volume.undelete:before",
    "layers.condemn:after",
    "layers.remove:one",
    "layers.forget:before",
];

type Operation = fn(&Volumes, &Path) -> Result<()>;

fn id(volumes: &Volumes, name: &str) -> Result<VolumeId> {
    Ok(volumes.find(&Scope::All, name)?.id)
}

/// What is done, in this order.
const OPERATIONS: &[Operation] = &[
    |v, _| empty(v, "a", 4).map(drop),
    |v, _| write(v, "a", 1, 1),
    |v, _| Ok(v.snapshot(id(v, "a")?, "s").map(drop)?),
    |v, _| write(v, "a", 1, 2),
    |v, _| {
        Ok(
            v.clone_of(named("b"), Source::Volume(id(v, "a")?), Some(MiB(6)))
                .map(drop)?,
        )
    },
    |v, _| Ok(v.resize(id(v, "a")?, MiB(5)).map(drop)?),
    |v, _| write(v, "b", 2, 3),
    |v, _| Ok(v.restore(id(v, "a")?, "s").map(drop)?),
    |v, _| Ok(v.snapshot(id(v, "a")?, "t").map(drop)?),
    |v, _| Ok(v.remove(id(v, "b")?, false)?),
    |v, _| Ok(v.undelete(id(v, "b")?, None).map(drop)?),
    |v, _| Ok(v.remove_snapshot(id(v, "a")?, "s")?),
    |v, image| {
        let image = File::open(image)?;
        Ok(v.import(named("c"), &image, Import::default()).map(drop)?)
    },
    |v, _| Ok(v.create(named("d"), MiB(16), Filesystem::Ext4).map(drop)?),
    |v, _| Ok(v.remove(id(v, "a")?, true)?),
];

fn image(dir: &Path) -> Result<std::path::PathBuf> {
    let path = dir.join("image");
    let file = File::create(&path)?;
    file.set_len(3 << 20)?;
    file.write_all_at(b"XFSB", 0)?;
    file.write_all_at(b"\x55\xaa", 510)?;
    Ok(path)
}

/// All that somebody sees of volumes, and the bytes that were written.
fn view(volumes: &Volumes) -> Result<String> {
    let mut text = String::new();
    for volume in volumes.list(&Scope::All, true)? {
        write!(text, "{} {} {:?}:", volume.name, volume.size, volume.state)?;
        if volume.state == aleph_types::VolumeState::Ready {
            let states = volume
                .snapshots
                .iter()
                .map(|state| Some(state.name.as_str()));
            for state in [None].into_iter().chain(states) {
                let raw = volumes.export(volume.id, state, DiskImageFormat::Raw)?;
                let mut found = [0; 4];
                for (sector, byte) in (0_u64..).zip(&mut found) {
                    raw.read_exact_at(std::slice::from_mut(byte), sector * 512)?;
                }
                write!(text, " {state:?} {} {found:x?}", raw.length)?;
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// The views before the first operation and after each.
fn reference(words: &str, dir: &Path) -> Result<Vec<String>> {
    let volumes = Volumes::open(&dir.join("reference"), way(words)?)?;
    let image = image(dir)?;
    let mut views = vec![view(&volumes)?];
    for operation in OPERATIONS {
        operation(&volumes, &image)?;
        views.push(view(&volumes)?);
    }
    for volume in volumes.list(&Scope::All, true)? {
        volumes.remove(volume.id, true)?;
    }
    Ok(views)
}

/// Its words are those of a configuration: a back end, and `encrypted`.
fn way(words: &str) -> Result<VolumesConfig> {
    let (backend, encrypted) = words.split_once(' ').unwrap_or((words, ""));
    Ok(VolumesConfig {
        encrypt: encrypted == "encrypted",
        ..config(backend.parse().map_err(anyhow::Error::msg)?)
    })
}

#[test]
fn victim() -> Result<()> {
    die()
}

/// The process that is killed. Without the variables it has nothing to do.
pub(crate) fn die() -> Result<()> {
    let Some(root) = std::env::var_os(ROOT) else {
        return Ok(());
    };
    let root = Path::new(&root);
    let volumes = Volumes::open(&root.join("node"), way(&std::env::var(BACKEND)?)?)?;
    let image = root.join("image");
    for (done, operation) in OPERATIONS.iter().enumerate() {
        operation(&volumes, &image)?;
        fs::write(root.join("done"), (done + 1).to_string())?;
    }
    Ok(())
}

/// Kills a process at one place, and looks at what it left. `false` where it did not come by.
fn kill_at(words: &str, place: &str, views: &[String]) -> Result<bool> {
    let dir = memory()?;
    image(dir.path())?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "crash::victim", "--nocapture"])
        .env(ROOT, dir.path())
        .env(BACKEND, words)
        .env("ALEPH_FAILPOINT", place)
        .output()?;
    if output.status.signal() != Some(9) {
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{place}: {} {said}", output.status);
        return Ok(false);
    }
    let done = fs::read_to_string(dir.path().join("done")).unwrap_or_default();
    let done: usize = done.parse().unwrap_or(0);
    let volumes = Volumes::open(&dir.path().join("node"), way(words)?)
        .with_context(|| format!("{place}, after {done}"))?;
    volumes.recover(|_| false)?;
    let found = view(&volumes)?;
    let (before, after) = (&views[done], views.get(done + 1));
    ensure!(
        found == *before || Some(&found) == after,
        "{place}, after operation {done}:\n{found}\nwanted:\n{before}\nor:\n{after:?}"
    );
    // What was not done can be, and nothing stays of anything.
    let rest = if Some(&found) == after {
        done + 1
    } else {
        done
    };
    for operation in OPERATIONS.iter().skip(rest) {
        operation(&volumes, &dir.path().join("image")).with_context(|| place.to_owned())?;
    }
    ensure!(
        Some(&view(&volumes)?) == views.last(),
        "{place}, to the end"
    );
    for volume in volumes.list(&Scope::All, true)? {
        volumes.remove(volume.id, true)?;
    }
    let state = dir.path().join("node");
    let left = layers(&state, way(words)?.backend)?;
    ensure!(left == 0, "{place}: {left} layers are left");
    let left = fs::read_dir(state.join("volumes/work"))?.count();
    ensure!(left == 0, "{place}: {left} files are left");
    Ok(true)
}

fn everywhere(words: &str, times: u32, least: usize) -> Result<()> {
    at_places(words, PLACES, (times, least))
}

pub(crate) fn at_places(words: &str, places: &[&str], (times, least): (u32, usize)) -> Result<()> {
    let dir = memory()?;
    let views = reference(words, dir.path())?;
    let mut kills = 0;
    for place in places {
        // The first times that it comes by.
        for time in 1..=times {
            if !kill_at(words, &format!("{place}:{time}"), &views)? {
                break;
            }
            kills += 1;
        }
    }
    ensure!(kills >= least, "{kills} kills: places are missed");
    Ok(())
}

#[test]
fn a_crash_in_every_step_of_chains() -> Result<()> {
    everywhere("qcow2", 2, PLACES.len() + 15)
}

#[test]
fn a_crash_in_every_step_of_files() -> Result<()> {
    // No file of this kind is made over another, so one place is never come by.
    everywhere("files", 1, PLACES.len() - 1)
}

#[test]
fn a_crash_in_steps_of_encrypted_chains() -> Result<()> {
    let places = [
        "volume.ready:before",
        "volume.freeze:before",
        "volume.resize:after",
        "layers.remove:one",
    ];
    at_places("qcow2 encrypted", &places, (1, places.len()))
}
