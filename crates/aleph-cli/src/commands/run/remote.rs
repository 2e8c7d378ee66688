//! A job by a node's API: fetch, create, attach, wait, and remove.
//!
//! A job in the foreground with `--rm` is removed by this program and not by the node: by
//! itself the node could remove a short one, with its output, before it was read.

use super::super::attach::{fit, left, running};
use super::super::logs::show;
use super::report;
use crate::client::{Client, LogsQuery};
use crate::output::{plain, print, say};
use crate::progress::Pulls;
use crate::session::{Conversation, End, SIGINT_CODE, SIGPIPE_CODE, Signals, Told};
use aleph_types::{Job, JobSpec, JobState, PullPolicy};
use anyhow::Result;
use std::time::Duration;

/// A job's states in which a run of it is over.
const OVER: &str = "exited,failed,destroyed,restarting";

/// The code of a job that ended: its command's, or that of a failure of ours.
pub(in crate::commands) fn exit_code(job: &Job) -> u8 {
    match job.exit {
        Some(status) => status.shell_code(),
        None if job.state == JobState::Exited => 128 + 15,
        None => crate::FAILED,
    }
}

pub(super) struct Remote {
    pub(super) client: Client,
    pub(super) quiet: bool,
}

impl Remote {
    /// Runs a job and gives its command's exit code, or once it runs where it is detached.
    pub(super) async fn run(&self, mut spec: JobSpec, detach: bool) -> Result<u8> {
        self.fetch(&mut spec).await?;
        if detach {
            return self.detached(&spec).await;
        }
        let remove = std::mem::take(&mut spec.auto_destroy);
        let mut signals = Signals::listen()?;
        let job = self.client.create(&spec, true).await?;
        let id = job.id.to_string();
        let code = match self.hold(&id, &mut signals).await {
            Ok(End::Left) => {
                left(&job);
                return Ok(0);
            }
            Ok(end) => self.ended(&id, end).await,
            Err(error) => Err(error),
        };
        if remove {
            let removed = self.client.remove(&id, true).await;
            return match (code, removed) {
                (Ok(_), Err(error)) => Err(error.into()),
                (code, _) => code,
            };
        }
        code
    }

    /// Has the node fetch the image, and shows how far that is.
    async fn fetch(&self, spec: &mut JobSpec) -> Result<()> {
        let always = match spec.pull {
            PullPolicy::Never => return Ok(()),
            PullPolicy::Missing => false,
            PullPolicy::Always => true,
        };
        let lines = self.client.pull(&spec.image, always).await?;
        Pulls::new(self.quiet).show(lines).await?;
        Ok(())
    }

    async fn detached(&self, spec: &JobSpec) -> Result<u8> {
        let job = self.client.create(spec, true).await?;
        let job = running(&self.client, &job.id.to_string()).await?;
        print(job.id)?;
        if job.state == JobState::Failed {
            return Err(failure(&job));
        }
        Ok(0)
    }

    /// Connects with the command, until one side ends it.
    async fn hold(&self, id: &str, signals: &mut Signals) -> Result<End> {
        let job = tokio::select! {
            job = running(&self.client, id) => job?,
            _ = signals.stop() => return Ok(End::Killed),
        };
        if !job.state.is_live() {
            return self.replay(job).await;
        }
        let mut channel = match self.client.attach(id, job.spec.stdin, true).await {
            Ok(channel) => channel,
            Err(error) => {
                // It may have ended in between.
                let job = self.client.job(id).await?;
                return match job.state.is_live() {
                    true => Err(error.into()),
                    false => self.replay(job).await,
                };
            }
        };
        fit(&channel.input(), &job);
        let conversation = Conversation {
            tty: job.spec.tty,
            stdin: job.spec.stdin,
            detachable: true,
            told: &|told| self.told(id, told),
        };
        let (end, _) = conversation.hold(&mut channel, signals).await?;
        match end {
            End::Lost(None) => {
                let job = self.client.wait(id, OVER).await?;
                Ok(End::Ended(Box::new(job)))
            }
            end => Ok(end),
        }
    }

    /// Shows what a job wrote that has ended already.
    async fn replay(&self, job: Job) -> Result<End> {
        show(&self.client, &job.id.to_string(), &LogsQuery::default()).await?;
        Ok(End::Ended(Box::new(job)))
    }

    /// SIGTERM stops the job in order. Without its terminal the job goes on.
    fn told(&self, id: &str, told: Told) -> Option<End> {
        if told == Told::HangUp {
            return Some(End::Left);
        }
        let (client, id) = (self.client.clone(), id.to_owned());
        tokio::spawn(async move {
            // Its end shows in the conversation.
            let _ = client.stop(&id, None).await;
        });
        None
    }

    /// Says how a job ended, and gives the code.
    async fn ended(&self, id: &str, end: End) -> Result<u8> {
        if matches!(end, End::Killed | End::OutputGone) {
            // Whoever started it in the foreground wants no more of it.
            self.client.kill(id, "KILL").await?;
        }
        let (job, code, how) = match end {
            End::Exited(status) => {
                let job = self.client.wait(id, OVER).await?;
                (job, status.shell_code(), status.to_string())
            }
            End::NotStarted { code, message } => {
                say(&format!("aleph: {message}"));
                let job = self.client.wait(id, OVER).await?;
                (job, code, format!("exit {code}"))
            }
            End::Killed => {
                let job = self.client.wait(id, OVER).await?;
                (job, SIGINT_CODE, "killed".into())
            }
            End::OutputGone => return Ok(SIGPIPE_CODE),
            End::Left => return Ok(0),
            End::Lost(Some(why)) => return Err(why),
            End::Lost(None) => anyhow::bail!("the node closed the job's streams"),
            End::Ended(job) => {
                let how = match job.exit {
                    Some(status) => status.to_string(),
                    None if job.state == JobState::Exited => "stopped".into(),
                    None => return Err(failure(&job)),
                };
                let code = exit_code(&job);
                (*job, code, how)
            }
        };
        if !self.quiet {
            let boot = job.boot_ms.map(Duration::from_millis);
            let platform = job.driver.as_deref().unwrap_or("this node");
            report(platform, boot, ran(&job), &how);
        }
        Ok(code)
    }
}

/// How long a job's guest was there.
fn ran(job: &Job) -> Option<Duration> {
    let span = job.finished_at?.duration_since(job.started_at?);
    span.try_into().ok()
}

/// A job that did not come to run, in the node's words.
fn failure(job: &Job) -> anyhow::Error {
    let why = job.reason.as_deref().unwrap_or("its node does not say why");
    anyhow::anyhow!("{} failed: {}", job.name, plain(why))
}
