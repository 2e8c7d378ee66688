//! A Firecracker that fails at any moment: at each call of a launch, of a life and of a restore it dies,
//! hangs or answers nonsense. Each time the error says what was wrong with what, and nothing is left on
//! the host. What stands for Firecracker runs real guests.
//!
//! | file | what it is |
//! | --- | --- |
//! | `world` | one VM's surroundings, and what is left of it there |
//! | `calls` | something goes wrong at each call |
//! | `files` | snapshots and memory files that are not what they should be; what a crash has left |

mod calls;
mod files;
mod world;

use aleph_executor::firecracker::memory::MEMORY_SERVER;
use aleph_executor::firecracker::serve_memory;
use aleph_testkit::{Fault, FaultedMemory};
use anyhow::Result;
use calls::Stage;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::time::Duration;

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

/// What the doubles stand for.
const VERSION: &str = "1.15.1";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(MEMORY_SERVER) {
        // What this program starts is itself.
        return serve_memory(words);
    }
    let root = (!rustix::process::geteuid().is_root()).then_some("needs root");
    let faults = FaultedMemory::new(4096).err().map(|_| "needs userfaultfd");
    let mut trials = Vec::new();
    for (stage, is_jailed, missing) in [
        (Stage::Launch, true, root),
        (Stage::Launch, false, None),
        (Stage::Life, true, root),
        (Stage::Restore { is_served: false }, true, root),
        (Stage::Restore { is_served: true }, true, root.or(faults)),
    ] {
        for (how, wrong) in [
            (
                "dies",
                &[Fault::Dies, Fault::DiesDone, Fault::DiesAnswered][..],
            ),
            ("hangs", &[Fault::Hangs, Fault::HangsDone]),
            (
                "answers_nonsense",
                &[Fault::Refuses, Fault::Garbles, Fault::Floods],
            ),
        ] {
            let place = if is_jailed { "_in_a_jail" } else { "" };
            let name = format!("it_{how}_at_any_call_of_a_{stage}{place}");
            trials.push(trial(name, missing, move || {
                block_on(calls::go_wrong(stage, is_jailed, wrong))
            }));
        }
    }
    for is_jailed in [false, true] {
        let place = if is_jailed { "_in_a_jail" } else { "" };
        let missing = root.filter(|_| is_jailed);
        let name = format!("it_never_listens{place}");
        trials.push(trial(name, missing, move || {
            block_on(calls::never_listens(is_jailed))
        }));
        let name = format!("a_snapshot_that_is_cut_or_foreign_ends_its_vm{place}");
        trials.push(trial(name, missing, move || {
            block_on(files::cut_or_foreign(is_jailed))
        }));
    }
    let name = "what_a_crash_left_is_in_no_ones_way";
    trials.push(trial(name, root, || block_on(files::left_over())));
    let name = "without_a_user_left_nothing_is_started";
    trials.push(trial(name, root, || block_on(files::no_user_left())));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(
    name: impl Into<String>,
    missing: Option<&'static str>,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    let trial = Trial::test(name, move || {
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

fn block_on(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(test);
    // What hangs for good would have it wait.
    runtime.shutdown_background();
    ended
}
