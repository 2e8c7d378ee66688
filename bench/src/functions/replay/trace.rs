//! A day of events in the form of the Azure Functions dataset of 2019.
//!
//! The form: for each function its trigger, how often it ran in each of the day's 1440 minutes, and
//! percentiles of how long (`AzureFunctionsDataset2019.md` in Azure/AzurePublicDataset). The data
//! itself is not carried. [`generate`] makes a day of the same form from a seed; [`read`] reads the
//! dataset's own files, where one has them. [`events`] turns either into events.
//!
//! # What is assumed
//! "The paper" is Shahrad et al., "Serverless in the Wild", USENIX ATC 2020.
//!
//! | what | as | from |
//! | --- | --- | --- |
//! | popularity | Zipf with exponent 1.5, so that 45% of functions run once an hour or less | the bar asks for Zipf; the paper has the 45%, of applications |
//! | triggers | 55% HTTP, 15% queue, 2% event, 16% timer, 7% orchestration, 5% others; events and queues more often among the tenth that is called most, and in turn among the nine first but for one of HTTP | the paper, figure 2: event and queue have 58% of all invocations |
//! | timers | a period from a minute to a day, of the function's popularity; half of them begin at the full hour | ours |
//! | HTTP, others | half Poisson, half in sessions of 8 calls on average, 20 s apart on average | ours: people call in sessions |
//! | day and night | a sine; the quietest time has about half of the busiest | the paper, figure 4 |
//! | queues, storage, orchestration | in bursts of 10 on average within 5 s | ours |
//! | events | evenly | ours: devices that report |
//! | durations | a function's median is log-normal (µ −0.38, σ 2.36, in seconds), at most a minute; its runs are log-normal around it (σ 0.5) | fits the paper: 20% of functions take less than 0.1 s on average, half less than 1 s, 4% more than 60 s; the bound and the spread are ours |
//! | load | one that would keep more than a quarter of a clone busy on average runs shorter | ours: a host is given what it can run |
//! | within a minute | timers at their second, bursts close together, events evenly, the rest anywhere | ours: the dataset counts by the minute |

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

pub(super) const MINUTES: usize = 1440;
const DAY: f64 = 86_400.0;

/// Which function is how popular.
const EXPONENT: f64 = 1.5;
/// How many clones one keeps busy on average at most.
const LOAD: f64 = 0.25;
/// Periods of timers, in minutes.
const PERIODS: [u16; 12] = [1, 2, 5, 10, 15, 30, 60, 120, 240, 360, 720, 1440];
/// Which percentiles of the duration a function has.
const PERCENTS: [f64; 7] = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0];
/// The same of a normal distribution, with the ends cut.
const SCORES: [f64; 7] = [-3.0, -2.326, -0.674, 0.0, 0.674, 2.326, 3.0];
/// Columns of durations in the dataset.
const COLUMNS: [&str; 7] = [
    "percentile_Average_0",
    "percentile_Average_1",
    "percentile_Average_25",
    "percentile_Average_50",
    "percentile_Average_75",
    "percentile_Average_99",
    "percentile_Average_100",
];

/// The dataset's groups of triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trigger {
    Http,
    Queue,
    Event,
    Timer,
    Orchestration,
    Storage,
    Others,
}

impl Trigger {
    /// By their share of the tenth of the functions that is called most, and of the rest, in
    /// hundredths.
    const SHARES: [(Self, u64, u64); 7] = [
        (Self::Http, 47, 56),
        (Self::Queue, 30, 13),
        (Self::Event, 15, 1),
        (Self::Timer, 0, 18),
        (Self::Orchestration, 6, 7),
        (Self::Storage, 1, 3),
        (Self::Others, 1, 2),
    ];

    fn draw(is_popular: bool, random: &mut Random) -> Self {
        let mut at = random.below(100);
        for (trigger, popular, rest) in Self::SHARES {
            let share = if is_popular { popular } else { rest };
            if at < share {
                return trigger;
            }
            at -= share;
        }
        Self::Others
    }

