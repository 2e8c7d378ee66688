//! `aleph prune`.

use crate::client;
use crate::context::Context;
use crate::duration::{duration, whole_seconds};
use crate::output::{Advised, print, print_json, say, size};
use anyhow::{Context as _, Result};
use std::io::IsTerminal;
use std::time::Duration;

/// What to remove.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Prune {
    /// Remove images that no job needs
    #[arg(long)]
    images: bool,

    /// Remove jobs that ended, with their logs
    #[arg(long)]
    jobs: bool,

    /// Remove logs of jobs that ended, and of earlier starts
    #[arg(long)]
    logs: bool,

    /// All of these, which is also what happens without any
    #[arg(short, long)]
    all: bool,

    /// Only what is older than this, such as 24h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,

    /// Remove nothing, and say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Do not ask first
    #[arg(short, long)]
    force: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let all = self.all || !(self.images || self.jobs || self.logs);
        let what = client::Prune {
            images: all || self.images,
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
            print_json(&pruned)?;
            return Ok(0);
        }
        for (kind, names) in [("job", &pruned.jobs), ("image", &pruned.images)] {
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
        (what.images, "images that no job needs"),
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
