//! The commands, one file for each. A command's words are a struct beside the code that obeys
//! them.

mod attach;
mod backup;
mod completion;
mod config;
mod console;
mod cp;
mod disk_image;
mod doctor;
mod each;
mod events;
mod exec;
mod function;
mod gpu;
mod image;
mod inspect;
mod kernel;
mod kill;
mod logs;
mod pause;
mod port;
mod prune;
mod ps;
mod restart;
mod rm;
mod run;
mod setup;
mod snapshot;
mod ssh;
mod start;
mod stats;
mod stop;
mod token;
mod up;
mod version;
mod vm;
mod vnc;
mod volume;
mod wait;

pub(crate) use completion::complete;

use crate::context::Context;
use anyhow::Result;
use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node: serve its API until told to end
    Up(up::Up),
    /// Run a command in a new microVM
    Run(Box<run::Run>),
    /// List jobs
    Ps(ps::Ps),
    /// Run a command in the guest of a running job
    Exec(exec::Exec),
    /// Show what a job wrote
    Logs(logs::Logs),
    /// Connect this terminal with a running job's command
    Attach(attach::Attach),
    /// Stop jobs: ask their commands to end, and kill what does not
    Stop(stop::Stop),
    /// Start jobs that do not run
    Start(start::Start),
    /// Stop jobs and start them again
    Restart(restart::Restart),
    /// Kill jobs, or send their commands a signal
    Kill(kill::Kill),
    /// Freeze the guests of jobs
    Pause(pause::Pause),
    /// Let frozen guests go on
    #[command(visible_alias = "unpause")]
    Resume(pause::Resume),
    /// Write a job's guest down, to go on from later; list and remove what was written
    Snapshot(snapshot::Snapshot),
    /// Start a job that goes on from a snapshot
    Restore(snapshot::Restore),
    /// Start copies of a job that go on from where it is
    Fork(snapshot::Fork),
    /// Remove jobs with their logs
    Rm(rm::Rm),
    /// Show all that a node knows of jobs, as JSON
    Inspect(inspect::Inspect),
    /// List the ports of the host that lead to a job
    Port(port::Port),
    /// Show what running jobs use
    Stats(stats::Stats),
    /// Copy files into and out of a running job's guest
    Cp(cp::Cp),
    /// Show what happens on the node
    Events(events::Events),
    /// Wait until jobs have ended, or are in another state
    Wait(wait::Wait),
    /// Fetch, build, import, list and remove images
    #[command(subcommand)]
    Image(image::Image),
    /// Fetch an image from its registry; the same as image pull
    #[command(hide = true)]
    Pull(image::Pull),
    /// List images; the same as image ls
    #[command(hide = true)]
    Images(image::Ls),
    /// Make, copy, keep and remove volumes: disks that outlive jobs
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Make, run and manage functions
    #[command(subcommand, name = "fn", visible_alias = "function")]
    Function(function::Function),
    /// Build and list kernel bundles
    #[command(subcommand)]
    Kernel(kernel::Kernel),
    /// List the GPUs of this host, and take one out of quarantine
    #[command(subcommand)]
    Gpu(gpu::Gpu),
    /// Make and manage full VMs, which boot disks of their own
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Log in to the guest of a job by ssh
    Ssh(ssh::Ssh),
    /// Connect this terminal with the serial console of a full VM
    Console(console::Console),
    /// Have a full VM's screen at a socket, for a viewer of VNC
    Vnc(vnc::Vnc),
    /// Install what runs VMs, as a release that is checked
    #[command(subcommand)]
    Setup(setup::Setup),
    /// Make, list and revoke tokens for the API
    #[command(subcommand)]
    Token(token::Token),
    /// Check and show the node's configuration
    #[command(subcommand)]
    Config(config::Config),
    /// Remove images, ended jobs and logs that nobody uses
    Prune(prune::Prune),
    /// Look for what this host lacks, and say how to mend it
    Doctor(doctor::Doctor),
    /// Print the versions of this program and of the node
    Version(version::Version),
    /// Print a script that teaches a shell to complete this program's words
    Completion(completion::Completion),
}

impl Command {
    /// Whether it is the daemon.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    /// Obeys, and gives the exit code.
    pub(crate) fn run(self, context: &Context) -> Result<u8> {
        match self {
            // The node brings a runtime of its own.
            Self::Up(up) => up.run(context),
            Self::Config(config) => config.run(),
            Self::Doctor(doctor) => doctor.run(context),
            Self::Kernel(kernel) => kernel.run(context),
            Self::Gpu(gpu) => gpu.run(context),
            Self::Completion(completion) => completion.run(),
            other => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let code = runtime.block_on(Box::pin(other.obey(context)));
                // A read of standard input may still be blocked, and nobody waits for it.
                runtime.shutdown_background();
                code
            }
        }
    }

    async fn obey(self, context: &Context) -> Result<u8> {
        match self {
            Self::Run(run) => run.run(context).await,
            Self::Ps(ps) => ps.run(context).await,
            Self::Exec(exec) => exec.run(context).await,
            Self::Logs(logs) => logs.run(context).await,
            Self::Attach(attach) => attach.run(context).await,
            Self::Stop(stop) => stop.run(context).await,
            Self::Start(start) => start.run(context).await,
            Self::Restart(restart) => restart.run(context).await,
            Self::Kill(kill) => kill.run(context).await,
            Self::Pause(pause) => pause.run(context).await,
            Self::Resume(resume) => resume.run(context).await,
            Self::Snapshot(snapshot) => snapshot.run(context).await,
            Self::Restore(restore) => restore.run(context).await,
            Self::Fork(fork) => fork.run(context).await,
            Self::Rm(rm) => rm.run(context).await,
            Self::Inspect(inspect) => inspect.run(context).await,
            Self::Port(port) => port.run(context).await,
            Self::Stats(stats) => stats.run(context).await,
            Self::Cp(cp) => cp.run(context).await,
            Self::Events(events) => events.run(context).await,
            Self::Wait(wait) => wait.run(context).await,
            Self::Image(image) => image.run(context).await,
            Self::Pull(pull) => pull.run(context).await,
            Self::Images(ls) => ls.run(context).await,
            Self::Volume(volume) => Box::pin(volume.run(context)).await,
            Self::Function(function) => function.run(context).await,
            Self::Vm(vm) => vm.run(context).await,
            Self::Ssh(ssh) => ssh.run(context).await,
            Self::Console(console) => console.run(context).await,
            Self::Vnc(vnc) => vnc.run(context).await,
            Self::Setup(setup) => setup.run(context).await,
            Self::Token(token) => token.run(context).await,
            Self::Prune(prune) => prune.run(context).await,
            Self::Version(version) => version.run(context).await,
            Self::Up(_)
            | Self::Config(_)
            | Self::Doctor(_)
            | Self::Kernel(_)
            | Self::Gpu(_)
            | Self::Completion(_) => Ok(0),
        }
    }
}
