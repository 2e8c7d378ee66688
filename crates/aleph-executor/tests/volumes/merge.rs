//! Layers that are merged while a volume is written, as far as the records and files go: the VMM is `qemu-io`.

use crate::support::{BACKENDS, code, config, empty, layers as files, memory, owner, qemu_io};
use aleph_executor::volumes::{
    BackendChoice, Layers, MAX_DEPTH, Owner, Source, VolumeError, VolumeQuota, Volumes,
    VolumesConfig,
};
use aleph_types::{DiskImageFormat, MiB, VolumeAccess, VolumeId};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::FileExt;

/// What is written at a time: less than a cluster of a layer, which is 64 KiB.
const BLOCK: usize = 4096;

/// What a volume holds, by its blocks.
type Model = Vec<u8>;

/// A volume and who writes to it.
struct Written<'a> {
    volumes: &'a Volumes,
    id: VolumeId,
    owner: Owner,
    layers: Layers,
    model: Model,
    seed: u64,
}

impl<'a> Written<'a> {
    fn new(volumes: &'a Volumes, size: u32) -> Result<Self> {
        let (id, owner) = (empty(volumes, "data", size)?.id, owner());
        let attached = volumes.attach("a", "data", &owner, VolumeAccess::Exclusive)?;
        Ok(Self {
            volumes,
            id,
            owner,
            layers: attached.layers,
            model: vec![0; (size as usize) << 20 >> 12],
            seed: 1,
        })
    }

    fn random(&mut self, below: usize) -> usize {
        // Knuth's MMIX.
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    /// Writes, zeroes and discards at random.
    fn write(&mut self, byte: u8) -> Result<()> {
        let mut lines = Vec::new();
        for n in 0..6 {
            let first = self.random(self.model.len() - 32);
            let blocks = 1 + self.random(if n == 0 { 32 } else { 8 });
            let (at, length) = (first * BLOCK, blocks * BLOCK);
            let (line, is) = match self.random(4) {
                0 => (format!("write -z {at} {length}"), 0),
                // Of a part of a cluster it is what it likes: of whole ones it is zeros.
                1 => {
                    let (at, length) = (at.next_multiple_of(65_536), 131_072);
                    let blocks = at / BLOCK..(at + length) / BLOCK;
                    if blocks.end <= self.model.len() {
                        self.model[blocks].fill(0);
                        lines.push(format!("write -z -u {at} {length}"));
                    }
                    continue;
                }
                _ => (format!("write -P {byte} {at} {length}"), byte),
            };
            self.model[first..first + blocks].fill(is);
            lines.push(line);
        }
        qemu_io(&self.layers, &lines).map(drop)
    }

    fn cover(mut self, name: Option<&str>) -> Result<Self> {
        let (id, owner) = (self.id, self.owner);
        let cover = self.volumes.begin_cover(id, &owner, name)?;
        self.volumes.arm_cover(id, &owner)?;
        self.layers = self.layers.covered(cover);
        self.volumes.finish_cover(id, &owner)?;
        Ok(self)
    }

    /// Puts layers over it until some are to be merged, and writes to each.
    fn deep(mut self) -> Result<Self> {
        for byte in 1.. {
            self.write(byte)?;
            self = self.cover(None)?;
            if self.volumes.depth(self.id)? == 10 {
                break;
            }
        }
        Ok(self)
    }

    /// Merges what is to be merged, as a VMM would that reads through it.
    fn merge(&self) -> Result<bool> {
        let (id, owner) = (self.id, &self.owner);
        let Some(merge) = self.volumes.begin_merge(id, owner)? else {
            return Ok(false);
        };
        ensure!(
            self.volumes.begin_merge(id, owner)?.is_none(),
            "two at once"
        );
        ensure!(
            self.volumes.open_merge(id, owner)?.is_none(),
            "it is not whole"
        );
        ensure!(!self.volumes.finish_merge(id, owner)?, "it is not whole");
        ensure!(self.volumes.fill_merge(&merge)?, "it was over");
        let before = self.volumes.depth(id)?;
        let merged = self.volumes.open_merge(id, owner)?.context("no merge")?;
        ensure!(merged.chain.len() == before, "{merged:?}");
        ensure!(merged.over + merged.holds < before - 1, "{merged:?}");
        ensure!(self.volumes.finish_merge(id, owner)?, "it was over");
        self.volumes.collect_merged(id)?;
        let now = self.volumes.depth(id)?;
        ensure!(now == before - merged.holds + 1, "{merged:?}: {now}");
        Ok(true)
    }

    /// Ends the lease, and checks what the volume holds.
    fn ends(self) -> Result<Model> {
        drop(self.layers);
        self.volumes.release(&self.owner, true)?;
        holds(self.volumes, self.id, None, &self.model)?;
        Ok(self.model)
    }
}

fn is_overlay(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|kind| kind == "qcow2")
}

