//! A program that stands for `firecracker` where there is no KVM that runs Linux.
//!
//! Its command line, its API, its files and its exit codes are Firecracker's, of the version that
//! [`version::VARIABLE`] or its own name says; what it refuses it refuses in the same words. Behind
//! it runs a real guest, on QEMU's microvm machine under emulation.
//!
//! | module | what it is |
//! | --- | --- |
//! | `http`, `server` | the API's socket, byte for byte |
//! | `route`, `action`, `gate`, `bodies` | requests, as a certain version understands them |
//! | `vmm`, `unbooted`, `booted` | what is done when, and what is refused |
//! | `resources`, `guest`, `line`, `qmp` | the guest |
//! | `page_faults` | memory from a page fault handler |
//! | `state_file` | snapshots |
//! | `misbehaviour` | what goes wrong at a request, where a test says so |
//!
//! | variable | what it says |
//! | --- | --- |
//! | `FIRECRACKER_DOUBLE_VERSION` | which version is doubled |
//! | `FIRECRACKER_DOUBLE_QEMU` | another QEMU than the one in the path |
//! | `FIRECRACKER_DOUBLE_VSOCK` | where the library of the vsock device is, if not beside this program |
//!
//! # Where it differs
//! - The kernel is told more than the boot arguments: what emulation needs (see `line`).
//! - Devices are found by ACPI alone: `virtio_mmio.device=` is not on the kernel's command line.
//! - Rates are not limited; statistics of a balloon are those of a guest that sends none.
//! - No pmem, no memory hotplug, no PCI, no vhost-user drives, no server for a guest's metadata, no
//!   CPU templates: they are taken as the API takes them, and where the guest would get them, the
//!   start is refused or they are left out.
//! - A snapshot's memory is loaded into a copy before the guest goes on, also where it comes from a page
//!   fault handler, which so is asked for all of it (see `page_faults`).
//! - A triple fault looks like a reset: exit code 0 in all versions.
//! - A VM that is only paused and resumed has no trouble with vsock in 1.16.0 and 1.16.1.

mod action;
mod arguments;
mod bodies;
mod booted;
mod configuration;
mod fault;
mod gate;
mod guest;
mod http;
mod line;
mod logger;
mod metrics;
mod misbehaviour;
mod mmds;
mod page_faults;
mod qmp;
mod report;
mod resources;
mod route;
mod server;
mod state_file;
mod tap;
mod unbooted;
mod version;
mod vmm;

use arguments::{Arguments, Command};
use misbehaviour::Misbehaviour;
use server::Server;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use version::Version;
use vmm::Vmm;

/// The exit codes of Firecracker.
mod exit {
    pub(crate) const GENERIC: u8 = 1;
    pub(crate) const BAD_LEVEL: u8 = 152;
    pub(crate) const ARGUMENTS: u8 = 153;
}

/// Why it ends: the code, and what is said of it.
struct End(u8, String);

fn main() -> ExitCode {
    let code = match run() {
        Ok(code) => code,
        Err(End(code, why)) => {
            log!(Error, "{why}");
            let _ = writeln!(std::io::stderr(), "Error: {why}");
            code
        }
    };
    match code {
        0 => log!(Info, "Firecracker exiting successfully. exit_code=0"),
        code => log!(Error, "Firecracker exiting with error. exit_code={code}"),
    }
    ExitCode::from(code)
}

fn run() -> Result<u8, End> {
    let version = Version::doubled().map_err(|why| End(exit::GENERIC, why))?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = arguments::parse(&words, version.has(13)).map_err(|error| {
        End(
            exit::ARGUMENTS,
            format!("Failed to parse arguments: {error}"),
        )
    })?;
    let said = match command {
        Command::Run(arguments) => return serve(&arguments, version),
        Command::Help | Command::Version => format!("Firecracker v{version}\n\n"),
        Command::SnapshotVersion => format!("v{}\n", version.snapshots()),
        Command::DescribeSnapshot(path) => match state_file::format_of(&path) {
            Some(format) => format!("v{format}\n"),
            None => {
                let why = format!("Unable to read the snapshot {}", path.display());
                return Err(End(exit::GENERIC, why));
            }
        },
    };
    let _ = std::io::stdout().write_all(said.as_bytes());
    Ok(0)
}

fn serve(arguments: &Arguments, version: Version) -> Result<u8, End> {
    let id = &arguments.id;
    let valid = |c: char| c == '-' || c.is_alphanumeric();
    if id.is_empty() || id.len() > 64 || !id.chars().all(valid) {
        log!(Error, "Firecracker panicked: Invalid instance ID");
        std::process::abort();
    }
    logger::name(id);
    if let Some(level) = &arguments.level
        && logger::Level::parse(level).is_none()
    {
        let why = format!("Failed to parse string to level filter: {level}");
        return Err(End(exit::BAD_LEVEL, why));
    }
    let config = bodies::Logger {
        log_path: arguments.log_path.clone(),
        level: arguments.level.clone(),
        show_level: arguments.show_level.then_some(true),
        show_log_origin: arguments.show_log_origin.then_some(true),
        module: arguments.module.clone(),
    };
    let generic = |what: &str, why: &str| End(exit::GENERIC, format!("{what}: {why}"));
    logger::update(&config, version)
        .map_err(|error| generic("Could not initialize logger", &fault::os_text(&error)))?;
    log!(Info, "Running Firecracker v{version}");
    let (events, received) = channel();
    let mut vmm = Vmm::new(arguments, version, events.clone());
    if let Some(path) = &arguments.metrics_path {
        let config = bodies::Metrics {
            metrics_path: path.clone(),
            emit_id: false,
            properties: None,
        };
        vmm.metrics
            .start(&config, id, version)
            .map_err(|why| generic("Could not initialize metrics", &why))?;
    }
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).unwrap_or_else(|error| {
            log!(
                Error,
                "Firecracker panicked: Unable to open or read from the configuration file: {error}"
            );
            std::process::abort()
        })
    };
    let configuration = arguments.config_file.as_ref().map(read);
    let misbehaviour = Misbehaviour::asked_for();
    let is_deaf = misbehaviour.as_ref().is_some_and(Misbehaviour::is_deaf);
    if !arguments.no_api && !is_deaf {
        let path = &arguments.api_sock;
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => End(
                exit::GENERIC,
                format!(
                    "RunWithApi error: Failed to open the API socket at: {}. Check that it is not \
                     already used.",
                    path.display()
                ),
            ),
            _ => generic(
                "RunWithApi error: Failed to bind and run the HTTP server: IO error",
                &fault::os_text(&error),
            ),
        })?;
        if version.has(12) {
            log!(Info, "Listening on API socket ({path:?}).");
        }
        let server = Server {
            listener,
            version,
            limit: arguments.payload_limit,
            vmm: events.clone(),
            misbehaviour,
        };
        std::thread::Builder::new()
            .name("fc_api".into())
            .spawn(move || server.run())
            .map_err(|error| generic("API thread spawn failed", &error.to_string()))?;
    }
    drop(events);
    if let Some(path) = &arguments.metadata {
        vmm.read_metadata(path)
            .map_err(|fault| generic("MMDS error", &fault.text))?;
    }
    if let Some(text) = configuration {
        vmm.start_from(&text)
            .map_err(|fault| generic("Failed to build MicroVM from Json", &fault.text))?;
        log!(
            Info,
            "Successfully started microvm that was configured from one single json"
        );
    }
    Ok(vmm.run(&received))
}
