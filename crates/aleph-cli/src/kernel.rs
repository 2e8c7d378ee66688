//! `aleph kernel`.

use crate::args::{KernelCommand, NodeArgs};
use crate::boot;
use crate::output::{print, size, table};
use crate::progress::Bars;
use aleph_image::{Bundle, KernelStore};
use anyhow::Result;

pub(crate) fn kernel(node: &NodeArgs, command: KernelCommand) -> Result<u8> {
    let store = KernelStore::open(boot::paths(node)?.state())?;
    match command {
        KernelCommand::Build => {
            let bundle = store.build_default(aleph_image::AGENT, &mut Bars::default())?;
            print(boot::describe(&bundle))?;
        }
        KernelCommand::Ls { json } => {
            let default = store.default_bundle().ok().map(|bundle| bundle.digest());
            list(&store.list()?, default, json)?;
        }
        KernelCommand::Rm { digest } => {
            store.remove(&digest)?;
            print(digest)?;
        }
    }
    Ok(0)
}

fn list(bundles: &[Bundle], default: Option<aleph_image::Digest>, json: bool) -> Result<()> {
    let records = || bundles.iter().filter_map(Bundle::record);
    if json {
        print(serde_json::to_string_pretty(
            &records().collect::<Vec<_>>(),
        )?)?;
        return Ok(());
    }
    let rows = records().map(|record| {
        let digest: String = record.digest.hex().chars().take(16).collect();
        let mark = if default == Some(record.digest) {
            "default"
        } else {
            ""
        };
        let bytes = record.files.values().map(|file| file.size).sum();
        vec![
            digest,
            record.release.clone(),
            record.package_version.clone(),
            size(bytes),
            mark.into(),
        ]
    });
    print(table(
        &["DIGEST", "KERNEL", "PACKAGE VERSION", "SIZE", ""],
        rows,
    ))?;
    Ok(())
}
