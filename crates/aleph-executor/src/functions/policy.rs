//! How many clones a deployment keeps, and in which state: pure.
//!
//! | temperature | what it is | what it costs |
//! | --- | --- | --- |
//! | hot | a clone that runs and has nothing to do | memory, and a little CPU |
//! | warm | one that is paused | memory |
//! | cold | the template alone | disk |
//!
//! How long a clone is kept is learnt from the gaps between events: as long as all but one in
//! twenty of them, within bounds. Until there are enough of them it is the configured time. How
//! many are kept is what was busy at once within that time; more than that are let go of sooner.
//! (The idea: Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4.)

use std::collections::VecDeque;
use std::time::Duration;

/// A time, counted from whenever the owner began.
pub(super) type Moment = Duration;

/// Gaps are sorted into classes that double, from a millisecond on.
const CLASSES: usize = 32;

/// How many gaps it takes to learn from them.
const ENOUGH: u32 = 8;

/// How many gaps are remembered: then all count half.
const MEMORY: u32 = 512;

/// How a deployment's clones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// How long an idle clone runs before it is paused.
    pub linger: Duration,
    /// How long one is kept while nothing is known of the function.
    pub idle_timeout: Duration,
    /// The shortest time that one is kept, whatever is learnt.
    pub shortest: Duration,
    /// The longest.
    pub longest: Duration,
    /// How many clones more than are busy a deployment has that was busy lately, so that the next
    /// event that comes beside them meets one that is ready.
    pub spares: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(600),
            shortest: Duration::from_secs(60),
            longest: Duration::from_secs(3600),
            spares: 1,
        }
    }
}

/// What is known of a function's events.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrivals {
    last: Option<Moment>,
    gaps: [u32; CLASSES],
    count: u32,
    /// The most that were busy at once, by when: falling.
    peaks: VecDeque<(Moment, usize)>,
}

impl Arrivals {
    /// Takes an event in; `busy` are those that are under way with it.
    pub(super) fn arrived(&mut self, now: Moment, busy: usize) {
        if let Some(last) = self.last {
            self.gaps[class_of(now.saturating_sub(last))] += 1;
            self.count += 1;
            if self.count >= MEMORY {
                self.count = 0;
                for gap in &mut self.gaps {
                    *gap /= 2;
                    self.count += *gap;
                }
            }
        }
        self.last = Some(now);
        while self.peaks.back().is_some_and(|(_, peak)| *peak <= busy) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, busy));
    }

    /// How long a clone is kept.
    pub(super) fn keep(&self, config: &PoolConfig) -> Duration {
        if self.count < ENOUGH {
            return config.idle_timeout;
        }
        let most = self.count - self.count / 20;
        let mut seen = 0;
        for (class, gaps) in self.gaps.iter().enumerate() {
            seen += gaps;
            if seen >= most {
                return upper(class).clamp(config.shortest, config.longest);
            }
        }
        config.longest
    }

    /// When the last event came.
    pub(super) fn last(&self) -> Option<Moment> {
        self.last
    }

    /// The most that were busy at once since `from`.
    fn peak(&mut self, from: Moment) -> usize {
        while self.peaks.front().is_some_and(|(at, _)| *at < from) {
            self.peaks.pop_front();
        }
        self.peaks.front().map_or(0, |(_, peak)| *peak)
    }
}

fn class_of(gap: Duration) -> usize {
    let ms = gap.as_millis().max(1);
    usize::try_from(ms.ilog2()).map_or(CLASSES - 1, |class| class.min(CLASSES - 1))
}

/// The longest gap of a class.
fn upper(class: usize) -> Duration {
    Duration::from_millis(1_u64 << (class + 1).min(40))
}

/// An idle clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Idle {
    /// Since when.
    pub(super) since: Moment,
    /// Whether it is paused.
    pub(super) paused: bool,
}

/// What is to be done about a deployment's clones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Which idle clones are to be paused, by place.
    pub(super) pause: Vec<usize>,
    /// Which are to go, by place.
    pub(super) drop: Vec<usize>,
    /// How many are to be made ready.
    pub(super) make: usize,
}

