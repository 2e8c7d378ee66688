//! Figures of functions for Prometheus.
//!
//! | series | what it is |
//! | --- | --- |
//! | `aleph_function_invocations_total{outcome}` | `success`; `handled` and `unhandled` errors; `throttled`; `refused`: it could not be run |
//! | `aleph_function_starts_total{temperature}` | what took an invocation: `hot`, `warm` or `cold` |
//! | `aleph_function_duration_seconds{part}` | where the time went: `queue`, `resume`, `function` |
//! | `aleph_function_concurrent_executions` | what runs now |
//! | `aleph_function_events_waiting` | events in the queue, those under way included |
//! | `aleph_function_events_oldest_seconds` | since when the oldest of them is there |
//! | `aleph_function_clones{state}` | its clones: `busy`, `hot`, `warm`, `coming` |
//! | `aleph_function_dead_letters_total` | events that could not be carried out |
//!
//! Each has the labels `account` and `function` and no more: versions and aliases count together,
//! so that there are few series. They are those of one daemon and begin at nought with it; what
//! waits is counted anew from the journal. A function's series go with it: what is encoded is
//! what is in the registry. An invocation that ends after that is counted nowhere.

use super::Functions;
use super::invocation::{Answer, NotRun};
use aleph_executor::functions::{
    Clones, Completed, FunctionError, InvokeError, Temperature, Timings,
};
use aleph_executor::node::Scope;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How an invocation ends.
const OUTCOMES: [&str; 5] = ["success", "handled", "unhandled", "throttled", "refused"];
const TEMPERATURES: [&str; 3] = ["hot", "warm", "cold"];
const STATES: [&str; 4] = ["busy", "hot", "warm", "coming"];
const PARTS: [&str; 3] = ["queue", "resume", "function"];

/// What is counted of one function.
#[derive(Debug)]
pub(crate) struct Series {
    outcomes: [Counter; OUTCOMES.len()],
    starts: [Counter; TEMPERATURES.len()],
    parts: [Histogram; PARTS.len()],
    running: Gauge,
    letters: Counter,
    /// Events that wait, by when they were accepted, in milliseconds since 1970.
    waiting: Mutex<BTreeMap<i64, u64>>,
}

/// From a tenth of a millisecond to the longest that a function may take.
const BOUNDS: [f64; 17] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
    300.0, 900.0,
];

impl Default for Series {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            starts: Default::default(),
            parts: std::array::from_fn(|_| Histogram::new(BOUNDS)),
            running: Gauge::default(),
            letters: Counter::default(),
            waiting: Mutex::default(),
        }
    }
}

/// An invocation that runs, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Series>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}

impl Series {
    /// An invocation begins.
    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.running.inc();
        Running(Arc::clone(self))
    }

    /// An invocation has ended: how, as it is counted.
    pub(crate) fn ended(&self, done: &Result<Answer, NotRun>) -> &'static str {
        let outcome = match done {
            Ok(answer) => {
                self.timed(&answer.completed);
                match answer.completed.error {
                    None => 0,
                    Some(FunctionError::Handled) => 1,
                    Some(FunctionError::Unhandled) => 2,
                }
            }
            Err(NotRun::Invoke(InvokeError::Throttled { .. })) => 3,
            Err(_) => 4,
        };
        self.outcomes[outcome].inc();
        OUTCOMES[outcome]
    }

    fn timed(&self, completed: &Completed) {
        let Timings {
            queue,
            resume,
            function,
        } = completed.timings;
        for (histogram, span) in self.parts.iter().zip([queue, resume, function]) {
            histogram.observe(span.as_secs_f64());
        }
        let temperature = match completed.temperature {
            Temperature::Hot => 0,
            Temperature::Warm => 1,
            Temperature::Cold => 2,
        };
        self.starts[temperature].inc();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many events that were accepted then wait.
    pub(crate) fn wait(&self, accepted: i64, events: u64) {
        *self.lock().entry(accepted).or_default() += events;
    }

    /// An event that was accepted then waits no more.
    pub(crate) fn settle(&self, accepted: i64) {
        let mut waiting = self.lock();
        if let Some(count) = waiting.get_mut(&accepted) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&accepted);
            }
        }
    }

    /// An event could not be carried out.
    pub(crate) fn bury(&self) {
        self.letters.inc();
    }

    /// How many events wait, and since when the first of them does.
    fn queue(&self) -> (u64, Option<i64>) {
        let waiting = self.lock();
        let first = waiting.first_key_value().map(|(accepted, _)| *accepted);
        (waiting.values().sum(), first)
    }
}

