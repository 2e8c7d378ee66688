//! Pools of clones in virtual time, driven as `FunctionRuntime` drives them.
//!
//! | what | as in the runtime |
//! | --- | --- |
//! | an event | takes the idle clone used last, or else a new one, for which idle ones of others go |
//! | a new clone | takes memory; none where all of it is busy, and the event is throttled |
//! | a look | each [`TICK`] at most: pauses, drops and makes what the policy says |
//! | a clone made ahead | takes [`Costs::making`]; it takes nobody's place |
//!
//! What it leaves out: clones that die, the CPU that they all share, and the time a pause takes.
//! It is a replay of decisions, and the times of the three temperatures are given to it.

use super::trace::Event;
use aleph_executor::functions::policy::{
    Arrivals, Clones, Idle, Market, Moment, Plan, Policy, PoolConfig, RETRY,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

/// How often pools are looked at.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// What decides about the clones of one function.
pub(super) trait Keeper {
    fn arrived(&mut self, now: Moment, busy: usize);
    fn left(&mut self, now: Moment, busy: usize);
    fn plan(&mut self, now: Moment, clones: &Clones<'_>, price: f64) -> Plan;
    /// The clone with the smallest rate of all goes first where memory is short.
    fn rate(&mut self, now: Moment, clones: &Clones<'_>, price: f64) -> Option<f64>;
}

/// The policy of the runtime.
#[derive(Debug, Clone)]
pub(super) struct Learnt {
    policy: Rc<Policy>,
    arrivals: Arrivals,
}

impl Learnt {
    pub(super) fn new(config: PoolConfig) -> Self {
        Self {
            policy: Rc::new(Policy::new(config)),
            arrivals: Arrivals::default(),
        }
    }
}

impl Keeper for Learnt {
    fn arrived(&mut self, now: Moment, busy: usize) {
        self.arrivals.arrived(now, busy);
    }

    fn left(&mut self, now: Moment, busy: usize) {
        self.arrivals.left(now, busy);
    }

    fn plan(&mut self, now: Moment, clones: &Clones<'_>, price: f64) -> Plan {
        self.policy.plan(now, clones, &mut self.arrivals, price)
    }

    fn rate(&mut self, now: Moment, clones: &Clones<'_>, price: f64) -> Option<f64> {
        self.policy.rate(now, clones, &mut self.arrivals, price)
    }
}

/// Keeps each clone for a fixed time after its last event; the one that is idle for longest goes
/// first.
#[derive(Debug, Clone)]
pub(super) struct Fixed {
    pub(super) keep: Duration,
    pub(super) linger: Duration,
}

impl Keeper for Fixed {
    fn arrived(&mut self, _now: Moment, _busy: usize) {}

    fn left(&mut self, _now: Moment, _busy: usize) {}

    fn plan(&mut self, now: Moment, clones: &Clones<'_>, _price: f64) -> Plan {
        let is_old = |clone: &&Idle| now >= clone.since + self.keep;
        let drop = clones.idle.iter().take_while(is_old).count();
        let mut plan = Plan {
            drop,
            ..Plan::default()
        };
        if drop > 0 {
            plan.until = Some(now);
            return plan;
        }
        let turn = |clone: &Idle, time| Some(clone.since + time).filter(|at| *at > now);
        for (at, clone) in clones.idle.iter().enumerate().skip(drop) {
            let paused = (!clone.paused).then(|| turn(clone, self.linger)).flatten();
            if !clone.paused && paused.is_none() {
                plan.pause.push(at);
                plan.until = Some(now);
                continue;
            }
            let turns = [plan.until, paused, turn(clone, self.keep)];
            plan.until = turns.into_iter().flatten().min();
        }
        plan
    }

    fn rate(&mut self, _now: Moment, clones: &Clones<'_>, _price: f64) -> Option<f64> {
        Some(clones.idle.first()?.since.as_secs_f64())
    }
}

/// What an event waits until a clone has it, by the clone's temperature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    pub(super) hot: Duration,
    pub(super) warm: Duration,
    /// One that was made ahead, for its first event.
    pub(super) ahead: Duration,
    pub(super) cold: Duration,
    /// How long a clone takes that is made ahead.
    pub(super) making: Duration,
}

/// What came of the events.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) hot: u64,
    pub(super) warm: u64,
    pub(super) ahead: u64,
    pub(super) cold: u64,
    /// Those for which there was no memory.
    pub(super) throttled: u64,
    /// Clones that were made ahead.
    pub(super) made_ahead: u64,
    /// Clones that went so that others had memory.
    pub(super) evicted: u64,
    /// The most clones there were at once.
    pub(super) most: usize,
    /// Clones, by the seconds that they were there.
    pub(super) held: f64,
    /// When the last event was done.
    pub(super) end: Duration,
    /// Cold events of each function.
    pub(super) cold_of: Vec<u32>,
}

impl Outcome {
    pub(super) fn served(&self) -> u64 {
        self.hot + self.warm + self.ahead + self.cold
    }

    /// How many clones were made.
    pub(super) fn made(&self) -> u64 {
        self.cold + self.made_ahead
    }

    /// Clones on average.
    pub(super) fn mean_held(&self) -> f64 {
        self.held / self.end.as_secs_f64().max(1.0)
    }

    /// In hundredths of the events that were served.
    pub(super) fn cold_share(&self) -> f64 {
        100.0 * float(self.cold) / float(self.served().max(1))
    }

    /// What all but one of a hundred wait at most, and what they wait on average.
    pub(super) fn waits(&self, costs: &Costs) -> (Duration, Duration) {
        let mut kinds = [
            (costs.hot, self.hot),
            (costs.warm, self.warm),
            (costs.ahead, self.ahead),
            (costs.cold, self.cold),
        ];
        kinds.sort_unstable();
        let all = self.served().max(1);
        let (mut seen, mut sum, mut p99) = (0, 0.0, None);
        for (wait, events) in kinds {
            seen += events;
            sum += wait.as_secs_f64() * float(events);
            if p99.is_none() && seen * 100 >= all * 99 {
                p99 = Some(wait);
            }
        }
        let mean = Duration::from_secs_f64(sum / float(all));
        (p99.unwrap_or_default(), mean)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A clone that was made ahead is there.
    Came,
    Done,
    Look,
}

#[derive(Debug, Clone)]
struct Pool<K> {
    keeper: K,
    idle: Vec<Idle>,
    /// Which of them never had an event.
    unused: Vec<bool>,
    busy: usize,
    coming: usize,
    /// When it is looked at next.
    look: Option<Moment>,
}

impl<K: Keeper> Pool<K> {
    /// What the keeper sees of it.
    fn parts(&mut self) -> (&mut K, Clones<'_>) {
        let clones = Clones {
            idle: &self.idle,
            busy: self.busy,
            coming: self.coming,
            provisioned: 0,
        };
        (&mut self.keeper, clones)
    }
}

/// A host.
pub(super) struct Simulation<K> {
    pools: Vec<Pool<K>>,
    costs: Costs,
    /// In clones.
    limit: usize,
    used: usize,
    now: Moment,
    queue: BinaryHeap<Reverse<(Moment, What, usize)>>,
    outcome: Outcome,
    /// Looks at a pool at each tick, and not only when something may be done.
    looks_always: bool,
    market: Market,
}

impl<K: Keeper + Clone> Simulation<K> {
    pub(super) fn new(keeper: &K, functions: usize, limit: usize, costs: Costs) -> Self {
        let pool = Pool {
            keeper: keeper.clone(),
            idle: Vec::new(),
            unused: Vec::new(),
            busy: 0,
            coming: 0,
            look: None,
        };
        Self {
            pools: vec![pool; functions],
            costs,
            limit,
            used: 0,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            outcome: Outcome {
                cold_of: vec![0; functions],
                ..Outcome::default()
            },
            looks_always: false,
            market: Market::default(),
        }
    }

    /// Looks at each pool at each tick, whatever its plan says.
    #[cfg(test)]
    fn looking_always(mut self) -> Self {
        self.looks_always = true;
        for place in 0..self.pools.len() {
            self.look_at(place, Duration::ZERO);
        }
        self
    }

    /// Plays events, which are in their order.
    pub(super) fn run(mut self, events: &[Event]) -> Outcome {
        for event in events {
            while let Some(Reverse((at, ..))) = self.queue.peek()
                && *at <= event.at
            {
                self.step();
            }
            self.pass(event.at);
            self.arrive(event);
        }
        let end = events.last().map_or(Duration::ZERO, |event| event.at);
        while self.pools.iter().any(|pool| pool.busy > 0) {
            self.step();
        }
        self.outcome.end = self.now.max(end);
        self.outcome
    }

    fn step(&mut self) {
        let Some(Reverse((at, what, place))) = self.queue.pop() else {
            return;
        };
        self.pass(at);
        let pool = &mut self.pools[place];
        match what {
            What::Look if pool.look == Some(at) => self.look(place),
            What::Look => {}
            What::Came | What::Done => {
                let is_new = what == What::Came;
                if is_new {
                    pool.coming -= 1;
                } else {
                    pool.keeper.left(at, pool.busy);
                    pool.busy -= 1;
                }
                pool.unused.push(is_new);
                pool.idle.push(Idle {
                    since: at,
                    paused: is_new,
                });
                self.look_at(place, at);
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, to: Moment) {
        let passed = to.saturating_sub(self.now).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "some thousand clones")]
        let used = self.used as f64;
        self.outcome.held += used * passed;
        self.now = self.now.max(to);
    }

    /// Has a pool looked at, at the first tick that is not before this time.
    fn look_at(&mut self, place: usize, at: Moment) {
        let tick = TICK.as_nanos();
        let at = at.max(self.now + Duration::from_nanos(1));
        let ticks = u32::try_from(at.as_nanos().div_ceil(tick)).unwrap_or(u32::MAX);
        let at = TICK * ticks;
        let pool = &mut self.pools[place];
        if pool.look.is_none_or(|look| at < look) {
            pool.look = Some(at);
            self.queue.push(Reverse((at, What::Look, place)));
        }
    }

    fn arrive(&mut self, event: &Event) {
        let pool = &mut self.pools[event.function];
        pool.busy += 1;
        pool.keeper.arrived(event.at, pool.busy);
        let is_unused = pool.unused.pop() == Some(true);
        let waits = match pool.idle.pop() {
            Some(_) if is_unused => {
                self.outcome.ahead += 1;
                self.costs.ahead
            }
            Some(Idle { paused: false, .. }) => {
                self.outcome.hot += 1;
                self.costs.hot
            }
            Some(_) => {
                self.outcome.warm += 1;
                self.costs.warm
            }
            None if self.charge() || (self.evict() && self.charge()) => {
                self.outcome.cold += 1;
                self.outcome.cold_of[event.function] += 1;
                self.costs.cold
            }
            None => {
                self.outcome.throttled += 1;
                let pool = &mut self.pools[event.function];
                pool.keeper.left(event.at, pool.busy);
                pool.busy -= 1;
                return;
            }
        };
        let done = event.at + waits + event.takes;
        self.queue.push(Reverse((done, What::Done, event.function)));
        self.look_at(event.function, event.at);
    }

    /// Takes memory for a clone, where there is some.
    fn charge(&mut self) -> bool {
        let is_there = self.used < self.limit;
        if is_there {
            self.used += 1;
            self.outcome.most = self.outcome.most.max(self.used);
        }
        is_there
    }

    /// Lets go of the idle clone with the smallest rate; whether there was one.
    fn evict(&mut self) -> bool {
        let now = self.now;
        let price = self.market.price(now);
        let pools = self.pools.iter_mut().enumerate();
        let rates = pools.filter_map(|(place, pool)| {
            let (keeper, clones) = pool.parts();
            Some((keeper.rate(now, &clones, price)?, place))
        });
        let Some((rate, place)) = rates.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return false;
        };
        self.market.sold(now, rate);
        self.pools[place].idle.remove(0);
        self.pools[place].unused.remove(0);
        self.used -= 1;
        self.outcome.evicted += 1;
        self.look_at(place, now);
        true
    }

    fn look(&mut self, place: usize) {
        let (now, price) = (self.now, self.market.price(self.now));
        let pool = &mut self.pools[place];
        pool.look = None;
        let (keeper, clones) = pool.parts();
        let plan = keeper.plan(now, &clones, price);
        for at in &plan.pause {
            pool.idle[*at].paused = true;
        }
        pool.idle.drain(..plan.drop);
        pool.unused.drain(..plan.drop);
        self.used -= plan.drop;
        let mut next = plan.until;
        for _ in 0..plan.make {
            if !self.charge() {
                next = Some(now + RETRY);
                break;
            }
            self.outcome.made_ahead += 1;
            self.pools[place].coming += 1;
            let there = now + self.costs.making;
            self.queue.push(Reverse((there, What::Came, place)));
        }
        if self.looks_always {
            next = Some(now);
        }
        if let Some(next) = next {
            self.look_at(place, next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace;
    use super::*;

    const COSTS: Costs = Costs {
        hot: Duration::from_millis(1),
        warm: Duration::from_millis(2),
        ahead: Duration::from_millis(10),
        cold: Duration::from_millis(100),
        making: Duration::from_millis(200),
    };

    /// A small day.
    fn day(functions: u32) -> Vec<Event> {
        trace::events(&trace::generate(functions, 8_000.0, 7), 7)
    }

    fn learnt(functions: usize, limit: usize) -> Simulation<Learnt> {
        let learnt = Learnt::new(PoolConfig::default());
        Simulation::new(&learnt, functions, limit, COSTS)
    }

    fn fixed(functions: usize, limit: usize) -> Simulation<Fixed> {
        let fixed = Fixed {
            keep: Duration::from_secs(600),
            linger: Duration::from_secs(2),
        };
        Simulation::new(&fixed, functions, limit, COSTS)
    }

    #[test]
    fn each_event_is_served_once_or_throttled_within_the_memory() {
        let events = day(40);
        for limit in [1, 3, 8, 20, 1000] {
            for outcome in [
                learnt(40, limit).run(&events),
                fixed(40, limit).run(&events),
            ] {
                let all = u64::try_from(events.len()).unwrap_or(0);
                assert_eq!(outcome.served() + outcome.throttled, all);
                assert!(outcome.most <= limit && outcome.most > 0);
                assert!(outcome.ahead <= outcome.made_ahead);
                let cold: u64 = outcome.cold_of.iter().copied().map(u64::from).sum();
                assert_eq!(cold, outcome.cold);
                // Each that was made is there at the end, or went.
                assert!(outcome.evicted <= outcome.made());
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_outcome() {
        assert_eq!(day(40), day(40));
        assert_eq!(learnt(40, 8).run(&day(40)), learnt(40, 8).run(&day(40)));
    }

    /// Where the price stays, it is enough to look when a plan says so.
    #[test]
    fn looking_at_each_tick_changes_nothing() {
        let mut events = day(9);
        events.retain(|event| event.at < Duration::from_secs(10_000));
        let (ours, plain) = (|| learnt(9, 1000), || fixed(9, 4));
        let seldom = ours().run(&events);
        assert!(seldom.made_ahead > 0, "there is something to miss");
        assert_eq!(seldom, ours().looking_always().run(&events));
        assert_eq!(plain().run(&events), plain().looking_always().run(&events));
    }

    #[test]
    fn a_fixed_time_is_kept_to_the_tick() {
        let at = |secs| Event {
            at: Duration::from_secs(secs),
            function: 0,
            takes: Duration::from_secs(1),
        };
        let outcome = fixed(1, 8).run(&[at(0), at(2), at(600), at(1300)]);
        assert_eq!((outcome.cold, outcome.hot, outcome.warm), (2, 1, 1));
        // To 601 and 10 minutes on, and from 1300 on for its second and the start.
        let held = 1201.0 + 0.5 + 1.1;
        assert!((outcome.held - held).abs() < 0.6, "{}", outcome.held);
    }

    #[test]
    fn a_timer_has_its_clone_ahead_and_no_other_has_the_memory_of_it() {
        let at = |hour: u64| Event {
            at: Duration::from_secs(3600 * hour),
            function: 0,
            takes: Duration::from_secs(1),
        };
        let day: Vec<Event> = (0..24).map(at).collect();
        let (ours, fixed) = (learnt(1, 8).run(&day), fixed(1, 8).run(&day));
        assert_eq!(fixed.cold, 24);
        assert!(ours.cold <= 5 && ours.ahead >= 19, "{ours:?}");
        assert!(ours.held < fixed.held, "{} {}", ours.held, fixed.held);
    }
}
