//! A job by a node's API.
//!
//! In the foreground the job is made, attached to, and only then started, so that nothing of
//! its output can be missed, even where the node removes it at its end (`--rm`).

use super::super::attach::{fit, left, running};
use super::{report, tell_made};
use crate::client::{Channel, Client, ClientError};
use crate::output::{plain, print, print_json_line, say};
use crate::progress::Pulls;
use crate::session::{Conversation, End, SIGINT_CODE, SIGPIPE_CODE, Signals, Told};
use aleph_types::{ErrorClass, Job, JobSpec, JobState, Problem, PullPolicy};
use anyhow::Result;
use std::time::Duration;
use tokio::task::JoinHandle;

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

/// The job as it was at its end, once that has come.
type Last = JoinHandle<Result<Job, ClientError>>;

impl Remote {
    /// Starts a job, prints its id or all of it, and leaves it.
    pub(super) async fn detached(&self, spec: &JobSpec, json: bool) -> Result<u8> {
        self.fetch(spec).await?;
        let job = self.client.create(spec, true).await?;
        tell_made(&job);
        let job = running(&self.client, &job.id.to_string()).await?;
        if json {
            print_json_line(&job)?;
        } else {
            print(job.id)?;
        }
        if job.state == JobState::Failed {
            return Err(failure(&job));
        }
        Ok(0)
    }

    /// Runs a job and gives its command's exit code.
    pub(super) async fn attached(&self, spec: &JobSpec) -> Result<u8> {
        self.fetch(spec).await?;
        let mut signals = Signals::listen()?;
        let job = self.client.create(spec, false).await?;
        tell_made(&job);
        let id = job.id.to_string();
        let (mut channel, last) = match self.begin(&job).await {
            Ok(begun) => begun,
            Err(error) => {
                // To whoever asked for a run, a job that does not start was never there.
                let _ = self.client.remove(&id, true).await;
                return Err(error);
            }
        };
        let conversation = Conversation {
            tty: spec.tty,
            stdin: spec.stdin,
            detachable: true,
            told: &|told| self.told(&id, told),
        };
        let (end, _) = conversation.hold(&mut channel, &mut signals).await?;
        drop(channel);
        match end {
            End::Left => {
                left(&job);
                Ok(0)
            }
            // What ended and was removed at once is known by the wait alone.
            End::Lost(Some(why)) if !why.downcast_ref().is_some_and(is_missing) => {
                Err(why.context(format!("{} may run on", job.name)))
            }
            end => self.ended(&id, end, last).await,
        }
    }

    /// Has the node fetch the image, and shows how far that is.
    async fn fetch(&self, spec: &JobSpec) -> Result<()> {
        // Its image is a volume of the node's.
        if spec.has_own_disk() {
            return Ok(());
        }
        let always = match spec.pull {
            PullPolicy::Never => return Ok(()),
            PullPolicy::Missing => false,
            PullPolicy::Always => true,
        };
        let lines = self.client.pull(&spec.image, always).await?;
        Pulls::new(self.quiet).show(lines).await?;
        Ok(())
    }

    /// Attaches to a job, and starts it.
    async fn begin(&self, job: &Job) -> Result<(Channel, Last)> {
        let id = job.id.to_string();
        let channel = self.client.attach(&id, job.spec.stdin, true).await?;
        fit(&channel.input(), job);
        // What is removed cannot be asked for later, so its end is waited for from now on.
        let states = if job.spec.auto_destroy {
            "destroyed"
        } else {
            "exited,failed,destroyed"
        };
        let (client, waited) = (self.client.clone(), id.clone());
        let last = tokio::spawn(async move { client.wait(&waited, states).await });
        self.client.start(&id).await?;
        Ok((channel, last))
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

    /// Waits until nothing of the run is left, says how the job ended, and gives the code.
    async fn ended(&self, id: &str, end: End, last: Last) -> Result<u8> {
        if matches!(end, End::Killed | End::OutputGone) {
            // Whoever started it in the foreground wants no more of it.
            match self.client.kill(id, "KILL").await {
                Err(error) if !is_over(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let job = match last.await? {
            Ok(job) => Some(job),
            // It went before it was waited for.
            Err(error) if is_gone(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let job = job.as_ref();
        let (code, how) = match end {
            End::Exited(status) => (status.shell_code(), status.to_string()),
            End::Killed => (SIGINT_CODE, "killed".into()),
            End::OutputGone => return Ok(SIGPIPE_CODE),
            End::NotStarted { code, message } => {
                say(&format!("aleph: {}", plain(&message)));
                (code, format!("exit {code}"))
            }
            End::Ended(_) | End::Left | End::Lost(_) => {
                let ended = match (&end, job) {
                    (_, Some(job)) => job,
                    (End::Ended(job), None) => job,
                    _ => anyhow::bail!("the node closed the job's streams"),
                };
                let how = match ended.exit {
                    Some(status) => status.to_string(),
                    None if ended.reason.is_none() => "stopped".into(),
                    None => return Err(failure(ended)),
                };
                (exit_code(ended), how)
            }
        };
        if let Some(reason) = job.and_then(|job| job.reason.as_deref()) {
            say(&format!("aleph: {}", plain(reason)));
        }
        if let Some(job) = job.filter(|_| !self.quiet) {
            let boot = job.boot_ms.map(Duration::from_millis);
            let platform = job.driver.as_deref().unwrap_or("this node");
            report(platform, boot, ran(job), &how);
        }
        Ok(code)
    }
}

fn is_missing(problem: &Problem) -> bool {
    problem.class == ErrorClass::NotFound
}

fn is_gone(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if is_missing(problem))
}

/// Whether a job refuses because it has ended already.
fn is_over(error: &ClientError) -> bool {
    let conflict = |class| class == ErrorClass::Conflict || class == ErrorClass::NotFound;
    matches!(error, ClientError::Refused(problem) if conflict(problem.class))
}

/// How long a job's guest was there.
fn ran(job: &Job) -> Option<Duration> {
    let span = job.finished_at?.duration_since(job.started_at?);
    span.try_into().ok()
}

/// A job that did not come to run, in the node's words.
fn failure(job: &Job) -> anyhow::Error {
    let why = job.reason.as_deref();
    let why = why.unwrap_or("its node does not say why");
    anyhow::anyhow!("{} failed: {}", job.name, plain(why))
}
