//! A node in this process, for the life of one command.

use super::{BootFlags, report};
use crate::context::Context;
use crate::session::{Conversation, End, SIGINT_CODE, SIGPIPE_CODE, SIGTERM_CODE, Signals, Told};
use crate::{boot, output, terminal};
use aleph_executor::lifecycle::Outcome;
use aleph_executor::{Executor, Vm, VmError};
use aleph_types::{JobId, JobSpec, signal};
use anyhow::{Context as _, Result};
use std::fmt;
use std::time::Duration;

/// What a guest's processes get between TERM and KILL when aleph itself is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Runs a job and gives its command's exit code.
pub(super) async fn run(
    context: &Context,
    spec: &JobSpec,
    flags: &BootFlags,
    quiet: bool,
) -> Result<u8> {
    let paths = context.paths()?;
    let image = boot::image(&paths, &spec.image, spec.pull, quiet).await?;
    let job = complete(spec, &image.record().config);
    job.validate()?;
    let mut config = context.executor();
    config.timeouts.boot = flags.boot_timeout;
    let executor = Executor::open(paths, config).await?;
    if !quiet && let Some(notice) = executor.first_notice() {
        output::say(&format!("aleph: {notice}"));
    }
    let uncompressed = executor.driver().wants_uncompressed_kernel();
    let kernel = match (flags.files(), &job.kernel) {
        (Some((kernel, initrd)), _) => boot::Kernel::Files(kernel, initrd),
        (None, Some(reference)) => boot::Kernel::Stored(reference),
        (None, None) => boot::Kernel::Default,
    };
    let opened = boot::open(executor.paths(), kernel, &image, uncompressed)?;
    let vm = executor.create(JobId::random(), &job, opened)?;
    let session = Session {
        vm: &vm,
        job: &job,
        platform: executor.driver().name(),
        quiet,
    };
    let code = session.run().await;
    let removed = remove(&vm).await;
    match (code, removed) {
        (Ok(code), Ok(())) => Ok(code),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// Ends the VM, if it has not ended, and removes all of it.
async fn remove(vm: &Vm) -> Result<()> {
    vm.kill().await.context("cannot end the VM")?;
    vm.destroy().await.context("cannot remove the VM")
}

/// A job with what its image says where the job itself does not.
fn complete(spec: &JobSpec, image: &aleph_image::Config) -> JobSpec {
    let mut job = spec.clone();
    // Who replaces the entrypoint does not want its arguments either.
    let own = match (&spec.entrypoint, spec.command.as_slice()) {
        (None, []) => &image.cmd,
        _ => &spec.command,
    };
    let entrypoint = spec.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    job.command = entrypoint.iter().chain(own).cloned().collect();
    job.entrypoint = None;
    let mut env = image.env.clone();
    env.append(&mut job.env);
    job.env = env;
    job.workdir = job.workdir.or_else(|| image.workdir.clone());
    job.user = job.user.or_else(|| image.user.clone());
    // Images are not all that careful, and this is no reason not to run one.
    let known = image.stop_signal.as_ref();
    let known = known.filter(|name| signal::number(name).is_some());
    job.stop_signal = job.stop_signal.or_else(|| known.cloned());
    job
}

struct Session<'a> {
    vm: &'a Vm,
    job: &'a JobSpec,
    platform: String,
    quiet: bool,
}

impl Session<'_> {
    /// Boots the VM, runs the command, and returns the exit code.
    async fn run(&self) -> Result<u8> {
        let mut signals = Signals::listen()?;
        let main = Executor::main_command(self.job, terminal::size());
        // A VMM that gives no way to its guest before that is up lets this wait for the boot.
        let started = tokio::select! {
            biased;
            started = self.vm.start(Some(main)) => started,
            code = signals.ended() => {
                self.vm.kill().await?;
                self.report(None, "stopped");
                return Ok(code);
            }
        };
        let mut exec = match started {
            Ok(Some(exec)) => exec,
            Ok(None) => return Err(self.failure(&Outcome::Unknown)),
            Err(VmError::Ended(outcome)) => return Err(self.failure(&outcome)),
            Err(error) => return Err(error.into()),
        };
        let conversation = Conversation {
            tty: self.job.tty,
            stdin: self.job.stdin,
            detachable: false,
            told: &|told| self.told(told),
        };
        let (end, running) = conversation.hold(&mut exec, &mut signals).await?;
        let ran = running.map(|since| since.elapsed());
        match end {
            End::Exited(status) => {
                self.report(ran, &status.to_string());
                Ok(status.shell_code())
            }
            End::NotStarted { code, message } => {
                output::say(&format!("aleph: {message}"));
                self.report(ran, &format!("exit {code}"));
                Ok(code)
            }
            End::Killed | End::Left => {
                self.vm.kill().await?;
                self.report(ran, "killed");
                Ok(SIGINT_CODE)
            }
            // The reader of our output is gone: what a shell shows for SIGPIPE.
            End::OutputGone => Ok(SIGPIPE_CODE),
            // The VM itself says how it ended.
            End::Lost(_) | End::Ended(_) => match self.vm.wait().await? {
                Outcome::Finished(status) => {
                    self.report(ran, &status.to_string());
                    Ok(status.shell_code())
                }
                Outcome::Stopped => {
                    self.report(ran, "stopped");
                    Ok(SIGTERM_CODE)
                }
                failed => Err(self.failure(&failed)),
            },
        }
    }

    /// The VM does not outlive its node: both signals stop it in order.
    fn told(&self, _: Told) -> Option<End> {
        let vm = self.vm.clone();
        tokio::spawn(async move {
            // Its end shows in the conversation.
            let _ = vm.stop(GRACE).await;
        });
        None
    }

    fn failure(&self, outcome: &Outcome) -> anyhow::Error {
        let console = self.vm.last_words(outcome);
        VmFailed {
            what: outcome.to_string(),
            console,
        }
        .into()
    }

    fn report(&self, ran: Option<Duration>, end: &str) {
        if self.quiet {
            return;
        }
        let status = self.vm.status();
        let boot = status
            .boot
            .map(|boot| boot.total + status.prepared_in.unwrap_or_default());
        report(&self.platform, boot, ran, end);
    }
}

/// A VM that failed, with what its console said last.
#[derive(Debug)]
struct VmFailed {
    what: String,
    console: Vec<String>,
}

impl fmt::Display for VmFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.console.is_empty() {
            write!(f, "\naleph: the guest's console ends with")?;
        }
        for line in &self.console {
            write!(f, "\n       | {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for VmFailed {}
