//! What is done with a volume while it is written, as far as the records and files go: the VMM is `qemu-io`.

use crate::support::{BACKENDS, code, config, empty, memory, named, owner, qemu_io, reads};
use aleph_executor::volumes::{
    Cover, GuestState, Layers, MAX_DEPTH, MAX_SIZE, Owner, Source, VolumeQuota, Volumes,
    VolumesConfig,
};
use aleph_types::{DiskImageFormat, Filesystem, MiB, VolumeAccess, VolumeConsistency, VolumeId};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn attach(volumes: &Volumes, owner: &Owner) -> Result<Layers> {
    let attached = volumes.attach("a", "data", owner, VolumeAccess::Exclusive)?;
    Ok(attached.layers)
}

fn put(layers: &Layers, sector: u64, byte: u8) -> Result<()> {
    let line = format!("write -P {byte} {} 512", sector * 512);
    qemu_io(layers, &[line]).map(drop)
}

/// Writes to what is below a cover, as only a VMM that was broken into does, and changes nothing of it.
fn touch_below(layers: &Layers) -> Result<()> {
    let below = &layers.backing.first().context("nothing is below")?.file;
    let mut byte = [0];
    below.read_exact_at(&mut byte, 0)?;
    Ok(below.write_all_at(&byte, 0)?)
}

/// What a VMM has once it has gone over to a cover.
fn over(layers: Layers, cover: Cover) -> Layers {
    layers.covered(cover)
}

fn files(root: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(root.join("volumes/layers"))?.count())
}

fn byte(image: &File, sector: u64) -> Result<u8> {
    let mut found = [0];
    image.read_exact_at(&mut found, sector * 512)?;
    Ok(found[0])
}

fn id(volumes: &Volumes) -> Result<VolumeId> {
    Ok(empty(volumes, "data", 4)?.id)
}

#[test]
fn a_state_below_what_is_written_stands_still() -> Result<()> {
    for backend in BACKENDS {
        let dir = memory()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let (id, owner) = (id(&volumes)?, owner());
        let layers = attach(&volumes, &owner)?;
        put(&layers, 1, 1)?;
        let cover = volumes.begin_cover(id, &owner, Some("kept"))?;
        assert_eq!(code(volumes.begin_cover(id, &owner, None)), "volume_busy");
        volumes.arm_cover(id, &owner)?;
        volumes.freezing(id, &owner, GuestState::Freezing)?;
        volumes.freezing(id, &owner, GuestState::Frozen)?;
        let layers = over(layers, cover);
        put(&layers, 1, 2)?;
        let point = volumes.finish_cover(id, &owner)?;
        assert_eq!(point.consistency, VolumeConsistency::Filesystem);
        let image = volumes.read_point(id, &point)?;
        let mut found = [0];
        image.read_at(512, &mut found)?;
        assert_eq!(found, [1], "{backend:?}");
        // Its VMM has it still, and what it is called says when it was written last.
        let state = image.state().map(str::to_owned);
        let again = volumes.read(id, Some("kept"))?;
        assert_eq!(again.state(), state.as_deref());
        ensure!(state.is_some(), "{backend:?}: nobody knows it");
        touch_below(&layers)?;
        assert_ne!(volumes.read(id, Some("kept"))?.state(), state.as_deref());
        let now = volumes.get(id)?;
        let snapshot = now.snapshots.first().context("no snapshot")?;
        assert_eq!(snapshot.consistency, Some(VolumeConsistency::Filesystem));
        let kept = volumes.export(id, Some("kept"), DiskImageFormat::Raw)?;
        assert_eq!(byte(kept.file().context("no file")?, 1)?, 1, "{backend:?}");
        // It goes on as any volume does.
        drop(layers);
        volumes.release(&owner, true)?;
        reads(&volumes, "data", 1, 2)?;
        volumes.restore(id, "kept")?;
        reads(&volumes, "data", 1, 1)?;
        volumes.remove(id, true)?;
        assert_eq!(files(dir.path())?, 0, "{backend:?}");
    }
    Ok(())
}

