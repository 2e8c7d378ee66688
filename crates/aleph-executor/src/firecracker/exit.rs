//! Why a Firecracker ended, in words for who runs the VM.
//!
//! Firecracker catches the signals that would end it and turns each into an exit code of its own,
//! which the number alone does not tell. The codes are those of its `FcExitCode`, the same in all
//! versions from 1.10 to 1.17.
//!
//! A guest that resets its machine ends Firecracker with 0; one that faults three times does so up to
//! 1.14, and ends it with 1 from 1.15 on. Neither says why: the guest's console does, and for 1 the
//! log. What is no exit code of Firecracker's is left without words.

use crate::process::ProcessExit;

/// How many lines of the log are kept: the cause is in the last ones.
const LINES: usize = 8;

/// What a panic of Firecracker's ends in: the abort, or, as the first process of a namespace gets no
/// signal from itself, the instruction behind it that it may not execute.
const PANIC: [i32; 2] = [6, 11];

/// What this end means, and what to do about it.
pub(super) fn meaning(exit: ProcessExit) -> Option<&'static str> {
    let code = match exit {
        ProcessExit::Code(code) => code,
        ProcessExit::Signal(signal) if PANIC.contains(&signal) => {
            return Some("Firecracker has panicked: this is a defect of it, try another version");
        }
        ProcessExit::Signal(_) | ProcessExit::Unknown => return None,
    };
    Some(match code {
        2 => "Firecracker has failed in a way that it holds impossible: try another version",
        148 => {
            "Firecracker made a system call that its seccomp filter forbids: use the release's own \
             build for this host's architecture, or another version"
        }
        149 => {
            "Firecracker could not reach memory that it has mapped (SIGBUS): a memory file was cut, \
             or its disk is full; free some space, then start the VM again"
        }
        150 => {
            "Firecracker has touched memory that is not its own (SIGSEGV): this is a defect of it, \
             try another version"
        }
        151 => {
            "a file of Firecracker's grew beyond its limit (SIGXFSZ): in a jail that is the longest \
             of its disks and its memory, and whatever writes more is broken into or has a defect; else \
             raise the limit of file size of the node's service"
        }
        152 => "Firecracker refuses its configuration: see what it wrote",
        153 => {
            "Firecracker does not know the arguments that it was started with: check that its \
             version is supported"
        }
        154 => {
            "Firecracker has used up its processor time (SIGXCPU): raise the limit of CPU time of \
             the node's service"
        }
        155 => "Firecracker wrote to a pipe that nobody reads (SIGPIPE): start the VM again",
        156 => "Firecracker's terminal or session went away (SIGHUP): start the VM again",
        157 => {
            "Firecracker met an instruction that this processor lacks (SIGILL): use the build for \
             this host's architecture"
        }
        _ => return None,
    })
}

/// What is said of an end: why it was ended, where we did it; what the end means; and the last
/// lines of the log, each without its time and thread.
pub(super) fn describe(exit: ProcessExit, failure: Option<&str>, log: &str) -> String {
    let said: Vec<&str> = log
        .lines()
        .map(message)
        .filter(|line| !line.is_empty())
        .collect();
    let last = &said[said.len().saturating_sub(LINES)..];
    let why = failure.into_iter().chain(meaning(exit));
    why.chain(last.iter().copied())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The message of a line of the log, `TIME [ID:THREAD:LEVEL:FILE:LINE] MESSAGE`; another line is all
/// message.
fn message(line: &str) -> &str {
    let line = line.trim();
    let is_time = |text: &str| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_digit())
            && bytes.all(|b| b.is_ascii_digit() || b"-:.T".contains(&b))
    };
    line.split_once(" [")
        .filter(|(time, _)| is_time(time))
        .and_then(|(_, rest)| rest.split_once("] "))
        .map_or(line, |(_, message)| message.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_code_of_firecrackers_own_has_a_meaning_of_its_own() {
        let codes = (0..=255).filter(|code| meaning(ProcessExit::Code(*code)).is_some());
        let codes: Vec<i32> = codes.collect();
        let expected: Vec<i32> = [2].into_iter().chain(148..=157).collect();
        assert_eq!(codes, expected);
        let meanings = codes
            .iter()
            .filter_map(|code| meaning(ProcessExit::Code(*code)));
        let meanings: std::collections::BTreeSet<&str> = meanings.collect();
        assert_eq!(meanings.len(), expected.len());
        let says = |code, what| meaning(ProcessExit::Code(code)).is_some_and(|m| m.contains(what));
        for (code, what) in [
            (148, "seccomp"),
            (149, "SIGBUS"),
            (150, "SIGSEGV"),
            (151, "SIGXFSZ"),
            (152, "configuration"),
            (153, "arguments"),
            (154, "SIGXCPU"),
            (155, "SIGPIPE"),
            (156, "SIGHUP"),
            (157, "SIGILL"),
        ] {
            assert!(says(code, what), "{code}");
        }
    }

    /// Of these the number, the console and the log say all that there is.
    #[test]
    fn a_guests_own_end_and_a_kill_have_no_other_words() {
        for exit in [
            ProcessExit::Code(0),
            ProcessExit::Code(1),
            ProcessExit::Signal(9),
            ProcessExit::Signal(15),
            ProcessExit::Unknown,
        ] {
            assert_eq!(describe(exit, None, ""), "", "{exit}");
        }
    }

    /// Without a namespace of its own, and as the first process of one.
    #[test]
    fn a_panic_is_told_by_either_signal() {
        for signal in [6, 11] {
            let said = describe(ProcessExit::Signal(signal), None, "");
            assert!(said.contains("panicked"), "{signal}: {said}");
        }
    }

    #[test]
    fn the_log_is_told_without_times_and_threads() {
        let log = "2026-06-29T10:11:12.123456789 [vm:fc_vcpu 0:ERROR:src/vmm/src/vstate/vcpu.rs:1] \
                   Unexpected exit [reason] Shutdown\n\
                   \n\
                   a line [of] its own\n";
        let said = describe(ProcessExit::Code(1), None, log);
        assert_eq!(
            said,
            "Unexpected exit [reason] Shutdown\na line [of] its own"
        );
    }

    #[test]
    fn what_we_know_comes_first_then_the_meaning_then_the_log() {
        let said = describe(ProcessExit::Code(149), Some("ours"), "theirs");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[2]), ("ours", "theirs"));
        assert!(lines[1].contains("SIGBUS"));
    }

    proptest! {
        #[test]
        fn any_log_is_told_in_few_lines_that_it_has(log in "(\\PC|\n|2026-1 \\[a\\] ){0,200}") {
            let said = describe(ProcessExit::Code(0), None, &log);
            prop_assert!(said.lines().count() <= LINES);
            for line in said.lines() {
                prop_assert!(!line.is_empty() && log.contains(line));
            }
        }
    }
}
