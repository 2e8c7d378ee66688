//! The guest's processes, as /proc lists them.

use crate::file::{read_bounded, scan};
use crate::sys;
use alloc::vec::Vec;

/// Whose child every kernel thread is.
const KTHREADD: i32 = 2;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: i32,
    /// Its parent's.
    pub(crate) parent: i32,
    /// Its process group's.
    pub(crate) group: i32,
    /// Its session's.
    pub(crate) session: i32,
}

impl Process {
    /// Whether it is the kernel's own.
    pub(crate) fn is_kernel(self) -> bool {
        self.pid == KTHREADD || self.parent == KTHREADD
    }

    /// Reads a line of /proc/PID/stat. The name in it may have any bytes.
    fn parse(stat: &[u8]) -> Option<Self> {
        let name_ends = stat.iter().rposition(|b| *b == b')')?;
        let number = |bytes: &[u8]| core::str::from_utf8(bytes).ok()?.parse().ok();
        let pid = number(stat.split(|b| *b == b' ').next()?)?;
        let mut fields = stat[name_ends + 1..].trim_ascii().split(|b| *b == b' ');
        Some(Self {
            pid,
            parent: number(fields.nth(1)?)?,
            group: number(fields.next()?)?,
            session: number(fields.next()?)?,
        })
    }
}

/// Looks at every process there is.
pub(crate) fn each(mut look: impl FnMut(Process)) {
    scan(c"/proc", |name| {
        if name.iter().all(u8::is_ascii_digit)
            // One that has just ended is none.
            && let Ok(stat) = read_bounded([b"/proc/", name, b"/stat"].concat())
            && let Some(process) = Process::parse(&stat)
        {
            look(process);
        }
        None::<()>
    });
}

/// Sends a signal to every process of a session; gives how many there are. What one of them
/// starts as its answer does not get it.
pub(crate) fn signal_session(session: i32, signal: u8) -> usize {
    let mut members = Vec::new();
    each(|process| {
        if process.session == session {
            members.push(process.pid);
        }
    });
    for pid in &members {
        // It may have ended since.
        let _ = sys::kill(*pid, signal);
    }
    members.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_and_blanks_are_no_fields() {
        let process = Process::parse(b"42 (a) b (c) S 7 8 9 0 -1\n").unwrap();
        let want = Process {
            pid: 42,
            parent: 7,
            group: 8,
            session: 9,
        };
        assert_eq!(process, want);
        assert_eq!(Process::parse(b"42 (a"), None);
    }

    #[test]
    fn this_process_is_among_them() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut seen = Vec::new();
        each(|process| seen.push(process));
        assert!(seen.iter().any(|process| process.pid == own));
    }
}
