//! Memory servers of Firecracker's guests, and guests that are written down by what has changed: the
//! server alone, under the double with a real guest, and under the real programs where they are there
//! (`FIRECRACKER_BIN`, `JAILER_BIN`).

mod ahead;
mod guests;
mod linux;
mod server;

use aleph_executor::firecracker::jail::{Jails, UidRange};
use aleph_executor::firecracker::memory::{MEMORY_SERVER, ServerProgram};
use aleph_executor::firecracker::serve_memory;
use aleph_testkit::FaultedMemory;
use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        // What this program starts is itself.
        Some(MEMORY_SERVER) => return serve_memory(words),
        Some("touch") => {
            let (socket, pages) = (words.next(), words.next());
            return match server::touch(&socket.unwrap_or_default(), &pages.unwrap_or_default()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        _ => {}
    }
    let mut trials = Vec::new();
    let faults = FaultedMemory::new(4096)
        .is_err()
        .then_some("needs userfaultfd");
    let mut add = |name: &str, missing: Option<&'static str>, test: Test| {
        trials.push(trial(name, missing, test));
    };
    add("fills_what_is_touched", faults, || {
        block_on(server::fills_what_is_touched())
    });
    add("fills_while_pages_are_given_up", faults, || {
        block_on(server::fills_while_pages_are_given_up())
    });
    add("gives_what_was_needed_first", faults, || {
        block_on(server::gives_what_was_needed_first())
    });
    add("ends_where_the_file_does", faults, || {
        block_on(server::ends_where_the_file_does())
    });
    add("waits_for_nobody", None, || {
        block_on(server::waits_for_nobody())
    });
    let root = !rustix::process::geteuid().is_root();
    let root = root.then_some("needs root");
    add("a_linux_guest_goes_on", faults, || {
        block_on(linux::goes_on("1.15.1", false))
    });
    add("a_linux_guest_of_1_11_goes_on", faults, || {
        block_on(linux::goes_on("1.11.0", false))
    });
    add("a_linux_guest_goes_on_in_a_jail", faults.or(root), || {
        block_on(linux::goes_on("1.15.1", true))
    });
    add(
        "clones_go_on_in_the_real_one",
        faults.or(missing(false)),
        || block_on(guests::clones(false)),
    );
    add(
        "clones_go_on_in_a_real_jail",
        faults.or(missing(true)),
        || block_on(guests::clones(true)),
    );
    add(
        "a_vm_ends_with_its_server",
        faults.or(missing(false)),
        || block_on(guests::ends_with_its_server()),
    );
    add("a_launch_that_fails_leaves_no_server", None, || {
        block_on(guests::fails_behind_its_server(false))
    });
    add(
        "a_launch_that_fails_leaves_no_server_of_a_jail",
        root,
        || block_on(guests::fails_behind_its_server(true)),
    );
    add("a_cut_file_ends_the_vm", faults.or(missing(false)), || {
        block_on(guests::ends_where_the_file_does())
    });
    for (name, ends, jailed) in [
        ("processes_that_wait_get_guests", false, false),
        ("processes_that_wait_get_guests_in_jails", false, true),
        ("processes_without_a_guest_leave_nothing", true, false),
        ("processes_without_a_guest_leave_no_jail", true, true),
    ] {
        let missing = faults.or(root).or(missing(jailed));
        add(
            name,
            missing,
            match (ends, jailed) {
                (false, false) => || block_on(ahead::goes_on(false)),
                (false, true) => || block_on(ahead::goes_on(true)),
                (true, false) => || block_on(ahead::ends(false)),
                (true, true) => || block_on(ahead::ends(true)),
            },
        );
    }
    add("a_second_snapshot_is_a_difference", missing(false), || {
        block_on(guests::differs(false))
    });
    add(
        "a_second_snapshot_in_a_jail_is_a_difference",
        missing(true),
        || block_on(guests::differs(true)),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Test = fn() -> Result<()>;

fn trial(name: &str, missing: Option<&'static str>, test: Test) -> Trial {
    let trial = Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// What the tests with the real programs need and do not have.
fn missing(jailed: bool) -> Option<&'static str> {
    let opens = File::options().read(true).write(true).open("/dev/kvm");
    match (program("FIRECRACKER_BIN"), program("JAILER_BIN"), opens) {
        (None, ..) => Some("needs FIRECRACKER_BIN"),
        (_, None, _) if jailed => Some("needs JAILER_BIN"),
        (.., Err(_)) => Some("needs /dev/kvm"),
        _ => None,
    }
}

fn program(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// This program, as a memory server.
fn server_program() -> ServerProgram {
    ServerProgram::this()
}

/// Jails below a folder, and the jailer, where there is to be one.
fn jail(dir: &std::path::Path, jailer: Option<PathBuf>) -> Result<Option<(Jails, PathBuf)>> {
    let open = |jailer| {
        let jails = Jails::open(&dir.join("jail"), UidRange::default());
        Ok((jails.context("no jails")?, jailer))
    };
    jailer.map(open).transpose()
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(test);
    // A page that nobody fills would have it wait for ever.
    runtime.shutdown_background();
    ended
}
