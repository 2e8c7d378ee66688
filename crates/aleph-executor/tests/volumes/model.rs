//! Random operations on volumes, against a model that keeps each disk as the sectors that were written.

use crate::support::{code, config, layers, memory, named, write};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{BackendChoice, Source, VolumeError, Volumes, VolumesConfig};
use aleph_types::{DiskImageFormat, Filesystem, MiB, VolumeId, VolumeState};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const STATES: [&str; 3] = ["x", "y", "z"];

/// xorshift64* (Vigna, 2016): the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Disk {
    size: u32,
    sectors: BTreeMap<u64, u8>,
}

#[derive(Debug, Clone)]
struct Known {
    id: VolumeId,
    disk: Disk,
    states: BTreeMap<&'static str, Disk>,
}

#[derive(Debug, Default)]
struct Model {
    ready: BTreeMap<&'static str, Known>,
    deleted: Vec<(&'static str, Known)>,
}

type Done = std::result::Result<(), VolumeError>;

/// Does one thing to both, and says what the model expects of it: a code, or `none`.
fn step(
    random: &mut Random,
    volumes: &Volumes,
    model: &mut Model,
) -> Result<(String, Done, &'static str)> {
    let name = random.of(&NAMES);
    let known = model.ready.get(name).cloned();
    let what = random.below(12);
    Ok(match (what, known) {
        (0 | 1, known) => {
            let size = 1 + u32::try_from(random.below(6))?;
            let made = volumes.create(named(name), MiB(size), Filesystem::None);
            let wanted = if known.is_some() {
                "name_taken"
            } else {
                "none"
            };
            if let Ok(made) = &made {
                let disk = Disk {
                    size,
                    sectors: BTreeMap::new(),
                };
                let known = Known {
                    id: made.id,
                    disk,
                    states: BTreeMap::new(),
                };
                model.ready.insert(name, known);
            }
            (format!("create {name} {size}"), made.map(drop), wanted)
        }
        (2, _) if !model.deleted.is_empty() => {
            let at = random.below(model.deleted.len());
            let (old, known) = model.deleted[at].clone();
            let wanted = if model.ready.contains_key(old) {
                "name_taken"
            } else {
                "none"
            };
            let back = volumes.undelete(known.id, None);
            if back.is_ok() {
                model.deleted.remove(at);
                model.ready.insert(old, known);
            }
            (format!("undelete {old}"), back.map(drop), wanted)
        }
        (_, None) => {
            let gone = model.deleted.iter().find(|(other, _)| *other == name);
            match gone {
                Some((_, known)) => (
                    format!("snapshot {name}, which was removed"),
                    volumes.snapshot(known.id, "x").map(drop),
                    "volume_deleted",
                ),
                None => (
                    format!("find {name}, which is not there"),
                    volumes.find(&Scope::All, name).map(drop),
                    "no_volume",
                ),
            }
        }
        (3..=5, Some(known)) => {
            let sector = u64::try_from(random.below(usize::try_from(known.disk.size)? * 2048))?;
            let byte = 1 + u8::try_from(random.below(255))?;
            write(volumes, name, sector, byte)?;
            let disk = &mut model.ready.get_mut(name).context("it is there")?.disk;
            disk.sectors.insert(sector, byte);
            (
                format!("write {byte} to sector {sector} of {name}"),
                Ok(()),
                "none",
            )
        }
        (6 | 7, Some(known)) => {
            let state = random.of(&STATES);
            let wanted = if known.states.contains_key(state) {
                "name_taken"
            } else {
                "none"
            };
            let kept = volumes.snapshot(known.id, state);
            if kept.is_ok() {
                let states = &mut model.ready.get_mut(name).context("it is there")?.states;
                states.insert(state, known.disk);
            }
            (format!("snapshot {name} {state}"), kept.map(drop), wanted)
        }
        (8, Some(known)) => {
            let (copy, state) = (random.of(&NAMES), random.of(&STATES));
            let (source, disk) = match known.states.get(state) {
                Some(disk) => (Source::Snapshot(known.id, state), disk.clone()),
                None => (Source::Volume(known.id), known.disk),
            };
            let wanted = if model.ready.contains_key(copy) {
                "name_taken"
            } else {
                "none"
            };
            let size = disk.size + u32::try_from(random.below(3))?;
            let made = volumes.clone_of(named(copy), source, Some(MiB(size)));
            let disk = Disk { size, ..disk };
            if let Ok(made) = &made {
                let known = Known {
                    id: made.id,
                    disk,
                    states: BTreeMap::new(),
                };
                model.ready.insert(copy, known);
            }
            (
                format!("clone {name} ({source:?}) to {copy}"),
                made.map(drop),
                wanted,
            )
        }
        (9, Some(known)) => {
            let size = 1 + u32::try_from(random.below(8))?;
            let wanted = if size < known.disk.size {
                "bad_volume_size"
            } else {
                "none"
            };
            let grown = volumes.resize(known.id, MiB(size));
            if grown.is_ok() {
                model.ready.get_mut(name).context("it is there")?.disk.size = size;
            }
            (format!("resize {name} to {size}"), grown.map(drop), wanted)
        }
        (10, Some(known)) => {
            let state = random.of(&STATES);
            let found = known.states.get(state).cloned();
            let wanted = if found.is_some() {
                "none"
            } else {
                "no_volume_snapshot"
            };
            let entry = model.ready.get_mut(name).context("it is there")?;
            if random.below(3) == 0 {
                entry.states.remove(state);
                let forgotten = volumes.remove_snapshot(known.id, state);
                (format!("forget {state} of {name}"), forgotten, wanted)
            } else {
                if let Some(disk) = found {
                    entry.disk = disk;
                }
                let restored = volumes.restore(known.id, state).map(drop);
                (format!("restore {state} of {name}"), restored, wanted)
            }
        }
        (_, Some(known)) => {
            let now = random.below(3) == 0;
            let removed = volumes.remove(known.id, now);
            if let Some(known) = model.ready.remove(name)
                && !now
            {
                model.deleted.push((name, known));
            }
            (format!("remove {name}, now: {now}"), removed, "none")
        }
    })
}

/// Checks one disk, byte for byte.
fn compare(volumes: &Volumes, id: VolumeId, state: Option<&str>, disk: &Disk) -> Result<()> {
    let exported = volumes.export(id, state, DiskImageFormat::Raw)?;
    ensure!(
        exported.length == u64::from(disk.size) << 20,
        "{} bytes",
        exported.length
    );
    let mut found = vec![0; usize::try_from(exported.length)?];
    exported.read_exact_at(&mut found, 0)?;
    let mut wanted = vec![0_u8; found.len()];
    for (sector, byte) in &disk.sectors {
        let at = usize::try_from(sector * 512)?;
        wanted[at..at + 512].fill(*byte);
    }
    if wanted == found {
        return Ok(());
    }
    let differs = (0..wanted.len()).find(|at| wanted[*at] != found[*at]);
    anyhow::bail!("it differs at byte {differs:?}")
}

/// Checks that both have the same volumes with the same states.
fn compare_lists(volumes: &Volumes, model: &Model) -> Result<()> {
    let listed = volumes.list(&Scope::All, true)?;
    let told = listed.iter().map(|volume| {
        let states = volume.snapshots.iter().map(|state| state.name.clone());
        let states: std::collections::BTreeSet<_> = states.collect();
        (
            volume.id,
            (volume.name.clone(), volume.state, volume.size.0, states),
        )
    });
    let ready = model
        .ready
        .iter()
        .map(|(name, known)| (*name, known, VolumeState::Ready));
    let deleted = model
        .deleted
        .iter()
        .map(|(name, known)| (*name, known, VolumeState::Deleted));
    let wanted = ready.chain(deleted).map(|(name, known, state)| {
        let states = known
            .states
            .keys()
            .map(|state| (*state).to_owned())
            .collect();
        (known.id, (name.to_owned(), state, known.disk.size, states))
    });
    let (told, wanted): (BTreeMap<_, _>, BTreeMap<_, _>) = (told.collect(), wanted.collect());
    ensure!(told == wanted, "told: {told:?}\nwanted: {wanted:?}");
    Ok(())
}

/// In a node's state folder.
pub(crate) fn operations(
    state: &Path,
    (backend, encrypt): (BackendChoice, bool),
    seed: u64,
    rounds: usize,
) -> Result<()> {
    let config = VolumesConfig {
        encrypt,
        ..config(backend)
    };
    let open = || Volumes::open(state, config.clone());
    let (mut random, mut model) = (Random(seed), Model::default());
    let mut volumes = open()?;
    for round in 0..rounds {
        let (what, done, wanted) = step(&mut random, &volumes, &mut model)?;
        let context = || format!("seed {seed}, round {round}: {what}");
        let told = format!("{done:?}");
        ensure!(
            code(done) == wanted,
            "{}: {told}, wanted {wanted}",
            context()
        );
        compare_lists(&volumes, &model).with_context(context)?;
        // One disk in each round, and all of them now and then.
        let all = round % 100 == 99 || round + 1 == rounds;
        let name = random.of(&NAMES);
        for (other, known) in &model.ready {
            if all || *other == name {
                compare(&volumes, known.id, None, &known.disk).with_context(context)?;
            }
            for (state, disk) in known.states.iter().filter(|_| all) {
                compare(&volumes, known.id, Some(state), disk).with_context(context)?;
            }
        }
        if all {
            drop(volumes);
            volumes = open()?;
        }
    }
    for volume in volumes.list(&Scope::All, true)? {
        volumes.remove(volume.id, true)?;
    }
    let left = layers(state, backend)?;
    ensure!(left == 0, "{left} layers are left of nothing");
    Ok(())
}

#[test]
fn six_hundred_operations_on_chains() -> Result<()> {
    operations(memory()?.path(), (BackendChoice::Qcow2, false), 1, 600)
}

#[test]
fn four_hundred_operations_on_files() -> Result<()> {
    operations(memory()?.path(), (BackendChoice::Files, false), 2, 400)
}

#[test]
fn operations_on_encrypted_chains() -> Result<()> {
    operations(memory()?.path(), (BackendChoice::Qcow2, true), 3, 40)
}

#[test]
fn operations_on_encrypted_files() -> Result<()> {
    operations(memory()?.path(), (BackendChoice::Files, true), 4, 40)
}
