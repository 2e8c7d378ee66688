//! `aleph`: runs commands in microVMs, by a node of this host or another.

mod args;
mod boot;
mod client;
mod commands;
mod context;
mod duration;
mod output;
mod progress;
mod session;
mod spec;
mod terminal;

use aleph_executor::firecracker::memory::{MEMORY_SERVER, serve_memory};
use aleph_executor::gpu::{NVML_READER, read_nvml};
use args::Args;
use clap::Parser;
use context::Context;
use std::process::ExitCode;

/// The exit code for a failure of aleph itself, as docker has it.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    // What a node starts beside a VM: before all else, since the VM's guest waits for it.
    let mut words = std::env::args_os().skip(1);
    let first = words.next();
    if first.as_ref().is_some_and(|word| word == MEMORY_SERVER) {
        return serve_memory(words.map(|word| word.to_string_lossy().into_owned()));
    }
    // And what asks NVIDIA's driver of its GPUs.
    if first.is_some_and(|word| word == NVML_READER) {
        return read_nvml(words);
    }
    // A shell that completes a word asks by an environment variable.
    if commands::complete() {
        return ExitCode::SUCCESS;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { FAILED } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    log(args.verbose, args.command.is_up());
    let context = Context {
        node: args.node,
        api: args.api,
    };
    match args.command.run(&context) {
        Ok(code) => ExitCode::from(code),
        // They know.
        Err(error) if error.is::<output::OutputGone>() => ExitCode::from(session::SIGPIPE_CODE),
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// Logs go to standard error: warnings, more with `-v` and for a daemon, or as `ALEPH_LOG` says.
fn log(verbose: u8, daemon: bool) {
    let level = match verbose {
        0 if daemon => "aleph_control=info,aleph_executor=info,warn",
        0 => "warn",
        1 => "aleph_control=debug,aleph_executor=debug,aleph_image=debug,info",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ALEPH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