/// The functions of each account, by name.
type ByAccount = HashMap<String, HashMap<String, Arc<Series>>>;

/// What is counted of all functions.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<ByAccount>);

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, ByAccount> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted of a function.
    pub(crate) fn of(&self, account: &str, function: &str) -> Arc<Series> {
        let mut all = self.lock();
        let found = all.get(account).and_then(|own| own.get(function));
        if let Some(found) = found {
            return Arc::clone(found);
        }
        let own = all.entry(account.to_owned()).or_default();
        Arc::clone(own.entry(function.to_owned()).or_default())
    }

    /// Forgets a function that is gone: the next of its name begins at nought.
    pub(crate) fn forget(&self, account: &str, function: &str) {
        let mut all = self.lock();
        if let Some(own) = all.get_mut(account) {
            own.remove(function);
            if own.is_empty() {
                all.remove(account);
            }
        }
    }
}

impl Functions {
    /// The figures of the functions that somebody may see.
    pub(crate) fn figures(&self, scope: &Scope) -> Registry {
        let mut series = Vec::new();
        let mut all = self.metrics.lock();
        all.retain(|account, own| {
            // What ended after its function was gone may have been counted again.
            own.retain(|name, _| self.registry.get(account, name).is_some());
            if scope.covers(account) {
                let own = own.iter();
                series.extend(own.map(|(name, one)| {
                    let names = Names {
                        account: account.clone(),
                        function: name.clone(),
                    };
                    (names, Arc::clone(one))
                }));
            }
            !own.is_empty()
        });
        drop(all);
        series.sort_by(|(a, _), (b, _)| a.cmp(b));
        let figures = Figures {
            series,
            clones: self.clones(scope),
            now: super::events::now(),
        };
        let mut registry = Registry::with_prefix("aleph");
        registry.register_collector(Box::new(figures));
        registry
    }

    /// The clones of functions that have any, all versions together.
    fn clones(&self, scope: &Scope) -> Vec<(Names, [u64; STATES.len()])> {
        let all = self.registry.all().into_iter();
        let mut functions: Vec<_> = all.filter(|f| scope.covers(&f.account)).collect();
        functions.sort_by(|a, b| (&a.account, &a.name).cmp(&(&b.account, &b.name)));
        let counted = functions.into_iter().map(|function| {
            let serving = function.all_versions().filter_map(|v| v.serving.as_ref());
            let clones = serving.filter_map(|deployment| self.runner.clones(&deployment.id()));
            let sum = clones.fold([0; STATES.len()], |mut sum, clones| {
                let Clones {
                    busy,
                    hot,
                    warm,
                    coming,
                } = clones;
                for (sum, count) in sum.iter_mut().zip([busy, hot, warm, coming]) {
                    *sum += u64::try_from(count).unwrap_or(u64::MAX);
                }
                sum
            });
            let names = Names {
                account: function.account.clone(),
                function: function.name.clone(),
            };
            (names, sum)
        });
        counted
            .filter(|(_, sum)| *sum != [0; STATES.len()])
            .collect()
    }
}

/// What all series of a function have as labels.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    account: String,
    function: String,
}

/// Figures as they are encoded.
#[derive(Debug)]
struct Figures {
    series: Vec<(Names, Arc<Series>)>,
    clones: Vec<(Names, [u64; STATES.len()])>,
    /// Milliseconds since 1970.
    now: i64,
}

impl Names {
    /// Encodes a figure with its labels, and one more where it has one.
    fn encode(
        &self,
        encoder: &mut MetricEncoder<'_>,
        more: Option<(&str, &str)>,
        figure: &impl EncodeMetric,
    ) -> fmt::Result {
        let own = [("account", &*self.account), ("function", &*self.function)];
        let labels: Vec<_> = own.into_iter().chain(more).collect();
        figure.encode(encoder.encode_family(&labels)?)
    }
}

