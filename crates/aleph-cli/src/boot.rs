//! The kernel and image that a node in this process boots.

use crate::output::Advised;
use crate::progress::Pulls;
use aleph_executor::{Boot, Paths};
use aleph_image::oci::Reference;
use aleph_image::{Bundle, GuestMode, Image, ImageError, KernelStore, Store};
use aleph_types::{Classify, PullPolicy};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The image that a job names, fetched where its policy says so.
pub(crate) async fn image(
    paths: &Paths,
    reference: &str,
    policy: PullPolicy,
    quiet: bool,
) -> Result<Image> {
    if policy == PullPolicy::Always {
        return pull(paths, reference, quiet).await;
    }
    match Store::open(paths.state())?.resolve(reference) {
        Err(missing @ ImageError::NotFound { .. })
            if policy == PullPolicy::Missing && reference.parse::<Reference>().is_ok() =>
        {
            let pulled = pull(paths, reference, quiet).await;
            pulled.map_err(|error| match &missing {
                // A name that is nearly one of ours is rather misspelt than far away.
                ImageError::NotFound { near, .. } if !near.is_empty() => Advised {
                    what: format!("{missing}, and it cannot be fetched: {error:#}"),
                    advice: missing.advice().unwrap_or_default(),
                }
                .into(),
                _ => error,
            })
        }
        found => Ok(found?),
    }
}

/// Fetches an image from its registry. Registries are spoken with as this host's configuration
/// says, or the one that `ALEPH_CONFIG` names.
pub(crate) async fn pull(paths: &Paths, reference: &str, quiet: bool) -> Result<Image> {
    let file = std::env::var_os("ALEPH_CONFIG").map(PathBuf::from);
    let options = aleph_control::Config::load(file.as_deref())?.pull_options();
    let bars = Mutex::new(Pulls::new(quiet));
    let listener = move |event| {
        if let Ok(mut bars) = bars.lock() {
            bars.event(&event);
        }
    };
    let store = Store::open(paths.state())?;
    Ok(store.pull(reference, &options, listener).await?)
}

/// Which kernel a node in this process boots.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel<'a> {
    /// The node's default.
    Default,
    /// One of its store.
    Stored(&'a str),
    /// A file with its initramfs.
    Files(&'a Path, &'a Path),
}

/// Opens kernel and image for the executor. `uncompressed` is what the VMM boots fastest.
pub(crate) fn open(
    paths: &Paths,
    kernel: Kernel<'_>,
    image: &Image,
    uncompressed: bool,
) -> Result<Boot> {
    let store = || KernelStore::open(paths.state());
    let bundle = match kernel {
        Kernel::Files(kernel, initrd) => Bundle::custom(kernel, initrd)?,
        Kernel::Stored(reference) => store()?.resolve(reference)?,
        Kernel::Default => store()?.default_bundle()?,
    };
    let files = bundle.open(GuestMode::Microvm, uncompressed)?;
    let held = image.hold()?;
    Ok(Boot {
        kernel: files.kernel,
        initrd: files.initrd,
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
