//! What jobs use, and what the node has.

use super::entry::{Entry, lock};
use super::{Node, NodeError, Scope};
use crate::process::Identity;
use aleph_types::{JobId, JobState, JobStats, NetworkUsage, NodeInfo, NodeResources, VmId};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a guest may take to say what it uses before it is left out.
const PATIENCE: Duration = Duration::from_millis(50);

impl Node {
    /// What it has and has given away.
    ///
    /// # Errors
    /// Where the host cannot be read.
    pub fn info(&self) -> Result<NodeInfo, NodeError> {
        let inner = &self.inner;
        let host = inner.executor.capacity()?;
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let mut jobs = std::collections::BTreeMap::new();
        for entry in lock(&inner.jobs).all() {
            *jobs.entry(entry.job().state.name().to_owned()).or_insert(0) += 1;
        }
        Ok(NodeInfo {
            id: inner.id,
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: read("/proc/sys/kernel/hostname"),
            kernel: read("/proc/sys/kernel/osrelease"),
            driver: inner.executor.driver().name(),
            total: NodeResources {
                cpus: u32::from(host.cpus),
                memory: host.memory,
                disk: host.disk,
            },
            allocatable: inner.allocatable(&host),
            allocated: lock(&inner.ledger).total(),
            jobs,
            uptime_seconds: inner.began.elapsed().as_secs(),
        })
    }

    /// What a job uses.
    ///
    /// # Errors
    /// Where it does not run.
    pub async fn stats(&self, id: JobId) -> Result<JobStats, NodeError> {
        let entry = self.inner.entry(id)?;
        let network = self.inner.network_usage().await;
        self.stats_of(&entry, true, &network)
            .await
            .ok_or_else(|| super::denied(&entry, crate::lifecycle::Denial::NotRunning))
    }

    /// What all running jobs of somebody use. Guests are not asked: a hundred of them would
    /// take their time.
    ///
    /// # Errors
    /// None today.
    pub async fn all_stats(&self, scope: &Scope) -> Result<Vec<JobStats>, NodeError> {
        let entries: Vec<Arc<Entry>> = lock(&self.inner.jobs)
            .all()
            .filter(|entry| scope.covers(&entry.job().account))
            .map(Arc::clone)
            .collect();
        let network = self.inner.network_usage().await;
        let mut all = Vec::new();
        for entry in entries {
            all.extend(self.stats_of(&entry, false, &network).await);
        }
        Ok(all)
    }

    async fn stats_of(
        &self,
        entry: &Entry,
        ask: bool,
        network: &HashMap<VmId, NetworkUsage>,
    ) -> Option<JobStats> {
        let live = entry.live()?;
        let identity = live.vm.status().vmm?;
        let job = entry.job();
        let cgroup = self
            .inner
            .executor
            .cgroups()
            .map(|tree| tree.group(&live.vm.id().to_string()));
        let (cpu_usec, source) = match cgroup.and_then(|group| group.cpu_usec()) {
            Some(usec) => (usec, "cgroup"),
            None => (cpu_of(&identity)?, "proc"),
        };
        let now = Instant::now();
        let seen =
            entry.with_live(|live| live.as_mut().and_then(|l| l.seen.replace((now, cpu_usec))));
        let (since, before) = match seen {
            Some((at, usec)) => (now.duration_since(at), usec),
            // The first reading tells of the whole life.
            None => {
                let life = job.started_at.and_then(|at| {
                    Duration::try_from(aleph_types::Timestamp::now().duration_since(at)).ok()
                });
                (life.unwrap_or(Duration::from_secs(1)), 0)
            }
        };
        let used = Duration::from_micros(cpu_usec.saturating_sub(before));
        let usage = match (ask && job.state == JobState::Running, live.vm.agent()) {
            (true, Ok(agent)) => tokio::time::timeout(PATIENCE, agent.usage())
                .await
                .ok()
                .and_then(Result::ok),
            _ => None,
        };
        let (io_read_bytes, io_write_bytes) = io_of(&identity);
        Some(JobStats {
            id: job.id,
            name: job.name.clone(),
            cpu_usec,
            cpus: used.as_secs_f64() / since.as_secs_f64().max(0.001),
            memory_bytes: memory_of(&identity, ask),
            memory_limit_bytes: job.spec.resources.memory.bytes(),
            guest_processes: usage.as_ref().map(|u| u.processes),
            guest_memory_bytes: usage
                .as_ref()
                .map(|u| u.memory_total.saturating_sub(u.memory_available)),
            io_read_bytes,
            io_write_bytes,
            network: network.get(&live.vm.id()).cloned(),
            vmm: live.vm.vmm_figures(),
            source: source.into(),
        })
    }
}

/// Processor time of a process, all threads counted, in microseconds.
pub(super) fn cpu_of(identity: &Identity) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", identity.pid)).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let tick = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Some((user + system) * tick)
}

/// Memory of a process in bytes: its share of what it maps (`smaps_rollup`), which the kernel
/// takes a while to count, or what is resident.
fn memory_of(identity: &Identity, exact: bool) -> u64 {
    let kib = |text: &str, key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", identity.pid));
    let share = match exact {
        true => read("smaps_rollup")
            .ok()
            .and_then(|text| kib(&text, "Pss:")),
        false => None,
    };
    share
        .or_else(|| kib(&read("status").ok()?, "VmRSS:"))
        .unwrap_or(0)
        * 1024
}

/// Bytes that a process caused to be read from and written to disks.
fn io_of(identity: &Identity) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/io", identity.pid)).unwrap_or_default();
    let field = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            .unwrap_or(0)
    };
    (field("read_bytes:"), field("write_bytes:"))
}
