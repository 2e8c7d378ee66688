//! Runs deployments: the way of an event to a clone and back.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a clone died in the pool | it is not given the event; another one is |
//! | it dies, or does not ask, before it was given the event | another clone, [`TRIES`] in all |
//! | it dies with the event, or its time is over | the function's error; the clone is destroyed |
//! | the caller goes away | the clone that was busy for it is destroyed |
//! | who reads a streamed response goes away | the function runs to its end; nobody gets the rest |
//! | who reads one is slow | the function waits with it, until its time is over |
//! | a clone cannot be made | the caller hears why; nothing of it stays |

use super::admission::{Admission, Charge, RETRY_AFTER};
use super::answer::Delivery;
use super::completion::Run;
use super::deployment::{Deployment, DeploymentId, Isolation};
use super::host::Host;
use super::instance::{CloneError, Fate, Instance, Spare};
use super::invocation::{Completed, Invocation, InvokeError, Temperature, Throttle, Timings};
use super::policy::{Market, Moment, Policy, PoolConfig};
use super::pool::{Deployed, Member};
use super::process_pool::{ColdStart, ProcessPool};
use super::response::{ResponseHead, ResponseSink};
use super::runner::{Clones, Concurrency, Runner};
use super::template::{self, Template, TemplateError};
use crate::hypervisor::BoxFuture;
use crate::node::Node;
use aleph_types::{MiB, Problem, VmId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How many clones an event may meet that die before they have it.
const TRIES: usize = 3;

/// How often pools are looked at.
const TICK: Duration = Duration::from_millis(500);

/// How many templates are made at once.
const TEMPLATES: usize = 2;

/// How long a template that could not be made is not tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// From how many clones in a row on that do not go on a template is made anew.
const BROKEN: u32 = 3;

/// How long clones may take to go when the node ends.
const BURIALS: Duration = Duration::from_secs(5);

/// How functions are run.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionsConfig {
    /// How clones are kept.
    pub pool: PoolConfig,
    /// How much memory the guests of all clones may have together, as they see it. They share most
    /// of their template's, so it may be several times what the host has, for whoever trusts his
    /// functions; what it has where nobody says.
    pub memory: Option<MiB>,
    /// How many invocations an account may have at once.
    pub account_concurrency: usize,
    /// How many processes of VMMs are launched ahead for cold starts, for all functions together.
    /// They have no guests, and count as nobody's memory.
    pub processes: usize,
    /// The region that functions are told.
    pub region: String,
}

impl Default for FunctionsConfig {
    fn default() -> Self {
        Self {
            pool: PoolConfig::default(),
            memory: None,
            account_concurrency: 1000,
            processes: 2,
            region: "us-east-1".into(),
        }
    }
}

/// Runs deployments on a node. Clones are the same one.
#[derive(Clone)]
pub struct FunctionRuntime(Arc<Shared>);

impl std::fmt::Debug for FunctionRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FunctionRuntime")
    }
}

struct Shared {
    host: Arc<Host>,
    began: Instant,
    admission: Arc<Admission>,
    policy: Policy,
    processes: Arc<ProcessPool>,
    /// For each MiB.
    market: Mutex<Market>,
    deployed: Mutex<HashMap<DeploymentId, Arc<Deployed>>>,
    /// Turns of those that make templates.
    templates: tokio::sync::Semaphore,
}

