//! A day of 1,000 functions against the pools' policy, in virtual time.
//!
//! It replays decisions: the runtime's own policy, driven as the runtime drives it, with a memory
//! limit and clones that take time to be made. There are no templates and no VMs in it, and what an
//! event waits for is a constant for each temperature. The peer is the plain rule that clouds began
//! with: each clone is kept for 10 minutes after its last event, and the one that is idle for longest
//! goes where memory is short.
//!
//! | file | what it is |
//! | --- | --- |
//! | `trace` | the day, in the form of the Azure Functions dataset, and what is assumed of it |
//! | `simulation` | the pools of a host |
//!
//! An event that meets a clone which was made ahead is not cold, but waits longer than for a paused
//! one; that is in the times. The policy's constants were chosen on this very day; on days of two
//! other seeds it saves about as much.
//!
//! With `ALEPH_BENCH_AZURE_TRACE=DIR` the day is the first one of the dataset's files in that folder.
//!
//! # Failure cases
//! Files that are not the dataset's are an error of the run. An event for which all memory is busy is
//! throttled; those are counted, and in no share.

mod simulation;
mod trace;

use crate::row::Row;
use aleph_executor::functions::policy::PoolConfig;
use anyhow::Result;
use simulation::{Costs, Fixed, Keeper, Learnt, Outcome, Simulation};
use std::path::Path;
use std::time::Duration;
use trace::{Event, Function};

const FUNCTIONS: u32 = 1000;
/// Of the day, about.
const EVENTS: f64 = 800_000.0;
const SEED: u64 = 2019;
/// A function of the real dataset that is called more often is left out.
const MOST: u32 = 300_000;
/// What a clone takes, in GiB.
const CLONE: f64 = 0.125;
/// In clones, and in words.
const LIMITS: [(usize, &str); 5] = [
    (32, "4 GiB"),
    (64, "8 GiB"),
    (128, "16 GiB"),
    (256, "32 GiB"),
    (usize::MAX, "any memory"),
];

/// Medians of `bench/results.json` on an emulated host of two cores: a native function that is hot,
/// paused, made ahead, and cold. Making one ahead takes as long as a cold start, and priming it.
const COSTS: Costs = Costs {
    hot: Duration::from_micros(2_480),
    warm: Duration::from_micros(3_490),
    ahead: Duration::from_micros(16_560),
    cold: Duration::from_micros(189_710),
    making: Duration::from_micros(400_000),
};

pub(super) fn replay() -> Result<Vec<Row>> {
    let (day, name) = match std::env::var_os("ALEPH_BENCH_AZURE_TRACE") {
        Some(dir) => {
            let functions = usize::try_from(FUNCTIONS)?;
            (trace::read(Path::new(&dir), functions, MOST)?, "Azure's")
        }
        None => (trace::generate(FUNCTIONS, EVENTS, SEED), "a made"),
    };
    let events = trace::events(&day, SEED);
    let learnt = Learnt::new(PoolConfig::default());
    let fixed = Fixed {
        keep: Duration::from_secs(600),
        linger: PoolConfig::default().linger,
    };
    let mut rows = Vec::new();
    for (limit, memory) in LIMITS {
        let name = format!(
            "policy alone, in virtual time: {name} day of {} functions, {memory}",
            day.len()
        );
        let ours = run(&learnt, &day, &events, limit);
        let plain = run(&fixed, &day, &events, limit);
        rows.extend(compare(&name, &day, &ours, &plain));
    }
    Ok(rows)
}

fn run<K: Keeper + Clone>(keeper: &K, day: &[Function], events: &[Event], limit: usize) -> Outcome {
    Simulation::new(keeper, day.len(), limit, COSTS).run(events)
}

fn compare(name: &str, day: &[Function], ours: &Outcome, plain: &Outcome) -> [Row; 7] {
    const PEER: &str = "10 minutes' keep-alive";
    let pair = |what: &str, unit: &'static str, of: &dyn Fn(&Outcome) -> f64| {
        Row::new(format!("{name}: {what}"), unit, &[of(ours)]).against(PEER, &[of(plain)])
    };
    let ms = |time: Duration| time.as_secs_f64() * super::MILLI;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let count = |count: u64| count as f64;
    [
        pair("cold starts", "%", &Outcome::cold_share).at_most_times(1.0),
        pair("cold starts, the median function", "%", &|outcome| {
            median_share(day, outcome)
        }),
        pair("memory held on average", "GiB", &|outcome| {
            outcome.mean_held() * CLONE
        })
        .at_most_times(1.0),
        pair("event to clone, p99", "ms", &|outcome| {
            ms(outcome.waits(&COSTS).0)
        }),
        pair("event to clone, mean", "ms", &|outcome| {
            ms(outcome.waits(&COSTS).1)
        }),
        pair("clones made, cold and ahead", "", &|outcome| {
            count(outcome.made())
        }),
        pair("events throttled", "", &|outcome| count(outcome.throttled)),
    ]
}

/// The share of a function's events that are cold, in hundredths: of the median of those that have
/// any.
fn median_share(day: &[Function], outcome: &Outcome) -> f64 {
    let shares = day.iter().zip(&outcome.cold_of);
    let mut shares: Vec<f64> = shares
        .filter_map(|(function, cold)| {
            let events: u32 = function.counts.iter().sum();
            (events > 0).then(|| 100.0 * f64::from(*cold) / f64::from(events))
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    shares.get(shares.len() / 2).copied().unwrap_or(f64::NAN)
}
