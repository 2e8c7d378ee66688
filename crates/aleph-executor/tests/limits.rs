//! What the limits of a group do to the processes in it. Each case runs in a VM, whose kernel
//! has all controllers of cgroup v2 to give.

use aleph_executor::cgroup::{Cgroup, CgroupTree, Limits, Overuse, Pids};
use aleph_executor::process::{Process, ProcessExit, Spawn};
use aleph_testkit::{Case, TestHost, wait_until};
use aleph_types::MiB;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

const CASES: &[Case] = &[
    (
        "a_group_beyond_its_memory_is_ended",
        a_group_beyond_its_memory_is_ended,
    ),
    (
        "a_group_at_its_limit_of_processes_cannot_fork",
        a_group_at_its_limit_of_processes_cannot_fork,
    ),
    (
        "a_group_that_wants_more_processors_waits",
        a_group_that_wants_more_processors_waits,
    ),
    (
        "a_group_beyond_its_rate_of_writes_waits",
        a_group_beyond_its_rate_of_writes_waits,
    ),
    (
        "a_group_that_waits_for_its_disk_is_killed",
        a_group_that_waits_for_its_disk_is_killed,
    ),
    (
        "all_in_a_group_are_killed_and_nothing_is_left",
        all_in_a_group_are_killed_and_nothing_is_left,
    ),
];

fn main() -> ExitCode {
    let host = TestHost {
        cpus: 2,
        memory: MiB(1024),
        disk: MiB(512),
    };
    host.main(CASES)
}

const LIMIT: Duration = Duration::from_secs(60);
/// What a group may have of memory when its guest has none.
const MEMORY: MiB = MiB(512);
const GENEROUS: Limits = Limits {
    cpus: 2,
    memory: MiB(256),
    pids: 100,
    io_bytes_per_second: None,
};
/// Where the disk is that groups write to.
const DISK: &str = "/mnt";

fn a_group_beyond_its_memory_is_ended() -> Result<()> {
    // The limit is one of memory and swap together, or this would be the way around it.
    mount_disk()?;
    sh("dd if=/dev/zero of=/mnt/swap bs=1M count=200 && mkswap /mnt/swap && swapon /mnt/swap")?;
    let host = Host::new()?;
    let limits = Limits {
        memory: MiB(0),
        ..GENEROUS
    };
    let group = host.group("vm", &limits)?;
    ensure!(read(&group, "memory.max")? == MEMORY.bytes().to_string());
    ensure!(read(&group, "memory.swap.max")? == "0");

    let touch = |size: MiB| format!("exec dd if=/dev/zero of=/dev/null count=1 bs={}M", size.0);
    let below = host.start(&group, &touch(MiB(MEMORY.0 / 2)))?;
    host.expect(&below, ProcessExit::Code(0))?;
    ensure!(group.overuse().is_none());

    let above = host.start(&group, &touch(MiB(MEMORY.0 + 64)))?;
    host.expect(&above, ProcessExit::Signal(9))?;
    let limit = Some(MEMORY.bytes());
    ensure!(group.overuse() == Some(Overuse { limit }));

    let elsewhere = host.group("other", &GENEROUS)?;
    let as_much = host.start(&elsewhere, &touch(MiB(MEMORY.0 + 64)))?;
    host.expect(&as_much, ProcessExit::Code(0))?;

    // One whose VM grows has more from then on, and what is running in it, too.
    let grown = host.group("grown", &limits)?;
    let memory = read(&grown, "memory.max")?;
    grown.resize(Some(2), None)?;
    ensure!(read(&grown, "cpu.max")? == "200000 100000");
    ensure!(read(&grown, "memory.max")? == memory, "it is what it was");
    grown.resize(None, Some(MiB(128)))?;
    let as_much = host.start(&grown, &touch(MiB(MEMORY.0 + 64)))?;
    host.expect(&as_much, ProcessExit::Code(0))?;
    ensure!(grown.overuse().is_none());
    host.clear(&[group, elsewhere, grown])
}

