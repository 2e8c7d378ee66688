//! Errors, tables, times and sizes as people read them.

mod age;
mod table;

pub(crate) use age::{ago, since, span};
pub(crate) use table::{Color, Column, Listing, coloured};

use crate::client::ClientError;
use aleph_control::{DaemonError, ImagesError};
use aleph_executor::ExecutorError;
use aleph_executor::capacity::Shortage;
use aleph_image::release::ReleaseError;
use aleph_image::{ImageError, KernelError};
use aleph_types::{Classify, InvalidJob, Problem};
use anyhow::Context;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Prints an error with its causes, and what helps on a line of its own.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !last.ends_with(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.push_str(separator);
            text.push_str(&cause);
            last = cause;
        }
    }
    // A node repeats what a guest or a registry told it.
    say(&format!("aleph: {}", plain_lines(&text)));
    if let Some(advice) = advice(error) {
        say(&format!("       {}", plain_lines(&advice)));
    }
}

fn advice(error: &anyhow::Error) -> Option<String> {
    fn of<E: Classify + 'static>(error: &anyhow::Error) -> Option<String> {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<E>())
            .and_then(Classify::advice)
    }
    of::<ClientError>(error)
        .or_else(|| of::<DaemonError>(error))
        .or_else(|| of::<ImagesError>(error))
        .or_else(|| of::<ExecutorError>(error))
        .or_else(|| of::<ImageError>(error))
        .or_else(|| of::<KernelError>(error))
        .or_else(|| of::<ReleaseError>(error))
        .or_else(|| of::<InvalidJob>(error))
        .or_else(|| of::<Shortage>(error))
        .or_else(|| {
            let problem = error.downcast_ref::<Problem>();
            problem.and_then(|problem| problem.advice.clone())
        })
        .or_else(|| {
            error
                .downcast_ref::<Advised>()
                .map(|advised| advised.advice.clone())
        })
}

/// Prints a line on standard error. That nobody reads it is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a line on standard output.
pub(crate) fn print(line: impl std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputGone.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Whoever read standard output reads it no more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output")]
pub(crate) struct OutputGone;

/// Prints a value as JSON for people and programs.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string_pretty(value)?)
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string(value)?)
}

/// Whether standard output is a terminal that wants colours (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

/// An error of the command line's own, with what helps.
#[derive(Debug)]
pub(crate) struct Advised {
    pub(crate) what: String,
    pub(crate) advice: String,
}

impl std::fmt::Display for Advised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Advised {}

/// A size in the unit that suits it.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A text that others chose, without what would move a terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// The same for a text that may have several lines, such as a list of mistakes.
pub(crate) fn plain_lines(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// The beginning of a text, at most so many characters.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_others_moves_no_cursor() {
        let hostile = "no\u{1b}[2J\u{9b}1A\rsuch\nfile\u{7}";
        assert!(!plain(hostile).contains(char::is_control));
        assert_eq!(plain_lines(hostile), "no [2J 1A such\nfile ");
    }
}
