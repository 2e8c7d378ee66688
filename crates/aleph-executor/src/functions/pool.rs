//! The clones of one deployment.

use super::admission::Charge;
use super::deployment::Deployment;
use super::instance::Instance;
use super::policy::{Arrivals, Clones, Idle, Moment, Policy, RETRY};
use super::runner;
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
#[derive(Debug)]
pub(super) struct Pool<M = Member> {
    /// The one used last at the end.
    idle: Vec<(M, Moment)>,
    busy: usize,
    coming: usize,
    provisioned: usize,
    arrivals: Arrivals,
    /// Until when the policy has nothing to do; nothing once something has happened.
    until: Option<Moment>,
    is_retired: bool,
}

impl<M> Default for Pool<M> {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            busy: 0,
            coming: 0,
            provisioned: 0,
            arrivals: Arrivals::default(),
            until: None,
            is_retired: false,
        }
    }
}

/// What is to be done after a look at a pool. What is dropped is gone already.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) pause: Vec<(Member, Moment)>,
    pub(super) make: usize,
}

/// Counts an invocation as busy for as long as it lives, whatever becomes of the future that
/// holds it.
pub(super) struct Busy<'a> {
    deployed: &'a Deployed,
    /// The beginning of time.
    began: Instant,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let now = self.began.elapsed();
        let mut pool = self.deployed.pool();
        let busy = pool.busy;
        pool.arrivals.left(now, busy);
        pool.busy -= 1;
        pool.until = None;
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

    /// What a clone takes, in MiB.
    pub(super) fn memory(&self) -> f64 {
        f64::from(self.deployment.memory.0.max(1))
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in.
    pub(super) fn arrived(&self, began: Instant) -> Busy<'_> {
        let now = began.elapsed();
        let mut pool = self.pool();
        pool.busy += 1;
        let busy = pool.busy;
        pool.arrivals.arrived(now, busy);
        pool.until = None;
        Busy {
            deployed: self,
            began,
        }
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

impl<M> Pool<M> {
    /// Lets go of the one that is idle for longest, where one still may go: since somebody looked,
    /// one that was busy may have ended.
    pub(super) fn evict(&mut self) -> Option<M> {
        self.until = None;
        let may_go = !self.idle.is_empty() && self.idle.len() + self.busy > self.provisioned;
        may_go.then(|| self.idle.remove(0).0)
    }
}

impl Pool {
    /// The idle clone that was used last.
    pub(super) fn take(&mut self) -> Option<Member> {
        self.idle.pop().map(|(member, _)| member)
    }

    /// How many there are, by state.
    pub(super) fn count(&self) -> runner::Clones {
        let paused = self
            .idle
            .iter()
            .filter(|(member, _)| member.clone.is_paused());
        let warm = paused.count();
        runner::Clones {
            busy: self.busy,
            hot: self.idle.len() - warm,
            warm,
            coming: self.coming,
        }
    }

    /// Has so many clones at least.
    pub(super) fn provision(&mut self, clones: usize) {
        self.provisioned = clones;
        self.until = None;
    }

    /// Takes a clone back that was used last at this time. One that the pool does not take goes.
    pub(super) fn give(&mut self, member: Member, since: Moment) {
        if !self.is_retired {
            // Behind those that were used before it, in front of those used since.
            let at = self.idle.partition_point(|(_, other)| *other <= since);
            self.idle.insert(at, (member, since));
            self.until = None;
        }
    }

    /// A clone that was being made or paused is there, or is not to be; then it is a while until
    /// the next is made.
    pub(super) fn came(&mut self, member: Option<Member>, now: Moment, since: Moment) {
        self.coming -= 1;
        match member {
            Some(member) => self.give(member, since),
            None => self.until = Some(now + RETRY),
        }
    }

    fn see<T>(&mut self, see: impl FnOnce(&Clones<'_>, &mut Arrivals) -> T) -> T {
        let idle: Vec<Idle> = self
            .idle
            .iter()
            .map(|(member, since)| Idle {
                since: *since,
                paused: member.clone.is_paused(),
            })
            .collect();
        let clones = Clones {
            idle: &idle,
            busy: self.busy,
            coming: self.coming,
            provisioned: self.provisioned,
        };
        see(&clones, &mut self.arrivals)
    }

    /// How many cold starts a second the clone saves that would go first, where one may go.
    pub(super) fn rate(&mut self, now: Moment, policy: &Policy, price: f64) -> Option<f64> {
        if self.idle.is_empty() {
            return None;
        }
        self.see(|clones, arrivals| policy.rate(now, clones, arrivals, price))
    }

    /// Looks after it; memory for its clones has this price.
    pub(super) fn tend(&mut self, now: Moment, policy: &Policy, price: f64) -> Option<Work> {
        let had = self.idle.len();
        self.idle.retain(|(member, _)| member.clone.is_alive());
        if self.idle.len() == had && self.until.is_some_and(|until| now < until) {
            return None;
        }
        let plan = self.see(|clones, arrivals| policy.plan(now, clones, arrivals, price));
        self.until = plan.until;
        self.idle.drain(..plan.drop);
        let mut pause = Vec::new();
        for at in plan.pause.iter().rev() {
            pause.push(self.idle.remove(at - plan.drop));
        }
        self.coming += plan.make + pause.len();
        Some(Work {
            pause,
            make: plan.make,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_provisioned_is_not_evicted_whoever_looked_before() {
        let at = Duration::from_secs;
        let mut pool = Pool {
            idle: vec![("a", at(1)), ("b", at(2))],
            busy: 1,
            provisioned: 2,
            ..Pool::default()
        };
        // It dies with its event.
        pool.busy = 0;
        assert_eq!(pool.evict(), None);
        pool.provisioned = 1;
        assert_eq!(pool.evict(), Some("a"));
        assert_eq!(pool.evict(), None);
    }
}