#[test]
fn what_changed_between_states_of_what_is_written_is_known() -> Result<()> {
    for backend in BACKENDS {
        let dir = memory()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let (id, owner) = (id(&volumes)?, owner());
        let mut layers = attach(&volumes, &owner)?;
        let mut known: Option<String> = None;
        for sector in [1, 2049, 4097] {
            put(&layers, sector, 7)?;
            let cover = volumes.begin_cover(id, &owner, None)?;
            volumes.arm_cover(id, &owner)?;
            layers = over(layers, cover);
            let point = volumes.finish_cover(id, &owner)?;
            let image = volumes.read_point(id, &point)?;
            if let Some(known) = known {
                let changed = image.changed_since(&known).context("it is not known")?;
                let at = sector * 512;
                ensure!(
                    changed.iter().any(|range| range.contains(&at)),
                    "{changed:?}"
                );
                let told: u64 = changed.iter().map(|range| range.end - range.start).sum();
                ensure!(told <= 64 << 10, "{backend:?}: {changed:?}");
            }
            known = image.state().map(str::to_owned);
        }
        // And so it is once its VMM has ended.
        let known = known.context("it has no name")?;
        put(&layers, 5000, 8)?;
        drop(layers);
        volumes.release(&owner, true)?;
        let image = volumes.read(id, None)?;
        let changed = image.changed_since(&known).context("it is not known")?;
        ensure!(
            changed.iter().any(|range| range.contains(&(5000 * 512))),
            "{changed:?}"
        );
        ensure!(
            changed
                .iter()
                .all(|range| range.end - range.start <= 64 << 10),
            "{changed:?}"
        );
    }
    Ok(())
}

#[test]
fn whichever_layer_a_vmm_wrote_to_nothing_is_lost() -> Result<()> {
    for backend in BACKENDS {
        // It has gone over, or not; and its end comes at either.
        for (goes_over, is_undone) in [(false, false), (false, true), (true, false)] {
            let dir = memory()?;
            let volumes = Volumes::open(dir.path(), config(backend))?;
            let (id, owner) = (id(&volumes)?, owner());
            let mut layers = attach(&volumes, &owner)?;
            put(&layers, 1, 1)?;
            let cover = volumes.begin_cover(id, &owner, Some("kept"))?;
            volumes.arm_cover(id, &owner)?;
            if goes_over {
                layers = over(layers, cover);
            } else {
                // Its descriptors are closed with the node.
                drop(cover);
            }
            put(&layers, 1, 2)?;
            // As after the end of a node: what is armed stays.
            drop(volumes);
            let volumes = Volumes::open(dir.path(), config(backend))?;
            let held = volumes.held_by(&owner)?;
            let pending = held[0].1.as_ref().context("nothing is pending")?;
            ensure!(
                pending.armed && pending.guest == GuestState::Running,
                "{pending:?}"
            );
            if is_undone {
                volumes.undo_cover(id, &owner)?;
                put(&layers, 1, 3)?;
                assert_eq!(files(dir.path())?, 1);
            }
            // A process has it still, so it is nobody's to free.
            assert_eq!(volumes.recover(|_| false)?, []);
            drop(layers);
            assert_eq!(volumes.recover(|_| false)?, [id]);
            reads(&volumes, "data", 1, if is_undone { 3 } else { 2 })?;
            ensure!(
                volumes.get(id)?.snapshots.is_empty(),
                "what nobody saw is kept"
            );
        }
    }
    Ok(())
}

#[test]
fn a_growth_is_taken_back_where_its_disk_did_not_grow() -> Result<()> {
    let dir = memory()?;
    let bounded = VolumesConfig {
        quota: VolumeQuota {
            bytes: Some(MiB(10).bytes()),
            ..VolumeQuota::default()
        },
        ..config(BACKENDS[0])
    };
    let volumes = Volumes::open(dir.path(), bounded)?;
    let (id, writer) = (id(&volumes)?, owner());
    // Its VMM did nothing, and is gone by now.
    let layers = attach(&volumes, &writer)?;
    let growth = volumes.grow_record(id, &writer, MiB(8))?;
    drop(layers);
    volumes.release(&writer, true)?;
    volumes.undo_growth(id, growth);
    assert_eq!(volumes.get(id)?.size, MiB(4));
    // It made the disk larger and did not say so: whoever has it next has all of it, and pays for it.
    let layers = attach(&volumes, &writer)?;
    let growth = volumes.grow_record(id, &writer, MiB(8))?;
    layers.top.set_len(MiB(8).bytes())?;
    volumes.undo_growth(id, growth);
    assert_eq!(volumes.get(id)?.size, MiB(8));
    let more = volumes.create(named("more"), MiB(4), Filesystem::None);
    assert_eq!(code(more), "volume_quota");
    // What came after it is not taken back.
    let again = volumes.grow_record(id, &writer, MiB(9))?;
    volumes.undo_growth(id, growth);
    assert_eq!(volumes.get(id)?.size, MiB(9));
    volumes.undo_growth(id, again);
    assert_eq!(volumes.get(id)?.size, MiB(8));
    Ok(())
}