impl FunctionRuntime {
    /// Runs functions on a node, until [`FunctionRuntime::shutdown`].
    #[must_use]
    pub fn open(node: &Node, config: FunctionsConfig) -> Self {
        let host = Arc::new(node.function_host(config.region));
        template::remove_unfinished(&host);
        let memory = config
            .memory
            .map_or_else(|| host.memory(), |memory| u64::from(memory.0));
        let shared = Arc::new(Shared {
            processes: ProcessPool::new(Arc::clone(&host), config.processes),
            host,
            began: Instant::now(),
            admission: Admission::new(config.account_concurrency, memory),
            policy: Policy::new(config.pool),
            market: Mutex::default(),
            deployed: Mutex::default(),
            templates: tokio::sync::Semaphore::new(TEMPLATES),
        });
        tokio::spawn(tend(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// The VMs whose processes were launched ahead and wait for a guest.
    #[must_use]
    pub fn waiting_processes(&self) -> Vec<VmId> {
        self.0.processes.vms()
    }

    /// Ends all clones that have nothing to do, and takes no events any more. Those that are busy
    /// end with what they do. Waits a bounded time until the rest is gone; what is still there
    /// then, the next node's sweep removes.
    pub async fn shutdown(&self) {
        self.0.admission.close();
        let deployed = std::mem::take(&mut *self.0.deployed());
        for deployed in deployed.into_values() {
            deployed.retire();
        }
        self.0.processes.close();
        self.0.host.closing.cancel();
        let burials = &self.0.host.burials;
        burials.close();
        if tokio::time::timeout(BURIALS, burials.wait()).await.is_err() {
            tracing::warn!("clones of functions are left to the next sweep");
        }
    }
}

impl Runner for FunctionRuntime {
    fn prepare(
        &self,
        deployment: Arc<Deployment>,
    ) -> BoxFuture<'_, Result<Arc<Deployment>, Problem>> {
        Box::pin(async move {
            let pinned = template::pin(&self.0.host, deployment).await;
            let deployment = pinned.map_err(|error| Problem::of(&error))?;
            let id = deployment.id();
            let mut trial = Trial {
                shared: &self.0,
                is_new: !self.0.deployed().contains_key(&id),
                id,
            };
            let deployed = self.0.find(Arc::clone(&deployment));
            // Whoever asks for it has it tried again.
            *deployed.failed.lock().await = None;
            let template = self.0.template(&deployed).await;
            template.map_err(|error| Problem::of(&error))?;
            trial.is_new = false;
            Ok(deployment)
        })
    }

    fn keep<'a>(&'a self, deployments: &'a [DeploymentId]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let host = Arc::clone(&self.0.host);
            let mut kept: HashSet<DeploymentId> = deployments.iter().cloned().collect();
            kept.extend(self.0.deployed().keys().cloned());
            let swept = tokio::task::spawn_blocking(move || template::retain(&host, &kept));
            if swept.await.is_err() {
                tracing::error!("templates could not be looked through");
            }
        })
    }

    fn invoke(
        &self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
    ) -> BoxFuture<'_, Result<Completed, InvokeError>> {
        Box::pin(async move {
            let _turn = self.0.admission.admit(&deployment, concurrency)?;
            let deployed = self.0.find(deployment);
            self.0.invoke(&deployed, &invocation, None).await
        })
    }

    fn invoke_streaming<'a>(
        &'a self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
        sink: &'a mut ResponseSink,
    ) -> BoxFuture<'a, Result<Completed, InvokeError>> {
        Box::pin(async move {
            let _turn = self.0.admission.admit(&deployment, concurrency)?;
            let deployed = self.0.find(deployment);
            self.0.invoke(&deployed, &invocation, Some(sink)).await
        })
    }

    fn provision(&self, deployment: Arc<Deployment>, clones: u32) {
        let deployed = self.0.find(deployment);
        let clones = usize::try_from(clones).unwrap_or(usize::MAX);
        deployed.pool().provision(clones);
    }

    fn clones(&self, deployment: &DeploymentId) -> Option<Clones> {
        let deployed = self.0.deployed();
        deployed.get(deployment).map(|one| one.pool().count())
    }

    fn retire(&self, deployment: &DeploymentId) -> BoxFuture<'_, ()> {
        let id = deployment.clone();
        Box::pin(async move {
            let deployed = self.0.deployed().remove(&id);
            if let Some(deployed) = deployed {
                deployed.retire();
            }
            self.0.processes.forget(&id);
            if let Err(error) = Template::remove(&self.0.host, &id) {
                tracing::warn!(deployment = %id, %error, "a template stays");
            }
        })
    }
}

/// A clone for an event.
struct Found {
    member: Member,
    temperature: Temperature,
    /// Until the event is answered.
    cold_start: Option<ColdStart>,
}

impl Found {
    fn idle(member: Member, temperature: Temperature) -> Self {
        Self {
            member,
            temperature,
            cold_start: None,
        }
    }
}

/// A deployment that is prepared. One that was new and does not become ready is forgotten.
struct Trial<'a> {
    shared: &'a Shared,
    id: DeploymentId,
    is_new: bool,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.is_new {
            let gone = self.shared.deployed().remove(&self.id);
            drop(gone);
        }
    }
}

