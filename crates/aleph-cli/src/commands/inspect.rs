//! `aleph inspect`.

use super::completion::jobs;
use crate::client::ClientError;
use crate::context::Context;
use crate::output::{print_error, print_json};
use aleph_types::ErrorClass;
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use serde_json::Value;

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Names or ids of jobs, or references to images
    #[arg(required = true, value_name = "JOB", add = ArgValueCompleter::new(jobs::any))]
    names: Vec<String>,

    /// Only look for things of this kind
    #[arg(long = "type", value_name = "KIND", value_parser = ["job", "image"])]
    kind: Option<String>,

    /// Print JSON, which is what is printed anyway
    #[arg(long, hide = true)]
    json: bool,
}

impl Inspect {
    /// Prints a list of all that was found.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let (mut found, mut code) = (Vec::new(), 0);
        for name in &self.names {
            let one = match self.kind.as_deref() {
                Some("image") => client.image(name).await,
                Some(_) => job(&client, name).await,
                None => match job(&client, name).await {
                    // What is no job may be an image; what is neither was meant as a job.
                    Err(ClientError::Refused(problem)) if problem.class == ErrorClass::NotFound => {
                        client
                            .image(name)
                            .await
                            .map_err(|_| ClientError::Refused(problem))
                    }
                    found => found,
                },
            };
            match one {
                Ok(one) => found.push(one),
                Err(error) => {
                    print_error(&error.into());
                    code = crate::FAILED;
                }
            }
        }
        print_json(&found)?;
        Ok(code)
    }
}

async fn job(client: &crate::client::Client, name: &str) -> Result<Value, ClientError> {
    let job = client.job(name).await?;
    serde_json::to_value(job).map_err(|error| ClientError::Strange {
        what: format!("with a job that has no JSON form: {error}"),
    })
}
