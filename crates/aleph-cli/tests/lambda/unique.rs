//! Clones of one template that draw what has to be theirs alone.

use crate::world::World;
use aleph_testkit::functions;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::HashSet;

/// How many clones draw.
const CLONES: usize = 10;

/// Each invocation has a clone of its own, and none has drawn what another one has.
pub(crate) fn clones_have_nothing_in_common(world: &World) -> Result<()> {
    let daemon = &world.daemon;
    let python = world.archive("noise-python", &functions::python_zip()?)?;
    let node = world.archive("noise-node", &functions::node_zip()?)?;
    for (name, runtime, handler, zip) in [
        ("noise-python", "python3.11", "app.noise", &python),
        ("noise-node", "nodejs18.x", "index.noise", &node),
    ] {
        let create = ["fn", "create", name, "--runtime", runtime, "--zip", zip];
        let how = ["--handler", handler, "--isolation", "invocation", "-t"];
        daemon.ok(&[&create[..], &how, &["30s", "--wait"]].concat())?;
        let mut seen = HashSet::new();
        for _ in 0..CLONES {
            let ran = daemon.aleph(&["fn", "invoke", name])?;
            // Made for it or ahead of it: that it is a new one shows in what it draws.
            ensure!(ran.code == 0, "{ran:?}");
            let drawn: Value = serde_json::from_slice(&ran.stdout)?;
            let drawn = drawn.as_object().context("no object")?;
            ensure!(drawn.len() >= 4, "{drawn:?}");
            for (what, value) in drawn {
                // The number of a host without a network card is drawn, too.
                ensure!(
                    seen.insert((what.clone(), value.to_string())),
                    "{name} has drawn {what} {value} twice"
                );
            }
        }
        daemon.ok(&["fn", "rm", name])?;
    }
    Ok(())
}
