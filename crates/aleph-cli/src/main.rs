//! `aleph`: runs commands in microVMs on this host.

mod args;
mod boot;
mod doctor;
mod image;
mod kernel;
mod output;
mod progress;
mod run;
mod terminal;

use args::{Args, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

/// The exit code for a failure of aleph itself, as docker has it.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { FAILED } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    log(args.verbose);
    let done = match args.command {
        Command::Run(run) => run::run(&args.node, &run),
        Command::Image(command) => image::image(&args.node, command),
        Command::Kernel(command) => kernel::kernel(&args.node, command),
        Command::Doctor { json } => doctor::doctor(&args.node, json),
        Command::Version => output::print(concat!("aleph ", env!("CARGO_PKG_VERSION"))).map(|()| 0),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "aleph", &mut std::io::stdout());
            Ok(0)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// Logs go to standard error: warnings, more with `-v`, or as `ALEPH_LOG` says.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "aleph_executor=debug,aleph_image=debug,info",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ALEPH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
