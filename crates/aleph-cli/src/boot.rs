//! From command-line words to a node's folders, configuration, kernel and image.

use crate::args::{NodeArgs, RunArgs};
use crate::output::Advised;
use aleph_executor::{Boot, ExecutorConfig, Paths};
use aleph_image::{Bundle, Image, KernelStore, Store};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;

pub(crate) fn paths(node: &NodeArgs) -> Result<Paths> {
    let root = node.root.as_deref();
    Paths::new(root).with_context(|| {
        let root = root.unwrap_or(Path::new("/"));
        format!("cannot use {} as the root folder", root.display())
    })
}

pub(crate) fn config(node: &NodeArgs) -> ExecutorConfig {
    ExecutorConfig {
        qemu: node.qemu.clone(),
        accelerator: node.accel,
        ..ExecutorConfig::default()
    }
}

/// The image that a job names, with what its image says of commands and environment.
pub(crate) fn image(paths: &Paths, reference: &str) -> Result<Image> {
    Ok(Store::open(paths.state())?.resolve(reference)?)
}

/// Opens kernel and image for the executor. `uncompressed` is what the VMM boots fastest.
pub(crate) fn open(
    paths: &Paths,
    run: &RunArgs,
    image: &Image,
    uncompressed: bool,
) -> Result<Boot> {
    let bundle = match (&run.kernel, &run.initrd) {
        (Some(kernel), Some(initrd)) => Bundle::custom(kernel, initrd)?,
        _ => KernelStore::open(paths.state())?.default_bundle()?,
    };
    // An uncompressed kernel can be booted at once only where it has a PVH entry.
    let kernel = match bundle.vmlinux() {
        Some(vmlinux) if uncompressed && bundle.pvh() => vmlinux,
        _ => bundle.kernel(),
    };
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let held = image.hold()?;
    Ok(Boot {
        kernel: open(kernel)?,
        initrd: open(bundle.initrd())?,
        filesystem: held.image().filesystem().to_string(),
        // The lock on the image belongs to the open file, so it lasts as long as its VM.
        image: held.into_file(),
    })
}

/// A bundle on one line.
pub(crate) fn describe(bundle: &Bundle) -> String {
    let digest: String = bundle.digest().hex().chars().take(16).collect();
    match bundle.record() {
        Some(record) => {
            format!(
                "{digest} {} from {} {}",
                record.release, record.package, record.package_version
            )
        }
        None => digest,
    }
}

/// Environment variables as `-e` takes them: `NAME=VALUE`, or `NAME` for the value it has here.
pub(crate) fn environment(words: &[String]) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("", _)) => {
                return Err(Advised {
                    what: format!("-e {word:?} has no name"),
                    advice: "Write -e NAME=VALUE.".into(),
                }
                .into());
            }
            Some((name, value)) => pairs.push((name.to_owned(), value.to_owned())),
            // docker leaves a variable out that is not set here.
            None => pairs.extend(std::env::var(word).ok().map(|value| (word.clone(), value))),
        }
    }
    Ok(pairs)
}