fn a_group_at_its_limit_of_processes_cannot_fork() -> Result<()> {
    let host = Host::new()?;
    let limits = Limits {
        pids: 8,
        ..GENEROUS
    };
    let group = host.group("vm", &limits)?;
    let forks = |n| format!("for i in $(seq {n}); do sleep 1000 & done");

    // The shell, and seven beside it; `seq` has ended by then.
    let seven = host.start(&group, &forks(7))?;
    host.expect(&seven, ProcessExit::Code(0))?;
    ensure!(read(&group, "pids.current")? == "7");
    ensure!(count(&group, "pids.events", "max")? == 0);
    let (there, most) = (7, 8);
    ensure!(group.pids() == Some(Pids { there, most }));

    let one_more = host.start(&group, "sleep 1000 & echo not reached >&2")?;
    host.expect(&one_more, ProcessExit::Code(2))?;
    let said = host.said()?;
    // What EAGAIN is in words.
    ensure!(
        said.contains("can't fork: Resource temporarily unavailable") && !said.contains("reached"),
        "{said}"
    );
    ensure!(count(&group, "pids.events", "max")? > 0);
    ensure!(read(&group, "pids.current")? == "7");
    host.clear(&[group])
}

fn a_group_that_wants_more_processors_waits() -> Result<()> {
    let host = Host::new()?;
    let limits = Limits {
        cpus: 1,
        ..GENEROUS
    };
    let group = host.group("vm", &limits)?;
    ensure!(read(&group, "cpu.max")? == "100000 100000");
    ensure!(count(&group, "cpu.stat", "nr_throttled")? == 0);
    for _ in 0..2 {
        host.start(&group, "while :; do :; done")?;
    }
    wait_until("a throttled group", LIMIT, || {
        (count(&group, "cpu.stat", "nr_throttled").ok()? > 0).then_some(())
    });
    ensure!(group.cpu_usec() > Some(0));
    host.clear(&[group])
}

/// At this rate it takes minutes.
const WRITE: &str = "exec dd if=/dev/zero of=/mnt/slow bs=1M count=1 oflag=direct";
const SLOWLY: Limits = Limits {
    io_bytes_per_second: Some(4096),
    ..GENEROUS
};

fn a_group_beyond_its_rate_of_writes_waits() -> Result<()> {
    mount_disk()?;
    let host = Host::new()?;
    let group = host.group("vm", &SLOWLY)?;
    let device = fs::read_to_string("/sys/block/vdb/dev")?.trim().to_owned();
    let line = format!("{device} rbps=4096 wbps=4096 riops=max wiops=max");
    ensure!(read(&group, "io.max")? == line);

    let slow = host.start(&group, WRITE)?;
    wait_until("its file", LIMIT, || {
        Path::new("/mnt/slow").exists().then_some(())
    });
    // No clock is asked: while this one waits, another writes many times as much.
    let elsewhere = host.group("other", &GENEROUS)?;
    let quick = "exec dd if=/dev/zero of=/mnt/quick bs=1M count=64 oflag=direct";
    let quick = host.start(&elsewhere, quick)?;
    host.expect(&quick, ProcessExit::Code(0))?;
    ensure!(group.is_populated(), "it was not held up");

    let limit = group.path().join("io.max");
    fs::write(limit, format!("{device} rbps=max wbps=max"))?;
    host.expect(&slow, ProcessExit::Code(0))?;
    let stat = read(&group, "io.stat")?;
    ensure!(stat.starts_with(&device), "{stat}");
    host.clear(&[group, elsewhere])
}

/// A killed process that waits for a disk stays until it has had its turn.
fn a_group_that_waits_for_its_disk_is_killed() -> Result<()> {
    mount_disk()?;
    let host = Host::new()?;
    let group = host.group("vm", &SLOWLY)?;
    let slow = host.start(&group, WRITE)?;
    // Uninterruptible.
    let stat = format!("/proc/{}/stat", slow.identity().pid);
    wait_until("one that waits", LIMIT, || {
        fs::read_to_string(&stat)
            .ok()?
            .contains("(dd) D")
            .then_some(())
    });
    host.clear(&[group])
}

