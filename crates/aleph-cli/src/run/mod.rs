//! `aleph run`: a node in this process, for the life of one command.

mod keys;
mod session;

use crate::args::{NodeArgs, RunArgs};
use crate::{boot, output};
use aleph_executor::{Executor, Vm};
use aleph_types::{JobId, JobSpec, MiB};
use anyhow::{Context, Result};
use session::Session;
use std::collections::BTreeMap;
use std::fmt;

/// Runs the command and returns its exit code.
pub(crate) fn run(node: &NodeArgs, args: &RunArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(run_job(node, args));
    // A read of standard input may still be blocked, and nobody waits for it.
    runtime.shutdown_background();
    code
}

async fn run_job(node: &NodeArgs, args: &RunArgs) -> Result<u8> {
    let paths = boot::paths(node)?;
    let image = boot::image(&paths, &args.image)?;
    let job = job(args, &image.record().config)?;
    job.validate()?;
    let mut config = boot::config(node);
    config.timeouts.boot = args.boot_timeout;
    let executor = Executor::open(paths, config).await?;
    if !args.quiet
        && let Some(notice) = executor.first_notice()
    {
        output::say(&format!("aleph: {notice}"));
    }
    let uncompressed = executor.driver().wants_uncompressed_kernel();
    let opened = boot::open(executor.paths(), args, &image, uncompressed)?;
    let vm = executor.create(JobId::random(), &job, opened)?;
    let session = Session {
        vm: &vm,
        job: &job,
        platform: executor.driver().name(),
        quiet: args.quiet,
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

/// The job that the command line and the image together describe.
fn job(args: &RunArgs, image: &aleph_image::Config) -> Result<JobSpec> {
    let own = if args.command.is_empty() {
        &image.cmd
    } else {
        &args.command
    };
    let command = image.entrypoint.iter().chain(own).cloned().collect();
    let mut env: BTreeMap<String, String> = image.env.clone();
    if args.tty {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
        env.insert("TERM".into(), term);
    }
    env.extend(boot::environment(&args.env)?);
    let mut job = JobSpec::new(&args.image, command);
    job.env = env;
    job.workdir = args.workdir.clone().or_else(|| image.workdir.clone());
    job.user = args.user.clone().or_else(|| image.user.clone());
    job.hostname.clone_from(&args.hostname);
    job.resources.cpus = args.cpus;
    job.resources.memory = args.memory;
    job.resources.disk = args.disk.unwrap_or(MiB(0));
    job.tty = args.tty;
    job.stdin = args.interactive;
    Ok(job)
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
