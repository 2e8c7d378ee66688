//! Processes that are the first ones of namespaces of their own: they are held, told, seen to end, adopted
//! and swept as all others, and nothing that they started is left.

use aleph_executor::process::{Identity, Process, ProcessExit, Spawn};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(30);

/// A user of nobody here.
const USER: u32 = 299_999;

fn main() {
    let missing = (!rustix::process::geteuid().is_root()).then_some("needs root");
    let trials = vec![
        trial("its_number_and_its_status_are_known", missing, is_known),
        trial("it_sees_no_process_of_the_host", missing, sees_itself_alone),
        trial("what_it_started_ends_with_it", missing, takes_all_with_it),
        trial("a_program_that_is_missing_is_told", missing, is_missing),
        trial("it_is_adopted_and_ended", missing, is_adopted),
        trial("it_is_found_by_its_user", missing, is_of_its_user),
        trial(
            "another_process_of_ours_begins_where_we_are",
            missing,
            others,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn trial(name: &str, missing: Option<&str>, test: fn() -> Result<()>) -> Trial {
    let trial = Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let _inside = runtime.enter();
        Ok(test().map_err(|error| format!("{error:?}"))?)
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

/// A shell that does this, as somebody.
fn shell(script: &str, user: Option<u32>) -> Result<Process> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    Ok(Process::spawn_first(spawn(command, user)?)?)
}

fn spawn(command: Command, user: Option<u32>) -> Result<Spawn> {
    Ok(Spawn {
        command,
        files: Vec::new(),
        user,
        device_group: None,
        cgroup: None,
        stdout: None,
        stderr: fs::File::options().write(true).open("/dev/null")?.into(),
    })
}

fn end(process: &Process) -> Result<ProcessExit> {
    let runtime = tokio::runtime::Handle::current();
    Ok(runtime.block_on(async { tokio::time::timeout(LIMIT, process.wait()).await })?)
}

fn namespace(of: &str) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{of}/ns/pid"))?)
}

/// Its numbers, from ours to its own.
fn numbers(process: &Process) -> Result<Vec<String>> {
    let path = format!("/proc/{}/status", process.identity().pid);
    let status = fs::read_to_string(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers = line.context("no NSpid")?.split_whitespace();
    Ok(numbers.map(str::to_owned).collect())
}

fn is_known() -> Result<()> {
    for (script, exit) in [
        ("exit 0", ProcessExit::Code(0)),
        ("exit 7", ProcessExit::Code(7)),
        // The kernel drops what it sends itself.
        ("kill -TERM $$; exit 3", ProcessExit::Code(3)),
    ] {
        let process = shell(script, None)?;
        assert_eq!(end(&process)?, exit, "{script}");
        let pid = process.identity().pid;
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie");
    }
    let process = shell("exec sleep 1000", None)?;
    let pid = process.identity().pid;
    assert_eq!(numbers(&process)?, [pid.to_string(), "1".into()]);
    ensure!(namespace(&pid.to_string())? != namespace("self")?);
    // It is our child, whatever namespace it is in.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1));
    assert_eq!(parent, Some(std::process::id().to_string().as_str()));
    // SIGTERM would not reach it.
    process.terminate()?;
    assert_eq!(end(&process)?, ProcessExit::Signal(9));
    Ok(())
}

fn sees_itself_alone() -> Result<()> {
    let ours = std::process::id();
    // Nothing of the host can be signalled: there is no such process for it.
    let script = format!("kill -0 {ours} 2>/dev/null && exit 9; [ $$ = 1 ] || exit 8; exit 4");
    let process = shell(&script, None)?;
    assert_eq!(end(&process)?, ProcessExit::Code(4));
    Ok(())
}

/// How many processes are in a namespace.
fn members(space: &Path) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let spaces = entries.filter_map(|entry| fs::read_link(entry.path().join("ns/pid")).ok());
    spaces.filter(|found| found == space).count()
}

fn takes_all_with_it() -> Result<()> {
    // A child, a grandchild in a session of its own, and one that its parent has left.
    let script = "setsid sh -c 'sleep 1000 & sleep 1000' & (sleep 1000 &) ; exec sleep 1000";
    let process = shell(script, None)?;
    let space = namespace(&process.identity().pid.to_string())?;
    wait_until("all are there", LIMIT, || {
        (members(&space) >= 5).then_some(())
    });
    process.kill()?;
    assert_eq!(end(&process)?, ProcessExit::Signal(9));
    // It has ended once they have.
    assert_eq!(members(&space), 0);
    Ok(())
}

fn is_missing() -> Result<()> {
    let command = Command::new("/no/such/program");
    let error = Process::spawn_first(spawn(command, None)?).err();
    let error = error.context("it has begun")?;
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    Ok(())
}

fn is_adopted() -> Result<()> {
    let process = shell("exec sleep 1000", None)?;
    // As the next daemon finds it, which was not told how it was started.
    let record = serde_json::to_string(process.identity())?;
    let identity: Identity = serde_json::from_str(&record)?;
    let again = Process::adopt(&identity)?;
    ensure!(!again.has_ended());
    again.terminate()?;
    assert_eq!(end(&process)?, ProcessExit::Signal(9));
    ensure!(again.has_ended());
    let gone = Process::adopt(&identity).err().context("it is there")?;
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    Ok(())
}

fn is_of_its_user() -> Result<()> {
    let process = shell("exec sleep 1000", Some(USER))?;
    // By then it has given up our user.
    let found = wait_until("it is its user's", LIMIT, || {
        Process::of_user(USER).into_iter().next()
    });
    assert_eq!(found.identity(), process.identity());
    found.kill()?;
    assert_eq!(end(&process)?, ProcessExit::Signal(9));
    Ok(())
}

fn others() -> Result<()> {
    let first = shell("exec sleep 1000", None)?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let other = Process::spawn(spawn(command, None)?)?;
    assert_eq!(
        namespace(&other.identity().pid.to_string())?,
        namespace("self")?
    );
    other.terminate()?;
    assert_eq!(end(&other)?, ProcessExit::Signal(15));
    first.kill()?;
    end(&first)?;
    Ok(())
}