/// Checks what a volume, or a snapshot of it, holds.
fn holds(volumes: &Volumes, id: VolumeId, snapshot: Option<&str>, model: &[u8]) -> Result<()> {
    let image = volumes.export(id, snapshot, DiskImageFormat::Raw)?;
    // What is encrypted goes out piece by piece.
    let read = volumes.read(id, snapshot)?;
    let mut block = vec![0; BLOCK];
    for (n, byte) in model.iter().enumerate() {
        let at = (n * BLOCK) as u64;
        match image.file() {
            Some(file) => file.read_exact_at(&mut block, at)?,
            None => read.read_at(at, &mut block)?,
        }
        ensure!(
            block.iter().all(|found| found == byte),
            "block {n} of {snapshot:?} is {} and not {byte}",
            block[0]
        );
    }
    Ok(())
}

#[test]
fn what_is_merged_reads_as_before() -> Result<()> {
    for backend in BACKENDS {
        let dir = memory()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let mut written = Written::new(&volumes, 4)?;
        let (mut kept, mut merges) = (Vec::new(), 0);
        for n in 1..=2 * MAX_DEPTH {
            written.write(u8::try_from(n)?)?;
            if n == 7 {
                // Layers are of different sizes then.
                volumes.grow_record(written.id, &written.owner, MiB(6))?;
                qemu_io(&written.layers, &["truncate 6M".to_owned()])?;
                written.model.resize(6 << 20 >> 12, 0);
            }
            let name = (n % 3 == 0).then(|| format!("s{n}"));
            written = written.cover(name.as_deref())?;
            if let Some(name) = name {
                kept.push((name, written.model.clone()));
            }
            merges += usize::from(written.merge()?);
            ensure!(volumes.depth(written.id)? < 10, "{backend:?}: too deep");
        }
        ensure!(merges > 2, "{backend:?}: {merges}");
        let id = written.id;
        written.ends().with_context(|| format!("{backend:?}"))?;
        for (name, model) in &kept {
            holds(&volumes, id, Some(name), model).with_context(|| format!("{backend:?}"))?;
        }
        volumes.restore(id, &kept[2].0)?;
        holds(&volumes, id, None, &kept[2].1)?;
        for (name, model) in &kept[3..] {
            holds(&volumes, id, Some(name), model)?;
            volumes.remove_snapshot(id, name)?;
        }
        volumes.remove(id, true)?;
        assert_eq!(files(dir.path(), backend)?, 0, "{backend:?}");
    }
    Ok(())
}

/// Merges layers of a volume once, and gives it.
pub(crate) fn are_merged(volumes: &Volumes) -> Result<VolumeId> {
    let written = Written::new(volumes, 4)?.deep()?;
    ensure!(written.merge()?, "nothing was merged");
    let id = written.id;
    written.ends()?;
    Ok(id)
}

/// Merges layers of a volume once it was refused, which `refuse` sees to: it is given what tries to.
#[allow(dead_code, reason = "it is for a disk that fails, in a VM")]
pub(crate) fn is_refused_first(
    volumes: &Volumes,
    refuse: impl FnOnce(&dyn Fn() -> Result<bool, VolumeError>) -> Result<()>,
) -> Result<VolumeId> {
    let written = Written::new(volumes, 4)?.deep()?;
    let (id, owner) = (written.id, written.owner);
    let depth = volumes.depth(id)?;
    refuse(&|| {
        let merge = volumes.begin_merge(id, &owner)?;
        merge.map_or(Ok(false), |merge| volumes.fill_merge(&merge))
    })?;
    ensure!(volumes.depth(id)? == depth, "its chain is another one");
    ensure!(written.merge()?, "nothing was merged");
    written.ends()?;
    Ok(id)
}

#[test]
fn layers_that_are_encrypted_stay_so() -> Result<()> {
    let dir = memory()?;
    let encrypted = VolumesConfig {
        encrypt: true,
        ..config(BackendChoice::Qcow2)
    };
    let volumes = Volumes::open(dir.path(), encrypted)?;
    let id = are_merged(&volumes)?;
    for layer in std::fs::read_dir(dir.path().join("volumes/layers"))? {
        let mut head = [0; 36];
        std::fs::File::open(layer?.path())?.read_exact_at(&mut head, 0)?;
        assert_eq!(head[32..], [0, 0, 0, 2], "LUKS in qcow2");
    }
    volumes.remove(id, true)?;
    assert_eq!(files(dir.path(), BackendChoice::Qcow2)?, 0);
    Ok(())
}

