//! A node that chose Firecracker, with real guests in what stands for it and its jailer: jobs from
//! `run` to `rm`, over restarts of the daemon with this and with another hypervisor, and after kills at
//! each step of making a jail and taking it away.

mod support;

use aleph_image::Recipe;
use aleph_testkit::{functions, recipe_image, wait_until};
use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use support::{Daemon, LIMIT, Node};

/// What the doubles stand for.
const VERSION: &str = "1.15.1";

type Test = fn() -> Result<()>;

fn main() {
    let tests: [(&str, Test); 7] = [
        ("a_job_lives_in_a_jail", a_job_lives_in_a_jail),
        ("who_launched_a_vm_adopts_it", who_launched_a_vm_adopts_it),
        (
            "a_kill_at_any_step_leaves_nothing",
            a_kill_at_any_step_leaves_nothing,
        ),
        (
            "without_a_user_left_no_job_is_taken",
            without_a_user_left_no_job_is_taken,
        ),
        ("what_is_missing_is_told", what_is_missing_is_told),
        ("a_run_without_a_daemon", a_run_without_a_daemon),
        (
            "a_process_beside_a_clone_fills_its_memory",
            a_process_beside_a_clone_fills_its_memory,
        ),
    ];
    let root = rustix::process::geteuid().is_root();
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            Ok(test().map_err(|error| format!("{error:?}"))?)
        });
        let is_served = name == "a_process_beside_a_clone_fills_its_memory";
        match (root, is_served && !Path::new("/dev/userfaultfd").exists()) {
            (true, false) => trial,
            (false, _) => trial.with_kind("needs root").with_ignored_flag(true),
            (true, true) => trial
                .with_kind("needs /dev/userfaultfd")
                .with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit()
}

/// The programs of a node.
struct Programs {
    firecracker: PathBuf,
    jailer: PathBuf,
}

impl Programs {
    fn new() -> Result<Self> {
        Ok(Self {
            firecracker: aleph_testkit::firecracker_double(VERSION)?,
            jailer: aleph_testkit::jailer_double(VERSION)?,
        })
    }

    /// A configuration with this hypervisor, and further keys of `[executor.firecracker]`.
    fn config(&self, hypervisor: &str, more: &str) -> String {
        format!(
            "[executor]\nhypervisor = {hypervisor:?}\naccel = \"tcg\"\n[executor.firecracker]\n\
             firecracker = {:?}\njailer = {:?}\n{more}\n",
            self.firecracker, self.jailer
        )
    }
}

/// What is in the jails of a node: VMs, and claims of users.
fn jailed(base: &Path) -> Vec<String> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let mut all = Vec::new();
    for program in names(base) {
        let within = names(&base.join(&program)).into_iter();
        all.extend(within.map(|name| format!("{program}/{name}")));
    }
    all
}

fn driver_of(daemon: &Daemon, job: &str) -> Result<String> {
    let job = daemon.json(&["inspect", job])?;
    let driver = job[0]["driver"].as_str().context("it has no driver")?;
    Ok(driver.to_owned())
}

/// Waits until a guest says what it was started with.
fn answers(daemon: &Daemon, job: &str) {
    wait_until("the guest's mark", LIMIT, || {
        let said = daemon.aleph(&["exec", job, "cat", "/tmp/mark"]).ok()?;
        (said.text().trim() == job).then_some(())
    });
}

/// Starts a job that runs on.
fn start(daemon: &Daemon, job: &str) -> Result<()> {
    let line = format!("echo {job} > /tmp/mark; while :; do sleep 1; done");
    daemon.start(job, &line)?;
    answers(daemon, job);
    Ok(())
}

