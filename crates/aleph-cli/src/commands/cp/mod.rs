//! `aleph cp`: files into and out of guests, as tar archives over the API.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | the words, and which of both sides is the guest |
//! | `place` | where something goes, by docker's rules |
//! | `pack` | local files to an archive that is sent while it is made |
//! | `unpack` | an archive from a guest to local files |
//!
//! What comes from a guest is hostile: it is unpacked below the folder that the user named and
//! nowhere else, without devices and without set-id bits.

mod pack;
mod place;
mod unpack;

use super::completion::jobs;
use crate::client::{Client, PathKind, PathStat};
use crate::context::Context;
use crate::output::{Advised, print_json_line};
use crate::progress::Transfer;
use crate::session::{Output, SIGPIPE_CODE, read_stdin, writer};
use anyhow::{Context as _, Result};
use clap_complete::ArgValueCompleter;
use place::{Place, Source};
use serde_json::json;
use std::path::Path;

/// How many links lead from one to the next at most, as on Linux.
const MOST_LINKS: usize = 40;

/// What to copy, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Cp {
    /// A local path, JOB:PATH, or - for a tar archive on standard input. A folder whose path
    /// ends in /. is copied without itself
    #[arg(value_name = "SOURCE", add = ArgValueCompleter::new(jobs::places))]
    source: Place,

    /// A local path, JOB:PATH, or - for a tar archive on standard output
    #[arg(value_name = "DESTINATION", add = ArgValueCompleter::new(jobs::places))]
    destination: Place,

    /// Copy what a link names, if the source is one
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,

    /// Print what was copied as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Looks whether there is somebody in a guest who takes files; the answer to a question for what is at a
/// path has no words (RFC 9110, 9.3.2).
async fn expect_agent(client: &Client, job: &str) -> Result<()> {
    let job = client.job(job).await?;
    if job.spec.has_own_disk() {
        return Err(Advised {
            what: format!(
                "the job {} boots a disk of its own, and has no agent that takes files",
                job.name
            ),
            advice: format!(
                "Copy by way of aleph ssh, as in: aleph ssh {} -- tar c PATH | tar x",
                job.name
            ),
        }
        .into());
    }
    Ok(())
}

impl Cp {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        for place in [&self.source, &self.destination] {
            if let Place::Guest { job, .. } = place {
                expect_agent(&client, job).await?;
            }
        }
        let mut progress = Transfer::new(self.quiet);
        let follow = self.follow_link;
        match (&self.source, &self.destination) {
            (Place::Guest { job, path }, Place::Local(to)) => {
                let guest = Guest::new(&client, job);
                take_out(&guest, path, follow, to, &mut progress).await?;
            }
            (Place::Guest { .. }, Place::Stream) if self.json => {
                return Err(Advised {
                    what: "standard output cannot be both an archive and JSON".into(),
                    advice: "Leave out --json, or copy into a folder.".into(),
                }
                .into());
            }
            (Place::Guest { job, path }, Place::Stream) => {
                let guest = Guest::new(&client, job);
                return stream_out(&guest, path, follow).await;
            }
            (Place::Local(from), Place::Guest { job, path }) => {
                let guest = Guest::new(&client, job);
                put_in(&guest, from, follow, path, &mut progress).await?;
            }
            (Place::Stream, Place::Guest { job, path }) => {
                let guest = Guest::new(&client, job);
                guest.ensure_folder(path).await?;
                let body = pack::forward(read_stdin(), progress.counter());
                client.write_archive(job, path, body).await?;
            }
            (Place::Guest { .. }, Place::Guest { .. }) => {
                return Err(neither("files are not copied from one guest to another"));
            }
            _ => return Err(neither("neither of both is in a guest")),
        }
        progress.end();
        if self.json {
            print_json_line(&json!({
                "source": self.source.to_string(),
                "destination": self.destination.to_string(),
                "archive_bytes": progress.bytes(),
            }))?;
        }
        Ok(0)
    }
}

fn neither(what: &str) -> anyhow::Error {
    Advised {
        what: what.into(),
        advice: "Write one of both as JOB:PATH.".into(),
    }
    .into()
}

