//! Many real VMs at once: that they are there, what the API costs meanwhile, what our own process
//! adds for each, and how long the next daemon takes to have them all.

use super::client::Client;
use super::daemon::Daemon;
use super::{MILLI, at_once};
use crate::Bench;
use crate::row::Row;
use aleph_types::{Job, JobList, JobState};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// As many as the plan asks for; `ALEPH_BENCH_VMS` for another number.
const VMS: usize = 100;
/// How many boot at once. By emulation a boot takes a core for itself.
const BOOTING: usize = 4;
/// How many are asked at once.
const ASKING: usize = 8;
/// Requests of each kind, with all VMs there.
const SAMPLES: usize = 100;
/// How often the daemon is killed.
const KILLS: usize = 5;

/// The most that a request may take while all VMs run.
const API_MILLIS: f64 = 100.0;
/// The most that our own process may add for each VM.
const OWN_MIB: f64 = 1.0;
/// The most that it may take to have them all again.
const ADOPTION_MILLIS: f64 = 2000.0;

/// Guest boot ids by job.
type Boots = BTreeMap<String, Option<String>>;

pub(super) fn fleet(bench: &Bench) -> Result<Vec<Row>> {
    let count = match std::env::var("ALEPH_BENCH_VMS") {
        Ok(text) => text.parse().context("ALEPH_BENCH_VMS is no number")?,
        Err(_) => VMS,
    };
    ensure!(count > 0, "ALEPH_BENCH_VMS is 0");
    let daemon = Daemon::start(&bench.aleph)?;
    let mut fleet = Fleet {
        daemon,
        count,
        rows: Vec::new(),
    };
    let empty = fleet.restarts_without_vms()?;
    // A daemon that has done nothing but start and answer.
    let before = fleet.daemon.memory()?;
    fleet.boot()?;
    fleet.exec_in_all("right after their boots")?;
    fleet.memory(before)?;
    fleet.api()?;
    fleet.adoption(&empty)?;
    let Fleet {
        daemon, mut rows, ..
    } = fleet;
    let took = daemon.end()?;
    rows.push(row(
        count,
        "removed, with all that they had",
        "ms",
        &[millis(took)],
    ));
    Ok(rows)
}

struct Fleet {
    daemon: Daemon,
    count: usize,
    rows: Vec<Row>,
}

fn row(count: usize, name: &str, unit: &'static str, samples: &[f64]) -> Row {
    Row::new(format!("{count} VMs: {name}"), unit, samples)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * MILLI
}

fn create(name: &str) -> String {
    json!({"name": name, "image": "busybox", "command": ["sleep", "100000"]}).to_string()
}

impl Fleet {
    fn row(&mut self, name: &str, unit: &'static str, samples: &[f64]) -> Row {
        row(self.count, name, unit, samples)
    }