    fn parse(name: &str) -> Self {
        match name {
            "http" => Self::Http,
            "queue" => Self::Queue,
            "event" => Self::Event,
            "timer" => Self::Timer,
            "orchestration" => Self::Orchestration,
            "storage" => Self::Storage,
            _ => Self::Others,
        }
    }
}

/// A row of the dataset.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Function {
    pub(super) trigger: Trigger,
    /// How many events there are in each minute.
    pub(super) counts: Vec<u32>,
    /// Percentiles of how long they take, in milliseconds.
    pub(super) durations: [f64; 7],
}

/// An event of a function, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) function: usize,
    pub(super) takes: Duration,
}

/// Makes a day of so many functions and about so many events.
pub(super) fn generate(functions: u32, total: f64, seed: u64) -> Vec<Function> {
    let weight = |rank: u32| f64::from(rank).powf(-EXPONENT);
    let all: f64 = (1..=functions).map(weight).sum();
    let one = |rank: u32| {
        let mut random = Random::new(seed, u64::from(rank));
        let rate = total * weight(rank) / all;
        let trigger = match rank {
            1 => Trigger::Http,
            2 | 4 | 6 | 8 => Trigger::Queue,
            3 | 5 | 7 | 9 => Trigger::Event,
            _ => Trigger::draw(rank <= functions / 10, &mut random),
        };
        let mut counts = vec![0; MINUTES];
        match trigger {
            Trigger::Timer => timer(rate, &mut counts, &mut random),
            Trigger::Event => evenly(rate, &mut counts, &mut random),
            Trigger::Queue | Trigger::Storage | Trigger::Orchestration => {
                clusters(rate, 10.0, 0.0, &mut counts, &mut random);
            }
            Trigger::Http | Trigger::Others if random.below(2) == 0 => {
                clusters(rate, 8.0, 20.0, &mut counts, &mut random);
            }
            Trigger::Http | Trigger::Others => {
                clusters(rate, 1.0, 0.0, &mut counts, &mut random);
            }
        }
        Function {
            trigger,
            counts,
            durations: durations(rate, &mut random),
        }
    };
    (1..=functions).map(one).collect()
}

fn timer(rate: f64, counts: &mut [u32], random: &mut Random) {
    let wanted = 1440.0 / rate;
    let distance = |period: u16| (f64::from(period).ln() - wanted.ln()).abs();
    let nearest = |a: &u16, b: &u16| distance(*a).total_cmp(&distance(*b));
    let period = PERIODS.into_iter().min_by(nearest).unwrap_or(1440);
    let begin = if random.below(2) == 0 {
        0
    } else {
        random.index(period.into())
    };
    for count in counts.iter_mut().skip(begin).step_by(period.into()) {
        *count += 1;
    }
}

fn evenly(rate: f64, counts: &mut [u32], random: &mut Random) {
    let mut due = random.fraction();
    for count in counts {
        due += rate / 1440.0;
        while due >= 1.0 {
            *count += 1;
            due -= 1.0;
        }
    }
}

/// Clusters that begin at any time, more of them by day, each of so many events on average, and so
/// many seconds apart.
fn clusters(rate: f64, size: f64, apart: f64, counts: &mut [u32], random: &mut Random) {
    let swing = random.fraction() * 2.0 / 3.0;
    let mut now = 0.0;
    loop {
        // More than at the busiest time; those that are too many are left out.
        now += random.exponential() * DAY * size / (rate * (1.0 + swing));
        if now >= DAY {
            return;
        }
        let level = 1.0 - swing * (now / DAY * std::f64::consts::TAU).cos();
        if random.fraction() * (1.0 + swing) > level {
            continue;
        }
        let mut at = now;
        loop {
            if let Some(count) = minute(at).and_then(|minute| counts.get_mut(minute)) {
                *count += 1;
            }
            if random.fraction() < 1.0 / size {
                break;
            }
            at += apart * random.exponential();
        }
    }
}

fn minute(at: f64) -> Option<usize> {
    usize::try_from(Duration::try_from_secs_f64(at).ok()?.as_secs() / 60).ok()
}

