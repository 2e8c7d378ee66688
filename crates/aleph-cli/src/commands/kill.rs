//! `aleph kill`.

use super::completion::jobs;
use super::each::each;
use crate::context::Context;

use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Which jobs to kill.
#[derive(Debug, clap::Args)]
pub(crate) struct Kill {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::live))]
    jobs: Vec<String>,

    /// The signal: KILL ends the VM, any other goes to the command
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

impl Kill {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let kill = async |job: &str| Ok(client.kill(job, &self.signal).await?);
        each(&self.jobs, self.json, kill).await
    }
}
