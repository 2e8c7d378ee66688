//! `aleph stop`.

use super::completion::jobs;
use super::each::each;
use crate::context::Context;
use crate::duration::duration;
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::time::Duration;

/// Which jobs to stop.
#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::live))]
    jobs: Vec<String>,

    /// Time between asking and killing, in seconds [default: the job's own]
    #[arg(short, long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

impl Stop {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let stop = async |job: &str| Ok(client.stop(job, self.timeout).await?);
        each(&self.jobs, self.json, stop).await
    }
}
