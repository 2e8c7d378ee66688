//! Events for which nobody waits, and a daemon that is killed while they are carried out.
//!
//! What a function has done is known by what is left of it outside of its VM, which is killed with
//! the daemon: dead letters. Events with an odd number fail, and end as dead letters, which say
//! what the function said. Those with an even number succeed; that is told to a second function,
//! which fails with what it was told.

use crate::support::{Daemon, LIMIT};
use crate::world::{World, app_zip, ran};
use aleph_image::Recipe;
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Stdio};

/// Events that have ended before the daemon is killed, and that are accepted afterwards.
const EVENTS: usize = 30;

/// Every event that was accepted is carried out and told of, and nothing of the first daemon's
/// VMs stays.
pub(crate) fn outlive_the_daemon() -> Result<()> {
    let mut world = World::up(&[Recipe::Python311])?;
    world.archive("app", &app_zip("one")?)?;
    for name in ["work", "witness"] {
        create(&world.daemon, name, &["--wait"])?;
    }
    settle_events(&world, "work", "OnSuccess={Destination=DESTINATION}")?;
    settle_events(&world, "witness", "")?;
    let accepted = world.folder().join("accepted");
    let mut load = world.script("load.py")?;
    let load = load.arg("work").arg(&accepted).stdin(Stdio::piped());
    let load = Load(load.spawn()?);
    wait_until("events that have ended", LIMIT, || {
        (Letters::read(&world).ok()?.len() >= EVENTS).then_some(())
    });
    // It dies with a template half made, too.
    create(&world.daemon, "late", &[])?;
    let before = world.vms()?;
    ensure!(!before.is_empty(), "no clone runs");
    world.daemon.kill_and_restart()?;
    let known = lines(&accepted)?.len();
    wait_until("events of the second daemon", LIMIT, || {
        (lines(&accepted).ok()?.len() >= known + EVENTS).then_some(())
    });
    load.end()?;
    let accepted = lines(&accepted)?;
    wait_until("the end of each event", LIMIT, || {
        let letters = Letters::read(&world).ok()?;
        accepted
            .iter()
            .all(|(id, number)| letters.tells_of(id, *number))
            .then_some(())
    });
    let after = world.vms()?;
    let left: Vec<_> = before.intersection(&after).collect();
    ensure!(left.is_empty(), "VMs of a daemon that was killed: {left:?}");
    // What was being made is made by the next one.
    wait_until("the function that was being made", LIMIT, || {
        let shown = world.daemon.json(&["fn", "inspect", "late"]).ok()?;
        (shown[0]["Configuration"]["State"] == "Active").then_some(())
    });
    let ready = world.templates()?;
    ensure!(ready.len() == 3, "templates: {ready:?}");
    world.daemon.ok(&["fn", "rm", "work", "witness", "late"])?;
    world.end()
}

pub(crate) fn create(daemon: &Daemon, name: &str, more: &[&str]) -> Result<()> {
    let zip = daemon.node.root.path().join("app.zip");
    let zip = zip.to_str().context("a path that is no text")?;
    let handler = match name {
        "late" => "app.handler".to_owned(),
        name => format!("app.{name}"),
    };
    let create = ["fn", "create", name, "--runtime", "python3.11", "--zip"];
    let how = [zip, "--handler", &handler, "-t", "60s"];
    daemon.ok(&[&create[..], &how, more].concat())?;
    Ok(())
}

/// An event that fails is not tried again, and these are told.
pub(crate) fn settle_events(world: &World, name: &str, told: &str) -> Result<()> {
    let witness = "arn:aws:lambda:us-east-1:000000000000:function:witness";
    let mut command = world.client("/usr/bin/aws");
    command.args(["--endpoint-url", &world.endpoint, "lambda"]);
    command.args(["put-function-event-invoke-config", "--function-name", name]);
    command.args(["--maximum-retry-attempts", "0"]);
    if !told.is_empty() {
        let told = told.replace("DESTINATION", witness);
        command.args(["--destination-config", &told]);
    }
    ran(&mut command).map(drop)
}

/// The ids and numbers of events that were accepted.
fn lines(file: &std::path::Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(file)?;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let pairs = whole.lines().map(|line| {
        let (id, number) = line.split_once(' ').context("no number")?;
        Ok((id.to_owned(), number.parse()?))
    });
    pairs.collect()
}

/// What dead letters tell of: the id of an event, and what the function said of it.
struct Letters(BTreeSet<(String, String)>);

impl Letters {
    fn read(world: &World) -> Result<Self> {
        let file = world
            .folder()
            .join("functions/dead-letters/default/letters.jsonl");
        let text = fs::read_to_string(file)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut told = BTreeSet::new();
        for line in whole.lines() {
            let mut letter: Value = serde_json::from_str(line)?;
            // What the second function was told is a letter itself.
            let inner = letter["requestPayload"].take();
            let failed = inner["requestContext"].is_null();
            let (letter, said) = match failed {
                true => {
                    let said = letter["responsePayload"]["errorMessage"].clone();
                    (letter, said)
                }
                false => {
                    let said = inner["responsePayload"].clone();
                    (inner, said)
                }
            };
            let id = letter["requestContext"]["requestId"].as_str();
            let id = id.with_context(|| format!("no id: {line}"))?.to_owned();
            let said = said.as_str().with_context(|| format!("no word: {line}"))?;
            told.insert((id, said.to_owned()));
        }
        Ok(Self(told))
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn tells_of(&self, id: &str, number: u64) -> bool {
        let said = format!(r#"{{"request": "{id}", "number": {number}}}"#);
        self.0.contains(&(id.to_owned(), said))
    }
}

/// What sends events, ended with the test.
struct Load(Child);

impl Load {
    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "the load: {status}");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
