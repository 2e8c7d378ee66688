//! What a clone has of its own: random state, clock, name, ids.
//!
//! It is all in place before any of its processes runs. What a program drew from a generator of
//! its own before the snapshot is beyond the agent's reach: such a program asks the host when it
//! goes on (`restore/next` of the functions' contract), or looks at `/run/aleph/generation`.
//!
//! On a host that emulates its guests, each path through the kernel that a clone goes first costs it
//! milliseconds. So the template lays out files that a clone has only to write to: they are in
//! memory, open, and mounted where programs look for them.

use super::setup;
use crate::failure::{Context, Failure};
use crate::file::{self, read_bounded};
use aleph_guest_proto::Resume;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

const FOLDER: &CStr = c"/run/aleph";

/// Each file, and where programs look for it, where that is somewhere else.
const FILES: [(&CStr, Option<&CStr>); 4] = [
    (c"/run/aleph/hostname", Some(c"/etc/hostname")),
    (c"/run/aleph/hosts", Some(c"/etc/hosts")),
    (c"/run/aleph/machine-id", Some(c"/etc/machine-id")),
    // Holds a number that no other clone of the same template has.
    (c"/run/aleph/generation", None),
];

/// The files that a clone writes to, in the order of [`FILES`].
#[derive(Debug)]
pub(super) struct Files([Slot; 4]);

/// An open file, and how long its content is.
#[derive(Debug)]
struct Slot {
    file: OwnedFd,
    length: u64,
}

impl Slot {
    fn write(&mut self, text: &[u8]) {
        let length = text.len() as u64;
        // Memory that a clone does not have is told by whatever needs it next.
        let _ = rustix::io::pwrite(&self.file, text, 0);
        if length < self.length {
            let _ = rustix::fs::ftruncate(&self.file, length);
        }
        self.length = length;
    }
}

impl Files {
    /// Lays them out in a template, with what is there.
    pub(super) fn lay_out() -> Result<Self, Failure> {
        let _ = rustix::fs::mkdir(FOLDER, Mode::from_raw_mode(0o755));
        let [a, b, c, d] = FILES;
        Ok(Self([lay(a)?, lay(b)?, lay(c)?, lay(d)?]))
    }

    /// Gives the clone what is its own, but for its network.
    pub(super) fn apply(&mut self, resume: &Resume<'_>) {
        setup::add_entropy(resume.entropy);
        setup::set_clock(resume.unix_ns);
        // A kernel that refuses a name is seen from inside.
        let _ = rustix::system::sethostname(resume.hostname);
        let mut machine_id = String::new();
        for byte in resume.machine_id {
            let _ = write!(machine_id, "{byte:02x}");
        }
        machine_id.push('\n');
        let [name, hosts, id, generation] = &mut self.0;
        name.write(&[resume.hostname, b"\n"].concat());
        hosts.write(&setup::hosts(resume.hostname, resume.network.as_ref()));
        id.write(machine_id.as_bytes());
        generation.write(format!("{}\n", resume.generation).as_bytes());
    }
}

fn lay((path, seen_at): (&CStr, Option<&CStr>)) -> Result<Slot, Failure> {
    let laying = || format!("laying out {}", path.to_string_lossy());
    let content: Vec<u8> = seen_at
        .and_then(|at| read_bounded(at).ok())
        .unwrap_or_default();
    file::write(path, &[&content]).context(laying)?;
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let file = file.context(laying)?;
    if let Some(at) = seen_at {
        if rustix::fs::access(at, rustix::fs::Access::EXISTS).is_err() {
            file::write(at, &[]).context(laying)?;
        }
        rustix::mount::mount_bind(path, at).context(laying)?;
    }
    Ok(Slot {
        file,
        length: content.len() as u64,
    })
}
