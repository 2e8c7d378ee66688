//! What a node tells of backups.

use crate::client::{ClientError, Lines};
use crate::output::{Column, Listing, ago, plain, print, print_json, print_json_line, size};
use aleph_types::{BackupLine, Timestamp, VolumeBackup};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Shows a backup or a restore to its end, and prints what came of it.
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
        Column::Number("SIZE"),
        Column::Number("STORED"),
        Column::Text("CREATED"),
    ]);
    for backup in backups {
        listing.row([
            backup.id.chars().take(16).collect(),
            plain(&backup.name),
            plain(&backup.volume),
            size(backup.size),
            size(backup.stored),
            ago(backup.created_at, Timestamp::now()),
        ]);
    }
    print(listing)?;
    Ok(0)
}
