//! What a user did, and what he may therefore find.

use crate::support::namespace::{NODE, World};
use crate::support::{Ended, LIMIT, Node};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A small generator of numbers (splitmix64, <https://prng.di.unimi.it/splitmix64.c>), so that a
/// seed repeats a drill.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Where a job may be.
type States = &'static [&'static str];

const ENDED: States = &["exited"];
/// A job that runs for ever.
const LIVE: States = &["running"];
const ABSENT: &str = "absent";
const FOR_EVER: &str = "sleep 100000";

/// The job that is never touched: it counts, and its log has to have each number once.
const STEADY: &str = "steady";
/// Where it shows its page.
const PAGE: &str = "7000:80";

/// What a job may have for a network: colliding ports, ports that the node picks, networks with
/// others, and none.
const NETWORKS: [&[&str]; 9] = [
    &[],
    &["--network", "none"],
    &["-p", "7001:80"],
    &["-p", "7001:81"],
    &["-p", "7001-7002:80-81/udp"],
    &["-p", "80"],
    &["--network", "private:x"],
    &["--network", "private:x", "-p", "7002:80/udp"],
    &["--network", "private:y", "--egress", "none"],
];

/// Those that no other job can be in the way of.
const CONNECTED: [&[&str]; 3] = [&[], &["-p", "80"], &["--network", "private:x"]];

/// Guests leave flows and drops behind: to the world, to the steady guest, and to the host.
const TRAFFIC: &str = "(wget -T 1 -O /dev/null http://192.0.2.2:9; ping -c 1 -W 1 10.0.0.2; \
                       ping -c 1 -W 1 192.0.2.1) >/dev/null 2>&1 & ";

/// An operation under way.
pub(crate) struct Work {
    name: String,
    child: Child,
    /// Where the job may be when it was answered, and when it was not.
    answered: States,
    unanswered: Vec<&'static str>,
}

pub(crate) struct Model<'a> {
    node: &'a Node,
    jobs: BTreeMap<String, Vec<&'static str>>,
    boots: BTreeMap<String, String>,
    next: u32,
    pub(crate) operations: u64,
}

impl<'a> Model<'a> {
    pub(crate) fn new(node: &'a Node) -> Result<Self> {
        let script = "mkdir /www; echo I am steady > /www/index.html; httpd -p 80 -h /www; \
                      i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
        let run = ["run", "-d", "-q", "--name", STEADY, "-p", PAGE, "busybox"];
        let made = node.aleph(&[&run[..], &["--", "sh", "-c", script]].concat())?;
        ensure!(made.code == 0, "{made:?}");
        let mut model = Self {
            node,
            jobs: BTreeMap::from([(STEADY.to_owned(), LIVE.to_vec())]),
            boots: BTreeMap::new(),
            next: 0,
            operations: 0,
        };
        model.converge(&mut 0)?;
        Ok(model)
    }

    /// Begins a few operations at once, each on a job of its own; among them, where that is asked
    /// for, a job with a network that comes and goes.
    pub(crate) fn work(&mut self, random: &mut Random, short_life: bool) -> Vec<Work> {
        let mut works = Vec::new();
        if short_life {
            let begun = self.create(random, true);
            self.operations += u64::from(begun.is_some());
            works.extend(begun);
        }
        let mut free: Vec<String> = self.jobs.keys().filter(|n| *n != STEADY).cloned().collect();
        for _ in 0..=random.below(3) {
            let begun = if free.is_empty() || free.len() < 2 && random.below(2) == 0 {
                self.create(random, false)
            } else {
                let at = usize::try_from(random.below(free.len() as u64)).unwrap_or(0);
                let name = free.swap_remove(at);
                self.touch(random, &name)
            };
            self.operations += u64::from(begun.is_some());
            works.extend(begun);
        }
        works
    }

    fn create(&mut self, random: &mut Random, short_life: bool) -> Option<Work> {
        self.next += 1;
        let name = format!("job-{}", self.next);
        let (script, answered): (_, States) = match random.below(if short_life { 2 } else { 3 }) {
            0 => ("echo done; exit 3", ENDED),
            1 => (
                "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done",
                ENDED,
            ),
            _ => (FOR_EVER, LIVE),
        };
        let networks = if short_life {
            &CONNECTED
        } else {
            &NETWORKS[..]
        };
        let network = usize::try_from(random.below(networks.len() as u64)).unwrap_or(0);
        let script = format!("{TRAFFIC}{script}");
        let words = [
            &["run", "-d", "-q", "--name", &name],
            networks[network],
            &["busybox", "--", "sh", "-c", &script],
        ];
        let words = words.concat();
        let mut unanswered = answered.to_vec();
        unanswered.push(ABSENT);
        self.begin(&name, &words, answered, unanswered)
    }

