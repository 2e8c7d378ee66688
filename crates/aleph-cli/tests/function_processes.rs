//! Processes that wait for guests of functions, and a daemon that is killed at each step of theirs.

mod support;

use aleph_testkit::{firecracker_double, functions::zip, jailer_double, recipe_image, wait_until};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeSet;
use std::path::PathBuf;
use support::{Daemon, LIMIT};

/// A runtime in shell that answers with its guest's name.
const BOOTSTRAP: &str = r#"#!/bin/bash
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while :; do
  curl -s -D /tmp/headers $api/next >/dev/null
  id=$(sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p' /tmp/headers | tr -d '\r')
  curl -s -d "\"$(hostname)\"" $api/$id/response >/dev/null
done
"#;

/// The folders of VMs, each with whether its VMM is on record.
fn vms(daemon: &Daemon) -> Result<BTreeSet<(PathBuf, bool)>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(daemon.node.root.paths()?.vms())? {
        let path = entry?.path();
        if path.is_dir() {
            let is_recorded = path.join("vmm.json").exists();
            found.insert((path, is_recorded));
        }
    }
    Ok(found)
}

/// Waits until as many processes wait; none of the functions here keeps a clone.
fn waiting(daemon: &Daemon, count: usize) -> BTreeSet<PathBuf> {
    wait_until("processes that wait", LIMIT, || {
        let vms = vms(daemon).ok()?;
        let is_there = vms.len() == count && vms.iter().all(|(_, is_recorded)| *is_recorded);
        is_there.then(|| vms.into_iter().map(|(path, _)| path).collect())
    })
}

fn invoke(daemon: &Daemon) -> Result<String> {
    let answer = daemon.ok(&["fn", "invoke", "who"])?;
    Ok(serde_json::from_str(answer.trim())?)
}

/// What the doubles stand for.
const VERSION: &str = "1.15.1";

fn main() {
    let root = rustix::process::geteuid().is_root();
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || Ok(test().map_err(|e| format!("{e:?}"))?))
    };
    let jailed = trial(
        "a_daemon_that_is_killed_leaves_none_of_firecracker_in_jails",
        jails_of_none_are_left,
    );
    let trials = vec![
        trial("a_daemon_that_is_killed_leaves_none_of_them", || {
            none_is_left("", &[])
        }),
        match root {
            true => jailed,
            false => jailed.with_kind("needs root").with_ignored_flag(true),
        },
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Nor their jails and users. Where the daemon dies between a launch and its record, by those alone.
fn jails_of_none_are_left() -> Result<()> {
    let config = format!(
        "[executor]\nhypervisor = \"firecracker\"\naccel = \"tcg\"\n[executor.firecracker]\n\
         firecracker = {:?}\njailer = {:?}\n",
        firecracker_double(VERSION)?,
        jailer_double(VERSION)?
    );
    none_is_left(
        &config,
        &["firecracker.sign:after", "firecracker.spawn:after"],
    )
}

/// The jails and users that there are.
fn jails(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let base = daemon.node.root.paths()?.state().join("jail");
    let mut found = Vec::new();
    for folder in ["uids".to_owned(), format!("firecracker-v{VERSION}")] {
        let entries = std::fs::read_dir(base.join(folder));
        found.extend(entries.into_iter().flatten().flatten().map(|e| e.path()));
    }
    Ok(found)
}

/// A daemon with this configuration is killed at each step, and at these ones.
fn none_is_left(config: &str, more: &[&str]) -> Result<()> {
    recipe_image(aleph_image::Recipe::ProvidedAl2023)?;
    let config = format!("{config}[functions]\nspares = 0\nprocesses = 2\n");
    let mut daemon = Daemon::configured(&config, &[])?;
    let archive = daemon.node.root.path().join("who.zip");
    std::fs::write(
        &archive,
        zip(&[("bootstrap", 0o755, BOOTSTRAP.as_bytes())])?,
    )?;
    let archive = archive.to_str().context("a path")?;
    let create = ["fn", "create", "who", "--runtime", "provided.al2023"];
    let how = ["--handler", "none", "--zip", archive, "--isolation"];
    daemon.ok(&[&create[..], &how, &["invocation", "--wait"]].concat())?;
    let before = waiting(&daemon, 2);
    let name = invoke(&daemon)?;
    let vm = name.strip_prefix("fn-").context("another name")?;
    ensure!(
        before.iter().any(|path| path.ends_with(vm)),
        "{vm} of {before:?}"
    );
    let before = waiting(&daemon, 2);
    daemon.kill_and_restart()?;
    // No shape is known to the next one before an event needs a clone.
    waiting(&daemon, 0);
    invoke(&daemon)?;
    let after = waiting(&daemon, 2);
    ensure!(before.is_disjoint(&after), "{before:?} {after:?}");
    let places = [
        "process.launch:before",
        "process.launch:after",
        "process.begin:before",
        "process.begin:shown",
        "process.begin:after",
    ];
    for place in places.iter().chain(more) {
        daemon.kill_and_restart_to_die_at(place)?;
        // The first event has processes launched, and one after that takes one.
        wait_until(place, LIMIT, || {
            let _ = daemon.aleph(&["fn", "invoke", "who"]);
            daemon.is_gone().ok()?.then_some(())
        });
        let left = vms(&daemon)?;
        ensure!(
            *place == "process.launch:before" || !left.is_empty(),
            "{place} left nothing"
        );
        daemon.kill_and_restart()?;
        waiting(&daemon, 0);
        wait_until("no jail is left", LIMIT, || {
            jails(&daemon)
                .is_ok_and(|jails| jails.is_empty())
                .then_some(())
        });
        ensure!(invoke(&daemon)?.starts_with("fn-"), "no answer");
    }
    // With the last function that they are for they go.
    waiting(&daemon, 2);
    ensure!(config.contains("jailer") != jails(&daemon)?.is_empty());
    daemon.ok(&["fn", "rm", "who"])?;
    waiting(&daemon, 0);
    wait_until("no jail is left", LIMIT, || {
        jails(&daemon)
            .is_ok_and(|jails| jails.is_empty())
            .then_some(())
    });
    daemon.end()
}