fn a_job_lives_in_a_jail() -> Result<()> {
    let programs = Programs::new()?;
    let mut daemon = Daemon::configured(&programs.config("firecracker", ""), &[])?;
    let base = daemon.node.root.path().join("jail");
    let line = "echo out; echo err >&2; exit 42";
    let ran = daemon.aleph(&["run", "--rm", "busybox", "sh", "-c", line])?;
    assert_eq!((ran.code, ran.text().as_str()), (42, "out\n"), "{ran:?}");
    assert!(ran.stderr.contains("microVM on firecracker"), "{ran:?}");
    assert_eq!(jailed(&base), Vec::<String>::new());

    start(&daemon, "web")?;
    assert_eq!(driver_of(&daemon, "web")?, "firecracker");
    assert_eq!(
        jailed(&base).len(),
        2,
        "a jail and a claim: {:?}",
        jailed(&base)
    );
    let pid = daemon.node.qemu_pid()?;
    let owner = fs::metadata(format!("/proc/{pid}"))?;
    assert_ne!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
    daemon.ok(&["pause", "web"])?;
    daemon.ok(&["resume", "web"])?;

    // Another daemon takes the very same VMM over, even while its guest stands still.
    daemon.kill_and_restart()?;
    answers(&daemon, "web");
    daemon.ok(&["pause", "web"])?;
    daemon.kill_and_restart()?;
    let state = daemon.ok(&["wait", "--state", "paused,running,failed,exited", "web"])?;
    assert_eq!(state, "paused");
    daemon.ok(&["resume", "web"])?;
    answers(&daemon, "web");
    assert_eq!(daemon.node.qemu_pid()?, pid);
    daemon.ok(&["stop", "web"])?;
    assert_eq!(jailed(&base), Vec::<String>::new());
    daemon.end()
}

fn who_launched_a_vm_adopts_it() -> Result<()> {
    let programs = Programs::new()?;
    let open = programs.config("firecracker", "jailed = false");
    let mut daemon = Daemon::configured(&open, &[])?;
    let root = daemon.node.root.path().to_owned();
    start(&daemon, "open")?;
    assert!(
        daemon.log().contains("WITHOUT the jailer"),
        "{}",
        daemon.log()
    );
    assert_eq!(jailed(&root.join("jail")), Vec::<String>::new());

    daemon.kill_and_restart_with(&programs.config("firecracker", ""))?;
    answers(&daemon, "open");
    start(&daemon, "jailed")?;

    // The programs that launched them are not the configured ones any more.
    daemon.kill_and_restart_with("[executor]\nhypervisor = \"qemu\"\naccel = \"tcg\"\n")?;
    answers(&daemon, "open");
    answers(&daemon, "jailed");
    start(&daemon, "qemu")?;
    assert_eq!(driver_of(&daemon, "qemu")?, "qemu/tcg");
    assert_eq!(driver_of(&daemon, "jailed")?, "firecracker");
    daemon.ok(&["rm", "-f", "open"])?;

    // New jails are somewhere else, and the old ones go all the same.
    let elsewhere = root.join("elsewhere");
    let moved = programs.config("firecracker", &format!("chroot_base = {elsewhere:?}"));
    daemon.kill_and_restart_with(&moved)?;
    answers(&daemon, "jailed");
    answers(&daemon, "qemu");
    daemon.ok(&["stop", "jailed"])?;
    assert_eq!(jailed(&root.join("jail")), Vec::<String>::new());
    daemon.ok(&["start", "jailed"])?;
    answers(&daemon, "jailed");
    let node = fs::read_dir(&elsewhere)?
        .next()
        .context("no folder of the node")??;
    assert_eq!(jailed(&node.path()).len(), 2);
    daemon.ok(&["rm", "-f", "qemu"])?;

    // What nobody here can have launched is ended.
    let pid = daemon.node.qemu_pid()?;
    let vms = daemon.node.root.paths()?.run().join("vms");
    let vm = fs::read_dir(vms)?.next().context("no VM")??;
    fs::write(vm.path().join("driver.json"), r#"{"driver":"xen"}"#)?;
    daemon.kill_and_restart()?;
    daemon.ok(&["wait", "jailed"])?;
    let job = daemon.json(&["inspect", "jailed"])?;
    let reason = job[0]["reason"].as_str().context("no reason")?;
    assert!(reason.contains("launched by \"xen\""), "{reason}");
    wait_until("the VMM's end", LIMIT, || {
        let left = Path::new("/proc").join(pid.to_string()).exists();
        (!left && jailed(&node.path()).is_empty()).then_some(())
    });
    daemon.end()
}

/// A daemon dies at each step of making a jail and taking it away. What was to run runs once another
/// one is there, and when its job goes nothing stays.
fn a_kill_at_any_step_leaves_nothing() -> Result<()> {
    let programs = Programs::new()?;
    let mut daemon = Daemon::configured(&programs.config("firecracker", ""), &[])?;
    let base = daemon.node.root.path().join("jail");
    for (n, point) in [
        "jail.claim:before",
        "jail.claim:after",
        "jail.root:between",
        "jail.root:after",
        "firecracker.sign:after",
        "firecracker.spawn:after",
        "jail.unmount:after",
        "jail.remove:after",
    ]
    .into_iter()
    .enumerate()
    {
        let job = format!("job{n}");
        daemon.configure(&programs.config("firecracker", ""))?;
        daemon.kill_and_restart_to_die_at(point)?;
        let line = format!("echo {job} > /tmp/mark; while :; do sleep 1; done");
        // It may die before it has answered.
        let _ = daemon.aleph(&["run", "-d", "--name", &job, "busybox", "sh", "-c", &line])?;
        if n >= 6 {
            let _ = daemon.aleph(&["stop", &job])?;
        }
        wait_until("the daemon's end", LIMIT, || {
            daemon.is_gone().ok()?.then_some(())
        });
        if n < 6 {
            daemon.kill_and_restart()?;
            answers(&daemon, &job);
        } else {
            // Another hypervisor sweeps what this one has left.
            daemon.kill_and_restart_with(&programs.config("qemu", ""))?;
        }
        daemon.ok(&["rm", "-f", &job]).with_context(|| point)?;
        wait_until("jails that are gone", LIMIT, || {
            jailed(&base).is_empty().then_some(())
        });
    }
    daemon.end()
}

fn without_a_user_left_no_job_is_taken() -> Result<()> {
    let programs = Programs::new()?;
    let config = programs.config("firecracker", "uid_range = \"200000-200000\"");
    let daemon = Daemon::configured(&config, &[])?;
    start(&daemon, "first")?;
    let pid = daemon.node.qemu_pid()?;
    let owner = fs::metadata(format!("/proc/{pid}"))?;
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 200_000);
    let second = daemon.aleph(&["run", "-d", "--name", "second", "busybox", "true"])?;
    second.assert_failed_with(&["executor.firecracker.uid_range", "200000-200000", "widen"]);
    daemon.ok(&["rm", "-f", "first"])?;
    daemon.ok(&["run", "--rm", "-q", "busybox", "true"])?;
    daemon.end()
}

