//! One place of the stack of clones: for how long it was idle, and what a clone there is worth.

use super::{Moment, PoolConfig};
use std::time::Duration;

/// Idle times are sorted into classes: one below a second, then eight for each doubling, up to 18
/// hours.
const CLASSES: usize = 129;

/// Where the second class begins, in milliseconds: two to this power.
const SHORT: u32 = 10;

/// From how many idle times on all count half, so that what is learnt may change.
const MEMORY: u32 = 256;

/// How much a price changes before worths are reckoned anew.
const CHANGE: f64 = 1.3;

/// What making a clone ahead costs, in cold starts: nobody waits for it, but it takes the same CPU.
pub(super) const MAKING: f64 = 0.5;

/// How long before it may be needed a clone is made.
const AHEAD: Duration = Duration::from_secs(3);

/// How many changes of worth are looked at for the next that matters.
const CHANGES: usize = 8;

/// What is believed of a level while little is known: the longer it was idle, the less likely it is
/// needed, so that a clone pays until [`PoolConfig::idle_timeout`] (a Lomax distribution).
#[derive(Debug, Clone)]
pub(super) struct Belief {
    /// How long each class is, in seconds.
    spans: [f64; CLASSES],
    /// How many idle times fall into it.
    times: [f64; CLASSES],
    /// How many are longer.
    longer: f64,
}

impl Belief {
    /// For how many idle times it counts.
    const WEIGHT: f64 = 2.0;
    /// In seconds.
    const SCALE: f64 = 60.0;

