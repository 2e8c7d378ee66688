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
}

impl Pause {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let pause = async |job: &str| Ok(client.pause(job).await.map(drop)?);
        each(&self.jobs, pause).await
    }
}

/// Which jobs to let go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::paused))]
    jobs: Vec<String>,
}

impl Resume {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let resume = async |job: &str| Ok(client.resume(job).await.map(drop)?);
        each(&self.jobs, resume).await
    }
}