fn what_is_missing_is_told() -> Result<()> {
    let programs = Programs::new()?;
    let mut daemon = Daemon::configured("[executor]\naccel = \"tcg\"\n", &[])?;
    for (config, why) in [
        (
            Programs {
                firecracker: "/nosuch/firecracker".into(),
                jailer: programs.jailer.clone(),
            },
            "/nosuch/firecracker is not installed",
        ),
        (
            Programs {
                firecracker: programs.firecracker.clone(),
                jailer: aleph_testkit::jailer_double("1.13.2")?,
            },
            "its jailer is 1.13.2",
        ),
        (
            Programs {
                firecracker: programs.jailer.clone(),
                jailer: programs.jailer.clone(),
            },
            "does not say what it is",
        ),
    ] {
        let said = daemon.is_refused(&config.config("firecracker", ""), &[])?;
        for word in [why, "hypervisor", "aleph setup firecracker"] {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
        daemon.kill_and_restart()?;
    }
    daemon.end()
}

/// What memory servers a node has: as their VMs' folders say, and alive.
fn servers(daemon: &Daemon) -> Result<Vec<i64>> {
    let vms = daemon.node.root.path().join("run/vms");
    let mut servers = Vec::new();
    for vm in fs::read_dir(vms).into_iter().flatten() {
        let Ok(text) = fs::read(vm?.path().join("memory-server.json")) else {
            continue;
        };
        let identity: Value = serde_json::from_slice(&text)?;
        let pid = identity["pid"].as_i64().context("no pid")?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("memory-server") {
            servers.push(pid);
        }
    }
    Ok(servers)
}

/// The records of what clones of the node's templates need first.
fn working_sets(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(".working-set") {
                found.push(path);
            }
        }
    }
    found
}

/// A function's clones are served by a process each of this very program, and go with their daemon;
/// the next one's are served in turn, and begin with what those needed first.
fn a_process_beside_a_clone_fills_its_memory() -> Result<()> {
    recipe_image(Recipe::Python311)?;
    let programs = Programs::new()?;
    let mut daemon = Daemon::configured(
        &programs.config("firecracker", "memory = \"prefetch\""),
        &[],
    )?;
    let root = daemon.node.root.path().to_owned();
    let zip = root.join("app.zip");
    let source = b"def handler(event, context):\n    return event * 2\n";
    fs::write(&zip, functions::zip(&[("app.py", 0o644, source)])?)?;
    let zip = zip.display().to_string();
    let create = ["fn", "create", "twice", "--runtime", "python3.11", "--wait"];
    daemon.ok(&[&create[..], &["--handler", "app.handler", "--zip", &zip]].concat())?;
    let invoke = ["fn", "invoke", "twice", "--payload", "21"];
    assert_eq!(daemon.ok(&invoke)?, "42");
    let before = servers(&daemon)?;
    assert!(!before.is_empty(), "nobody serves: {}", daemon.log());

    daemon.kill_and_restart()?;
    assert_eq!(daemon.ok(&invoke)?, "42");
    let now = servers(&daemon)?;
    assert!(!now.is_empty(), "nobody serves: {}", daemon.log());
    wait_until("servers to go with their clones", LIMIT, || {
        let gone =
            |pid: &i64| now.contains(pid) || !Path::new("/proc").join(pid.to_string()).exists();
        before.iter().all(gone).then_some(())
    });
    assert!(!working_sets(&root).is_empty(), "nothing was recorded");
    daemon.ok(&["fn", "rm", "twice"])?;
    wait_until("jails that are gone", LIMIT, || {
        jailed(&root.join("jail")).is_empty().then_some(())
    });
    daemon.end()
}

