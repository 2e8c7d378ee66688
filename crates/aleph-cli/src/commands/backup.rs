//! What is said to a node of backups, and what it tells of them.

use super::completion::volumes;
use crate::client::{Client, ClientError, Lines};
use crate::output::{Column, Listing, ago, plain, print, print_json, print_json_line, size};
use aleph_types::{
    BackupForgetRequest, BackupLine, BackupRetention, BackupsPruned, BackupsVerified, Timestamp,
    VolumeBackup,
};
use anyhow::{Context as _, Result};
use clap_complete::ArgValueCompleter;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// The key of an encrypted place.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyFile {
    /// The key file of an encrypted place, on the node; none for one that is not encrypted [default: the node's]
    #[arg(long, value_name = "FILE|none")]
    key_file: Option<String>,
}

impl KeyFile {
    /// What the node is told: its own folder is another one.
    pub(super) fn told(self) -> Result<Option<String>> {
        let file = match self.key_file.as_deref() {
            None | Some("none") => return Ok(self.key_file),
            Some(file) => file,
        };
        let path = std::path::absolute(file).with_context(|| format!("cannot find {file}"))?;
        let path = path.into_os_string().into_string();
        path.map(Some)
            .map_err(|path| anyhow::anyhow!("{} is no text", path.display()))
    }
}

/// Which backups to remove.
#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    /// Where the backups are
    url: String,
    /// Their ids, or the beginnings of them
    #[arg(value_name = "BACKUP", required_unless_present = "rules")]
    backups: Vec<String>,
    #[command(flatten)]
    keep: Keep,
    /// Look only at the backups of this volume: its name, or its id as backups tell it
    #[arg(long, requires = "rules", add = ArgValueCompleter::new(volumes))]
    volume: Option<String>,
    /// Say what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    key: KeyFile,
    /// Print what was removed and what stays as JSON
    #[arg(long)]
    json: bool,
}

/// How many backups of each volume to keep: the latest of each period that has some. Times are UTC.
#[derive(Debug, clap::Args)]
#[group(id = "rules", multiple = true, conflicts_with = "backups")]
struct Keep {
    /// Keep so many of the latest of each volume
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the latest of each of so many hours
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the latest of each of so many days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the latest of each of so many weeks
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep the latest of each of so many months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep the latest of each of so many years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
}

impl Keep {
    fn rules(&self) -> BackupRetention {
        BackupRetention {
            last: self.keep_last.unwrap_or_default(),
            hourly: self.keep_hourly.unwrap_or_default(),
            daily: self.keep_daily.unwrap_or_default(),
            weekly: self.keep_weekly.unwrap_or_default(),
            monthly: self.keep_monthly.unwrap_or_default(),
            yearly: self.keep_yearly.unwrap_or_default(),
        }
    }
}

impl Forget {
    pub(super) async fn run(self, client: &Client) -> Result<u8> {
        // A volume that is gone by now still has backups: then it is an id.
        let volume = match self.volume {
            Some(name) => match client.volume(&name).await {
                Ok(volume) => Some(volume.id.to_string()),
                Err(error) if error.refusal() == Some("no_volume") => Some(name),
                Err(error) => return Err(error.into()),
            },
            None => None,
        };
        let request = BackupForgetRequest {
            url: self.url,
            keep: self.backups.is_empty().then(|| self.keep.rules()),
            backups: self.backups,
            volume,
            dry_run: self.dry_run,
            key_file: self.key.told()?,
        };
        let said = client.forget_backups(&request).await?;
        if self.json {
            print_json(&said)?;
        } else {
            let forgotten = said.forgotten.iter().map(|backup| &backup.id);
            forgotten.chain(&said.damaged).try_for_each(print)?;
        }
        Ok(0)
    }
}

/// What is told of a place that was looked at. The exit code is 1 where something is wrong.
fn verified(verified: &BackupsVerified, json: bool) -> Result<u8> {
    if json {
        print_json_line(verified)?;
    } else {
        for damage in &verified.damage {
            print(plain(damage))?;
        }
        for backup in &verified.broken {
            print(format_args!("backup {} is not whole", plain(backup)))?;
        }
        let (backups, packs) = (verified.backups, verified.packs);
        let read = size(verified.read);
        print(format_args!(
            "{backups} backups, {packs} packs, {read} read"
        ))?;
    }
    Ok(u8::from(!verified.damage.is_empty()))
}

fn pruned(pruned: &BackupsPruned, json: bool) -> Result<u8> {
    if json {
        print_json_line(pruned)?;
    } else {
        print(format_args!(
            "{} freed in {} packs, {} more to be deleted later, {} written anew, {} kept",
            size(pruned.freed),
            pruned.deleted,
            pruned.trashed,
            pruned.repacked,
            pruned.kept
        ))?;
    }
    Ok(0)
}

/// Shows work on backups to its end, and prints what came of it.
pub(super) async fn made(mut lines: Lines, quiet: bool, json: bool) -> Result<u8> {
    let mut bar = Bar::new(quiet);
    while let Some(line) = lines.next_json().await? {
        match line {
            BackupLine::Progress { done, total, .. } => bar.step(done, total),
            BackupLine::Backup { backup } => {
                bar.end();
                if json {
                    print_json_line(&backup)?;
                } else {
                    print(&backup.id)?;
                }
                return Ok(0);
            }
            BackupLine::Volume { volume } => {
                bar.end();
                if json {
                    print_json_line(&volume)?;
                } else {
                    print(plain(&volume.name))?;
                }
                return Ok(0);
            }
            BackupLine::Verified { verified: found } => {
                bar.end();
                return verified(&found, json);
            }
            BackupLine::Pruned { pruned: done } => {
                bar.end();
                return pruned(&done, json);
            }
            BackupLine::Failed { error } => return Err(ClientError::from(error).into()),
        }
    }
    anyhow::bail!("the node closed the stream before the end")
}

/// A bar on a terminal, and nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Self(shown.then(|| {
            let style =
                ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {eta} left");
            let bar = ProgressBar::new(0);
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        }))
    }

    fn step(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

pub(super) fn list(backups: &[VolumeBackup], json: bool) -> Result<u8> {
    if json {
        print_json(&backups)?;
        return Ok(0);
    }
    let mut listing = Listing::new(&[
        Column::Whole("BACKUP"),
        Column::Text("NAME"),
        Column::Text("VOLUME"),
        Column::Text("VOLUME ID"),
        Column::Number("SIZE"),
        Column::Number("STORED"),
        Column::Text("CREATED"),
    ]);
    for backup in backups {
        listing.row([
            backup.id.chars().take(16).collect(),
            plain(&backup.name),
            plain(backup.volume_name.as_deref().unwrap_or_default()),
            plain(&backup.volume),
            size(backup.size),
            size(backup.stored),
            ago(backup.created_at, Timestamp::now()),
        ]);
    }
    print(listing)?;
    Ok(0)
}
