//! `aleph ssh`: the system's ssh, to a job's guest by its address.
//!
//! Each job has a file of known hosts of its own, in the state of whoever asks: the guest makes its
//! keys at its first boot, the first one that it shows is kept, and another one later is refused, as ssh
//! does it. An address is another VM's tomorrow, so keys are kept by the job's id.

use super::completion::jobs;
use crate::client::Endpoint;
use crate::context::Context;
use crate::output::Advised;
use aleph_types::{Job, JobState};
use anyhow::{Context as _, Result};
use clap_complete::ArgValueCompleter;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose guest to log in to.
#[derive(Debug, clap::Args)]
pub(crate) struct Ssh {
    /// Name or id of a job
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// What to run there; a shell when absent
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,

    /// As whom
    #[arg(short, long, value_name = "USER", default_value = "aleph")]
    login: String,

    /// The private key to log in with [default: as ssh has it]
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// An option for ssh, as in its configuration
    #[arg(short, value_name = "OPTION")]
    option: Vec<String>,
}

impl Ssh {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let job = context.client()?.job(&self.job).await?;
        // Its address means another guest here, or nobody.
        if matches!(context.api.host, Some(Endpoint::Tcp { .. })) && !self.has_a_way() {
            return Err(Advised {
                what: format!(
                    "the guest of {} is reached from its node's host alone",
                    job.name
                ),
                advice: "Run aleph ssh there, or name a way to it: -o ProxyJump=HOST.".into(),
            }
            .into());
        }
        let address = address(&job)?;
        let folder = known_hosts()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let mut ssh = Command::new("ssh");
        ssh.args(self.words(&job, &address, &folder));
        // Its terminal, its signals and its exit code are ssh's from here on.
        let error = ssh.exec();
        Err(match error.kind() {
            std::io::ErrorKind::NotFound => Advised {
                what: "ssh is not installed".into(),
                advice:
                    "Install it with: apt-get install -y --no-install-recommends openssh-client"
                        .into(),
            }
            .into(),
            _ => anyhow::Error::from(error).context("cannot run ssh"),
        })
    }

    /// Whether its user says by whom the guest is reached.
    fn has_a_way(&self) -> bool {
        let mut options = self.option.iter().map(|option| option.to_ascii_lowercase());
        options.any(|option| option.starts_with("proxyjump") || option.starts_with("proxycommand"))
    }

    fn words(&self, job: &Job, address: &str, folder: &Path) -> Vec<String> {
        let known = folder.join(&job.id.to_string()[2..]);
        let mut words = vec!["-l".to_owned(), self.login.clone()];
        let mut option = |option: &str| words.extend(["-o".to_owned(), option.to_owned()]);
        // What the user says goes first: of two, ssh takes the first.
        for own in &self.option {
            option(own);
        }
        option(&format!("HostKeyAlias={}", job.id));
        option(&format!("UserKnownHostsFile=\"{}\"", known.display()));
        option("GlobalKnownHostsFile=/dev/null");
        // The file's name says whose it is, whatever a distribution sets.
        option("HashKnownHosts=no");
        option("StrictHostKeyChecking=accept-new");
        option("CheckHostIP=no");
        option("LogLevel=ERROR");
        if let Some(identity) = &self.identity {
            option("IdentitiesOnly=yes");
            words.extend(["-i".to_owned(), identity.display().to_string()]);
        }
        words.extend(["--".to_owned(), address.to_owned()]);
        words.extend(self.command.iter().cloned());
        words
    }
}

/// Where a job's guest is.
fn address(job: &Job) -> Result<String> {
    let advised = |what: String, advice: &str| {
        let advice = advice.to_owned();
        Err(Advised { what, advice }.into())
    };
    match &job.network {
        Some(network) => Ok(network.vm_ip.to_string()),
        None if job.state != JobState::Running => advised(
            format!("the job {} is {}", job.name, job.state),
            "Start it: aleph start.",
        ),
        None => advised(
            format!("the job {} has no network", job.name),
            "Use aleph console, or make it anew on a node with networks.",
        ),
    }
}

/// Where known hosts are kept (XDG Base Directory Specification, state).
fn known_hosts() -> Result<PathBuf> {
    let folder = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = folder("XDG_STATE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/state")))
        .context("neither XDG_STATE_HOME nor HOME says where to keep known hosts")?;
    Ok(state.join("aleph/known_hosts"))
}
