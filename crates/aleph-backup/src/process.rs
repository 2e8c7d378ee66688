//! What this host knows of a process by its number.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::io;

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// One of this number began then, in the kernel's ticks since it booted.
    Began(u64),
    /// There is none, or it has ended and nobody has heard of that yet.
    Gone,
    /// The kernel does not tell: `/proc` hides others' processes, or cannot be read at the moment.
    Unknown,
}

/// Looks for a process.
pub(crate) fn look(process: u32) -> Sign {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => parse(&stat).unwrap_or(Sign::Unknown),
        // The second is of one that ends while it is looked at.
        Err(error) if is_absent(&error) => match number(process).map(test_kill_process) {
            Some(Err(Errno::SRCH)) => Sign::Gone,
            _ => Sign::Unknown,
        },
        Err(_) => Sign::Unknown,
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn number(process: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(process).ok()?)
}

fn parse(stat: &str) -> Option<Sign> {
    // Its name may have blanks and brackets, and ends with the last of these.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return Some(Sign::Gone);
    }
    // Field 22 of proc_pid_stat(5); the state is the third.
    Some(Sign::Began(fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_gone() {
        let stat = |state: &str| format!("1 (a ) b) {state} {} 77 0", ["0"; 18].join(" "));
        assert_eq!(parse(&stat("S")), Some(Sign::Began(77)));
        assert_eq!(parse(&stat("Z")), Some(Sign::Gone));
        assert_eq!(parse("1 (cut off) S 0 0"), None);
        assert!(matches!(look(std::process::id()), Sign::Began(_)));
        // No process has this number.
        assert_eq!(look(i32::MAX.unsigned_abs()), Sign::Gone);
        assert_eq!(look(u32::MAX), Sign::Unknown);
        let too_many = io::Error::from_raw_os_error(24);
        assert!(!is_absent(&too_many), "a full table of files tells nothing");
    }
}
