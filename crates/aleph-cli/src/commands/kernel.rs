//! `aleph kernel`.

use crate::boot;
use crate::context::Context;
use crate::output::{Column, Listing, print, print_json, print_json_line, size};
use crate::progress::Bars;
use aleph_image::{Bundle, KernelStore};
use anyhow::Result;
use serde_json::json;

/// What to do with kernel bundles.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Kernel {
    /// Build the kernel bundle from Debian's cloud kernel
    Build {
        /// Print the bundle as a line of JSON
        #[arg(long)]
        json: bool,
    },
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
        /// Print what was removed as a line of JSON
        #[arg(long)]
        json: bool,
    },
}

impl Kernel {
    /// Works on this host's store, which a node of this host shares.
    pub(super) fn run(self, context: &Context) -> Result<u8> {
        let store = KernelStore::open(context.paths()?.state())?;
        match self {
            Self::Build { json } => {
                let bundle = store.build_default(aleph_image::AGENT, &mut Bars::default())?;
                if json {
                    print_json_line(&bundle.record())?;
                } else {
                    print(boot::describe(&bundle))?;
                }
            }
            Self::Ls { json } => {
                let default = store.default_bundle().ok().map(|bundle| bundle.digest());
                list(&store.list()?, default, json)?;
            }
            Self::Rm { digest, json } => {
                store.remove(&digest)?;
                if json {
                    print_json_line(&json!({ "reference": digest, "removed": true }))?;
                } else {
                    print(digest)?;
                }
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
