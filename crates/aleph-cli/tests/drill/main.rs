//! The kill drill: a daemon under random work is killed again and again, at random instants and
//! at each step of its journal in turn. After each round every job has to be where its user can
//! explain it, and what ran has to run on; after the last one the host has to be empty.
//!
//! `ALEPH_DRILL_ROUNDS` sets the number of rounds, `ALEPH_DRILL_SEED` repeats a run.

#[path = "../support/mod.rs"]
mod support;

mod daemon;
mod model;

use anyhow::{Context, Result, ensure};
use daemon::Daemon;
use model::{Model, Random};
use std::fmt::Write;
use std::time::{Duration, Instant};
use support::Node;

/// Each place where the journal is written, and the log: a daemon dies before and after it.
const STEPS: &[&str] = &[
    "job.create:before",
    "job.create:after",
    "vm.intend:before",
    "vm.intend:after",
    "job.running:before",
    "job.running:after",
    "log.append:after",
    "job.exit:before",
    "job.exit:after",
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

#[test]
fn alone_a_daemon_that_is_killed_loses_nothing_and_leaks_nothing() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let rounds = number("ALEPH_DRILL_ROUNDS").unwrap_or(30);
    let seed = number("ALEPH_DRILL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("kill drill: {rounds} rounds, seed {seed}");
    let node = Node::new()?;
    let (mut random, mut counts) = (Random::new(seed), Counts::default());
    let mut daemon = Daemon::start(&node, None)?;
    let mut model = Model::new(&node)?;
    for round in 0..rounds {
        let point = usize::try_from(round)?;
        let point = (round % 2 == 0).then(|| STEPS[(point / 2) % STEPS.len()]);
        daemon.stop(&node)?;
        daemon = Daemon::start(&node, point)?;
        let work = model.work(&mut random);
        let until = Instant::now() + Duration::from_millis(random.below(2500));
        let died = daemon.died_by(match point {
            // A step that this round's work does not come by ends in a kill like any other.
            Some(_) => Instant::now() + Duration::from_secs(5),
            None => until,
        })?;
        counts.points += u64::from(died && point.is_some());
        counts.kills += 1;
        daemon.kill()?;
        model.done(work)?;
        daemon = Daemon::start(&node, None)?;
        model
            .converge(&mut counts.checked)
            .with_context(|| format!("round {round}, killed at {point:?}, seed {seed}"))?;
    }
    counts.operations = model.operations;
    counts.steady = model.check_steady()?;
    model.remove_all()?;
    daemon.stop(&node)?;
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
    points: u64,
    operations: u64,
    checked: u64,
    steady: u64,
}

impl Counts {
    fn tell(&self, rounds: u64) -> String {
        let mut text = String::new();
        let _ = write!(
            text,
            "{rounds} rounds: {} kills, {} of them at a step of the journal; {} operations; \
             {} jobs found in a state that their operations explain; \
             {} lines of a guest that ran through all of it, none lost, none twice; nothing left",
            self.kills, self.points, self.operations, self.checked, self.steady
        );
        text
    }
}
