//! `aleph console`: the serial console of a full VM.

use super::attach::converse;
use super::completion::jobs;
use crate::context::Context;
use crate::output::Advised;
use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// Whose console.
#[derive(Debug, clap::Args)]
pub(crate) struct Console {
    /// Name or id of a full VM. Ctrl-P Ctrl-Q leaves it
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// Begin with what the guest wrote since it started
    #[arg(long)]
    logs: bool,
}

impl Console {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let job = client.job(&self.job).await?;
        if !job.spec.has_own_disk() {
            return Err(Advised {
                what: format!(
                    "the job {} is no full VM with a console of its own",
                    job.name
                ),
                advice: "Use aleph attach, or aleph exec.".into(),
            }
            .into());
        }
        converse(&client, &job, (true, true), self.logs).await
    }
}
