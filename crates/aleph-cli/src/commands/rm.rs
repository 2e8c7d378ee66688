//! `aleph rm`.

use super::completion::jobs;
use super::each::each;
use crate::context::Context;

use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Which jobs to remove.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    jobs: Vec<String>,

    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let remove = async |job: &str| Ok(client.remove(job, self.force).await?);
        each(&self.jobs, remove).await
    }
}
