//! Readying a guest that stands still to be written down: what each clone of it would do first is
//! done once, before.
//!
//! A clone on a host that emulates its guests pays for each path through the kernel that it is the
//! first to go, and everywhere for each page that is not mapped, and each block that is not read.
//! So the pages of programs are brought into memory and into their page tables, and the kernel is
//! given the time to do what it put off: to take the clock source that it found good, to free what
//! waits to be freed.
//!
//! # Failure cases
//! There are none: what cannot be done ahead is done by each clone.

use super::freezer;
use crate::file::read_bounded;
use crate::sys;
use rustix::fs::{Mode, OFlags};

const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Clock sources that the kernel only has until it knows a better one.
const EARLY: [&[u8]; 3] = [b"tsc-early", b"jiffies", b"refined-jiffies"];

/// How long it may take to know one, in microseconds, and the pause before it is looked at again.
const PATIENCE_US: u64 = 3_000_000;
const PAUSE_US: u64 = 20_000;

/// How long the kernel is left alone then: several times what it puts work off for.
const REST_US: u64 = 200_000;

/// How long pages may take to be brought in: a disk may be slow, and a program large.
const PAGES_US: u64 = 5_000_000;

const PAGE: u64 = 4096;

/// Does it, as far as it can be done.
pub(super) fn settle() {
    bring_pages_in();
    let deadline = sys::monotonic_us() + PATIENCE_US;
    while is_clock_early() && sys::monotonic_us() < deadline {
        sys::sleep_us(PAUSE_US);
    }
    sys::sleep_us(REST_US);
}

fn is_clock_early() -> bool {
    let source = read_bounded(CLOCK_SOURCE).unwrap_or_default();
    EARLY.contains(&source.trim_ascii())
}

/// Has the pages of files that programs mapped in memory and in their page tables, as far as there
/// is memory that nobody needs.
fn bring_pages_in() {
    let mut left = free_pages() / 2;
    let deadline = sys::monotonic_us() + PAGES_US;
    let mut bring = |pid: &[u8]| {
        let maps = read_bounded([b"/proc/", pid, b"/maps"].concat()).unwrap_or_default();
        let memory = rustix::fs::open(
            [b"/proc/", pid, b"/mem"].concat(),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let Ok(memory) = memory else { return };
        for (start, end) in maps.split(|b| *b == b'\n').filter_map(of_file) {
            let mut at = start;
            while at < end && left > 0 && sys::monotonic_us() < deadline {
                // Through a process's memory its page tables are filled as by itself. What lies
                // behind the end of its file cannot be read.
                if rustix::io::pread(&memory, &mut [0], at).is_err() {
                    break;
                }
                at += PAGE;
                left -= 1;
            }
        }
    };
    // The agent first: each clone's first word is its.
    bring(b"1");
    freezer::each_member(bring);
}

/// The mapping that a line of /proc/PID/maps tells of, where it is a private one of a file that can be
/// read. A shared one may be memory that nobody has used yet, and would be used by being read.
fn of_file(line: &[u8]) -> Option<(u64, u64)> {
    let mut words = line.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let mut ends = words.next()?.split(|b| *b == b'-');
    let mut end = || number(ends.next()?, 16);
    let range = (end()?, end()?);
    let rights = words.next()?;
    let is_wanted = rights.starts_with(b"r") && rights.ends_with(b"p");
    let inode = words.nth(2)?;
    (is_wanted && inode != b"0" && !line.ends_with(b" (deleted)")).then_some(range)
}

/// Pages of memory that nobody uses.
fn free_pages() -> u64 {
    let table = read_bounded("/proc/meminfo").unwrap_or_default();
    let free = table.split(|b| *b == b'\n').find_map(|line| {
        let mut words = line
            .strip_prefix(b"MemFree:")?
            .split(|b| *b == b' ')
            .filter(|word| !word.is_empty());
        number(words.next()?, 10)
    });
    free.unwrap_or(0) * 1024 / PAGE
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_files_alone() {
        let line = b"55d0c0a00000-55d0c0a21000 r-xp 00001000 fe:00 1234    /usr/bin/a b";
        assert_eq!(of_file(line), Some((0x55d0_c0a0_0000, 0x55d0_c0a2_1000)));
        for other in [
            &b"7ffc1000-7ffc2000 rw-p 00000000 00:00 0                 [stack]"[..],
            b"7ffc1000-7ffc2000 ---p 00000000 fe:00 1234    /usr/lib/c.so",
            b"7ffc1000-7ffc2000 rw-s 00000000 00:01 1234    /memfd:arena (deleted)",
            b"7ffc1000-7ffc2000 r--s 00000000 00:1a 1234    /tmp/arena",
            b"7ffc1000-7ffc2000 rw-p 00000000 00:01 1234    /dev/zero (deleted)",
            b"7ffc1000-7ffc2000 r-xp",
            b"7ffc1000 r-xp 0 fe:00 1 /a",
            b"zz-yy r-xp 0 fe:00 1 /a",
            b"",
        ] {
            assert_eq!(of_file(other), None);
        }
    }
}