    fn touch(&self, random: &mut Random, name: &str) -> Option<Work> {
        let now = self.jobs.get(name)?.first().copied()?;
        let (words, answered): (&[&str], States) = match (now, random.below(4)) {
            ("running", 0) => (&["stop", "-t", "1"], ENDED),
            ("running", 1) => (&["kill"], ENDED),
            ("running", 2) => (&["pause"], &["paused"]),
            ("paused", 0..=2) => (&["resume"], LIVE),
            // What it runs decides where it will be.
            ("exited", 0) => (&["start"], &["running", "exited"]),
            _ => (&["rm", "-f"], &[ABSENT]),
        };
        let mut unanswered = vec![now];
        unanswered.extend(answered);
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        self.begin(name, &words, answered, unanswered)
    }

    fn begin(
        &self,
        name: &str,
        words: &[&str],
        answered: States,
        unanswered: Vec<&'static str>,
    ) -> Option<Work> {
        let mut command: Command = self.node.command(words);
        Some(Work {
            name: name.to_owned(),
            child: command.spawn().ok()?,
            answered,
            unanswered,
        })
    }

    /// Collects what became of operations.
    pub(crate) fn done(&mut self, works: Vec<Work>) -> Result<()> {
        for work in works {
            let Work {
                name,
                child,
                answered,
                unanswered,
            } = work;
            let ended = Ended::of(child.wait_with_output()?)?;
            let may = if ended.code == 0 {
                answered.to_vec()
            } else {
                unanswered
            };
            if may != [self.jobs.get(&name).map_or("", |s| s[0])] {
                self.boots.remove(&name);
            }
            self.jobs.insert(name, may);
        }
        Ok(())
    }

    /// Waits until no job is between two states, and checks that each is where it may be, and
    /// that a guest that ran before is still the same.
    pub(crate) fn converge(&mut self, checked: &mut u64) -> Result<()> {
        let began = Instant::now();
        let found = loop {
            let found = self.look()?;
            let settled = found.values().all(|job| {
                let state = job["state"].as_str().unwrap_or("");
                let runs_out = job["spec"]["command"][2]
                    .as_str()
                    .is_none_or(|script| !script.ends_with(FOR_EVER));
                match state {
                    "exited" | "failed" | "paused" | "created" => true,
                    "running" => !runs_out || job["name"] == STEADY,
                    _ => false,
                }
            });
            if settled {
                break found;
            }
            if began.elapsed() > LIMIT {
                let states: Vec<_> = found
                    .iter()
                    .map(|(name, job)| format!("{name}: {} {}", job["state"], job["reason"]))
                    .collect();
                bail!("jobs do not settle: {states:#?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        for (name, may) in std::mem::take(&mut self.jobs) {
            let job = found.get(&name);
            let state = job.and_then(|job| job["state"].as_str()).unwrap_or(ABSENT);
            let now = may.iter().find(|may| **may == state);
            let now =
                now.with_context(|| format!("{name} may be {may:?}, and is {state}: {job:#?}"))?;
            *checked += 1;
            if *now == "running" || *now == "paused" {
                let boot = job
                    .and_then(|job| job["guest_boot_id"].as_str())
                    .unwrap_or("");
                ensure!(!boot.is_empty(), "{name} runs without a boot id");
                if let Some(before) = self.boots.insert(name.clone(), boot.to_owned()) {
                    ensure!(before == boot, "{name} was booted anew");
                }
            } else {
                self.boots.remove(&name);
            }
            if *now != ABSENT {
                self.jobs.insert(name, vec![*now]);
            }
        }
        let unknown: Vec<_> = found
            .keys()
            .filter(|n| !self.jobs.contains_key(*n))
            .collect();
        ensure!(unknown.is_empty(), "jobs that nobody made: {unknown:?}");
        Ok(())
    }

    fn look(&self) -> Result<BTreeMap<String, Value>> {
        let ended = self.node.aleph(&["ps", "-a", "--json"])?;
        ensure!(ended.code == 0, "{ended:?}");
        let list: Value = serde_json::from_slice(&ended.stdout)?;
        let jobs = list.as_array().or_else(|| list["jobs"].as_array());
        let jobs = jobs.context("ps --json has another form")?;
        Ok(jobs
            .iter()
            .map(|job| (job["name"].as_str().unwrap_or("").to_owned(), job.clone()))
            .collect())
    }

    /// The log of the steady job has each number once, in order; gives how many.
    pub(crate) fn check_steady(&self) -> Result<u64> {
        let ended = self.node.aleph(&["logs", STEADY])?;
        ensure!(ended.code == 0, "{ended:?}");
        let text = String::from_utf8(ended.stdout)?;
        let mut count = 0;
        for line in text.lines() {
            count += 1;
            ensure!(line == count.to_string(), "line {count} is {line:?}");
        }
        ensure!(count > 0, "the steady job wrote nothing");
        Ok(count)
    }

    /// The steady job's page is there for the world, at the port that it publishes.
    pub(crate) fn check_page(&self, world: &World) -> Result<()> {
        let address = format!("{NODE}:7000");
        let began = Instant::now();
        loop {
            let page = world.get(&world.outside, &address);
            if page.as_deref() == Some("I am steady") {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "its page: {page:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn remove_all(&mut self) -> Result<()> {
        for name in self.jobs.keys() {
            let ended = self.node.aleph(&["rm", "-f", name])?;
            ensure!(ended.code == 0, "{ended:?}");
        }
        Ok(())
    }
}
