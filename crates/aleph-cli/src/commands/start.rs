//! `aleph start`.

use super::attach::{attach, running};
use super::completion::jobs;
use super::each::each;
use crate::context::Context;
use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Which jobs to start.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::over))]
    jobs: Vec<String>,

    /// Connect standard output and error, and end with the job's code; one job only
    #[arg(short, long)]
    attach: bool,

    /// Connect standard input too
    #[arg(short, long)]
    interactive: bool,

    /// Print a line of JSON for each job
    #[arg(long, conflicts_with_all = ["attach", "interactive"])]
    json: bool,
}

impl Start {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        match self.jobs.as_slice() {
            [job] if self.attach || self.interactive => {
                let job = client.start(job).await?;
                let job = running(&client, &job.id.to_string()).await?;
                attach(&client, &job, self.interactive, true).await
            }
            jobs => {
                anyhow::ensure!(
                    !(self.attach || self.interactive),
                    "only one job can be attached to"
                );
                let start = async |job: &str| Ok(client.start(job).await?);
                each(jobs, self.json, start).await
            }
        }
    }
}