#[test]
fn what_only_a_writer_may_do_is_refused_to_others() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BACKENDS[1]))?;
    let (id, writer, other) = (id(&volumes)?, owner(), owner());
    assert_eq!(
        code(volumes.begin_cover(id, &writer, None)),
        "volume_not_attached"
    );
    let layers = attach(&volumes, &writer)?;
    assert_eq!(
        code(volumes.begin_cover(id, &other, None)),
        "volume_attached"
    );
    assert_eq!(
        code(volumes.grow_record(id, &other, MiB(8))),
        "volume_attached"
    );
    assert_eq!(
        code(volumes.grow_record(id, &writer, MiB(2))),
        "bad_volume_size"
    );
    let growth = volumes.grow_record(id, &writer, MiB(8))?;
    assert_eq!((growth.before, growth.size), (MiB(4), MiB(8)));
    volumes.undo_growth(id, growth);
    assert_eq!(volumes.get(id)?.size, MiB(4));
    for beyond in [MAX_SIZE.0 + 1, u32::MAX] {
        assert_eq!(
            code(volumes.grow_record(id, &writer, MiB(beyond))),
            "bad_volume_size"
        );
    }
    assert_eq!(
        code(volumes.begin_cover(id, &writer, Some("a b"))),
        "bad_volume_name"
    );
    let mut layers = layers;
    for n in 1..MAX_DEPTH {
        let cover = volumes.begin_cover(id, &writer, Some(&format!("s{n}")))?;
        volumes.arm_cover(id, &writer)?;
        layers = over(layers, cover);
        volumes.finish_cover(id, &writer)?;
    }
    let before = files(dir.path())?;
    assert_eq!(
        code(volumes.begin_cover(id, &writer, Some("last"))),
        "volume_too_deep"
    );
    assert_eq!(files(dir.path())?, before);
    // One lease ends alone, and leaves what others have.
    volumes.release_one(id, &other)?;
    ensure!(!volumes.get(id)?.leases.is_empty(), "it was not this one's");
    drop(layers);
    volumes.release_one(id, &writer)?;
    ensure!(volumes.get(id)?.leases.is_empty(), "it stays leased");
    // What the refusal says to do: the copy has one layer.
    volumes.snapshot(id, "last")?;
    assert_eq!(volumes.depth(id)?, 1);
    Ok(())
}

#[test]
fn a_cover_whose_writer_ends_before_it_is_armed_leaves_nothing() -> Result<()> {
    for is_removed in [false, true] {
        let dir = memory()?;
        let quota = VolumeQuota {
            count: None,
            bytes: Some(MiB(8).bytes()),
        };
        let config = VolumesConfig {
            quota,
            ..config(BACKENDS[1])
        };
        let volumes = Volumes::open(dir.path(), config)?;
        let (id, owner) = (id(&volumes)?, owner());
        let layers = attach(&volumes, &owner)?;
        let cover = volumes.begin_cover(id, &owner, Some("kept"))?;
        // Its VM ends.
        drop(layers);
        volumes.release(&owner, false)?;
        if is_removed {
            volumes.remove(id, true)?;
        }
        volumes.arm_cover(id, &owner).unwrap_err();
        let layer = cover.layer;
        drop(cover);
        volumes.give_up_cover(id, layer)?;
        // The second time there is nothing.
        volumes.give_up_cover(id, layer)?;
        let left = if is_removed { 0 } else { 1 };
        assert_eq!(files(dir.path())?, left, "{is_removed}");
        // Nobody pays for what is not there.
        let rest = MiB(if is_removed { 8 } else { 4 });
        volumes.create(named("rest"), rest, Filesystem::None)?;
    }
    Ok(())
}

#[test]
fn what_is_armed_is_not_given_up() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BACKENDS[1]))?;
    let (id, owner) = (id(&volumes)?, owner());
    let layers = attach(&volumes, &owner)?;
    let cover = volumes.begin_cover(id, &owner, None)?;
    volumes.arm_cover(id, &owner)?;
    volumes.give_up_cover(id, cover.layer)?;
    let layers = over(layers, cover);
    put(&layers, 1, 5)?;
    volumes.finish_cover(id, &owner)?;
    drop(layers);
    volumes.release(&owner, true)?;
    reads(&volumes, "data", 1, 5)
}

