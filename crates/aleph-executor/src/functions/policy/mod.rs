//! How many clones a deployment keeps, and in which state: pure.
//!
//! | temperature | what it is | what it costs |
//! | --- | --- | --- |
//! | hot | a clone that runs and has nothing to do | memory, and a little CPU |
//! | warm | one that is paused | memory |
//! | cold | the template alone | disk |
//!
//! Clones of a deployment are taken from a stack, so the second is needed exactly when two are busy
//! at once. Each **level** of the stack is thus a question of its own: for how long is it idle
//! between two times that it is needed? [`Arrivals`] learns these times, and a [`Policy`] weighs a
//! clone's memory against the cold start that it saves. Two figures come from them, for the time
//! that a level is idle already (`level` reckons them):
//!
//! | figure | what it is | what follows |
//! | --- | --- | --- |
//! | worth | cold starts that a clone is expected to save, less its memory at its price | kept while it is above nothing; made ahead when it is above the cost of making |
//! | rate | cold starts that it saves in a second of being held, at best | the clone with the least, for its memory, goes where another needs memory |
//!
//! So a function that is called each hour is let go of at once and made again a little before its
//! time, one that is called at any time is kept for as long as that is likely to pay, and a second
//! clone is there only where two were needed before. While little is known, idle times are taken to
//! be as [`PoolConfig::idle_timeout`] says. The price of memory is a cold start for
//! [`PoolConfig::break_even`] while there is enough, and what the clones were worth that went for
//! others ([`Market`]) where there is not.
//!
//! What each part won, in a replay of a day of 1,000 functions (`make bench`, group `functions`): cold
//! starts, of all events, with memory for 64 clones, for 256, and for any number.
//!
//! | what | 64 | 256 | any | clones held there | clones made there |
//! | --- | --- | --- | --- | --- | --- |
//! | each kept 10 minutes; the one idle for longest goes | 14.7% | 5.3% | 3.8% | 376 | 30,600 |
//! | kept for 19 of 20 gaps, a spare for whoever is busy | 14.7% | 7.1% | 4.5% | 607 | 76,100 |
//! | levels, worth, made ahead | 14.6% | 3.9% | 2.9% | 309 | 30,400 |
//! | and the one with the least rate goes | 10.9% | 3.6% | 2.9% | 309 | 30,400 |
//! | and memory has a price | 10.4% | 3.6% | 2.9% | 309 | 30,400 |
//!
//! What is made ahead takes nobody's place: where it did, cold starts fell by a twentieth at most and
//! up to three times as many clones were made.
//!
//! Where it comes from: pre-warming by histograms from Shahrad et al., "Serverless in the Wild",
//! USENIX ATC 2020, section 4; eviction by benefit, and not by age, from Fuerst and Sharma,
//! "FaasCache", ASPLOS 2021; the rate is the index of Gittins, 1979.
//!
//! # Failure cases
//! What is learnt is in memory alone: a daemon that starts begins anew, with what it believes.
//! The price is that of a host, not of an account: who calls much has more clones kept.

mod level;

use level::{Belief, Level, MAKING};
use std::time::Duration;

/// A time, counted from whenever the owner began.
pub type Moment = Duration;

/// How long after a clone could not be made ahead, for want of memory or whatever else, the next is.
pub const RETRY: Duration = Duration::from_secs(5);

/// How a deployment's clones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// How long an idle clone runs before it is paused.
    pub linger: Duration,
    /// How long one is kept, about, while nothing is known of the function.
    pub idle_timeout: Duration,
    /// The shortest time that one is kept, whatever is learnt.
    pub shortest: Duration,
    /// How long a clone may be held to save one cold start, while there is memory.
    pub break_even: Duration,
    /// How many clones of a deployment may be on their way ahead of need at once; with 0, none is
    /// made ahead but those that are provisioned.
    pub spares: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(600),
            shortest: Duration::from_secs(10),
            break_even: Duration::from_secs(1200),
            spares: 2,
        }
    }
}

/// What is known of a function's events.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    /// One for each clone that was ever needed at once, the first at 0.
    levels: Vec<Level>,
}

impl Arrivals {
    /// Takes an event in; `busy` are those that are under way with it.
    pub fn arrived(&mut self, now: Moment, busy: usize) {
        if self.levels.len() < busy {
            self.levels.resize_with(busy, Level::default);
        }
        if let Some(level) = self.level(busy) {
            level.needed(now);
        }
    }

    /// An event is done; `busy` were under way with it.
    pub fn left(&mut self, now: Moment, busy: usize) {
        if let Some(level) = self.level(busy) {
            level.left(now);
        }
    }

