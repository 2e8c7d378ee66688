//! Signals by name.

/// By number from 1 on: see signal(7) for x86 and arm.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Asks a process to end.
pub const TERM: u8 = 15;

/// The first real-time signal that C libraries leave to programs.
const RTMIN: u8 = 34;

/// The number of a signal on Linux, by its name (with or without `SIG`, in either case) or by
/// its number.
///
/// ```
/// # use aleph_types::signal::number;
/// assert_eq!(number("SIGTERM"), Some(15));
/// assert_eq!(number("9"), Some(9));
/// assert_eq!(number("RTMIN+3"), Some(37));
/// ```
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let valid = |number: &u8| (1..=64).contains(number);
    if let Ok(number) = name.parse::<u8>() {
        return Some(number).filter(valid);
    }
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(more) = name.strip_prefix("RTMIN") {
        let more = match more {
            "" => 0,
            more => more.strip_prefix('+')?.parse().ok()?,
        };
        return RTMIN.checked_add(more).filter(valid);
    }
    let at = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, want) in [
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("HUP", Some(1)),
            ("SYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+30", Some(64)),
            ("RTMIN+31", None),
            ("RTMINX", None),
            ("1", Some(1)),
            ("64", Some(64)),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIG", None),
            ("BOO", None),
        ] {
            assert_eq!(number(name), want, "{name}");
        }
    }
}