/// The files of a job's guest.
struct Guest<'a> {
    client: &'a Client,
    job: &'a str,
}

impl<'a> Guest<'a> {
    fn new(client: &'a Client, job: &'a str) -> Self {
        Self { client, job }
    }

    /// What is at a path, links followed where the caller wants that, and where it then is.
    async fn look(&self, path: &str, follow: bool) -> Result<Option<(String, PathStat)>> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let stat = match self.client.path_stat(self.job, &path).await? {
                Some(stat) => stat,
                None => {
                    // The node tells only that there is nothing: a job that is not there
                    // deserves its own words.
                    self.client.job(self.job).await?;
                    return Ok(None);
                }
            };
            match &stat.link_target {
                Some(target) if follow && stat.kind == PathKind::Symlink => {
                    path = place::linked(&path, target);
                }
                _ => return Ok(Some((path, stat))),
            }
        }
        anyhow::bail!("{}:{path} is a link that leads nowhere", self.job)
    }

    async fn ensure_folder(&self, path: &str) -> Result<()> {
        match self.look(path, true).await? {
            Some((_, stat)) if stat.kind == PathKind::Directory => Ok(()),
            Some(_) => anyhow::bail!("{}:{path} is no folder", self.job),
            None => Err(self.nothing(path)),
        }
    }

    fn nothing(&self, path: &str) -> anyhow::Error {
        anyhow::anyhow!("there is no {path} in {}", self.job)
    }

    /// What is to be copied out.
    async fn source(&self, path: &str, follow: bool) -> Result<(String, Source)> {
        let found = self.look(path, follow).await?;
        let (real, stat) = found.ok_or_else(|| self.nothing(path))?;
        let source = Source {
            name: place::last_part(path).unwrap_or(&stat.name).to_owned(),
            folder: stat.kind == PathKind::Directory,
            contents: place::means_contents(path),
        };
        Ok((real, source))
    }
}

async fn take_out(
    guest: &Guest<'_>,
    path: &str,
    follow: bool,
    to: &Path,
    progress: &mut Transfer,
) -> Result<()> {
    let (real, source) = guest.source(path, follow).await?;
    let target = place::local_target(&source, to)?;
    let (_, mut answer) = guest.client.read_archive(guest.job, &real).await?;
    let (pieces, unpacked) = unpack::start(target);
    while let Some(bytes) = answer.next().await? {
        progress.advance(bytes.len());
        if pieces.send(bytes).await.is_err() {
            // Why it takes no more is its own result.
            break;
        }
    }
    drop(pieces);
    unpacked
        .await
        .context("unpacking broke off")?
        .with_context(|| format!("cannot write below {}", to.display()))
}

async fn stream_out(guest: &Guest<'_>, path: &str, follow: bool) -> Result<u8> {
    let (real, _) = guest.source(path, follow).await?;
    let (_, mut answer) = guest.client.read_archive(guest.job, &real).await?;
    let (out, written) = writer();
    while let Some(bytes) = answer.next().await? {
        if out.send(Output::Out(bytes)).await.is_err() {
            return Ok(SIGPIPE_CODE);
        }
    }
    drop(out);
    match written.await {
        Ok(Ok(())) => Ok(0),
        _ => Ok(SIGPIPE_CODE),
    }
}

async fn put_in(
    guest: &Guest<'_>,
    from: &Path,
    follow: bool,
    to: &str,
    progress: &mut Transfer,
) -> Result<()> {
    let source = place::local_source(from, follow)?;
    let there = guest.look(to, true).await?;
    let there = there.map(|(path, stat)| (path, stat.kind == PathKind::Directory));
    let target = place::guest_target(&source, to, there)?;
    guest.ensure_folder(&target.folder).await?;
    let real = if follow {
        from.canonicalize()
            .with_context(|| format!("cannot follow {}", from.display()))?
    } else {
        from.to_owned()
    };
    let (body, packed) = pack::start(real, target.name, progress.counter());
    let sent = guest
        .client
        .write_archive(guest.job, &target.folder, body)
        .await;
    // What could not be read here is the better reason.
    match packed.await.context("packing broke off")? {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("cannot read {}", from.display()))
        }
        _ => Ok(sent?),
    }
}