    /// From 1 on.
    fn level(&mut self, level: usize) -> Option<&mut Level> {
        self.levels.get_mut(level.checked_sub(1)?)
    }
}

/// An idle clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Since when.
    pub since: Moment,
    /// Whether it is paused.
    pub paused: bool,
}

/// The clones of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clones<'a> {
    /// The idle ones, the one used last at the end.
    pub idle: &'a [Idle],
    /// How many have an event.
    pub busy: usize,
    /// How many are about to be idle.
    pub coming: usize,
    /// How many there are to be at least.
    pub provisioned: usize,
}

impl Clones<'_> {
    fn all(&self) -> usize {
        self.idle.len() + self.busy + self.coming
    }
}

/// What is to be done about a deployment's clones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which idle clones are to be paused, by place.
    pub pause: Vec<usize>,
    /// How many idle ones are to go, from the first on.
    pub drop: usize,
    /// How many are to be made ready.
    pub make: usize,
    /// Until when nothing else is to be done, if nothing happens and the price stays.
    pub until: Option<Moment>,
}

impl Plan {
    /// Whether there is something to do.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.drop > 0 || self.make > 0 || !self.pause.is_empty()
    }
}

/// Decides about clones.
#[derive(Debug, Clone)]
pub struct Policy {
    config: PoolConfig,
    belief: Belief,
    /// The least price, in cold starts for each second of a clone.
    floor: f64,
}

impl Policy {
    /// With these settings.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let floor = 1.0 / config.break_even.as_secs_f64().max(1.0);
        Self {
            belief: Belief::new(&config, floor),
            config,
            floor,
        }
    }

    /// What is to be done about a deployment's clones at a price of theirs.
    pub fn plan(
        &self,
        now: Moment,
        clones: &Clones<'_>,
        arrivals: &mut Arrivals,
        price: f64,
    ) -> Plan {
        let price = price.max(self.floor);
        let all = clones.all();
        let ready = all - clones.busy;
        let top = all.max(arrivals.levels.len());
        let least = |place| if place > all { MAKING } else { 0.0 };
        let mut wanted = 0_usize;
        for place in clones.busy + 1..=top {
            let level = arrivals.level(place);
            let worth = level.map(|level| level.worth(now, price, &self.belief));
            if worth.is_some_and(|worth| worth > least(place)) {
                wanted += 1;
            }
        }
        let provisioned = clones.provisioned.saturating_sub(clones.busy);
        let ahead = wanted.saturating_sub(ready);
        let ahead = ahead.min(self.config.spares.saturating_sub(clones.coming));
        // Those that were used last stay, as they are the warmest.
        let surplus = ready.saturating_sub(wanted.max(provisioned));
        let surplus = clones.idle.iter().take(surplus);
        let age = |clone: &Idle| now.saturating_sub(clone.since);
        let drop = surplus
            .clone()
            .take_while(|clone| age(clone) >= self.config.shortest)
            .count();
        let runs = clones.idle.iter().enumerate().skip(drop);
        let runs = runs.filter(|(_, clone)| !clone.paused);
        let mut plan = Plan {
            pause: runs
                .clone()
                .filter(|(_, clone)| age(clone) >= self.config.linger)
                .map(|(at, _)| at)
                .collect(),
            drop,
            make: ahead.max(provisioned.saturating_sub(ready)),
            until: Some(now),
        };
        if !plan.acts() {
            let pauses = runs.map(|(_, clone)| clone.since + self.config.linger);
            let drops = surplus.map(|clone| clone.since + self.config.shortest);
            let levels = arrivals.levels.iter().zip(1..).skip(clones.busy);
            let turns = levels.filter_map(|(level, place)| level.steady(now, least(place)));
            let times = pauses.chain(drops).chain(turns);
            plan.until = times.filter(|at| *at > now).min();
        }
        plan
    }

    /// How many cold starts a second the clone saves that goes first of a deployment's idle ones;
    /// nothing where none may go.
    pub fn rate(
        &self,
        now: Moment,
        clones: &Clones<'_>,
        arrivals: &mut Arrivals,
        price: f64,
    ) -> Option<f64> {
        let all = clones.all();
        if clones.idle.is_empty() || all <= clones.provisioned {
            return None;
        }
        let level = arrivals.level(all);
        let rate = level.map(|level| level.rate(now, price.max(self.floor), &self.belief));
        Some(rate.unwrap_or(0.0))
    }
}

/// What memory is worth on a host: the rates of the clones that went for others of late.
#[derive(Debug, Clone, Copy, Default)]
pub struct Market {
    price: f64,
    last: Option<Moment>,
}

impl Market {
    /// How long one that went counts, where no other does.
    const LATE: Duration = Duration::from_secs(60);
    /// Of how many that went it is the mean, about.
    const MEAN: f64 = 64.0;

