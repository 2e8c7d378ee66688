//! The kernel and image that a node in this process boots.

use aleph_executor::{Boot, Paths};
use aleph_image::{Bundle, Image, KernelStore, Store};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;

/// The image that a job names, with what its image says of commands and environment.
pub(crate) fn image(paths: &Paths, reference: &str) -> Result<Image> {
    Ok(Store::open(paths.state())?.resolve(reference)?)
}

/// Opens kernel and image for the executor. `own` is a kernel with its initramfs, instead of
/// the node's bundle. `uncompressed` is what the VMM boots fastest.
pub(crate) fn open(
    paths: &Paths,
    own: Option<(&Path, &Path)>,
    image: &Image,
    uncompressed: bool,
) -> Result<Boot> {
    let bundle = match own {
        Some((kernel, initrd)) => Bundle::custom(kernel, initrd)?,
        None => KernelStore::open(paths.state())?.default_bundle()?,
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
