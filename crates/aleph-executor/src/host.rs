//! Facts of the host, read where the kernel shows them.

use crate::accel::{Device, Virtualisation};
use crate::capacity::{Capacity, HugePagesLeft};
use crate::process::boot_id;
use aleph_types::{HugePages, MiB};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether the host can run guests on its processor.
#[must_use]
pub fn virtualisation() -> Virtualisation {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Device::Opens,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Missing,
        Err(_) => Device::Forbidden,
    };
    Virtualisation {
        cpu: cfg!(target_arch = "aarch64") || cpu_virtualises(&cpuinfo),
        device,
    }
}

/// What the host's processor can do, as the kernel lists it.
#[must_use]
pub fn cpu_flags() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| {
        let mut lines = cpuinfo.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
        found.unwrap_or_default().trim().to_owned()
    };
    format!("{}: {}", line("model name"), line("flags"))
}

fn cpu_virtualises(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// Raises this process's limit of open files as far as it may: each VM takes some five.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// What the host has to give to VMs that keep their disks in `state`.
///
/// # Errors
/// Where `/proc/meminfo` cannot be read.
pub fn capacity(state: &Path) -> io::Result<Capacity> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let (memory, available) = memory(&meminfo)?;
    let disk = free_disk(state).map_or(MiB(u32::MAX), MiB::from_bytes);
    let cpus = std::thread::available_parallelism()?.get();
    Ok(Capacity {
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        memory,
        available,
        disk,
    })
}

/// All memory of a host, and what of it can be had, both without what is set aside as huge pages.
fn memory(meminfo: &str) -> io::Result<(MiB, MiB)> {
    let bytes = |key| meminfo_kib(meminfo, key).map(|kib| kib * 1024);
    let known =
        |key| bytes(key).ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {key}")));
    // Of all sizes together. A kernel without huge pages says nothing of them.
    let huge = bytes("Hugetlb").unwrap_or(0);
    let all = known("MemTotal")?.saturating_sub(huge);
    // Pages that are set aside are none that the kernel counts here.
    let available = known("MemAvailable")?;
    Ok((MiB::from_bytes(all), MiB::from_bytes(available)))
}

/// What the kernel whose `/sys` is `sys` has of huge pages of this size, and has left of them: those that are free,
/// without those that are promised. Where it knows none of the size, there is nothing.
#[must_use]
pub fn huge_pages(sys: &Path, pages: HugePages) -> HugePagesLeft {
    let kib = pages.size().bytes() >> 10;
    let folder = sys.join(format!("kernel/mm/hugepages/hugepages-{kib}kB"));
    let count = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let promised = count("resv_hugepages").unwrap_or(0);
    let free = count("free_hugepages").unwrap_or(0);
    let all = count("nr_hugepages").unwrap_or(0).max(free);
    let memory = |pages: u64| MiB::from_bytes(pages.saturating_mul(kib << 10));
    HugePagesLeft {
        all: memory(all),
        left: memory(free.saturating_sub(promised)),
        file: folder.join("nr_hugepages"),
    }
}

/// Bytes free for us on the filesystem of a folder, or of where it would be.
pub(crate) fn free_disk(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(existing(path)).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The path itself, or the nearest folder above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"))
}

fn meminfo_kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Frequency of the time stamp counter in kHz, as emulated guests see it; `None` on other
/// architectures. Measured once in each boot of the host and kept in `cache`.
#[must_use]
pub fn tsc_khz(cache: &Path) -> Option<u64> {
    let boot = boot_id().ok()?;
    let known = fs::read_to_string(cache).ok().and_then(|text| {
        let (of_boot, khz) = text.split_once(' ')?;
        (of_boot == boot).then(|| khz.trim().parse().ok())?
    });
    known.or_else(|| {
        let khz = measure_tsc_khz(Duration::from_millis(20))?;
        let temporary = cache.with_extension(format!("tmp-{}", std::process::id()));
        let kept = fs::write(&temporary, format!("{boot} {khz}\n"))
            .and_then(|()| fs::rename(&temporary, cache));
        if kept.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Some(khz)
    })
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn measure_tsc_khz(span: Duration) -> Option<u64> {
    let sample = || {
        // An interruption between the two readings shows as a wide gap: keep the narrowest.
        let narrowest = (0..16).map(|_| {
            let before = Instant::now();
            // SAFETY: RDTSC reads a counter; every x86-64 processor has it.
            let ticks = unsafe { core::arch::x86_64::_rdtsc() };
            (before.elapsed(), before, ticks)
        });
        narrowest.min_by_key(|(gap, ..)| *gap)
    };
    let (_, began, first) = sample()?;
    std::thread::sleep(span);
    let (_, ended, second) = sample()?;
    let nanos = u64::try_from(ended.duration_since(began).as_nanos()).ok()?;
    second
        .checked_sub(first)?
        .checked_mul(1_000_000)?
        .checked_div(nanos)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure_tsc_khz(_span: Duration) -> Option<u64> {
    let _ = Instant::now;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert!(cpu_virtualises("flags\t\t: fpu vme svm sse\n"));
        assert!(cpu_virtualises("flags : fpu vmx\n"));
        assert!(!cpu_virtualises(
            "flags : fpu svm_lock vmxfoo\nvmx flags : vnmi\nbugs : svm\n"
        ));
    }

    #[test]
    fn meminfo_is_read_by_key() {
        let meminfo = "MemTotal:       24000000 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo_kib(meminfo, "MemAvailable"), Some(1024));
        assert_eq!(meminfo_kib(meminfo, "Mem"), None);
    }

    #[test]
    fn memory_is_without_what_is_set_aside_as_huge_pages() {
        let mib = |all, available| (MiB(all), MiB(available));
        let plain = "MemTotal:  4194304 kB\nMemAvailable:  1048576 kB\n";
        assert_eq!(memory(plain).unwrap(), mib(4096, 1024));
        let huge = "HugePages_Total:       8\nHugepagesize:    1048576 kB\nHugetlb:   3145728 kB\n";
        let text = format!("{plain}{huge}");
        assert_eq!(memory(&text).unwrap(), mib(1024, 1024));
        let error = memory("MemTotal: 1 kB\n").unwrap_err().to_string();
        assert!(error.contains("MemAvailable"), "{error}");
    }

    #[test]
    fn huge_pages_that_are_promised_are_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let left = |pages| huge_pages(dir.path(), pages).left;
        assert_eq!(left(HugePages::Mib2), MiB(0), "it knows none");
        let folder = dir.path().join("kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("free_hugepages"), "512\n").unwrap();
        assert_eq!(left(HugePages::Mib2), MiB(1024));
        fs::write(folder.join("resv_hugepages"), "12\n").unwrap();
        assert_eq!(left(HugePages::Mib2), MiB(1000));
        assert_eq!(left(HugePages::Gib1), MiB(0));
        fs::write(folder.join("nr_hugepages"), "2048\n").unwrap();
        assert_eq!(left(HugePages::Mib2), MiB(1000));
        assert_eq!(huge_pages(dir.path(), HugePages::Mib2).all, MiB(4096));
    }

    #[test]
    fn the_counter_is_measured_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("tsc");
        let Some(khz) = tsc_khz(&cache) else { return };
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
        assert_eq!(
            tsc_khz(&cache),
            Some(khz),
            "the second answer comes from the file"
        );
    }
}
