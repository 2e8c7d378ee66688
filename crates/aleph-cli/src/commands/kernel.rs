//! `aleph kernel`.

use crate::boot;
use crate::context::Context;
use crate::output::{Column, Listing, print, print_json, size};
use crate::progress::Bars;
use aleph_image::{Bundle, KernelStore};
use anyhow::Result;

/// What to do with kernel bundles.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Kernel {
    /// Build the kernel bundle from Debian's cloud kernel
    Build,
    /// List kernel bundles
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a kernel bundle
    Rm {
        /// Its digest, or the beginning of it
        digest: String,
    },
}

impl Kernel {
    /// Works on this host's store, which a node of this host shares.
    pub(super) fn run(self, context: &Context) -> Result<u8> {
        let store = KernelStore::open(context.paths()?.state())?;
        match self {
            Self::Build => {
                let bundle = store.build_default(aleph_image::AGENT, &mut Bars::default())?;
                print(boot::describe(&bundle))?;
            }
            Self::Ls { json } => {
                let default = store.default_bundle().ok().map(|bundle| bundle.digest());
                list(&store.list()?, default, json)?;
            }
            Self::Rm { digest } => {
                store.remove(&digest)?;
                print(digest)?;
            }
        }
        Ok(0)
    }
}

fn list(bundles: &[Bundle], default: Option<aleph_image::Digest>, json: bool) -> Result<()> {
    let records = || bundles.iter().filter_map(Bundle::record);
    if json {
        return print_json(&records().collect::<Vec<_>>());
    }
    let mut listing = Listing::new(&[
        Column::Whole("DIGEST"),
        Column::Text("KERNEL"),
        Column::Text("PACKAGE VERSION"),
        Column::Number("SIZE"),
        Column::Text(""),
    ]);
    for record in records() {
        let digest: String = record.digest.hex().chars().take(16).collect();
        let mark = if default == Some(record.digest) {
            "default"
        } else {
            ""
        };
        let bytes = record.files.values().map(|file| file.size).sum();
        listing.row([
            digest,
            record.release.clone(),
            record.package_version.clone(),
            size(bytes),
            mark.into(),
        ]);
    }
    print(listing)
}
