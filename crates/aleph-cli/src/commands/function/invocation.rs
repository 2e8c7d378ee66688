//! `aleph fn invoke`.

use super::ready;
use crate::client::{Client, ClientError, Invoke, Invoked};
use crate::output::{OutputGone, plain, print, say};
use anyhow::{Context as _, Result};
use std::io::{self, Read, Write};

/// The exit code where the function failed: ours are others.
const FUNCTION_FAILED: u8 = 1;
/// What a node says of a function that it still prepares.
const NOT_READY: &str = "ResourceConflictException";
/// The most bytes of an event that is read; the node's own limit is lower.
const MOST_EVENT: u64 = 16 << 20;

/// A function to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Invocation {
    /// Name of the function, such as hello, hello:3 or hello:live
    name: String,
    /// The event: JSON, @FILE, or - for standard input [default: {}]
    #[arg(short, long, value_name = "JSON")]
    payload: Option<String>,
    /// The version or alias
    #[arg(short, long, value_name = "NAME")]
    qualifier: Option<String>,
    /// Leave the event with the node, which runs it later, and again where it fails
    #[arg(long = "async")]
    later: bool,
    /// Print the end of what the function wrote to standard error
    #[arg(long, conflicts_with = "later")]
    log: bool,
    /// Print the answer alone
    #[arg(long)]
    quiet: bool,
}

impl Invocation {
    pub(super) async fn run(self, client: &Client) -> Result<u8> {
        let payload = payload(self.payload.as_deref())?;
        let name = match &self.qualifier {
            Some(qualifier) => format!("{}:{qualifier}", self.name),
            None => self.name.clone(),
        };
        let how = match self.later {
            true => Invoke::Later,
            false => Invoke::Wait { log: self.log },
        };
        let done = match client.invoke_function(&name, payload.clone(), how).await {
            Err(ClientError::Refused(problem)) if problem.code == NOT_READY => {
                // It was made or changed a moment ago. Where it never comes to be, this says why.
                say(&format!("aleph: waiting until {} is ready", plain(&name)));
                ready(client, &name).await?;
                client.invoke_function(&name, payload, how).await
            }
            done => done,
        };
        let done = done.map_err(|error| advised(error, &self.name))?;
        if self.later {
            // The id is what logs and dead letters call it by.
            print(&done.request)?;
            return Ok(0);
        }
        let mut out = io::stdout().lock();
        let written = out
            .write_all(&done.payload)
            .and_then(|()| match done.payload.last() {
                Some(b'\n') => Ok(()),
                _ => out.write_all(b"\n"),
            })
            .and_then(|()| out.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(OutputGone.into());
            }
            written => written.context("cannot write to standard output")?,
        }
        if let Some(log) = &done.log {
            let _ = io::stderr().write_all(log);
        }
        if !self.quiet {
            say(&summary(&done));
        }
        Ok(match done.error {
            Some(_) => FUNCTION_FAILED,
            None => 0,
        })
    }
}

/// A function that is not there is perhaps another account's.
fn advised(error: ClientError, name: &str) -> anyhow::Error {
    match error {
        ClientError::Refused(mut problem) if problem.code == "ResourceNotFoundException" => {
            problem.advice = Some(format!(
                "See aleph fn ls for the functions there are, and aleph fn create for {name}."
            ));
            ClientError::Refused(problem).into()
        }
        error => error.into(),
    }
}

pub(super) fn payload(word: Option<&str>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match word {
        None => bytes.extend_from_slice(b"{}"),
        Some("-") => {
            let mut input = io::stdin().lock().take(MOST_EVENT);
            input
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
        }
        Some(word) => match word.strip_prefix('@') {
            Some(file) => {
                bytes = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
            }
            None => bytes.extend_from_slice(word.as_bytes()),
        },
    }
    Ok(bytes)
}

/// `aleph: warm · 3.1 ms (queue 0.1, resume 0, function 2.6)`
fn summary(done: &Invoked) -> String {
    let number = |ms: f64| match ms {
        0.0 => "0".to_owned(),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    };
    let all: f64 = done.timings.iter().map(|(_, ms)| ms).sum();
    let parts = done.timings.iter();
    let parts: Vec<_> = parts
        .map(|(name, ms)| format!("{} {}", plain(name), number(*ms)))
        .collect();
    let temperature = done.temperature.as_deref().unwrap_or("done");
    let failed = match &done.error {
        Some(error) => format!(" · failed ({})", plain(error)),
        None => String::new(),
    };
    let version = match done.version.as_deref() {
        None | Some("$LATEST") => String::new(),
        Some(version) => format!(" · version {}", plain(version)),
    };
    format!(
        "aleph: {} · {} ms ({}){version}{failed}",
        plain(temperature),
        number(all),
        parts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_summary_says_where_the_time_went() {
        let part = |name: &str, ms| (name.to_owned(), ms);
        let mut done = Invoked {
            request: String::new(),
            payload: Bytes::new(),
            error: None,
            log: None,
            version: Some("$LATEST".into()),
            temperature: Some("warm".into()),
            timings: vec![
                part("queue", 0.1),
                part("resume", 0.0),
                part("function", 2.96),
            ],
        };
        assert_eq!(
            summary(&done),
            "aleph: warm · 3.1 ms (queue 0.1, resume 0, function 3.0)"
        );
        done.error = Some("Unhandled".into());
        done.version = Some("3".into());
        assert!(summary(&done).ends_with(" · version 3 · failed (Unhandled)"));
    }
}