    /// A clone with this rate, for each unit of its memory, went for another.
    pub fn sold(&mut self, now: Moment, rate: f64) {
        let price = self.price(now);
        self.price = if price > 0.0 {
            price + (rate - price) / Self::MEAN
        } else {
            rate
        };
        self.last = Some(now);
    }

    /// The price of a unit of memory; nothing while there is enough.
    #[must_use]
    pub fn price(&self, now: Moment) -> f64 {
        let is_late = |last| now.saturating_sub(last) < Self::LATE;
        if self.last.is_some_and(is_late) {
            self.price
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn policy() -> Policy {
        Policy::new(PoolConfig::default())
    }

    const NONE: Clones<'static> = Clones {
        idle: &[],
        busy: 0,
        coming: 0,
        provisioned: 0,
    };

    fn paused(since: Duration) -> Idle {
        Idle {
            since,
            paused: true,
        }
    }

    /// Events of a second each at these seconds, `busy` at once.
    fn arrivals(events: impl IntoIterator<Item = (u64, usize)>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for (at, busy) in events {
            (1..=busy).for_each(|busy| arrivals.arrived(S(at), busy));
            (1..=busy)
                .rev()
                .for_each(|busy| arrivals.left(S(at + 1), busy));
        }
        arrivals
    }

    /// When a clone is let go of first that is idle since then.
    fn kept_until(arrivals: &mut Arrivals, since: u64) -> Option<u64> {
        let idle = [paused(S(since))];
        let clones = Clones {
            idle: &idle,
            ..NONE
        };
        (since..since + 10_000).find(|at| policy().plan(S(*at), &clones, arrivals, 0.0).drop > 0)
    }

    #[test]
    fn a_clone_is_kept_for_the_configured_time_while_nothing_is_known() {
        let until = kept_until(&mut arrivals([(0, 1)]), 1);
        assert!(until.is_some_and(|until| (550..=650).contains(&until)));
    }

    #[test]
    fn one_that_was_called_often_and_is_no_longer_is_as_one_of_which_nothing_is_known() {
        let mut often = arrivals((0..200).map(|at| (at * 5, 1)));
        let kept = kept_until(&mut often, 996).map(|until| until - 996);
        assert!(
            kept.is_some_and(|kept| (500..=650).contains(&kept)),
            "{kept:?}"
        );
    }

    #[test]
    fn one_that_is_called_each_quarter_of_an_hour_is_made_a_little_ahead() {
        let mut timer = arrivals((0..20).map(|at| (at * 900, 1)));
        let last = 19 * 900 + 1;
        assert!(kept_until(&mut timer, last).is_some_and(|until| until <= last + 20));
        let policy = policy();
        let made = (last + 20..).find(|at| policy.plan(S(*at), &NONE, &mut timer, 0.0).make > 0);
        let due = 20 * 900;
        assert!(made.is_some_and(|made| (due - 150..due).contains(&made)));
        let never = made.and_then(|made| kept_until(&mut timer, made));
        assert!(
            never.is_some_and(|until| until > due),
            "it stays until then"
        );
    }

    #[test]
    fn a_second_one_is_ready_where_two_were_needed_at_once() {
        let busy = Clones { busy: 1, ..NONE };
        let make = |arrivals: &mut Arrivals, clones, spares| {
            let config = PoolConfig {
                spares,
                ..PoolConfig::default()
            };
            Policy::new(config).plan(S(100), clones, arrivals, 0.0).make
        };
        let mut alone = arrivals((0..10).map(|at| (at * 10, 1)));
        alone.arrived(S(100), 1);
        assert_eq!(make(&mut alone, &busy, 2), 0);
        let mut two = arrivals((0..10).map(|at| (at * 10, 2)));
        two.arrived(S(100), 1);
        assert_eq!(make(&mut two, &busy, 2), 1);
        assert_eq!(make(&mut two, &busy, 0), 0);
        let soon = Clones { coming: 1, ..busy };
        assert_eq!(make(&mut two, &soon, 2), 0);
    }

    #[test]
    fn an_idle_clone_is_paused() {
        let mut arrivals = arrivals([(0, 1)]);
        let idle = [Idle {
            since: S(1),
            paused: false,
        }];
        let clones = Clones {
            idle: &idle,
            ..NONE
        };
        let early = policy().plan(S(2), &clones, &mut arrivals, 0.0);
        assert!(!early.acts() && early.until <= Some(S(3)), "{early:?}");
        let late = policy().plan(S(3), &clones, &mut arrivals, 0.0);
        assert_eq!((late.pause.as_slice(), late.drop), (&[0][..], 0));
    }

    #[test]
    fn what_is_provisioned_is_there_whether_it_is_used_or_not() {
        let mut arrivals = Arrivals::default();
        let three = Clones {
            provisioned: 3,
            ..NONE
        };
        assert_eq!(policy().plan(S(0), &three, &mut arrivals, 0.0).make, 3);
        let idle = [paused(S(0)); 3];
        let clones = Clones {
            idle: &idle,
            ..three
        };
        let old = policy().plan(S(100_000), &clones, &mut arrivals, 9.0);
        assert!(!old.acts(), "{old:?}");
        let rate = policy().rate(S(100_000), &clones, &mut arrivals, 9.0);
        assert_eq!(rate, None);
    }

    #[test]
    fn where_memory_is_short_the_one_goes_that_saves_least_and_not_the_oldest() {
        let mut often = arrivals((0..50).map(|at| (at * 60, 1)));
        let mut seldom = arrivals((0..50).map(|at| (at * 600, 1)));
        let rate = |arrivals: &mut Arrivals, since| {
            let idle = [paused(since)];
            let clones = Clones {
                idle: &idle,
                ..NONE
            };
            policy().rate(since + S(20), &clones, arrivals, 0.0)
        };
        let (often, seldom) = (rate(&mut often, S(2941)), rate(&mut seldom, S(29_401)));
        assert!(often > seldom && seldom > Some(0.0), "{often:?} {seldom:?}");
    }

    #[test]
    fn a_price_shortens_what_is_kept() {
        let mut arrivals = arrivals([(0, 1)]);
        let idle = [paused(S(1))];
        let clones = Clones {
            idle: &idle,
            ..NONE
        };
        let mut at = |price| policy().plan(S(200), &clones, &mut arrivals, price).drop;
        assert_eq!((at(0.0), at(1.0 / 100.0), at(0.0)), (0, 1, 0));
    }

    #[test]
    fn memory_has_a_price_while_clones_go_for_others() {
        let mut market = Market::default();
        assert_eq!(market.price(S(5)), 0.0);
        market.sold(S(5), 0.5);
        market.sold(S(6), 0.25);
        let price = market.price(S(7));
        assert!(price < 0.5 && price > 0.25, "{price}");
        assert_eq!(market.price(S(66)), 0.0);
        market.sold(S(100), 0.1);
        assert_eq!(market.price(S(100)), 0.1, "what was is over");
    }

    proptest! {
        /// Whatever came before: no clone is paused and let go of at once, none below what is
        /// provisioned goes, nothing is to be done before a plan says so, and a function that
        /// nobody calls keeps nothing else in the end.
        #[test]
        fn plans_are_sound(
            events in prop::collection::vec((0_u64..900_000, 1_usize..6), 0..60),
            clones in prop::collection::vec((0_u64..500_000, any::<bool>()), 0..10),
            provisioned in 0_usize..5, busy in 0_usize..4, coming in 0_usize..3,
            price in 0.0_f64..0.1, wait in 0.0_f64..1.0,
        ) {
            let policy = policy();
            let mut arrivals = Arrivals::default();
            let mut now = Duration::ZERO;
            for (gap, busy) in events {
                now += Duration::from_millis(gap);
                (1..=busy).for_each(|busy| arrivals.arrived(now, busy));
                (1..=busy).rev().for_each(|busy| arrivals.left(now, busy));
            }
            now += S(500);
            let mut idle: Vec<Idle> = clones
                .into_iter()
                .map(|(ms, paused)| Idle { since: now.saturating_sub(Duration::from_millis(ms)), paused })
                .collect();
            idle.sort_by_key(|clone| clone.since);
            let clones = Clones { idle: &idle, busy, coming, provisioned };
            let plan = policy.plan(now, &clones, &mut arrivals, price);
            prop_assert!(plan.pause.iter().all(|at| (plan.drop..idle.len()).contains(at)));
            prop_assert!(clones.all() - plan.drop + plan.make >= provisioned);
            if !plan.acts() {
                let until = plan.until.unwrap_or(now + S(100_000));
                let before = now + (until - now).mul_f64(wait).min(until - now - Duration::from_nanos(1));
                let meanwhile = policy.plan(before, &clones, &mut arrivals, price);
                prop_assert!(!meanwhile.acts(), "{:?} at {:?}: {:?}", plan, before, meanwhile);
            }
            let alone = Clones { busy: 0, coming: 0, ..clones };
            let late = policy.plan(now + S(100_000), &alone, &mut arrivals, price);
            prop_assert_eq!(idle.len() - late.drop, provisioned.min(idle.len()));
            prop_assert_eq!(late.make, provisioned.saturating_sub(idle.len()));
        }
    }
}
