//! `aleph prune`.

use crate::client;
use crate::context::Context;
use crate::duration::{duration, whole_seconds};
use crate::output::{Advised, print, print_json_line, say, size};
use anyhow::{Context as _, Result};
use std::io::IsTerminal;
use std::time::Duration;

/// What to remove.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Prune {
    /// Remove images without names, and what is left of downloads
    #[arg(long)]
    images: bool,

    /// Remove images with names too, unless a job or function needs them
    #[arg(long)]
    all_images: bool,

    /// Remove jobs that ended, with their logs
    #[arg(long)]
    jobs: bool,

    /// Remove logs of jobs that ended, and of earlier starts
    #[arg(long)]
    logs: bool,

    /// All of these but --all-images, which is also what happens without any
    #[arg(short, long)]
    all: bool,

    /// Only jobs and logs that are older than this, such as 24h; images have no age
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,

    /// Remove nothing, and say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Do not ask first
    #[arg(short, long)]
    force: bool,

    /// Print what was removed as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let all = self.all || !(self.images || self.all_images || self.jobs || self.logs);
        let what = client::Prune {
            images: all || self.images || self.all_images,
            all_images: self.all_images,
            jobs: all || self.jobs,
            logs: all || self.logs,
            older_than_seconds: self.older_than.map(whole_seconds),
            dry_run: self.dry_run,
        };
        if !self.force && !self.dry_run && !confirmed(&what)? {
            return Ok(crate::FAILED);
        }
        let pruned = context.client()?.prune(&what).await?;
        if self.json {
            print_json_line(&pruned)?;
            return Ok(0);
        }
        for (kind, names) in [
            ("job", &pruned.jobs),
            ("image", &pruned.images),
            ("layer", &pruned.layers),
            ("partial download", &pruned.partial_downloads),
        ] {
            for name in names {
                print(format!("{kind} {name}"))?;
            }
        }
        let freed = if self.dry_run {
            "would be freed"
        } else {
            "freed"
        };
        print(format!("{} {freed}", size(pruned.bytes_freed)))?;
        Ok(0)
    }
}

/// Asks, where there is somebody to answer.
fn confirmed(what: &client::Prune) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Advised {
            what: "prune removes things, and nobody can be asked".into(),
            advice: "Say --force, or look with --dry-run first.".into(),
        }
        .into());
    }
    let kinds = [
        (what.jobs, "jobs that ended"),
        (what.all_images, "all images that no job was started from"),
        (
            what.images && !what.all_images,
            "images without names and what is left of downloads",
        ),
        (what.logs, "their logs"),
    ];
    let kinds = kinds.iter().filter(|(on, _)| *on).map(|(_, kind)| *kind);
    let kinds: Vec<_> = kinds.collect();
    say(&format!(
        "aleph: this removes {}. Go on? [y/N]",
        kinds.join(", ")
    ));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    read.context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
