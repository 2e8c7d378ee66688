//! The lines around what a function writes: START, END and REPORT.

use super::invocation::{Temperature, Timings};
use super::output::TAIL;
use aleph_types::MiB;
use std::fmt::Write;
use std::time::Duration;

/// What is told of an invocation.
pub(super) struct Report<'a> {
    pub(super) request_id: &'a str,
    pub(super) version: &'a str,
    pub(super) memory: MiB,
    pub(super) memory_peak: Option<u64>,
    pub(super) timings: Timings,
    pub(super) temperature: Temperature,
    /// `error` or `timeout`, where it did not succeed.
    pub(super) status: Option<&'a str>,
    pub(super) output: Vec<u8>,
}

/// What is billed: each millisecond that was begun.
pub(super) fn billed_ms(duration: Duration) -> u64 {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(ms).unwrap_or(u64::MAX).max(1)
}

/// The log of an invocation, as much as is kept: its last 4 KiB.
pub(super) fn report(report: &Report<'_>) -> Vec<u8> {
    let Report {
        request_id,
        version,
        memory,
        timings,
        ..
    } = report;
    let mut log = format!("START RequestId: {request_id} Version: {version}\n").into_bytes();
    log.extend(&report.output);
    if log.last() != Some(&b'\n') {
        log.push(b'\n');
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut end = format!("END RequestId: {request_id}\n");
    let _ = write!(
        end,
        "REPORT RequestId: {request_id}\tDuration: {:.2} ms\tBilled Duration: {} ms\tMemory Size: {} MB",
        ms(timings.function),
        billed_ms(timings.function),
        memory.0,
    );
    if let Some(peak) = report.memory_peak {
        let _ = write!(end, "\tMax Memory Used: {} MB", peak.div_ceil(1 << 20));
    }
    if report.temperature == Temperature::Cold {
        let _ = write!(end, "\tRestore Duration: {:.2} ms", ms(timings.resume));
    }
    if let Some(status) = report.status {
        let _ = write!(end, "\tStatus: {status}");
    }
    end.push('\n');
    log.extend(end.as_bytes());
    let excess = log.len().saturating_sub(TAIL);
    log.drain(..excess);
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(output: &[u8], temperature: Temperature, status: Option<&str>) -> String {
        let log = report(&Report {
            request_id: "r",
            version: "$LATEST",
            memory: MiB(128),
            memory_peak: Some(40 << 20),
            timings: Timings {
                queue: Duration::ZERO,
                resume: Duration::from_millis(50),
                function: Duration::from_micros(12_345),
            },
            temperature,
            status,
            output: output.to_vec(),
        });
        String::from_utf8_lossy(&log).into_owned()
    }

    #[test]
    fn lines_are_as_tools_know_them() {
        let want = "START RequestId: r Version: $LATEST\nhello\nEND RequestId: r\n\
            REPORT RequestId: r\tDuration: 12.35 ms\tBilled Duration: 13 ms\t\
            Memory Size: 128 MB\tMax Memory Used: 40 MB\n";
        assert_eq!(of(b"hello", Temperature::Hot, None), want);
        let cold = of(b"", Temperature::Cold, Some("timeout"));
        assert!(cold.ends_with("\tRestore Duration: 50.00 ms\tStatus: timeout\n"));
    }

    #[test]
    fn only_the_end_is_kept() {
        let log = of(&[b'x'; 5000], Temperature::Hot, None);
        assert_eq!(log.len(), TAIL);
        assert!(log.contains("REPORT RequestId: r"));
    }

    #[test]
    fn each_millisecond_that_was_begun_is_billed() {
        assert_eq!(billed_ms(Duration::ZERO), 1);
        assert_eq!(billed_ms(Duration::from_micros(1000)), 1);
        assert_eq!(billed_ms(Duration::from_micros(1001)), 2);
    }
}