#[test]
fn whenever_a_node_ends_a_merge_is_whole_or_gone() -> Result<()> {
    let dir = memory()?;
    let backend = BackendChoice::Qcow2;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let Written {
        id,
        owner,
        layers,
        model,
        ..
    } = Written::new(&volumes, 4)?.deep()?;
    let before = files(dir.path(), backend)?;
    // Before its layer is whole.
    let merge = volumes.begin_merge(id, &owner)?.context("no merge")?;
    assert_eq!(volumes.merging()?, [id]);
    drop((merge, volumes));
    let volumes = Volumes::open(dir.path(), config(backend))?;
    assert_eq!(volumes.merging()?, []);
    assert_eq!(files(dir.path(), backend)?, before);
    // After that: whoever comes next ends it, or gives it up.
    for is_ended in [false, true] {
        let merge = volumes.begin_merge(id, &owner)?.context("no merge")?;
        ensure!(volumes.fill_merge(&merge)?, "it was over");
        assert_eq!(files(dir.path(), backend)?, before + 1);
        if is_ended {
            break;
        }
        volumes.drop_merge(id)?;
        assert_eq!(files(dir.path(), backend)?, before);
    }
    drop(volumes);
    let volumes = Volumes::open(dir.path(), config(backend))?;
    assert_eq!(volumes.merging()?, [id]);
    ensure!(volumes.open_merge(id, &owner)?.is_some(), "it is gone");
    ensure!(volumes.finish_merge(id, &owner)?, "it was over");
    volumes.collect_merged(id)?;
    ensure!(volumes.depth(id)? < 10, "{}", volumes.depth(id)?);
    ensure!(files(dir.path(), backend)? < before, "layers stay");
    drop(layers);
    volumes.release(&owner, true)?;
    holds(&volumes, id, None, &model)
}

#[test]
fn a_merge_is_over_with_its_writer() -> Result<()> {
    let dir = memory()?;
    let backend = BackendChoice::Qcow2;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let written = Written::new(&volumes, 4)?.deep()?;
    let (id, before) = (written.id, files(dir.path(), backend)?);
    assert_eq!(code(volumes.begin_merge(id, &owner())), "volume_attached");
    let merge = volumes
        .begin_merge(id, &written.owner)?
        .context("no merge")?;
    // Detached, and attached again by the same job.
    let Written {
        owner,
        layers,
        model,
        ..
    } = written;
    drop(layers);
    volumes.release_one(id, &owner)?;
    let attached = volumes.attach("a", "data", &owner, VolumeAccess::Exclusive)?;
    ensure!(!volumes.fill_merge(&merge)?, "whose is it?");
    ensure!(!volumes.finish_merge(id, &owner)?, "it is not over");
    assert_eq!(files(dir.path(), backend)?, before);
    drop(attached);
    volumes.release_one(id, &owner)?;
    holds(&volumes, id, None, &model)
}