#[test]
fn below_a_cover_of_which_nobody_knows_two_never_write() -> Result<()> {
    for backend in BACKENDS {
        let dir = memory()?;
        let volumes = Volumes::open(dir.path(), config(backend))?;
        let (id, writer, other) = (id(&volumes)?, owner(), owner());
        let layers = attach(&volumes, &writer)?;
        put(&layers, 1, 1)?;
        let cover = volumes.begin_cover(id, &writer, Some("kept"))?;
        volumes.arm_cover(id, &writer)?;
        // Nobody has the cover itself, and its VMM lives although its end was told.
        drop(cover);
        volumes.release(&writer, false)?;
        assert_eq!(code(volumes.undo_cover(id, &writer)), "volume_not_attached");
        for access in [VolumeAccess::Exclusive, VolumeAccess::ReadOnly] {
            let attached = volumes.attach("a", "data", &other, access);
            assert_eq!(code(attached), "volume_locked", "{backend:?} {access:?}");
        }
        assert_eq!(code(volumes.remove(id, true)), "volume_locked");
        put(&layers, 1, 2)?;
        drop(layers);
        reads(&volumes, "data", 1, 2)?;
        // The next writer goes on from there, as often as one likes.
        let layers = attach(&volumes, &other)?;
        put(&layers, 1, 3)?;
        let cover = volumes.begin_cover(id, &other, Some("kept"))?;
        volumes.arm_cover(id, &other)?;
        let layers = over(layers, cover);
        volumes.finish_cover(id, &other)?;
        drop(layers);
        volumes.release(&other, true)?;
        reads(&volumes, "data", 1, 3)?;
        volumes.remove(id, true)?;
        assert_eq!(files(dir.path())?, 0, "{backend:?}");
    }
    Ok(())
}

#[test]
fn what_is_owed_to_a_guest_stays_until_it_goes_on_or_ends() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BACKENDS[1]))?;
    let (id, owner) = (id(&volumes)?, owner());
    let layers = attach(&volumes, &owner)?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Running);
    // What is begun says so, too.
    let cover = volumes.begin_cover(id, &owner, Some("kept"))?;
    volumes.arm_cover(id, &owner)?;
    volumes.freezing(id, &owner, GuestState::Frozen)?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Frozen);
    let layers = over(layers, cover);
    volumes.owe_thaw(&owner, GuestState::Frozen)?;
    volumes.finish_cover(id, &owner)?;
    drop(volumes);
    let volumes = Volumes::open(dir.path(), config(BACKENDS[1]))?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Frozen);
    volumes.owe_thaw(&owner, GuestState::Running)?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Running);
    volumes.owe_thaw(&owner, GuestState::Freezing)?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Freezing);
    drop(layers);
    volumes.release(&owner, true)?;
    assert_eq!(volumes.thaw_owed(&owner)?, GuestState::Running);
    Ok(())
}

/// The files without a name that a node's volumes have open, each once.
fn copies(root: &Path) -> Result<usize> {
    let folder = root.join("volumes/work");
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        // The one that lists them is gone by now.
        if let Ok(link) = std::fs::read_link(entry.path())
            && link.starts_with(&folder)
        {
            found.insert(std::fs::metadata(entry.path())?.ino());
        }
    }
    Ok(found.len())
}

#[test]
fn there_is_one_copy_of_what_a_vmm_may_still_write_to() -> Result<()> {
    let dir = memory()?;
    let volumes = Volumes::open(dir.path(), config(BACKENDS[1]))?;
    let (id, owner) = (id(&volumes)?, owner());
    let mut layers = attach(&volumes, &owner)?;
    for (n, name) in ["first", "second"].into_iter().enumerate() {
        put(&layers, 1, u8::try_from(n)? + 1)?;
        let cover = volumes.begin_cover(id, &owner, Some(name))?;
        volumes.arm_cover(id, &owner)?;
        layers = over(layers, cover);
        volumes.finish_cover(id, &owner)?;
    }
    // Nobody looks into what an overlay is put over.
    volumes.clone_of(named("clone"), Source::Snapshot(id, "second"), None)?;
    assert_eq!(copies(dir.path())?, 0);
    let read = |name| volumes.read(id, Some(name));
    let readings = [read("second")?, read("second")?, read("first")?];
    assert_eq!(copies(dir.path())?, 1);
    for (reading, wanted) in readings.iter().zip([2, 2, 1]) {
        let mut found = [0];
        reading.read_at(512, &mut found)?;
        assert_eq!(found, [wanted]);
    }
    // It is of what was there, also where a cover was taken back and the layer written again.
    let cover = volumes.begin_cover(id, &owner, Some("third"))?;
    volumes.arm_cover(id, &owner)?;
    drop(cover);
    reads(&volumes, "clone", 1, 2)?;
    volumes.undo_cover(id, &owner)?;
    put(&layers, 1, 3)?;
    let cover = volumes.begin_cover(id, &owner, Some("third"))?;
    volumes.arm_cover(id, &owner)?;
    let layers = over(layers, cover);
    volumes.finish_cover(id, &owner)?;
    let mut found = [0];
    read("third")?.read_at(512, &mut found)?;
    assert_eq!(found, [3]);
    // With its VMM it goes, once nobody reads it.
    drop(layers);
    volumes.release(&owner, true)?;
    assert_eq!(copies(dir.path())?, 1);
    drop(readings);
    assert_eq!(copies(dir.path())?, 0);
    Ok(())
}