impl Figures {
    /// Encodes a family with a figure for each function and value of a label.
    fn by<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, kind): (&str, &str, MetricType),
        (label, values): (&str, &[&str]),
        figures: impl Fn(&Series) -> &[M],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (names, series) in &self.series {
            for (value, figure) in values.iter().zip(figures(series)) {
                names.encode(&mut family, Some((label, value)), figure)?;
            }
        }
        Ok(())
    }

    /// Encodes a family with a figure for each function.
    fn each<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, kind): (&str, &str, MetricType),
        figure: impl Fn(&Series) -> M,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (names, series) in &self.series {
            names.encode(&mut family, None, &figure(series))?;
        }
        Ok(())
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge, Histogram};
        let encoder = &mut encoder;
        let help = "Invocations of a function, by how they ended";
        let family = ("function_invocations", help, Counter);
        self.by(encoder, family, ("outcome", &OUTCOMES), |s| &s.outcomes)?;
        let help = "Invocations of a function, by the state of what took them";
        let family = ("function_starts", help, Counter);
        self.by(encoder, family, ("temperature", &TEMPERATURES), |s| {
            &s.starts
        })?;
        let help = "Where the time of a function's invocations went";
        let family = ("function_duration_seconds", help, Histogram);
        self.by(encoder, family, ("part", &PARTS), |s| &s.parts)?;
        let help = "Invocations of a function that run now";
        let family = ("function_concurrent_executions", help, Gauge);
        self.each(encoder, family, |s| s.running.clone())?;
        let help = "Events that wait for a function, or are under way";
        let family = ("function_events_waiting", help, Gauge);
        self.each(encoder, family, |s| ConstGauge::new(s.queue().0))?;
        let help = "Since when the oldest event that waits for a function is there";
        let family = ("function_events_oldest_seconds", help, Gauge);
        self.each(encoder, family, |s| {
            ConstGauge::new(age(s.queue().1, self.now))
        })?;
        let help = "Clones of a function, by state";
        let mut family = encoder.encode_descriptor("function_clones", help, None, Gauge)?;
        for (names, counts) in &self.clones {
            for (state, count) in STATES.iter().zip(counts) {
                let figure = ConstGauge::new(*count);
                names.encode(&mut family, Some(("state", state)), &figure)?;
            }
        }
        let help = "Events of a function that could not be carried out";
        let family = ("function_dead_letters", help, Counter);
        self.each(encoder, family, |s| s.letters.clone())
    }
}

/// Seconds since then.
fn age(then: Option<i64>, now: i64) -> f64 {
    let milliseconds = then.map_or(0, |then| now.saturating_sub(then));
    u64::try_from(milliseconds).map_or(0.0, |milliseconds| {
        std::time::Duration::from_millis(milliseconds).as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode_registry;

    #[test]
    fn labels_are_escaped_and_what_waits_has_an_age() {
        let series = Arc::new(Series::default());
        series.wait(1_000, 2);
        series.wait(3_000, 1);
        series.settle(1_000);
        series.settle(9_000);
        series.bury();
        let running = series.run();
        let names = || Names {
            account: "a\"b\\c\n".into(),
            function: "f".into(),
        };
        let mut registry = Registry::with_prefix("aleph");
        registry.register_collector(Box::new(Figures {
            series: vec![(names(), Arc::clone(&series))],
            clones: vec![(names(), [1, 2, 3, 4])],
            now: 3_500,
        }));
        let encoded = || {
            let mut text = String::new();
            encode_registry(&mut text, &registry).unwrap();
            text
        };
        let (text, of) = (encoded(), r#"account="a\"b\\c\n",function="f""#);
        for line in [
            format!("aleph_function_events_waiting{{{of}}} 2"),
            format!("aleph_function_events_oldest_seconds{{{of}}} 2.5"),
            format!("aleph_function_dead_letters_total{{{of}}} 1"),
            format!("aleph_function_clones{{{of},state=\"warm\"}} 3"),
            format!("aleph_function_concurrent_executions{{{of}}} 1"),
            format!("aleph_function_invocations_total{{{of},outcome=\"success\"}} 0"),
            format!("aleph_function_duration_seconds_count{{{of},part=\"queue\"}} 0"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        drop(running);
        series.settle(1_000);
        series.settle(3_000);
        let text = encoded();
        assert!(
            text.contains(&format!("oldest_seconds{{{of}}} 0.0")),
            "{text}"
        );
        assert!(text.contains(&format!("executions{{{of}}} 0")), "{text}");
    }
}