#[test]
fn what_cannot_be_merged_leaves_the_volume_as_it_is() -> Result<()> {
    let dir = memory()?;
    let backend = BackendChoice::Qcow2;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let mut written = Written::new(&volumes, 4)?.deep()?;
    let (id, owner) = (written.id, written.owner);

    // What is being put over it may not stay.
    let cover = volumes.begin_cover(id, &owner, None)?;
    assert_eq!(code(volumes.begin_merge(id, &owner)), "volume_busy");
    volumes.undo_cover(id, &owner)?;
    drop(cover);

    // A copy that is over the same layer, or over one above it, has a VMM of its own.
    for above in 0..2 {
        let (kept, copied) = (format!("kept{above}"), format!("copy{above}"));
        let merge = volumes.begin_merge(id, &owner)?.context("no merge")?;
        ensure!(volumes.fill_merge(&merge)?, "it was over");
        drop(merge);
        for _ in 0..above {
            written = written.cover(None)?;
        }
        written = written.cover(Some(&kept))?;
        let model = written.model.clone();
        let new = crate::support::named(&copied);
        let source = Source::Snapshot(id, &kept);
        let copy = volumes.clone_of(new, source, None)?.id;
        assert_eq!(code(volumes.open_merge(id, &owner)), "volume_busy");
        assert_eq!(code(volumes.finish_merge(id, &owner)), "volume_busy");
        volumes.drop_merge(id)?;
        holds(&volumes, copy, None, &model)?;
    }

    // And none is made while the VMM goes over.
    let merge = volumes.begin_merge(id, &owner)?.context("no merge")?;
    ensure!(volumes.fill_merge(&merge)?, "it was over");
    drop(merge);
    written = written.cover(Some("later"))?;
    let model = written.model.clone();
    ensure!(volumes.open_merge(id, &owner)?.is_some(), "it is gone");
    let copy = || {
        let new = crate::support::named("copy-later");
        volumes.clone_of(new, Source::Snapshot(id, "later"), None)
    };
    assert_eq!(code(copy()), "volume_busy");
    ensure!(volumes.finish_merge(id, &owner)?, "it was over");
    volumes.collect_merged(id)?;
    holds(&volumes, copy()?.id, None, &model)?;
    // Deep again, for what follows.
    while volumes.depth(id)? < 11 {
        written = written.cover(None)?;
    }

    // What its VMM may write into a layer that it has no business with any more.
    let spoilt = std::fs::read_dir(dir.path().join("volumes/layers"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let depth = volumes.depth(id)?;
    let mut heads = Vec::new();
    for path in spoilt.iter().filter(|path| is_overlay(path)) {
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        let mut head = [0; 20];
        file.read_exact_at(&mut head, 0)?;
        // A backing file.
        file.write_all_at(&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 11], 8)?;
        heads.push((file, head));
    }
    let before = files(dir.path(), backend)?;
    let merge = volumes.begin_merge(id, &owner)?.context("no merge")?;
    assert_eq!(code(volumes.fill_merge(&merge)), "bad_qcow2");
    assert_eq!(files(dir.path(), backend)?, before);
    assert_eq!(volumes.merging()?, []);
    assert_eq!(volumes.depth(id)?, depth);
    for (file, head) in heads {
        file.write_all_at(&head, 0)?;
    }
    written.ends()?;
    Ok(())
}

#[test]
fn a_merge_is_within_the_quota() -> Result<()> {
    let dir = memory()?;
    let backend = BackendChoice::Qcow2;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let Written {
        id,
        owner,
        layers,
        model,
        ..
    } = Written::new(&volumes, 4)?.deep()?;
    drop(volumes);
    let tight = VolumesConfig {
        quota: VolumeQuota {
            count: None,
            bytes: Some(MiB(5).bytes()),
        },
        ..config(backend)
    };
    let volumes = Volumes::open(dir.path(), tight)?;
    assert_eq!(code(volumes.begin_merge(id, &owner)), "volume_quota");
    assert_eq!(volumes.merging()?, []);
    drop(layers);
    volumes.release(&owner, true)?;
    holds(&volumes, id, None, &model)
}

#[test]
fn what_changed_since_a_backup_is_known_over_a_merge() -> Result<()> {
    let dir = memory()?;
    let backend = BackendChoice::Qcow2;
    let volumes = Volumes::open(dir.path(), config(backend))?;
    let mut written = Written::new(&volumes, 16)?;
    written.write(99)?;
    let (id, first) = (written.id, written.model.clone());
    let seed = written.seed;
    written.ends()?;
    volumes.snapshot(id, "backed-up")?;
    let state = volumes.read(id, Some("backed-up"))?;
    let state = state.state().context("no state")?.to_owned();
    let owner = owner();
    let attached = volumes.attach("a", "data", &owner, VolumeAccess::Exclusive)?;
    let written = Written {
        volumes: &volumes,
        id,
        owner,
        layers: attached.layers,
        model: first.clone(),
        seed,
    };
    let written = written.deep()?;
    ensure!(written.merge()?, "nothing was merged");
    let now = written.ends()?;
    let image = volumes.read(id, None)?;
    let changed = image.changed_since(&state).context("it is not known")?;
    let mut differs = 0;
    for (n, (before, now)) in first.iter().zip(&now).enumerate() {
        let at = (n * BLOCK) as u64;
        let is_within = changed.iter().any(|range| range.contains(&at));
        ensure!(is_within || before == now, "block {n} is not told");
        differs += u64::from(before != now);
    }
    ensure!(differs > 0, "nothing was written");
    let told: u64 = changed.iter().map(|range| range.end - range.start).sum();
    ensure!(told < image.size(), "all of it is told");
    Ok(())
}
