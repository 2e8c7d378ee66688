//! `aleph attach`.

use super::completion::jobs;
use crate::client::Client;
use crate::context::Context;
use crate::output::say;
use crate::session::{Conversation, End, SIGINT_CODE, SIGPIPE_CODE, Signals};
use crate::terminal;
use aleph_types::Job;
use anyhow::{Context as _, Result};
use clap_complete::ArgValueCompleter;

/// Which job to connect with.
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    /// Name or id of a job. Ctrl-P Ctrl-Q leaves it running, where it has a terminal
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// Do not connect standard input
    #[arg(long)]
    no_stdin: bool,
}

impl Attach {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let job = client.job(&self.job).await?;
        attach(&client, &job, !self.no_stdin, false).await
    }
}

/// Connects with a job that runs, until it ends or its user leaves; the code is the job's.
/// `logs` begins with what it wrote in this life.
pub(super) async fn attach(client: &Client, job: &Job, stdin: bool, logs: bool) -> Result<u8> {
    let stdin = stdin && job.spec.stdin;
    converse(client, job, (stdin, job.spec.tty), logs).await
}

/// The same of a job whose specification says nothing of input and terminal.
pub(super) async fn converse(
    client: &Client,
    job: &Job,
    (stdin, tty): (bool, bool),
    logs: bool,
) -> Result<u8> {
    let mut signals = Signals::listen()?;
    let id = job.id.to_string();
    let mut channel = client.attach(&id, stdin, logs).await?;
    fit(&channel.input(), job);
    let conversation = Conversation {
        tty,
        stdin,
        detachable: true,
        // Whoever watches a job does not decide how long it lives.
        told: &|_| Some(End::Left),
    };
    let (end, _) = conversation.hold(&mut channel, &mut signals).await?;
    match end {
        End::Exited(status) => Ok(status.shell_code()),
        End::Ended(job) => Ok(super::run::exit_code(&job)),
        End::NotStarted { code, message } => {
            say(&format!("aleph: {message}"));
            Ok(code)
        }
        End::Left => {
            left(job);
            Ok(0)
        }
        End::Killed => {
            left(job);
            Ok(SIGINT_CODE)
        }
        End::OutputGone => Ok(SIGPIPE_CODE),
        End::Lost(Some(why)) => Err(why),
        // The node closes the stream when the job has ended, which a wait then sees at once.
        End::Lost(None) => {
            let job = client.job(&id).await?;
            anyhow::ensure!(job.state.is_over(), "the node closed the job's streams");
            Ok(super::run::exit_code(&job))
        }
    }
}

/// Gives a job's terminal the size of ours.
pub(super) fn fit(input: &crate::client::ChannelInput, job: &Job) {
    if let Some((rows, columns)) = terminal::size().filter(|_| job.spec.tty) {
        input.resize(rows, columns);
    }
}

/// Says how to come back.
pub(super) fn left(job: &Job) {
    say(&format!(
        "aleph: left {0} running; come back with: aleph attach {0}",
        job.name
    ));
}

/// Waits until a job runs, or has ended without.
pub(super) async fn running(client: &Client, id: &str) -> Result<Job> {
    client
        .wait(id, "running,paused,restarting,exited,failed,destroyed")
        .await
        .context("cannot see how the job starts")
}
