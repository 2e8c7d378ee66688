//! What Firecracker counts of itself: its metrics.
//!
//! It writes them to a pipe, a line of JSON as it starts, each minute and at its end. A task reads the
//! pipe as lines come, so that none is lost: Firecracker does not wait for a reader, and a full pipe
//! costs it the line. Most numbers in a line are what was added since the line before; they are summed
//! here. Those that are not are named in [`is_level`], by Firecracker's `logger/metrics.rs`.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | a line is no JSON, or longer than any of Firecracker's | it is left out |
//! | it writes without end | what is beyond a pace is not read, and so lost for it |
//! | more numbers or longer names than any Firecracker has | the rest is left out: a guest may have taken the VMM over |
//! | the node is restarted | sums begin again |

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

/// The longest line: of a machine with all the devices there may be, it is a tenth of that.
const MAX_LINE: usize = 256 * 1024;

/// How many bytes are read in a second over a long time, and for how long that may be had ahead: 1 MiB
/// at once. Firecracker's lines have some 20 KiB, and come once a minute.
const RATE: u32 = 65_536;
const BURST: Duration = Duration::from_secs(16);

/// The most numbers, and the longest of their names.
const MAX_FIGURES: usize = 2048;
const MAX_NAME: usize = 96;

/// How deep groups lie in each other, such as `block.read_agg.max_us`.
const MAX_DEPTH: usize = 3;

/// The figures of one VMM, which are read until this is dropped.
#[derive(Debug)]
pub(super) struct Figures {
    sums: Arc<Mutex<Sums>>,
    reading: AbortHandle,
}

impl Figures {
    /// Reads from a pipe, which must not block. Within a tokio runtime.
    ///
    /// # Errors
    /// Where it is no pipe.
    pub(super) fn read(pipe: File) -> io::Result<Self> {
        let mut pipe = pipe::Receiver::from_file(pipe)?;
        let sums = Arc::new(Mutex::new(Sums::default()));
        let to = Arc::clone(&sums);
        let reading = tokio::spawn(async move {
            let mut lines = Lines::default();
            let mut chunk = vec![0; 4096];
            let mut pace = Pace::default();
            while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                lines.take(&chunk[..length], |line| {
                    let mut sums = to.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.add(line);
                });
                if let Some(until) = pace.read(length, Instant::now()) {
                    tokio::time::sleep_until(until.into()).await;
                }
            }
        });
        Ok(Self {
            sums,
            reading: reading.abort_handle(),
        })
    }

    /// Those that are not 0, by names such as `net_eth0.rx_bytes_count`.
    pub(super) fn now(&self) -> BTreeMap<String, u64> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.0.clone()
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// How much of a VMM's words is read: what one that was taken over writes without end costs no more.
#[derive(Debug, Default)]
struct Pace {
    /// When what was read so far would have come at [`RATE`].
    due: Option<Instant>,
}

impl Pace {
    /// So many bytes were read; gives until when nothing is, where that was too much.
    fn read(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let took = Duration::from_secs(u64::try_from(bytes).unwrap_or(u64::MAX)) / RATE;
        let due = self.due.unwrap_or(now).max(now) + took;
        self.due = Some(due);
        due.checked_sub(BURST).filter(|until| *until > now)
    }
}

/// Puts lines together.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
    /// Whether this one is too long, and its end is waited for.
    is_lost: bool,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let is_end = piece.ends_with(b"\n");
            self.is_lost |= self.begun.len() + piece.len() > MAX_LINE;
            if !self.is_lost {
                self.begun.extend_from_slice(piece);
            }
            if is_end {
                if !self.is_lost {
                    line(&self.begun);
                }
                // What one long line took is not held for ever.
                self.begun = Vec::new();
                self.is_lost = false;
            }
        }
    }
}

/// What was counted so far. Without what is 0: of some 300 numbers most are.
#[derive(Debug, Default)]
struct Sums(BTreeMap<String, u64>);

impl Sums {
    fn add(&mut self, line: &[u8]) {
        if let Ok(Value::Object(groups)) = serde_json::from_slice(line) {
            for (group, numbers) in &groups {
                // What stands beside the groups is when the line was written, and whose it is.
                if numbers.is_object() && group != "properties" {
                    self.add_below(group, numbers, MAX_DEPTH);
                }
            }
        }
    }

