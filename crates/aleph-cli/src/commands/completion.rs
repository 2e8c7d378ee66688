//! Completion of words by bash, zsh, fish, elvish and powershell.
//!
//! The script that a shell loads asks this program for each word, so that names of jobs and
//! images come from the node that the words before name. A node that does not answer at once
//! has none: a shell must not hang.

use crate::args::Args;
use crate::client::{Client, Endpoint};
use crate::context::Context;
use anyhow::Result;
use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use std::ffi::OsStr;
use std::io::Write;
use std::time::Duration;

/// The variable by which a shell asks.
const ASKS: &str = "COMPLETE";
/// How long a node may take.
const PATIENCE: Duration = Duration::from_millis(800);

/// Which shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
}

impl Completion {
    /// Prints the script.
    pub(super) fn run(self) -> Result<u8> {
        let shells = Shells::builtins();
        let name = self.shell.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        let shell = shells.completer(name);
        let shell = shell.ok_or_else(|| anyhow::anyhow!("no script for {name}"))?;
        let mut script = Vec::new();
        shell.write_registration(ASKS, "aleph", "aleph", "aleph", &mut script)?;
        std::io::stdout().write_all(&script)?;
        Ok(0)
    }
}

/// Answers a shell, if one asks.
pub(crate) fn complete() -> bool {
    let asked = CompleteEnv::with_factory(Args::command).var(ASKS);
    let words = std::env::args_os();
    let here = std::env::current_dir().ok();
    // A shell can do nothing with a reason.
    asked.try_complete(words, here.as_deref()).unwrap_or(true)
}

/// Names of images.
pub(super) fn images(beginning: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |client| {
        let images = client.images().await.ok()?;
        let names = images.iter().filter_map(|image| image["names"].as_array());
        let names = names.flatten().filter_map(|name| name.as_str());
        Some(names.map(|name| (name.to_owned(), String::new())).collect())
    });
    candidates(beginning, names)
}

/// Ids of snapshots, with the jobs that they are of.
pub(super) fn snapshots(beginning: &OsStr) -> Vec<CompletionCandidate> {
    let ids = ask(async |client| {
        let snapshots = client.snapshots().await.ok()?.into_iter();
        Some(
            snapshots
                .map(|one| (one.id.short(), one.job_name))
                .collect(),
        )
    });
    candidates(beginning, ids)
}

/// Names of volumes.
pub(super) fn volumes(beginning: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(async |client| {
        let volumes = client.volumes(false).await.ok()?.into_iter();
        let names = volumes.map(|one| (one.name, one.size.to_string()));
        Some(names.collect())
    });
    candidates(beginning, names)
}

/// Names of jobs, by what can be done with them.
pub(super) mod jobs {
    use super::{CompletionCandidate, OsStr, ask, candidates};
    use crate::client::JobQuery;
    use aleph_types::JobState;
    use clap_complete::{ArgValueCompleter, PathCompleter};

    pub(in crate::commands) fn any(beginning: &OsStr) -> Vec<CompletionCandidate> {
        of(beginning, |_| true)
    }

    pub(in crate::commands) fn live(beginning: &OsStr) -> Vec<CompletionCandidate> {
        of(beginning, |state| {
            state.is_live() || state == JobState::Restarting
        })
    }

    pub(in crate::commands) fn running(beginning: &OsStr) -> Vec<CompletionCandidate> {
        of(beginning, |state| state == JobState::Running)
    }

    pub(in crate::commands) fn paused(beginning: &OsStr) -> Vec<CompletionCandidate> {
        of(beginning, |state| state == JobState::Paused)
    }

    pub(in crate::commands) fn over(beginning: &OsStr) -> Vec<CompletionCandidate> {
        of(beginning, |state| {
            state.is_over() || state == JobState::Created
        })
    }

    /// `JOB:` for a path in its guest.
    pub(in crate::commands) fn places(beginning: &OsStr) -> Vec<CompletionCandidate> {
        let jobs = running(beginning).into_iter();
        let place = |job: CompletionCandidate| {
            let mut place = job.get_value().to_owned();
            place.push(":");
            CompletionCandidate::new(place).help(job.get_help().cloned())
        };
        let local = ArgValueCompleter::new(PathCompleter::any()).complete(beginning);
        jobs.map(place).chain(local).collect()
    }

    fn of(beginning: &OsStr, wanted: fn(JobState) -> bool) -> Vec<CompletionCandidate> {
        let name = beginning.to_str().map(str::to_owned);
        let names = ask(async |client| {
            let query = JobQuery {
                states: JobState::ALL.into_iter().filter(|s| wanted(*s)).collect(),
                name: name.filter(|name| !name.is_empty()),
                limit: Some(200),
                ..JobQuery::default()
            };
            let jobs = client.jobs(&query).await.ok()?;
            let shown = |job: aleph_types::Job| {
                let about = format!("{} {}", job.state, job.spec.image);
                (job.name, about)
            };
            Some(jobs.into_iter().map(shown).collect())
        });
        candidates(beginning, names)
    }
}

fn candidates(beginning: &OsStr, names: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let beginning = beginning.to_string_lossy();
    let names = names
        .into_iter()
        .filter(|(name, _)| name.starts_with(&*beginning));
    let candidate = |(name, about): (String, String)| {
        let about = Some(about).filter(|about| !about.is_empty());
        CompletionCandidate::new(name).help(about.map(Into::into))
    };
    names.map(candidate).collect()
}

fn ask(
    question: impl AsyncFnOnce(Client) -> Option<Vec<(String, String)>>,
) -> Vec<(String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let (Some(client), Ok(runtime)) = (client(), runtime) else {
        return Vec::new();
    };
    let answer = runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, question(client));
        answer.await.ok().flatten()
    });
    answer.unwrap_or_default()
}

/// The node that the words so far name: those flags are read by hand, because words that are
/// being typed are no command yet.
fn client() -> Option<Client> {
    let words: Vec<String> = std::env::args().collect();
    let value = |names: &[&str]| {
        words.iter().enumerate().find_map(|(at, word)| {
            if names.contains(&word.as_str()) {
                return words.get(at + 1).cloned();
            }
            let (name, value) = word.split_once('=')?;
            names.contains(&name).then(|| value.to_owned())
        })
    };
    // What is in the environment is taken as it always is.
    let mut args = Args::try_parse_from(["aleph", "version"]).ok()?;
    if let Some(root) = value(&["--root"]) {
        args.node.root = Some(root.into());
    }
    if let Some(host) = value(&["--host", "-H"]) {
        args.api.host = Some(host.parse::<Endpoint>().ok()?);
    }
    if let Some(token) = value(&["--token"]) {
        args.api.token = Some(token);
    }
    if let Some(file) = value(&["--cacert"]) {
        args.api.cacert = Some(file.into());
    }
    let context = Context {
        node: args.node,
        api: args.api,
    };
    context.client().ok()
}