fn durations(rate: f64, random: &mut Random) -> [f64; 7] {
    const SPREAD: f64 = 0.5;
    let drawn = (-0.38 + 2.36 * random.normal()).exp().min(60.0);
    let mean_of_median = (SPREAD * SPREAD / 2.0_f64).exp();
    let median = drawn.min(LOAD * DAY / rate / mean_of_median);
    SCORES.map(|score| (1e3 * median * (SPREAD * score).exp()).max(1.0))
}

/// The events of all functions, in their order.
pub(super) fn events(functions: &[Function], seed: u64) -> Vec<Event> {
    let mut events = Vec::new();
    for (place, function) in functions.iter().enumerate() {
        let stream = u64::try_from(place).unwrap_or(u64::MAX);
        let mut random = Random::new(!seed, stream);
        let offset = random.fraction() * 2.0;
        for (minute, count) in (0_u32..).zip(&function.counts) {
            let begin = 60.0 * f64::from(minute);
            let burst = random.fraction() * 55.0;
            for nth in 0..*count {
                let at = match function.trigger {
                    Trigger::Timer => offset + 0.1 * random.fraction(),
                    Trigger::Event => (f64::from(nth) + offset / 2.0) * 60.0 / f64::from(*count),
                    Trigger::Queue | Trigger::Storage | Trigger::Orchestration => {
                        burst + 5.0 * random.fraction()
                    }
                    Trigger::Http | Trigger::Others => 60.0 * random.fraction(),
                };
                events.push(Event {
                    at: Duration::from_secs_f64(begin + at),
                    function: place,
                    takes: takes(&function.durations, random.fraction()),
                });
            }
        }
    }
    events.sort_unstable();
    events
}

/// The duration at a percentile, between those that are known.
fn takes(durations: &[f64; 7], percent: f64) -> Duration {
    let above = PERCENTS.iter().position(|known| *known >= percent);
    let above = above.unwrap_or(PERCENTS.len() - 1).max(1);
    let part = (percent - PERCENTS[above - 1]) / (PERCENTS[above] - PERCENTS[above - 1]);
    let ms = durations[above - 1] + part * (durations[above] - durations[above - 1]);
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
}

/// Reads the first day of the dataset: every so-manieth function, so that there are at most so
/// many, and none that was called more often than a host may be asked to.
pub(super) fn read(dir: &Path, functions: usize, most: u32) -> Result<Vec<Function>> {
    let text = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let durations = parse_durations(&text("function_durations_percentiles.anon.d01.csv")?)?;
    let all = parse_counts(
        &text("invocations_per_function_md.anon.d01.csv")?,
        &durations,
    )?;
    let is_fit = |function: &Function| {
        let events = function
            .counts
            .iter()
            .fold(0, |sum: u32, n| sum.saturating_add(*n));
        (1..=most).contains(&events)
    };
    let fit: Vec<Function> = all.into_iter().filter(is_fit).collect();
    let step = fit.len().div_ceil(functions).max(1);
    Ok(fit.into_iter().step_by(step).collect())
}

type Durations = HashMap<String, [f64; 7]>;

fn parse_durations(text: &str) -> Result<Durations> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("no header")?.split(',').collect();
    let column = |name: &str| {
        let at = header.iter().position(|column| *column == name);
        at.with_context(|| format!("no column {name}"))
    };
    let function = column("HashFunction")?;
    let mut columns = [0; 7];
    for (at, name) in columns.iter_mut().zip(COLUMNS) {
        *at = column(name)?;
    }
    let mut durations = Durations::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        let values = columns.map(|at| field(at).parse().unwrap_or(1.0));
        durations.insert(field(function).to_owned(), values);
    }
    Ok(durations)
}

