//! `aleph exec`.

use super::completion::jobs;
use crate::client::ExecStart;
use crate::context::Context;
use crate::output::{plain, say};
use crate::session::{Conversation, End, SIGINT_CODE, SIGPIPE_CODE, Signals};
use crate::{spec, terminal};
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::path::PathBuf;

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// Name or id of a job
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,

    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,

    /// Set an environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Working directory in the guest [default: the job's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User in the guest: name or uid, optionally with :group [default: the job's]
    #[arg(short, long)]
    user: Option<String>,
}

impl Exec {
    /// Runs the command and gives its exit code.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let mut env = spec::environment(&self.env_file, &self.env)?;
        if self.tty {
            env.entry("TERM".into()).or_insert_with(spec::term);
        }
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        let start = ExecStart {
            command: self.command,
            env,
            workdir: self.workdir,
            user: self.user,
            tty: self.tty,
            stdin: self.interactive,
            rows,
            columns,
        };
        let mut signals = Signals::listen()?;
        let mut channel = client.exec(&self.job, &start).await?;
        let conversation = Conversation {
            tty: self.tty,
            stdin: self.interactive,
            detachable: true,
            told: &|_| Some(End::Left),
        };
        let (end, _) = conversation.hold(&mut channel, &mut signals).await?;
        match end {
            End::Exited(status) => Ok(status.shell_code()),
            End::NotStarted { code, message } => {
                say(&format!("aleph: {}", plain(&message)));
                Ok(code)
            }
            End::Left => Ok(0),
            End::Killed => Ok(SIGINT_CODE),
            End::OutputGone => Ok(SIGPIPE_CODE),
            End::Ended(job) => anyhow::bail!("{} ended while the command ran", job.name),
            End::Lost(Some(why)) => Err(why),
            End::Lost(None) => anyhow::bail!("{} ended while the command ran", self.job),
        }
    }
}