/// Flags alone choose it as well, and the doctor says what they come to.
fn a_run_without_a_daemon() -> Result<()> {
    let programs = Programs::new()?;
    let node = Node::new()?;
    let path = |path: &Path| path.display().to_string();
    let (firecracker, jailer) = (path(&programs.firecracker), path(&programs.jailer));
    let chosen = |hypervisor: &'static str| -> Vec<String> {
        [
            "--accel",
            "tcg",
            "--hypervisor",
            hypervisor,
            "--firecracker",
        ]
        .into_iter()
        .chain([firecracker.as_str(), "--jailer", &jailer])
        .map(str::to_owned)
        .collect()
    };
    let run = |words: &[String], more: &[&str]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        node.aleph(&[&words, more].concat())
    };
    let ran = run(
        &chosen("firecracker"),
        &["run", "--rm", "busybox", "sh", "-c", "echo $((6 * 7))"],
    )?;
    assert_eq!((ran.code, ran.text().as_str()), (0, "42\n"), "{ran:?}");
    assert!(ran.stderr.contains("microVM on firecracker"), "{ran:?}");
    assert_eq!(jailed(&node.root.path().join("jail")), Vec::<String>::new());

    // While its guest boots the first signal ends it: there is nobody yet to pass it on to. This
    // one boots for as long as it is let.
    let init = "#!/bin/busybox sh\nwhile :; do /bin/busybox sleep 1; done\n";
    let (initrd, kernel) = (path(&node.initrd(init)?), path(&node.kernel()?));
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let words = [
            "run", "--rm", "-q", "--kernel", &kernel, "--initrd", &initrd, "busybox", "true",
        ];
        let chosen = chosen("firecracker");
        let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
        let child = node.command(&[&chosen[..], &words].concat()).spawn()?;
        node.qemu_pid()?;
        support::send(child.id(), signal)?;
        let ended = support::finish(child)?;
        assert_eq!(ended.code, code, "{ended:?}");
        node.assert_clean()?;
    }
    assert_eq!(jailed(&node.root.path().join("jail")), Vec::<String>::new());

    for (hypervisor, says) in [
        ("firecracker", "microVMs run on Firecracker: it is set"),
        ("auto", "microVMs run on QEMU: guests are to be emulated"),
        ("qemu", "microVMs run on QEMU: it is set"),
    ] {
        let told = run(&chosen(hypervisor), &["doctor", "--json"])?;
        let findings: Value = serde_json::from_slice(&told.stdout)?;
        let found = |check: &str| {
            let all = findings.as_array().into_iter().flatten();
            let mut of = all.filter(|finding| finding["check"] == check);
            of.next()
                .and_then(|finding| finding["found"].as_str())
                .map(str::to_owned)
        };
        let choice = found("hypervisor").context("no choice")?;
        assert!(choice.contains(says), "{choice}");
        let there = found("firecracker").context("no programs")?;
        for word in [
            &format!("Firecracker {VERSION}"),
            &format!("jailer {VERSION}"),
            &jailer,
        ] {
            assert!(there.contains(word), "{there}");
        }
    }
    let missing = [
        "--hypervisor",
        "firecracker",
        "--firecracker",
        "/nosuch/firecracker",
    ];
    let told = node.aleph(&[&missing[..], &["doctor"]].concat())?;
    assert_eq!(told.code, 1, "{told:?}");
    let told = told.text();
    assert!(
        told.contains("/nosuch/firecracker is not installed"),
        "{told}"
    );
    assert!(told.contains("sudo aleph setup firecracker"), "{told}");
    node.assert_clean()
}
