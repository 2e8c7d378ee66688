//! What holds of volumes whichever way they are kept.

use crate::support::{code, config, empty, layers, named, reads, write};
use aleph_executor::node::Scope;
use aleph_executor::volumes::{BackendChoice, Source, Volumes, VolumesConfig};
use aleph_types::MiB;
use anyhow::{Context, Result};
use std::path::Path;

/// States are kept, copied and had back, and nothing is left of them in the node's state folder.
pub(crate) fn states(state: &Path, backend: BackendChoice, encrypt: bool) -> Result<()> {
    let config = VolumesConfig {
        encrypt,
        ..config(backend)
    };
    let volumes = Volumes::open(state, config)?;
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
    assert_eq!(layers(state, backend)?, 0, "{backend:?}");
    Ok(())
}