fn parse_counts(text: &str, durations: &Durations) -> Result<Vec<Function>> {
    let mut lines = text.lines();
    let header = lines.next().context("no header")?;
    anyhow::ensure!(
        header.starts_with("HashOwner,HashApp,HashFunction,Trigger,1,2,"),
        "these are no invocations per minute: {header}"
    );
    let one = |line: &str| {
        let mut fields = line.split(',').skip(2);
        let name = fields.next().context("no function")?;
        let trigger = Trigger::parse(fields.next().context("no trigger")?);
        let counts: Vec<u32> = fields.map(str::parse).collect::<Result<_, _>>()?;
        anyhow::ensure!(counts.len() == MINUTES, "{} minutes", counts.len());
        Ok(Function {
            trigger,
            counts,
            // Some functions are in one file alone.
            durations: durations.get(name).copied().unwrap_or([100.0; 7]),
        })
    };
    lines.map(one).collect()
}

/// A small generator of numbers (SplitMix64: Steele, Lea and Flood, OOPSLA 2014), so that a seed
/// means the same whatever a library changes.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// At least 0 and less than 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn index(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.below(end)).unwrap_or(0)
    }

    /// With mean 1.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.fraction()).ln()
    }

    /// With mean 0 and deviation 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.fraction()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(function: &Function) -> u32 {
        function.counts.iter().sum()
    }

    #[test]
    fn a_day_is_as_the_paper_has_it() {
        let day = generate(1000, 800_000.0, 2019);
        let all: u32 = day.iter().map(total).sum();
        assert!((600_000..1_000_000).contains(&all), "{all}");
        let hourly = day.iter().filter(|one| total(one) <= 24).count();
        assert!((400..520).contains(&hourly), "{hourly}");
        let share = |trigger| day.iter().filter(|one| one.trigger == trigger).count();
        assert!((500..600).contains(&share(Trigger::Http)));
        assert!((120..180).contains(&share(Trigger::Queue)));
        assert!((130..190).contains(&share(Trigger::Timer)));
    }

    #[test]
    fn a_timer_comes_at_its_period() {
        let day = generate(1000, 800_000.0, 2019);
        let timer = |one: &&Function| one.trigger == Trigger::Timer && total(one) > 2;
        for function in day.iter().filter(timer) {
            let minutes = (0..MINUTES).filter(|minute| function.counts[*minute] > 0);
            let minutes: Vec<usize> = minutes.collect();
            let gaps: Vec<usize> = minutes.windows(2).map(|two| two[1] - two[0]).collect();
            assert!(gaps.iter().all(|gap| *gap == gaps[0]), "{gaps:?}");
        }
    }

    #[test]
    fn events_are_those_of_the_minutes_in_their_order() {
        let day = generate(50, 5_000.0, 1);
        let events = events(&day, 1);
        assert!(events.is_sorted());
        let mut counts = vec![vec![0; MINUTES]; day.len()];
        for event in &events {
            let minute = minute(event.at.as_secs_f64()).expect("a minute");
            counts[event.function][minute] += 1;
        }
        for (counted, function) in counts.iter().zip(&day) {
            assert_eq!(*counted, function.counts);
        }
    }

    /// Rows with the columns of the dataset, made up.
    #[test]
    fn the_files_of_the_dataset_are_read() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let minutes: Vec<String> = (1..=MINUTES).map(|minute| minute.to_string()).collect();
        let row = |count: &str| vec![count; MINUTES].join(",");
        std::fs::write(
            dir.path().join("invocations_per_function_md.anon.d01.csv"),
            format!(
                "HashOwner,HashApp,HashFunction,Trigger,{}\no,a,f,timer,{}\no,a,g,http,{}\n",
                minutes.join(","),
                row("1"),
                row("1000")
            ),
        )?;
        std::fs::write(
            dir.path()
                .join("function_durations_percentiles.anon.d01.csv"),
            format!(
                "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,{}\n\
                 o,a,f,5,1440,1,9,1,2,3,4,5,6,7\n",
                COLUMNS.join(",")
            ),
        )?;
        let day = read(dir.path(), 10, 100_000)?;
        assert_eq!(day.len(), 1, "one is called too often");
        assert_eq!(day[0].trigger, Trigger::Timer);
        assert_eq!(day[0].counts, vec![1; MINUTES]);
        assert_eq!(day[0].durations, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(events(&day, 1).len(), MINUTES);
        Ok(())
    }
}
