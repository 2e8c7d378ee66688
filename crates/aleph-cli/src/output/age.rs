//! Spans of time as people say them, the way docker does.

use aleph_types::Timestamp;

/// How long ago a moment was.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.as_second() - then.as_second()))
}

/// A time until now, without "ago".
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    span(now.as_second() - then.as_second())
}

/// Seconds in the largest unit that fits.
pub(crate) fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        // Clocks of two hosts differ.
        ..=0 => "less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "about a minute".into(),
        120..3_600 => format!("{minutes} minutes"),
        3_600..7_200 => "about an hour".into(),
        7_200..172_800 => format!("{hours} hours"),
        172_800..1_209_600 => format!("{} days", hours / 24),
        1_209_600..5_184_000 => format!("{} weeks", hours / 24 / 7),
        5_184_000..63_072_000 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_one_unit() {
        for (seconds, said) in [
            (-5, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "about a minute"),
            (3_599, "59 minutes"),
            (3_600, "about an hour"),
            (172_799, "47 hours"),
            (172_800, "2 days"),
            (1_209_600, "2 weeks"),
            (5_184_000, "2 months"),
            (63_072_000, "2 years"),
        ] {
            assert_eq!(span(seconds), said, "{seconds}");
        }
    }
}