    /// How long a daemon takes from its execution until it answers, with nothing to adopt.
    fn restarts_without_vms(&mut self) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..KILLS {
            let began = self.daemon.kill_and_restart()?;
            self.jobs()?;
            took.push(millis(began.elapsed()));
        }
        Ok(took)
    }

    fn boot(&mut self) -> Result<()> {
        let names: Vec<String> = (0..self.count).map(|n| format!("vm-{n}")).collect();
        let socket = self.daemon.socket()?;
        let began = Instant::now();
        let each = at_once(
            BOOTING,
            &names,
            || Client::connect(&socket),
            |client, name| {
                let began = Instant::now();
                client.want(201, "POST", "/v1/jobs", &create(name))?;
                let path = format!("/v1/jobs/{name}/wait?state=running&timeout=170");
                client.want(200, "GET", &path, "")?;
                Ok(millis(began.elapsed()))
            },
        )?;
        let all = began.elapsed();
        let running = self.running()?.len();
        ensure!(running == self.count, "only {running} run");
        eprintln!("{running} VMs run after {all:.1?}");
        let name = format!("created and booted, all of them, {BOOTING} at once");
        let row = self.row(&name, "ms", &[millis(all)]);
        self.rows
            .push(row.against("one of them, create to running", &each));
        Ok(())
    }

    /// Runs `true` in each guest; one that does not answer is an error.
    fn exec_in_all(&mut self, when: &str) -> Result<()> {
        let jobs: Vec<String> = self.running()?.into_keys().collect();
        let socket = self.daemon.socket()?;
        let took = at_once(
            ASKING,
            &jobs,
            || Client::connect(&socket),
            |client, id| client.exec(id).map(millis),
        )?;
        ensure!(took.len() == self.count, "only {} answer", took.len());
        let name = format!("exec of true in each, {ASKING} at once, {when}");
        let row = self.row(&name, "ms", &took);
        self.rows.push(row);
        Ok(())
    }

    fn memory(&mut self, before: u64) -> Result<()> {
        let per_vm = |bytes: u64| -> Result<f64> {
            let vms = u32::try_from(self.count)?;
            let kib = u32::try_from(bytes / 1024)?;
            Ok(f64::from(kib) / 1024.0 / f64::from(vms))
        };
        let ours = per_vm(self.daemon.memory()?.saturating_sub(before))?;
        let theirs = per_vm(self.daemon.memory_of_vmms()?)?;
        let row = self
            .row("memory of our own process for each (Pss)", "MiB", &[ours])
            .against("its QEMU with its guest (Pss)", &[theirs])
            .at_most(OWN_MIB);
        self.rows.push(row);
        Ok(())
    }

    /// Requests of each kind in turn, with all VMs there.
    fn api(&mut self) -> Result<()> {
        let mut client = self.daemon.client()?;
        let kinds = [
            "POST /v1/jobs?start=false",
            "POST /v1/jobs?start=true",
            "GET /v1/jobs",
            "GET /v1/stats",
        ];
        let mut took: [Vec<f64>; 4] = Default::default();
        let mut constant = Vec::new();
        for _ in 0..SAMPLES {
            constant.push(millis(client.want(200, "GET", "/healthz", "")?.took));
            for (kind, samples) in kinds.iter().zip(&mut took) {
                let (method, path) = kind.split_once(' ').unwrap_or_default();
                let made = method == "POST";
                let body = if made { create("extra") } else { String::new() };
                let answer = client.want(if made { 201 } else { 200 }, method, path, &body)?;
                samples.push(millis(answer.took));
                if made {
                    client.want(204, "DELETE", "/v1/jobs/extra?force=true", "")?;
                }
            }
        }
        for (kind, samples) in kinds.iter().zip(&took) {
            let row = self
                .row(kind, "ms", samples)
                .against("GET /healthz, a constant, of the same daemon", &constant)
                .p99_at_most(API_MILLIS);
            self.rows.push(row);
        }
        Ok(())
    }

    /// Kills the daemon and counts until the next one has all VMs.
    fn adoption(&mut self, empty: &[f64]) -> Result<()> {
        let before = self.running()?;
        let (mut adopted, mut answered) = (Vec::new(), Vec::new());
        for _ in 0..KILLS {
            let began = self.daemon.kill_and_restart()?;
            while self.running()?.len() < self.count {
                ensure!(
                    began.elapsed() < super::client::LIMIT,
                    "the next daemon does not have them all: {:?}",
                    self.jobs()?
                );
            }
            adopted.push(millis(began.elapsed()));
            self.exec_in_all("after a kill -9")?;
            answered.push(millis(began.elapsed()));
            self.rows.pop();
            ensure!(self.running()? == before, "a guest is not what it was");
        }
        let row = self
            .row(
                "kill -9, and from the next daemon's execution until all are adopted",
                "ms",
                &adopted,
            )
            .against("the same without a VM", empty)
            .p99_at_most(ADOPTION_MILLIS);
        self.rows.push(row);
        let row = self.row("the same, until true was executed in each", "ms", &answered);
        self.rows.push(row);
        Ok(())
    }

    fn jobs(&mut self) -> Result<Vec<Job>> {
        let list = self
            .daemon
            .client()?
            .want(200, "GET", "/v1/jobs?limit=1000", "")?;
        Ok(serde_json::from_slice::<JobList>(&list.body)?.jobs)
    }

    /// Those that run.
    fn running(&mut self) -> Result<Boots> {
        let running = self.jobs()?.into_iter();
        Ok(running
            .filter(|job| job.state == JobState::Running)
            .map(|job| (job.id.to_string(), job.guest_boot_id))
            .collect())
    }
}
