//! `aleph pause` and `aleph resume`.

use super::completion::jobs;
use super::each::each;
use crate::context::Context;

use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Which jobs to freeze.
#[derive(Debug, clap::Args)]
pub(crate) struct Pause {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    jobs: Vec<String>,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let pause = async |job: &str| Ok(client.pause(job).await?);
        each(&self.jobs, self.json, pause).await
    }
}

/// Which jobs to let go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::paused))]
    jobs: Vec<String>,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let resume = async |job: &str| Ok(client.resume(job).await?);
        each(&self.jobs, self.json, resume).await
    }
}
