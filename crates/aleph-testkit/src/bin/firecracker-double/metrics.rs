//! Metrics: one JSON object on a line, at each flush.
//!
//! Of the real one's numbers those are here that the double can know: requests by kind and how
//! long snapshots took. The other groups are there and empty.

use crate::bodies;
use crate::logger;
use crate::version::Version;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a line is written unasked.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// The metrics of one process.
#[derive(Debug)]
pub(crate) struct Metrics {
    file: Option<File>,
    of: Option<Value>,
    properties: Option<BTreeMap<String, String>>,
    /// What was counted since the last line: group, name, how often.
    counted: BTreeMap<(&'static str, &'static str), u64>,
    /// How long things took last, in microseconds.
    latencies: BTreeMap<&'static str, u64>,
    /// When the next line is due.
    pub(crate) due: Instant,
}

/// Groups that are always there.
const GROUPS: [&str; 19] = [
    "api_server",
    "balloon",
    "block",
    "deprecated_api",
    "get_api_requests",
    "i8042",
    "logger",
    "mmds",
    "net",
    "patch_api_requests",
    "put_api_requests",
    "seccomp",
    "vcpu",
    "vmm",
    "uart",
    "signals",
    "vsock",
    "entropy",
    "latencies_us",
];

impl Metrics {
    /// Metrics that go nowhere yet.
    pub(crate) fn new() -> Self {
        Self {
            file: None,
            of: None,
            properties: None,
            counted: BTreeMap::new(),
            latencies: BTreeMap::new(),
            due: Instant::now() + INTERVAL,
        }
    }

    /// Has them written. Once only.
    pub(crate) fn start(
        &mut self,
        config: &bodies::Metrics,
        id: &str,
        version: Version,
    ) -> Result<(), String> {
        const PREFIX: &str = "Cannot initialize the metrics system due to bad user input: ";
        if self.file.is_some() {
            return Err(format!("{PREFIX}Reinitialization of metrics not allowed."));
        }
        let file = logger::open(&config.metrics_path, version)
            .map_err(|error| format!("{PREFIX}{}", crate::fault::os_text(&error)))?;
        self.file = Some(file);
        if version.has(17) {
            self.of = config.emit_id.then(|| json!(id));
            self.properties.clone_from(&config.properties);
        }
        Ok(())
    }

    /// Counts something.
    pub(crate) fn count(&mut self, group: &'static str, name: &'static str) {
        *self.counted.entry((group, name)).or_default() += 1;
    }

    /// Notes how long something took.
    pub(crate) fn took(&mut self, name: &'static str, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.latencies.insert(name, micros);
    }

    /// Writes a line, where there is a file.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.due = Instant::now() + INTERVAL;
        let Some(mut file) = self.file.as_ref() else {
            return Ok(());
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.unwrap_or_default().as_millis();
        let mut line = Map::new();
        line.insert(
            "utc_timestamp_ms".into(),
            json!(u64::try_from(now).unwrap_or(0)),
        );
        line.extend(self.of.clone().map(|id| ("id".to_owned(), id)));
        let properties = self.properties.as_ref().map(|all| json!(all));
        line.extend(properties.map(|all| ("properties".to_owned(), all)));
        for group in GROUPS {
            line.insert(group.into(), json!({}));
        }
        for ((group, name), count) in std::mem::take(&mut self.counted) {
            line.entry(group).or_insert_with(|| json!({}))[name] = json!(count);
        }
        for name in [
            "full_create_snapshot",
            "diff_create_snapshot",
            "load_snapshot",
            "pause_vm",
            "resume_vm",
        ] {
            line["latencies_us"][name] = json!(self.latencies.get(name).copied().unwrap_or(0));
        }
        file.write_all(format!("{}\n", Value::Object(line)).as_bytes())
    }
}
