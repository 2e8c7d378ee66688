//! Errors, tables and sizes as people read them.

use aleph_executor::ExecutorError;
use aleph_executor::capacity::Shortage;
use aleph_image::{ImageError, KernelError};
use aleph_types::{Classify, InvalidJob};
use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use std::io::{self, Write};

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
    say(&format!("aleph: {text}"));
    if let Some(advice) = advice(error) {
        say(&format!("       {advice}"));
    }
}

fn advice(error: &anyhow::Error) -> Option<String> {
    fn of<E: Classify + 'static>(error: &anyhow::Error) -> Option<String> {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<E>())
            .and_then(Classify::advice)
    }
    of::<ExecutorError>(error)
        .or_else(|| of::<ImageError>(error))
        .or_else(|| of::<KernelError>(error))
        .or_else(|| of::<InvalidJob>(error))
        .or_else(|| of::<Shortage>(error))
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
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")
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

/// A table without frames that fits the terminal.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table
}

/// A size in the unit that suits it.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
