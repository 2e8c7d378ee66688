//! `aleph wait`.

use super::completion::jobs;
use crate::context::Context;
use crate::output::{print, print_error, print_json_line};
use aleph_types::JobState;
use anyhow::Result;
use clap_complete::ArgValueCompleter;

/// What to wait for.
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Names or ids of jobs
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    jobs: Vec<String>,

    /// Wait for one of these states, and print it: created, preparing, starting, running,
    /// paused, stopping, restarting, exited, failed, destroyed, or ended for the last three
    #[arg(long, value_name = "STATE,...", value_delimiter = ',', value_parser = state)]
    state: Vec<String>,

    /// Print a line of JSON for each job
    #[arg(long)]
    json: bool,
}

fn state(text: &str) -> Result<String, String> {
    match text {
        "ended" => Ok(text.into()),
        _ => text
            .parse::<JobState>()
            .map(|state| state.name().to_owned())
            .map_err(|error| error.to_string()),
    }
}

impl Wait {
    /// Prints the exit code of each, as docker does, or the state that was waited for.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let states = match self.state.as_slice() {
            [] => "ended".to_owned(),
            states => states.join(","),
        };
        let mut code = 0;
        for job in &self.jobs {
            match client.wait(job, &states).await {
                Ok(job) if self.json => print_json_line(&job)?,
                Ok(job) if !self.state.is_empty() => print(job.state)?,
                Ok(job) => print(super::run::exit_code(&job))?,
                Err(error) => {
                    print_error(&error.into());
                    code = crate::FAILED;
                }
            }
        }
        Ok(code)
    }
}
