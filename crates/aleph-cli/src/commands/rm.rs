//! `aleph rm`.

use super::completion::jobs;
use super::each::each;
use crate::context::Context;
use aleph_types::Job;
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use serde_json::json;

/// Which jobs to remove.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    jobs: Vec<String>,

    /// Kill those that run
    #[arg(short, long)]
    force: bool,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

impl Rm {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let remove = async |job: &str| {
            // Afterwards nobody knows what it was, and its name may be another's.
            let Job { id, name, .. } = client.job(job).await?;
            client.remove(&id.to_string(), self.force).await?;
            Ok(json!({ "id": id, "name": name, "removed": true }))
        };
        each(&self.jobs, self.json, remove).await
    }
}
