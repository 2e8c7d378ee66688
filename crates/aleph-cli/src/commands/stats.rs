//! `aleph stats`.

use super::completion::jobs;
use crate::client::Client;
use crate::context::Context;
use crate::output::{Column, Listing, print, print_json, print_json_line, size};
use aleph_types::JobStats;
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// The time between two readings.
const INTERVAL: Duration = Duration::from_secs(1);

/// Which jobs' use to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// Names or ids of jobs [default: all that run]
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    jobs: Vec<String>,

    /// Print one reading and end
    #[arg(long)]
    no_stream: bool,

    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,

    /// Print JSON: a list, or without --no-stream a line for each reading
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        if self.no_stream {
            // Use now is use since the last reading, which therefore has to be there.
            self.read(&client).await?;
            tokio::time::sleep(INTERVAL).await;
            let readings = self.read(&client).await?;
            if self.json {
                print_json(&readings)?;
            } else {
                print(listing(&readings, self.no_trunc))?;
            }
            return Ok(0);
        }
        let live = std::io::stdout().is_terminal() && !self.json;
        loop {
            let readings = self.read(&client).await?;
            if self.json {
                print_json_line(&readings)?;
            } else if live {
                redraw(&listing(&readings, self.no_trunc).to_string())?;
            } else {
                print(listing(&readings, self.no_trunc))?;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn read(&self, client: &Client) -> Result<Vec<JobStats>> {
        if self.jobs.is_empty() {
            return Ok(client.all_stats().await?);
        }
        let mut readings = Vec::new();
        for job in &self.jobs {
            readings.push(client.stats(job).await?);
        }
        Ok(readings)
    }
}

/// Draws over what was drawn before: from the upper left corner, and nothing is left below.
fn redraw(text: &str) -> Result<()> {
    let lines = text.replace('\n', "\x1b[K\n");
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "\x1b[H{lines}\x1b[K\n\x1b[J")?;
    Ok(stdout.flush()?)
}

fn listing(readings: &[JobStats], no_trunc: bool) -> Listing {
    let mut listing = Listing::new(&[
        Column::Whole("ID"),
        Column::Text("NAME"),
        Column::Number("CPU"),
        Column::Number("MEMORY"),
        Column::Number("LIMIT"),
        Column::Number("IN GUEST"),
        Column::Number("READ"),
        Column::Number("WRITTEN"),
        Column::Number("SENT"),
        Column::Number("RECEIVED"),
        Column::Number("PROCESSES"),
    ]);
    for one in readings {
        listing.row([
            if no_trunc {
                one.id.to_string()
            } else {
                one.id.short()
            },
            one.name.clone(),
            format!("{:.1} %", one.cpus * 100.0),
            size(one.memory_bytes),
            size(one.memory_limit_bytes),
            one.guest_memory_bytes.map_or("-".into(), size),
            size(one.io_read_bytes),
            size(one.io_write_bytes),
            one.network
                .as_ref()
                .map_or("-".into(), |n| size(n.sent_bytes)),
            one.network
                .as_ref()
                .map_or("-".into(), |n| size(n.received_bytes)),
            one.guest_processes.map_or("-".into(), |n| n.to_string()),
        ]);
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{JobId, NetworkUsage};

    #[test]
    fn the_table_has_a_line_for_each_job() {
        let one = JobStats {
            id: JobId::from_bits(0x1234_abcd << 96),
            name: "web".into(),
            cpu_usec: 1_000_000,
            cpus: 0.256,
            memory_bytes: 100 << 20,
            memory_limit_bytes: 128 << 20,
            guest_processes: None,
            guest_memory_bytes: Some(30 << 20),
            io_read_bytes: 0,
            io_write_bytes: 1 << 30,
            network: Some(NetworkUsage {
                sent_bytes: 5 << 20,
                ..NetworkUsage::default()
            }),
            vmm: None,
            source: "proc".into(),
        };
        let text = listing(&[one], false).in_width(120).to_string();
        insta::assert_snapshot!(text);
    }
}