/// Decides. `idle` are the idle clones, the one used last at the end; `busy` how many are not, and
/// `coming` how many are about to be idle.
pub(super) fn plan(
    now: Moment,
    (idle, busy, coming): (&[Idle], usize, usize),
    arrivals: &mut Arrivals,
    provisioned: usize,
    config: &PoolConfig,
) -> Plan {
    let keep = arrivals.keep(config);
    let is_old = arrivals
        .last()
        .is_none_or(|last| now.saturating_sub(last) >= keep);
    let peak = arrivals.peak(now.saturating_sub(keep));
    let is_busy = arrivals
        .last()
        .is_some_and(|last| now.saturating_sub(last) < config.shortest);
    let spares = if is_busy { config.spares } else { 0 };
    let wanted = if is_old { 0 } else { peak + spares }.max(provisioned);
    let mut plan = Plan::default();
    let all = idle.len() + busy + coming;
    // Those that were used last stay, as they are the warmest.
    let surplus = all.saturating_sub(wanted).min(idle.len());
    for (at, clone) in idle.iter().enumerate() {
        let idle_for = now.saturating_sub(clone.since);
        // One above what was needed lately goes after the shortest time.
        if at < surplus && (is_old || idle_for >= config.shortest.min(keep)) {
            plan.drop.push(at);
        } else if !clone.paused && idle_for >= config.linger {
            plan.pause.push(at);
        }
    }
    let short = spares.saturating_sub(idle.len() + coming);
    plan.make = provisioned.saturating_sub(all).max(short);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn config() -> PoolConfig {
        PoolConfig::default()
    }

    #[test]
    fn nothing_known_is_the_configured_time() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.keep(&config()), S(600));
        arrivals.arrived(S(1), 1);
        assert_eq!(arrivals.keep(&config()), S(600));
    }

    #[test]
    fn a_function_that_is_called_every_second_is_kept_a_minute() {
        let mut arrivals = Arrivals::default();
        (0..100).for_each(|at| arrivals.arrived(S(at), 1));
        assert_eq!(arrivals.keep(&config()), S(60));
    }

    #[test]
    fn one_that_is_called_every_twenty_minutes_is_kept_longer_than_that() {
        let mut arrivals = Arrivals::default();
        (0..20).for_each(|at| arrivals.arrived(S(at * 1200), 1));
        let keep = arrivals.keep(&config());
        assert!(keep > S(1200) && keep <= S(3600), "{keep:?}");
    }

    #[test]
    fn an_idle_clone_is_paused_and_goes_in_the_end() {
        let mut arrivals = Arrivals::default();
        arrivals.arrived(S(0), 1);
        let idle = |paused| Idle {
            since: S(0),
            paused,
        };
        let at = |now, paused, arrivals: &mut Arrivals| {
            plan(S(now), (&[idle(paused)], 0, 0), arrivals, 0, &config())
        };
        let early = at(1, false, &mut arrivals);
        assert_eq!((early.pause, early.drop, early.make), (vec![], vec![], 0));
        let busy = plan(S(1), (&[], 1, 0), &mut arrivals, 0, &config());
        assert_eq!(busy.make, 1, "the next one that comes beside it");
        let soon = plan(S(1), (&[], 1, 1), &mut arrivals, 0, &config());
        assert_eq!(soon.make, 0);
        assert_eq!(at(2, false, &mut arrivals).pause, [0]);
        let later = at(300, true, &mut arrivals);
        assert_eq!((later.pause, later.drop, later.make), (vec![], vec![], 0));
        assert_eq!(at(600, true, &mut arrivals).drop, [0]);
    }

    #[test]
    fn what_was_needed_at_once_is_kept_and_the_rest_goes_sooner() {
        let mut arrivals = Arrivals::default();
        (1..=3).for_each(|busy| arrivals.arrived(S(0), busy));
        let idle = [Idle {
            since: S(1),
            paused: true,
        }; 5];
        let plan = plan(S(70), (&idle, 0, 0), &mut arrivals, 0, &config());
        assert_eq!(plan.drop, [0, 1], "those that were used last stay");
    }

    #[test]
    fn what_is_provisioned_is_there_whether_it_is_used_or_not() {
        let mut arrivals = Arrivals::default();
        let none = plan(S(0), (&[], 0, 0), &mut arrivals, 3, &config());
        assert_eq!(none.make, 3);
        let idle = [Idle {
            since: S(0),
            paused: true,
        }; 3];
        let old = plan(S(100_000), (&idle, 0, 0), &mut arrivals, 3, &config());
        assert_eq!(old, Plan::default());
    }

    proptest! {
        /// Whatever came before: no clone is paused and let go of at once, none below what is
        /// provisioned goes, and a function that nobody calls keeps nothing else in the end.
        #[test]
        fn plans_are_sound(
            events in prop::collection::vec((0_u64..5_000, 1_usize..20), 0..200),
            clones in prop::collection::vec((0_u64..500_000, any::<bool>()), 0..30),
            provisioned in 0_usize..5, busy in 0_usize..5,
        ) {
            let mut arrivals = Arrivals::default();
            let mut now = Duration::ZERO;
            for (gap, busy) in events {
                now += Duration::from_millis(gap);
                arrivals.arrived(now, busy);
            }
            let idle: Vec<Idle> = clones
                .into_iter()
                .map(|(ms, paused)| Idle { since: now.saturating_sub(Duration::from_millis(ms)), paused })
                .collect();
            let plan_now = plan(now, (&idle, busy, 0), &mut arrivals, provisioned, &config());
            prop_assert!(plan_now.drop.iter().all(|at| !plan_now.pause.contains(at)));
            let left = idle.len() - plan_now.drop.len() + busy + plan_now.make;
            prop_assert!(left >= provisioned);
            let late = now + config().longest * 2;
            let plan_late = plan(late, (&idle, 0, 0), &mut arrivals, provisioned, &config());
            prop_assert_eq!(idle.len() - plan_late.drop.len(), provisioned.min(idle.len()));
        }
    }
}
