//! Spans of time as flags take them.

use std::time::Duration;

/// No span of a flag is longer: a hundred years.
const MOST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Reads docker's form: numbers with `ms`, `s`, `m`, `h`, `d` or `w`, such as `1h30m`. A bare
/// number is seconds.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time: write 90s, 10m, 1h30m or 7d");
    let seconds = |number: &str, each: f64| -> Result<Duration, String> {
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let span = Duration::try_from_secs_f64(number * each).map_err(|_| wrong())?;
        if span > MOST { Err(wrong()) } else { Ok(span) }
    };
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return seconds(text, 1.0);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.');
        let (number, after) = rest.split_at(digits.count());
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let each = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return Err(wrong()),
        };
        total += seconds(number, each)?;
        rest = after;
    }
    Ok(total)
}

/// The same in whole seconds, rounded up, for what counts in them.
pub(crate) fn whole_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_docker_reads_them() {
        for (text, milliseconds) in [
            ("10", 10_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        assert_eq!(whole_seconds(Duration::from_millis(1_001)), 2);
    }

    #[test]
    fn wrong_spans_are_refused() {
        for text in [
            "",
            "s",
            "5x",
            "-3s",
            "1h 30m",
            "5s3",
            "99999999999d",
            "1..5s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