    /// `price` is that of a clone where memory is free, in cold starts for each second.
    pub(super) fn new(config: &PoolConfig, price: f64) -> Self {
        // At the configured time as many cold starts are saved as the clone costs.
        let shape = (config.idle_timeout.as_secs_f64() + Self::SCALE) * price;
        let begin = |class| lower(class).as_secs_f64();
        let longer = |class| Self::WEIGHT * (1.0 + begin(class) / Self::SCALE).powf(-shape);
        Self {
            spans: std::array::from_fn(|class| begin(class + 1) - begin(class)),
            times: std::array::from_fn(|class| longer(class) - longer(class + 1)),
            longer: longer(CLASSES),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Level {
    /// Since when it is idle; nothing while it is needed.
    since: Option<Moment>,
    /// How often it was idle for how long.
    times: [u16; CLASSES],
    count: u32,
    /// How many of them came since the worths were reckoned, and the price they were reckoned with.
    fresh: u32,
    price: f64,
    /// What a clone is worth that is idle for so long, in cold starts.
    worths: [f64; CLASSES],
    /// How many cold starts it saves in a second, at best.
    rates: [f64; CLASSES],
}

impl Default for Level {
    fn default() -> Self {
        Self {
            since: None,
            times: [0; CLASSES],
            count: 0,
            fresh: 1,
            price: 0.0,
            worths: [0.0; CLASSES],
            rates: [0.0; CLASSES],
        }
    }
}

impl Level {
    pub(super) fn needed(&mut self, now: Moment) {
        let Some(since) = self.since.take() else {
            return;
        };
        self.times[class_of(now.saturating_sub(since)).min(CLASSES - 1)] += 1;
        self.count += 1;
        self.fresh += 1;
        if self.count >= MEMORY {
            self.count = 0;
            for times in &mut self.times {
                *times /= 2;
                self.count += u32::from(*times);
            }
        }
    }

    pub(super) fn left(&mut self, now: Moment) {
        self.since = Some(now);
    }

    /// Reckons anew where too much has changed; for how long the level is idle.
    fn idle(&mut self, now: Moment, price: f64, belief: &Belief) -> Option<Duration> {
        let since = self.since?;
        let change = self.price.max(price) / self.price.min(price);
        if self.fresh > self.count / 16 || change > CHANGE {
            self.appraise(price, belief);
        }
        Some(now.saturating_sub(since))
    }

    /// What a clone is worth at this price; nothing where the level was never left.
    pub(super) fn worth(&mut self, now: Moment, price: f64, belief: &Belief) -> f64 {
        let idle = self.idle(now, price, belief);
        idle.map_or(0.0, |idle| self.worth_after(idle))
    }

    /// How many cold starts a clone saves in a second, at best.
    pub(super) fn rate(&mut self, now: Moment, price: f64, belief: &Belief) -> f64 {
        let class = self.idle(now, price, belief).map(class_of);
        let rate = class.and_then(|class| self.rates.get(class));
        rate.copied().unwrap_or(0.0)
    }

    /// Until when a clone's worth stays on its side of this one, at least, if nothing happens.
    pub(super) fn steady(&self, now: Moment, side: f64) -> Option<Moment> {
        let since = self.since?;
        let mut idle = now.saturating_sub(since);
        let is_above = self.worth_after(idle) > side;
        for _ in 0..CHANGES {
            if class_of(idle) >= CLASSES {
                return None;
            }
            let ahead = lower(class_of(idle + AHEAD) + 1).saturating_sub(AHEAD);
            idle = lower(class_of(idle) + 1).min(ahead);
            if (self.worth_after(idle) > side) != is_above {
                break;
            }
        }
        Some(since + idle)
    }

    /// As it was reckoned last. What is about to be worth something is worth it already.
    fn worth_after(&self, idle: Duration) -> f64 {
        let at = |idle| self.worths.get(class_of(idle)).copied().unwrap_or(-1.0);
        f64::max(at(idle), at(idle + AHEAD))
    }

    /// Reckons from the last class to the first.
    ///
    /// A class costs the price of a clone until the level is needed or the class ends; or, without
    /// a clone, a cold start if it is needed. At its end a clone may be let go of, for nothing, or
    /// made, for [`MAKING`]: whatever is expected to cost less. The worth is the difference.
    ///
    /// The rate is the Gittins index: cold starts saved over time held, to the class where their
    /// ratio is best. In a plot of one over the other it is the slope to the upper hull.
    fn appraise(&mut self, price: f64, belief: &Belief) {
        self.fresh = 0;
        self.price = price;
        let (mut with, mut without) = (1.0_f64, 1.0_f64);
        let mut left = belief.longer;
        // In seconds and in cold starts, both counted backwards from the end.
        let mut here = (0.0, 0.0);
        let mut hull = [here; CLASSES + 1];
        let mut corner = 0;
        let slope = |from: (f64, f64), to: (f64, f64)| (to.1 - from.1) / (to.0 - from.0);
        for class in (0..CLASSES).rev() {
            let times = f64::from(self.times[class]) + belief.times[class];
            left += times;
            let needed = times / left;
            let held = belief.spans[class] * (1.0 - needed / 2.0);
            let after = (with.min(without), without.min(with + MAKING));
            with = held * price + (1.0 - needed) * after.0;
            without = needed + (1.0 - needed) * after.1;
            self.worths[class] = without - with;

            here = (here.0 - held * left, here.1 - times);
            while corner > 0 && slope(here, hull[corner]) <= slope(here, hull[corner - 1]) {
                corner -= 1;
            }
            self.rates[class] = slope(here, hull[corner]);
            corner += 1;
            hull[corner] = here;
        }
    }
}

/// The class of an idle time; beyond the last for those that are too long.
fn class_of(idle: Duration) -> usize {
    let ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
    if ms >> SHORT == 0 {
        return 0;
    }
    let log = ms.ilog2();
    let eighth = (ms >> (log - 3)) & 7;
    let class = u64::from(log - SHORT) * 8 + eighth + 1;
    usize::try_from(class).unwrap_or(usize::MAX)
}

/// Where a class begins.
fn lower(class: usize) -> Duration {
    let Some(class) = class.checked_sub(1) else {
        return Duration::ZERO;
    };
    let eighths = u64::try_from(8 + class % 8).unwrap_or(8);
    Duration::from_millis((eighths << (SHORT - 3)) << (class / 8).min(32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_idle_time_lies_within_its_class(ms in 0_u64..100_000_000) {
            let idle = Duration::from_millis(ms);
            let class = class_of(idle);
            prop_assert!(lower(class) <= idle && idle < lower(class + 1));
        }

        /// Whatever was learnt, and at any price: a clone saves one cold start at most, and what
        /// one saves without any memory is finite.
        #[test]
        fn worths_and_rates_are_finite(
            idle in prop::collection::vec(0_u64..200_000_000, 0..600), price in 1e-9_f64..1e3,
        ) {
            let config = PoolConfig::default();
            let belief = Belief::new(&config, 1.0 / 1200.0);
            let mut level = Level::default();
            let mut now = Duration::ZERO;
            for ms in idle {
                level.left(now);
                now += Duration::from_millis(ms);
                level.needed(now);
            }
            level.appraise(price, &belief);
            prop_assert!(level.worths.iter().all(|worth| worth.is_finite() && *worth <= 1.0));
            prop_assert!(level.rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0));
        }
    }
}
