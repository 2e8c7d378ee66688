//! The most memory that a VMM had.

use crate::process::Identity;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Room for `/proc/PID/status`, which has about 1.5 KB; what is looked for is in its first half.
const STATUS: usize = 4096;

/// `/proc/PID/status` of a process, open: it never tells of another one that got the number.
///
/// It is on the way of every event: a file that stays open costs one system call.
#[derive(Debug)]
pub(super) struct Peak(File);

impl Peak {
    /// That of a process.
    ///
    /// # Errors
    /// Where it has ended.
    pub(super) fn of(process: &Identity) -> io::Result<Self> {
        let status = File::open(format!("/proc/{}/status", process.pid))?;
        // It lives, so it had the number when the file was opened.
        if Identity::of(process.pid)? == *process {
            Ok(Self(status))
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The most memory that it had so far, in bytes; `None` once it has ended.
    pub(super) fn bytes(&self) -> Option<u64> {
        let mut status = [0; STATUS];
        let length = self.0.read_at(&mut status, 0).ok()?;
        let status = String::from_utf8_lossy(&status[..length]);
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeping() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A process that has this number, where one can be had by choice.
    fn of_number(pid: u32) -> Option<Child> {
        for _ in 0..200 {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
            let child = sleeping();
            if child.id() == pid {
                return Some(child);
            }
            end(child);
        }
        None
    }

    #[test]
    fn it_is_that_of_one_process_and_never_of_the_next_with_its_number() {
        let child = sleeping();
        let pid = child.id();
        let process = Identity::of(i32::try_from(pid).unwrap()).unwrap();
        let peak = Peak::of(&process).unwrap();
        assert!(peak.bytes().is_some());
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let own = Peak::of(&own).unwrap().bytes();
        assert!(own.is_some_and(|bytes| bytes > 1 << 20), "{own:?}");
        end(child);
        assert_eq!(peak.bytes(), None);
        assert!(Peak::of(&process).is_err());
        // Only root chooses numbers.
        let Some(other) = of_number(pid) else {
            assert!(!rustix::process::geteuid().is_root());
            return;
        };
        assert_eq!(peak.bytes(), None);
        let earlier = Identity {
            start_time: process.start_time.saturating_sub(1),
            ..Identity::of(process.pid).unwrap()
        };
        assert!(Peak::of(&earlier).is_err(), "it is another one");
        end(other);
    }
}
