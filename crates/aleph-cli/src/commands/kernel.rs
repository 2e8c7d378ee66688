//! `aleph kernel`.

use crate::boot;
use crate::context::Context;
use crate::output::{Column, Listing, print, print_json, print_json_line, say, size};
use crate::progress::Bars;
use aleph_image::{Bundle, KernelImport, KernelStore};
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;

/// What to do with kernel bundles.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Kernel {
    /// Build the kernel bundle from Debian's cloud kernel
    Build {
        /// Print the bundle as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Import a kernel of your own, which jobs take with --kernel NAME
    Import {
        /// A bzImage (vmlinuz) or an ELF kernel (vmlinux), plain or compressed
        file: PathBuf,
        /// What to call it; the file's name when absent
        #[arg(long)]
        name: Option<String>,
        /// An initramfs: for microVMs one with the guest agent as /init and the modules that it needs,
        /// for full VMs (aleph vm create --kernel) that of their system
        #[arg(long, value_name = "FILE")]
        initrd: Option<PathBuf>,
        /// Its configuration, where it does not carry it (CONFIG_IKCONFIG)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the bundle as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a kernel bundle, as JSON
    Inspect {
        /// Its name, its digest, or the beginning of it
        kernel: String,
    },
    /// List kernel bundles
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a kernel bundle
    Rm {
        /// Its name, its digest, or the beginning of it
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
            Self::Import {
                file,
                name,
                initrd,
                config,
                json,
            } => {
                let own = || {
                    file.file_name()
                        .map(|name| name.to_string_lossy().into_owned())
                };
                let name = name.or_else(own).unwrap_or_default();
                let bundle = store.import(&KernelImport {
                    name: &name,
                    kernel: &file,
                    initrd: initrd.as_deref(),
                    config: config.as_deref(),
                    agent: aleph_image::AGENT,
                })?;
                report(&name, &bundle);
                if json {
                    print_json_line(&bundle.record())?;
                } else {
                    print(boot::describe(&bundle))?;
                }
            }
            Self::Inspect { kernel } => {
                let bundle = store.resolve(&kernel)?;
                let mut all = serde_json::to_value(bundle.record())?;
                if let Some(object) = all.as_object_mut() {
                    object.insert("names".into(), json!(store.names(&bundle)?));
                }
                print_json(&all)?;
            }
            Self::Ls { json } => list(&store, json)?,
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

/// Says what an import could not check, and whom it does not serve.
fn report(name: &str, bundle: &Bundle) {
    let Some(imported) = bundle.record().and_then(|record| record.imported.as_ref()) else {
        return;
    };
    if !imported.checked {
        say(&format!(
            "aleph: the drivers of {name} were not checked: it does not carry its configuration, and --config gave none"
        ));
    }
    for (mode, lacks) in &imported.unfit {
        say(&format!(
            "aleph: {name} does not serve {mode}: {}",
            lacks.join(", ")
        ));
    }
}

fn list(store: &KernelStore, json: bool) -> Result<()> {
    let bundles = store.list()?;
    let default = store.default_bundle().ok().map(|bundle| bundle.digest());
    let records = || bundles.iter().filter_map(Bundle::record);
    if json {
        return print_json(&records().collect::<Vec<_>>());
    }
    let mut listing = Listing::new(&[
        Column::Whole("DIGEST"),
        Column::Text("NAMES"),
        Column::Text("KERNEL"),
        Column::Text("PACKAGE VERSION"),
        Column::Number("SIZE"),
        Column::Text(""),
    ]);
    for (bundle, record) in bundles.iter().filter_map(|b| Some((b, b.record()?))) {
        let digest: String = record.digest.hex().chars().take(16).collect();
        let mark = if default == Some(record.digest) {
            "default"
        } else {
            ""
        };
        let origin = match &record.imported {
            Some(_) => record.package.clone(),
            None => record.package_version.clone(),
        };
        let bytes = record.files.values().map(|file| file.size).sum();
        listing.row([
            digest,
            store.names(bundle)?.join(", "),
            record.release.clone(),
            origin,
            size(bytes),
            mark.into(),
        ]);
    }
    print(listing)
}
