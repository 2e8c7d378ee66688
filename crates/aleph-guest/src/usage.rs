//! What the guest uses.

use crate::census;
use crate::file::read_bounded;
use crate::sys;
use aleph_guest_proto::Usage;

/// What the guest uses now; what cannot be told is 0.
pub(crate) fn usage() -> Usage {
    let memory = read_bounded(c"/proc/meminfo").unwrap_or_default();
    let load = read_bounded(c"/proc/loadavg").unwrap_or_default();
    let mut processes = 0;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    census::each(|process| processes += u32::from(!process.is_kernel() && process.pid != own));
    // The overlay's figures are those of what takes the writes.
    let (disk_total, disk_free) = rustix::fs::statfs(c"/").map_or((0, 0), |fs| {
        let block = u64::try_from(fs.f_bsize).unwrap_or(0);
        (
            fs.f_blocks.saturating_mul(block),
            fs.f_bfree.saturating_mul(block),
        )
    });
    Usage {
        memory_total: kibibytes(&memory, b"MemTotal:"),
        memory_available: kibibytes(&memory, b"MemAvailable:"),
        disk_total,
        disk_used: disk_total.saturating_sub(disk_free),
        uptime_us: sys::boot_us(),
        load_hundredths: hundredths(&load),
        processes,
    }
}

/// A line of /proc/meminfo, in bytes.
fn kibibytes(memory: &[u8], name: &[u8]) -> u64 {
    memory
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| number(rest.trim_ascii().strip_suffix(b" kB")?))
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// The first number of /proc/loadavg, which has two decimals.
fn hundredths(load: &[u8]) -> u32 {
    let first = load.split(|byte| *byte == b' ').next().unwrap_or_default();
    let mut parts = first.split(|byte| *byte == b'.');
    let mut part = || parts.next().and_then(number).unwrap_or(0);
    let hundredths = part().saturating_mul(100).saturating_add(part());
    u32::try_from(hundredths).unwrap_or(u32::MAX)
}

fn number(digits: &[u8]) -> Option<u64> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let memory = b"MemTotal:         119580 kB\nMemFree:  5 kB\nMemAvailable: 7 kB\n";
        assert_eq!(kibibytes(memory, b"MemTotal:"), 119_580 << 10);
        assert_eq!(kibibytes(memory, b"MemAvailable:"), 7 << 10);
        assert_eq!(kibibytes(memory, b"Nothing:"), 0);
        assert_eq!(hundredths(b"12.07 0.58 0.59 1/467 9\n"), 1207);
        assert_eq!(hundredths(b""), 0);
    }
}