impl Shared {
    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn deployed(&self) -> MutexGuard<'_, HashMap<DeploymentId, Arc<Deployed>>> {
        self.deployed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, deployment: Arc<Deployment>) -> Arc<Deployed> {
        let id = deployment.id();
        let mut deployed = self.deployed();
        let entry = deployed.entry(id);
        Arc::clone(entry.or_insert_with(|| Deployed::new(deployment)))
    }

    async fn template(&self, deployed: &Deployed) -> Result<Arc<Template>, TemplateError> {
        let mut slot = deployed.template.lock().await;
        if let Some(template) = &*slot {
            return Ok(Arc::clone(template));
        }
        let mut failed = deployed.failed.lock().await;
        if let Some((when, why)) = &*failed
            && when.elapsed() < PAUSE
        {
            return Err(TemplateError::Before(why.clone()));
        }
        // Its permits are never taken away.
        let _turn = self.templates.acquire().await;
        let made = match self.charge(deployed) {
            Some(_charge) => Template::ensure(&self.host, &deployed.deployment).await,
            None => Err(TemplateError::Memory),
        };
        match made {
            Ok(template) => {
                let template = Arc::new(template);
                let id = deployed.deployment.id();
                self.processes.want(id, &template);
                *slot = Some(Arc::clone(&template));
                Ok(template)
            }
            Err(error) => {
                *failed = Some((Instant::now(), Problem::of(&error)));
                Err(error)
            }
        }
    }

    /// A clone of it did not go on: one that is damaged is made anew by the next who needs it.
    async fn distrust(&self, deployed: &Deployed) {
        if deployed.broken.fetch_add(1, Ordering::Relaxed) + 1 < BROKEN {
            return;
        }
        deployed.broken.store(0, Ordering::Relaxed);
        let mut slot = deployed.template.lock().await;
        let id = deployed.deployment.id();
        tracing::warn!(deployment = %id, "no clone of a template goes on: it is made anew");
        *slot = None;
        if let Err(error) = Template::remove(&self.host, &id) {
            tracing::warn!(deployment = %id, %error, "a template stays");
        }
    }

    fn market(&self) -> MutexGuard<'_, Market> {
        self.market.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes memory for another clone, from idle ones of others where there is none.
    fn charge(&self, deployed: &Deployed) -> Option<Charge> {
        loop {
            let charge = self.admission.charge(deployed.deployment.memory.0);
            if charge.is_some() || !self.evict() {
                return charge;
            }
        }
    }

    /// Lets go of the clone that saves least for its memory; whether there was one.
    fn evict(&self) -> bool {
        let now = self.now();
        let price = self.market().price(now);
        let all: Vec<Arc<Deployed>> = self.deployed().values().cloned().collect();
        let least = all
            .iter()
            .filter_map(|deployed| {
                let memory = deployed.memory();
                let rate = deployed.pool().rate(now, &self.policy, price * memory)?;
                Some((rate / memory, deployed))
            })
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        let Some((rate, deployed)) = least else {
            return false;
        };
        // Another one may have taken it meanwhile; then there may be a second one.
        let gone = deployed.pool().evict();
        if gone.is_some() {
            self.market().sold(now, rate);
        }
        true
    }

    async fn invoke(
        &self,
        deployed: &Arc<Deployed>,
        invocation: &Invocation,
        mut sink: Option<&mut ResponseSink>,
    ) -> Result<Completed, InvokeError> {
        let arrived = Instant::now();
        let _busy = deployed.arrived(self.began);
        let deployment = &deployed.deployment;
        let mut last = String::new();
        for tries in 0..TRIES {
            let queue = arrived.elapsed();
            // One that was of no use tells little of a new one, and much of the other idle ones.
            let may_be_idle = tries == 0;
            let Found {
                member,
                temperature,
                cold_start: _cold_start,
            } = self.member(deployed, may_be_idle).await?;
            let given = Instant::now();
            let clone = &member.clone;
            let mut timings = Timings {
                queue,
                resume: (given - arrived).saturating_sub(queue),
                function: Duration::ZERO,
            };
            let mut delivery = Delivery {
                sink: sink.as_deref_mut(),
                head: ResponseHead {
                    version: deployment.version.clone(),
                    content_type: String::new(),
                    temperature,
                    timings,
                },
            };
            let fate = clone
                .run(invocation, deployment.timeout, &mut delivery)
                .await;
            if let Fate::NotGiven(why) = fate {
                tracing::info!(vm = %clone.vm(), why, "a clone was of no use; another one is asked");
                last = why;
                continue;
            }
            timings.function = given.elapsed();
            let run = Run {
                deployment,
                clone,
                request_id: &invocation.request_id,
                timings,
                temperature,
            };
            let (completed, can_serve) = run.complete(fate);
            let is_kept = deployment.isolation == Isolation::Deployment;
            if can_serve && is_kept && clone.is_alive() {
                deployed.pool().give(member, self.now());
            }
            return Ok(completed);
        }
        Err(InvokeError::Place(Problem::of(&CloneError::Died(last))))
    }

    /// A clone that lives: the idle one that was used last, or a new one.
    async fn member(&self, deployed: &Deployed, may_be_idle: bool) -> Result<Found, InvokeError> {
        loop {
            // The pool is not held while a clone goes on.
            let idle = if may_be_idle {
                deployed.pool().take()
            } else {
                None
            };
            let Some(mut member) = idle else { break };
            if !member.clone.is_alive() {
                continue;
            }
            if !member.clone.is_paused() {
                return Ok(Found::idle(member, Temperature::Hot));
            }
            match member.clone.unpause().await {
                Ok(()) => return Ok(Found::idle(member, Temperature::Warm)),
                Err(error) => {
                    let vm = member.clone.vm();
                    tracing::warn!(%vm, %error, "a paused clone does not go on");
                }
            }
        }
        // A template that is to be made takes its own memory first, and gives it back.
        let template = self.template(deployed).await;
        let template = template.map_err(|error| InvokeError::Place(Problem::of(&error)))?;
        let charge = self.charge(deployed).ok_or(InvokeError::Throttled {
            by: Throttle::Node,
            retry_after: RETRY_AFTER,
        })?;
        let cold_start = self.processes.cold_start();
        let spare = Spare::take_or_launch(&self.host, &self.processes, template);
        let clone = self.make(deployed, spare).await;
        let clone = clone.map_err(|error| InvokeError::Place(Problem::of(&error)))?;
        Ok(Found {
            member: Member {
                clone,
                _charge: charge,
            },
            temperature: Temperature::Cold,
            cold_start: Some(cold_start),
        })
    }

    async fn make(
        &self,
        deployed: &Deployed,
        spare: impl Future<Output = Result<Spare, CloneError>>,
    ) -> Result<Instance, CloneError> {
        let made = async { spare.await?.wake().await };
        let made = made.await;
        match &made {
            Ok(_) => deployed.broken.store(0, Ordering::Relaxed),
            Err(error) if error.blames_template() => self.distrust(deployed).await,
            Err(_) => {}
        }
        made
    }

    /// Looks after one pool.
    fn tend(self: &Arc<Self>, deployed: &Arc<Deployed>) {
        let now = self.now();
        let price = self.market().price(now) * deployed.memory();
        let work = deployed.pool().tend(now, &self.policy, price);
        let Some(work) = work else { return };
        for (member, since) in work.pause {
            let deployed = Arc::clone(deployed);
            let shared = Arc::clone(self);
            tokio::spawn(async move { shared.pause(&deployed, member, since).await });
        }
        for _ in 0..work.make {
            let (shared, deployed) = (Arc::clone(self), Arc::clone(deployed));
            tokio::spawn(async move { shared.provide(&deployed).await });
        }
    }

    /// Makes a clone ahead of need.
    async fn provide(&self, deployed: &Deployed) {
        let made = async {
            let template = self.template(deployed).await?;
            // What is made ahead takes nobody's place.
            let Some(charge) = self.admission.charge(deployed.deployment.memory.0) else {
                return Ok(None);
            };
            // It takes no process from an event.
            let spare = Spare::launch(&self.host, template);
            let clone = self.make(deployed, spare).await?;
            clone.prime().await?;
            Ok::<_, CloneError>(Some(Member {
                clone,
                _charge: charge,
            }))
        };
        let member = made.await.unwrap_or_else(|error| {
            let function = &deployed.deployment.function;
            tracing::warn!(function, %error, "a clone cannot be provided");
            None
        });
        let now = self.now();
        deployed.pool().came(member, now, now);
    }

    async fn pause(&self, deployed: &Deployed, mut member: Member, since: Moment) {
        let paused = member.clone.pause().await;
        let is_kept = paused.is_ok();
        if let Err(error) = paused {
            tracing::warn!(vm = %member.clone.vm(), %error, "a clone cannot be paused");
        }
        let now = self.now();
        deployed.pool().came(is_kept.then_some(member), now, since);
    }
}

/// Looks after all pools, for as long as somebody runs functions.
async fn tend(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let all: Vec<Arc<Deployed>> = shared.deployed().values().cloned().collect();
        for deployed in &all {
            shared.tend(deployed);
        }
    }
}
