//! The kill drill: a daemon under random work is killed again and again, at random instants and
//! at each step of its journal in turn. After each round every job has to be where its user can
//! explain it, what ran has to run on, and the network of its host has to be that of the jobs that
//! have one; after the last one the host has to be empty. All packets stay in namespaces.
//!
//! `ALEPH_DRILL_ROUNDS` sets the number of rounds, `ALEPH_DRILL_SEED` has it do other work.

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod daemon;
mod model;
mod steps;

use anyhow::{Context, Result, ensure};
use audit::Audit;
use daemon::Daemon;
use model::{Model, Random};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};
use support::Node;
use support::namespace::World;

/// Each place where the journal is written, or the log, or a network made: a daemon dies before
/// and after it.
const STEPS: &[&str] = &[
    "job.create:before",
    "job.create:after",
    "vm.intend:before",
    "vm.intend:after",
    "network.attach:before",
    "network.attach:after",
    "job.running:before",
    "job.running:after",
    "log.append:after",
    "job.exit:before",
    "job.exit:after",
    "network.detach:before",
    "network.detach:after",
    "vm.forget:before",
    "vm.forget:after",
    "job.stop:before",
    "job.stop:after",
    "job.start:before",
    "job.start:after",
    "job.kill:before",
    "job.kill:after",
    "job.pause:before",
    "job.pause:after",
    "job.destroy:before",
    "job.destroy:after",
    "job.remove:before",
    "job.remove:after",
];

/// Those that every job comes by.
const LIFE: &[&str] = &[
    "job.create:before",
    "job.create:after",
    "job.running:before",
    "job.running:after",
    "job.exit:before",
    "job.exit:after",
];

/// What a drill does where nobody says otherwise: the same each time.
const SEED: u64 = 77;

#[test]
fn alone_a_daemon_that_is_killed_loses_nothing_and_leaks_nothing() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let rounds = number("ALEPH_DRILL_ROUNDS").unwrap_or(30);
    let seed = number("ALEPH_DRILL_SEED").unwrap_or(SEED);
    eprintln!("kill drill: {rounds} rounds, seed {seed}");
    let (node, world) = (Node::new()?, World::new()?);
    let (mut random, mut counts) = (Random::new(seed), Counts::default());
    let mut daemon = Daemon::start(&node, &world, None)?;
    let mut model = Model::new(&node)?;
    let audit = Audit::new(&node, &world);
    for round in 0..rounds {
        let point = usize::try_from(round)?;
        let point = (round % 2 == 0).then(|| STEPS[(point / 2) % STEPS.len()]);
        daemon.stop(&node)?;
        daemon = Daemon::start(&node, &world, point)?;
        let short_life =
            point.is_some_and(|point| !point.starts_with("job.") || LIFE.contains(&point));
        let work = model.work(&mut random, short_life);
        let until = Instant::now() + Duration::from_millis(random.below(2500));
        let died = daemon.died_by(match point {
            // A step that this round's work does not come by ends in a kill like any other.
            Some(_) => Instant::now() + Duration::from_secs(5),
            None => until,
        })?;
        counts.points.extend(point.filter(|_| died));
        counts.at_steps += u64::from(died && point.is_some());
        counts.kills += 1;
        daemon.kill()?;
        model.done(work)?;
        daemon = Daemon::start(&node, &world, None)?;
        model
            .converge(&mut counts.checked)
            .and_then(|()| audit.settle())
            .and_then(|looked_at| {
                counts.networks += looked_at;
                model.check_page(&world)
            })
            .with_context(|| format!("round {round}, killed at {point:?}, seed {seed}"))?;
    }
    counts.operations = model.operations;
    counts.steady = model.check_steady()?;
    model.remove_all()?;
    audit.settle().context("without any job")?;
    daemon.stop(&node)?;
    audit::nothing_left(&world)?;
    let left = node.root.residue()?;
    ensure!(left.is_empty(), "left on the host: {left:#?}");
    let logs = node.root.path().join("logs");
    let logs = std::fs::read_dir(logs).map_or(0, Iterator::count);
    ensure!(logs == 0, "{logs} logs are left");
    eprintln!("{}", counts.tell(rounds));
    Ok(())
}

/// What a drill counts.
#[derive(Debug, Default)]
struct Counts {
    kills: u64,
    points: BTreeSet<&'static str>,
    at_steps: u64,
    operations: u64,
    checked: u64,
    steady: u64,
    networks: u64,
}

impl Counts {
    fn tell(&self, rounds: u64) -> String {
        let mut text = String::new();
        let _ = write!(
            text,
            "{rounds} rounds: {} kills, {} of them at {} of {} steps; {} operations; \
             {} jobs found in a state that their operations explain; \
             {} lines of a guest that ran through all of it, none lost, none twice; \
             {} TAPs, elements, flows, ports and claims, each with an owner; nothing left",
            self.kills,
            self.at_steps,
            self.points.len(),
            STEPS.len(),
            self.operations,
            self.checked,
            self.steady,
            self.networks
        );
        text
    }
}