fn all_in_a_group_are_killed_and_nothing_is_left() -> Result<()> {
    let host = Host::new()?;
    let group = host.group("vm", &GENEROUS)?;
    let beside = host.group("other", &GENEROUS)?;
    let neighbour = host.start(&beside, "sleep 1000 & wait")?;
    // Of other sessions, deaf to signals, and orphans.
    let line = "trap '' TERM HUP; for i in 1 2 3; do (setsid sleep 1000 &); sleep 1000 & done; \
                while :; do :; done";
    let first = host.start(&group, line)?;
    wait_until("seven processes", LIMIT, || {
        (read(&group, "pids.current").ok()? == "7").then_some(())
    });
    ensure!(group.remove().is_err(), "it is not empty");
    group.kill()?;
    host.expect(&first, ProcessExit::Signal(9))?;
    wait_until("an empty group", LIMIT, || {
        (!group.is_populated()).then_some(())
    });
    ensure!(beside.is_populated(), "its neighbour was killed too");
    group.kill()?;
    group.remove()?;
    ensure!(host.tree.names()? == ["other"]);
    beside.kill()?;
    host.expect(&neighbour, ProcessExit::Signal(9))?;
    host.clear(&[group, beside])
}

/// The node's side of a case.
struct Host {
    tree: CgroupTree,
    runtime: tokio::runtime::Runtime,
}

impl Host {
    fn new() -> Result<Self> {
        Ok(Self {
            tree: CgroupTree::open("test").context("no cgroups")?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    fn group(&self, name: &str, limits: &Limits) -> Result<Cgroup> {
        let group = self.tree.group(name);
        group.create()?;
        group.limit(limits, Path::new(DISK))?;
        let files = [
            "cpu.max",
            "memory.max",
            "memory.swap.max",
            "pids.max",
            "io.max",
        ];
        assert_eq!(group.controllers(), files, "not all controllers");
        Ok(group)
    }

    /// Starts a shell in a group, as a VMM is started.
    fn start(&self, group: &Cgroup, line: &str) -> Result<Process> {
        let _enter = self.runtime.enter();
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        Ok(Process::spawn(Spawn {
            command,
            files: Vec::new(),
            user: None,
            device_group: None,
            cgroup: Some(group.clone()),
            stdout: None,
            stderr: File::options()
                .create(true)
                .append(true)
                .open("/run/said")?
                .into(),
        })?)
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string("/run/said")?)
    }

    fn expect(&self, process: &Process, exit: ProcessExit) -> Result<()> {
        let wait = async { tokio::time::timeout(LIMIT, process.wait()).await };
        let found = self.runtime.block_on(wait)?;
        ensure!(found == exit, "{found}, not {exit}: {}", self.said()?);
        Ok(())
    }

    /// Ends what is in the groups and removes all.
    fn clear(self, groups: &[Cgroup]) -> Result<()> {
        for group in groups {
            group.kill()?;
            wait_until("an empty group", LIMIT, || {
                (!group.is_populated()).then_some(())
            });
            group.remove()?;
            ensure!(!group.path().exists());
        }
        ensure!(self.tree.names()?.is_empty());
        let path = groups[0].path().parent().context("it is in a tree")?;
        ensure!(path.exists());
        self.tree.remove_if_empty();
        ensure!(!path.exists(), "the tree is left");
        Ok(())
    }
}

/// What a file of a group says.
fn read(group: &Cgroup, file: &str) -> Result<String> {
    let text = fs::read_to_string(group.path().join(file)).context(file.to_owned())?;
    Ok(text.trim().to_owned())
}

/// A figure in a file of a group.
fn count(group: &Cgroup, file: &str, name: &str) -> Result<u64> {
    let text = read(group, file)?;
    let figure = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(figure.with_context(|| text.clone())?.parse()?)
}

/// The guest's disk without the overlay over it, which is no device.
fn mount_disk() -> Result<()> {
    sh("mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt")
}

fn sh(line: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", line]).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}