    fn add_below(&mut self, name: &str, value: &Value, depth: usize) {
        match value {
            Value::Object(numbers) if depth > 0 => {
                for (key, value) in numbers {
                    // Before it is put together for each of them.
                    if name.len() + 1 + key.len() > MAX_NAME {
                        continue;
                    }
                    self.add_below(&format!("{name}.{key}"), value, depth - 1);
                }
            }
            Value::Number(number) => {
                if let Some(number) = number.as_u64() {
                    self.count(name, number);
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, name: &str, number: u64) {
        if let Some(sum) = self.0.get_mut(name) {
            *sum = match is_level(name) {
                true => number,
                false => sum.saturating_add(number),
            };
        } else if number > 0 && self.0.len() < MAX_FIGURES && is_name(name) {
            self.0.insert(name.to_owned(), number);
        }
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether each line has the whole number, not what was added.
fn is_level(name: &str) -> bool {
    let (group, rest) = name.split_once('.').unwrap_or((name, ""));
    match group {
        "latencies_us" | "seccomp" | "api_server" => true,
        "signals" => rest != "sigpipe",
        _ => {
            let is_time = group.starts_with("vhost_user") && rest.ends_with("_time_us");
            is_time || rest.ends_with(".min_us") || rest.ends_with(".max_us")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(lines: &[&str]) -> BTreeMap<String, u64> {
        let mut sums = Sums::default();
        for line in lines {
            sums.add(line.as_bytes());
        }
        sums.0
    }

    #[test]
    fn what_was_added_is_summed_and_what_is_a_level_is_not() {
        let line = |rx: u64, max: u64, startup: u64, pipes: u64| {
            format!(
                r#"{{"utc_timestamp_ms":1,"net_eth0":{{"rx_bytes_count":{rx},"tx_fails":0}},
                "block":{{"read_agg":{{"min_us":2,"max_us":{max},"sum_us":{max}}}}},
                "api_server":{{"process_startup_time_us":{startup}}},
                "signals":{{"sigbus":0,"sigpipe":{pipes}}}}}"#
            )
        };
        let sums = sums(&[&line(10, 7, 500, 1), &line(5, 3, 500, 1)]);
        let expected = [
            ("api_server.process_startup_time_us", 500),
            ("block.read_agg.max_us", 3),
            ("block.read_agg.min_us", 2),
            ("block.read_agg.sum_us", 10),
            ("net_eth0.rx_bytes_count", 15),
            ("signals.sigpipe", 2),
        ];
        let expected = expected.map(|(name, sum)| (name.to_owned(), sum));
        assert_eq!(sums, expected.into());
    }

    #[test]
    fn what_no_firecracker_writes_is_left_out() {
        let many = (0..2 * MAX_FIGURES).map(|n| format!(r#""n{n}":1"#));
        let many = many.collect::<Vec<_>>().join(",");
        assert_eq!(
            sums(&[&format!(r#"{{"net":{{{many}}}}}"#)]).len(),
            MAX_FIGURES
        );
        for line in [
            "",
            "[1]",
            r#"{"net":{"a":-1,"b":1.5,"c":"1","d":[1],"e e":1,"é":1}}"#,
            r#"{"properties":{"a":1}}"#,
            r#"{"a":{"b":{"c":{"d":{"e":1}}}}}"#,
        ] {
            assert!(sums(&[line]).is_empty(), "{line}");
        }
        let long = "x".repeat(MAX_NAME);
        assert!(sums(&[&format!(r#"{{"net":{{"{long}":1}}}}"#)]).is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_costs_no_other() {
        let mut lines = Lines::default();
        let mut heard = Vec::new();
        let mut take = |bytes: &[u8]| lines.take(bytes, |line| heard.push(line.to_vec()));
        take(b"one\ntw");
        take(b"o\n");
        for _ in 0..=MAX_LINE / 4096 {
            take(&[b'x'; 4096]);
        }
        take(b"x\nthree\n");
        assert_eq!(heard, [&b"one\n"[..], b"two\n", b"three\n"]);
    }

    #[test]
    fn a_vmm_that_writes_without_end_is_read_at_a_pace() {
        let begin = Instant::now();
        let (mut pace, mut now, mut read) = (Pace::default(), begin, 0_u64);
        while now < begin + Duration::from_secs(600) {
            read += 4096;
            now = pace.read(4096, now).unwrap_or(now);
        }
        assert!((600..=620).contains(&(read / 65_536)), "{read} bytes");
        // One that writes as Firecracker does is never waited for.
        for _ in 0..60 {
            now += Duration::from_secs(60);
            for _ in 0..8 {
                assert_eq!(pace.read(4096, now), None);
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_are_the_same_lines(text in "[ab\n]{0,64}", at in 1..8_usize) {
            let (mut lines, mut heard) = (Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(at) {
                lines.take(piece, |line| heard.extend_from_slice(line));
            }
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            prop_assert_eq!(heard, text.as_bytes()[..whole].to_vec());
        }
    }
}
