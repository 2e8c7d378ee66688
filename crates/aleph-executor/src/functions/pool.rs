//! The clones of one deployment.

use super::admission::Charge;
use super::deployment::Deployment;
use super::instance::Instance;
use super::policy::{Arrivals, Idle, Moment, PoolConfig, plan};
use super::runner::Clones;
use super::template::Template;
use aleph_types::Problem;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A clone, with the memory that is counted for it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) clone: Instance,
    pub(super) _charge: Charge,
}

/// A deployment that is there.
#[derive(Debug)]
pub(super) struct Deployed {
    pub(super) deployment: Arc<Deployment>,
    pub(super) template: tokio::sync::Mutex<Option<Arc<Template>>>,
    /// When it could not be made last, and why.
    pub(super) failed: tokio::sync::Mutex<Option<(Instant, Problem)>>,
    /// How many of its clones in a row did not go on.
    pub(super) broken: AtomicU32,
    pool: Mutex<Pool>,
}

/// Its clones, but for those that are busy, which are with whom they are busy for.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// The one used last at the end.
    idle: Vec<(Member, Moment)>,
    busy: usize,
    coming: usize,
    pub(super) provisioned: usize,
    arrivals: Arrivals,
    is_retired: bool,
}

/// What is to be done after a look at a pool. What is dropped is gone already.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) pause: Vec<(Member, Moment)>,
    pub(super) make: usize,
}

/// Counts an invocation as busy for as long as it lives, whatever becomes of the future that
/// holds it.
pub(super) struct Busy<'a>(&'a Deployed);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.pool().busy -= 1;
    }
}

impl Deployed {
    pub(super) fn new(deployment: Arc<Deployment>) -> Arc<Self> {
        Arc::new(Self {
            deployment,
            template: tokio::sync::Mutex::default(),
            failed: tokio::sync::Mutex::default(),
            broken: AtomicU32::new(0),
            pool: Mutex::default(),
        })
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in.
    pub(super) fn arrived(&self, now: Moment) -> Busy<'_> {
        let mut pool = self.pool();
        pool.busy += 1;
        let busy = pool.busy;
        pool.arrivals.arrived(now, busy);
        Busy(self)
    }

    /// Lets go of all clones, and takes none any more.
    pub(super) fn retire(&self) {
        let gone = {
            let mut pool = self.pool();
            pool.is_retired = true;
            std::mem::take(&mut pool.idle)
        };
        drop(gone);
    }
}

impl Pool {
    /// The idle clone that was used last.
    pub(super) fn take(&mut self) -> Option<Member> {
        self.idle.pop().map(|(member, _)| member)
    }

    /// How many there are, by state.
    pub(super) fn count(&self) -> Clones {
        let paused = self
            .idle
            .iter()
            .filter(|(member, _)| member.clone.is_paused());
        let warm = paused.count();
        Clones {
            busy: self.busy,
            hot: self.idle.len() - warm,
            warm,
            coming: self.coming,
        }
    }

    /// Takes a clone back that was used last at this time. One that the pool does not take goes.
    pub(super) fn give(&mut self, member: Member, since: Moment) {
        if !self.is_retired {
            // Behind those that were used before it, in front of those used since.
            let at = self.idle.partition_point(|(_, other)| *other <= since);
            self.idle.insert(at, (member, since));
        }
    }

    /// A clone that was being made or paused is there, or is not to be.
    pub(super) fn came(&mut self, member: Option<Member>, since: Moment) {
        self.coming -= 1;
        if let Some(member) = member {
            self.give(member, since);
        }
    }

    /// Since when the one is idle that is so for longest, where one may go.
    pub(super) fn oldest(&self) -> Option<Moment> {
        let (_, since) = self.idle.first()?;
        (self.idle.len() + self.busy > self.provisioned).then_some(*since)
    }

    /// Lets go of the one that is idle for longest.
    pub(super) fn evict(&mut self) -> Option<Member> {
        (!self.idle.is_empty()).then(|| self.idle.remove(0).0)
    }

    /// Looks after it.
    pub(super) fn tend(&mut self, now: Moment, config: &PoolConfig) -> Work {
        self.idle.retain(|(member, _)| member.clone.is_alive());
        let idle: Vec<Idle> = self
            .idle
            .iter()
            .map(|(member, since)| Idle {
                since: *since,
                paused: member.clone.is_paused(),
            })
            .collect();
        let clones = (&idle[..], self.busy, self.coming);
        let provisioned = self.provisioned;
        let plan = plan(now, clones, &mut self.arrivals, provisioned, config);
        let mut pause = Vec::new();
        let (mut at, all) = (0, std::mem::take(&mut self.idle));
        for member in all {
            if plan.pause.contains(&at) {
                pause.push(member);
            } else if !plan.drop.contains(&at) {
                self.idle.push(member);
            }
            at += 1;
        }
        self.coming += plan.make + pause.len();
        Work {
            pause,
            make: plan.make,
        }
    }
}
