//! `aleph run`: a job by a node of this process, or by one that runs as a daemon.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | the words, and which of the two nodes they go to |
//! | `local` | a node in this process, for the life of one command |
//! | `remote` | create, attach, wait and remove by the API |

mod local;
mod remote;

pub(super) use remote::exit_code;

use crate::context::Context;
use crate::output::{Advised, plain, say};
use crate::spec::{self, JobFlags};
use aleph_types::{Job, JobSpec, MadeVolume, NetworkMode, Restart};
use anyhow::Result;
use clap_complete::ArgValueCompleter;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to run, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The image, by name or digest
    #[arg(
        required_unless_present = "file",
        add = ArgValueCompleter::new(super::completion::images)
    )]
    pub(crate) image: Option<String>,

    /// The command and its arguments [default: the image's]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,

    /// Print the job's id once it runs, and leave it
    #[arg(short, long)]
    detach: bool,

    /// Print the job as a line of JSON instead of its id
    #[arg(long, requires = "detach")]
    json: bool,

    /// Print neither progress nor aleph's own line at the end
    #[arg(short, long)]
    quiet: bool,

    /// Take the job from a file in JSON, TOML or YAML, or - for standard input; image, command
    /// and flags go over it
    #[arg(short, long, value_name = "SPEC")]
    file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) job: JobFlags,

    #[command(flatten)]
    boot: BootFlags,
}

/// How a node in this process boots.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Booting")]
pub(crate) struct BootFlags {
    /// Boot this kernel of the node (aleph kernel ls); with --initrd a file, by a node in this process
    #[arg(long, value_name = "NAME|FILE")]
    kernel: Option<PathBuf>,

    /// The initramfs that goes with a kernel's file; it must hold the guest agent
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,

    /// How long the guest may take to boot, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    boot_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(number) {
        // Deadlines are computed by adding to a clock, which a day cannot overflow.
        Ok(time) if (0.001..=86_400.0).contains(&time.as_secs_f64()) => Ok(time),
        _ => Err(format!("{text} s is not between a millisecond and a day")),
    }
}

impl BootFlags {
    /// A kernel and an initramfs of the user's own.
    fn files(&self) -> Option<(&Path, &Path)> {
        self.kernel.as_deref().zip(self.initrd.as_deref())
    }
}

impl Run {
    /// Runs the command and gives its exit code.
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let spec = self.spec()?;
        // A kernel's file is booted here: the node boots what is in its store.
        if self.boot.files().is_none()
            && let Some(client) = context.daemon().await?
        {
            let run = remote::Remote {
                client,
                quiet: self.quiet,
            };
            return if self.detach {
                run.detached(&spec, self.json).await
            } else {
                run.attached(&spec).await
            };
        }
        self.check_local(&spec)?;
        local::run(context, &spec, &self.boot, self.quiet).await
    }

    /// The job that file and words together describe.
    fn spec(&self) -> Result<JobSpec> {
        let mut spec = match &self.file {
            Some(file) => spec::read(file)?,
            None => JobSpec::new("", Vec::new()),
        };
        if let Some(image) = &self.image {
            spec.image.clone_from(image);
        }
        if !self.command.is_empty() {
            spec.command.clone_from(&self.command);
        }
        self.job.apply(&mut spec)?;
        match (&self.boot.kernel, self.boot.files()) {
            (Some(_), Some(_)) => spec.kernel = None,
            (Some(file), None) if file.components().count() > 1 => {
                return Err(Advised {
                    what: format!("{} is a file, not the name of a kernel", file.display()),
                    advice: "Import it with aleph kernel import, or add its --initrd.".into(),
                }
                .into());
            }
            (Some(name), None) => spec.kernel = Some(name.to_string_lossy().into_owned()),
            (None, _) => {}
        }
        spec.validate()?;
        if spec.auto_destroy && spec.restart.policy != Restart::No {
            return Err(Advised {
                what: "a job that is removed when it ends cannot start again".into(),
                advice: "Leave out --rm, or the restart policy.".into(),
            }
            .into());
        }
        Ok(spec)
    }

    /// Refuses what only a daemon can do, instead of leaving it out.
    fn check_local(&self, spec: &JobSpec) -> Result<()> {
        let cut_off = spec.network.is_default() || spec.network.mode == Some(NetworkMode::None);
        let asked = [
            (self.detach, "-d"),
            (spec.restart.policy != Restart::No, "a restart policy"),
            (spec.health.is_some(), "a health check"),
            (!spec.files.is_empty(), "files in a job"),
            (spec.deadline_seconds.is_some(), "a deadline"),
            (!cut_off, "a network"),
            (spec.gpus.is_some(), "a GPU"),
            (!spec.volumes.is_empty(), "a volume"),
        ];
        match asked.into_iter().find(|(asked, _)| *asked) {
            None => Ok(()),
            Some((_, what)) => Err(Advised {
                what: format!("{what} needs a node that runs"),
                advice: "Start it with: aleph up".into(),
            }
            .into()),
        }
    }
}

/// Says which volumes were made with a job.
pub(super) fn tell_made(job: &Job) {
    for MadeVolume {
        name,
        size,
        filesystem,
    } in &job.made_volumes
    {
        say(&format!(
            "aleph: made the volume {} ({size}, {filesystem})",
            plain(name)
        ));
    }
}

/// Prints aleph's own line about a job that has ended.
fn report(platform: &str, boot: Option<Duration>, ran: Option<Duration>, end: &str) {
    let span = |name, time: Option<Duration>| match time {
        Some(time) => format!(" · {name} {}", span(time)),
        None => String::new(),
    };
    say(&format!(
        "aleph: microVM on {platform}{}{} · {end}",
        span("boot", boot),
        span("run", ran)
    ));
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.3} s")
    } else {
        format!("{seconds:.1} s")
    }
}
