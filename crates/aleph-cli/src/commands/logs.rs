//! `aleph logs`.

use super::completion::jobs;
use crate::client::{Client, LogsQuery};
use crate::context::Context;
use crate::output::print;
use crate::session::{Output, SIGPIPE_CODE, writer};
use aleph_types::LogStream;
use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Which job's output, and which part of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// Name or id of a job
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    job: String,

    /// Go on with what it writes, until it has ended
    #[arg(short, long)]
    follow: bool,

    /// Nothing older than a moment (RFC 3339 or seconds since 1970) or a span, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,

    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: Tail,

    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,

    /// Only stdout or only stderr
    #[arg(long, value_name = "NAME", value_parser = ["stdout", "stderr"])]
    stream: Option<String>,

    /// Print a line of JSON for each piece
    #[arg(long)]
    json: bool,
}

/// How many lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        _ => text
            .parse()
            .map(|n| Tail(Some(n)))
            .map_err(|_| format!("{text:?} is no number of lines, nor all")),
    }
}

impl Logs {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let query = LogsQuery {
            follow: self.follow,
            since: self.since,
            tail: self.tail.0,
            timestamps: self.timestamps,
            streams: self.stream,
        };
        if !self.json {
            return show(&client, &self.job, &query).await;
        }
        let mut lines = client.log_lines(&self.job, &query).await?;
        while let Some(line) = lines.next().await? {
            print(line)?;
        }
        Ok(0)
    }
}

/// Writes a log to our two streams.
pub(super) async fn show(client: &Client, job: &str, query: &LogsQuery) -> Result<u8> {
    let mut frames = client.logs(job, query).await?;
    let (out, written) = writer();
    while let Some(frame) = frames.next().await? {
        let output = match frame.stream {
            LogStream::Stdout => Output::Out(frame.bytes),
            LogStream::Stderr => Output::Err(frame.bytes),
        };
        if out.send(output).await.is_err() {
            return Ok(SIGPIPE_CODE);
        }
    }
    drop(out);
    match written.await {
        Ok(Ok(())) => Ok(0),
        _ => Ok(SIGPIPE_CODE),
    }
}
