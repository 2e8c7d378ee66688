//! What a clone has of its own: random state, clock, name, ids.
//!
//! It is all in place before any of its processes runs. What a program drew from a generator of
//! its own before the snapshot is beyond the agent's reach: such a program asks the host when it
//! goes on (`restore/next` of the functions' contract), or looks at `/run/aleph/generation`.
//!
//! On a host that emulates its guests, each path through the kernel that a clone goes first costs it
//! milliseconds. So the guest that it is a copy of holds open what a clone needs: its files are in
//! memory, mapped, and mounted where programs look for them. What is as long as it was before is
//! written without a call of the kernel's.

use super::setup;
use crate::failure::{Context, Failure};
use crate::file::{self, read_bounded};
use crate::sys::{self, Page};
use aleph_guest_proto::Resume;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use rustix::time::Timespec;

const FOLDER: &CStr = c"/run/aleph";

/// Each file, and where programs look for it, where that is somewhere else.
const FILES: [(&CStr, Option<&CStr>); 4] = [
    (c"/run/aleph/hostname", Some(c"/etc/hostname")),
    (c"/run/aleph/hosts", Some(c"/etc/hosts")),
    (c"/run/aleph/machine-id", Some(c"/etc/machine-id")),
    // Holds a number that no other clone of the same template has.
    (c"/run/aleph/generation", None),
];

/// How long a machine's id is.
const ID: usize = 32;

/// What a clone writes to, ready since its guest was about to be written down.
#[derive(Debug)]
pub(super) struct Own {
    /// In the order of [`FILES`].
    files: [Slot; 4],
    random: OwnedFd,
}

/// An open file, its first page, and how long its content is.
#[derive(Debug)]
struct Slot {
    file: OwnedFd,
    page: Page,
    length: usize,
}

impl Slot {
    /// Writes it anew. Where the guest stands still, nobody has taken the page away since it was
    /// [`ready`](Self::ready); where it does not, somebody may, and the kernel writes.
    fn write(&mut self, text: &[u8], stands_still: bool) {
        let text = &text[..text.len().min(Page::SIZE)];
        // Memory that a clone does not have is told by whatever needs it next.
        if stands_still {
            if text.len() != self.length {
                let _ = rustix::fs::ftruncate(&self.file, text.len() as u64);
            }
            self.page.write(text);
        } else {
            let _ = rustix::io::pwrite(&self.file, text, 0);
            let _ = rustix::fs::ftruncate(&self.file, text.len() as u64);
        }
        self.length = text.len();
        // Who looks at its time, or waits for it to change, hears of it.
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let _ = rustix::fs::futimens(
            &self.file,
            &Timestamps {
                last_access: now,
                last_modification: now,
            },
        );
    }

    /// Has what it holds in memory, whatever became of it since it was laid out.
    fn ready(&mut self) -> Result<(), Errno> {
        let size = rustix::fs::fstat(&self.file)?.st_size;
        self.length = usize::try_from(size).unwrap_or(0);
        let mut first = *b"\n";
        if self.length == 0 {
            self.length = 1;
        } else {
            rustix::io::pread(&self.file, &mut first, 0)?;
        }
        // There is a page of it from here on, and then it is this one that is written to.
        rustix::io::pwrite(&self.file, &first, 0)?;
        self.page.write(&first);
        Ok(())
    }
}

impl Own {
    /// Lays it out in a guest that stands still, with what is there.
    pub(super) fn lay_out() -> Result<Self, Failure> {
        let _ = rustix::fs::mkdir(FOLDER, Mode::from_raw_mode(0o755));
        let random = rustix::fs::open(
            c"/dev/urandom",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| "opening /dev/urandom".into())?;
        let [a, b, c, d] = FILES;
        let mut own = Self {
            files: [lay(a)?, lay(b)?, lay(c)?, lay(d)?],
            random,
        };
        let [_, _, id, number] = &mut own.files;
        if id.length != ID + 1 {
            // A machine without an id gets one.
            let mut bytes = [0; ID / 2];
            rustix::io::read(&own.random, &mut bytes).context(|| "drawing an id".into())?;
            id.write(&machine_id(bytes), false);
        }
        number.write(&generation(0), false);
        own.ready()?;
        Ok(own)
    }

    /// Has its files in memory, whatever became of them since they were laid out.
    pub(super) fn ready(&mut self) -> Result<(), Failure> {
        let ready = self.files.iter_mut().try_for_each(Slot::ready);
        ready.context(|| "looking at what a clone has of its own".into())
    }

    /// Gives the clone what is its own, but for its network. Whether it stands still decides how.
    pub(super) fn apply(&mut self, resume: &Resume<'_>, stands_still: bool) {
        let _ = sys::add_entropy(&self.random, resume.entropy);
        let _ = sys::reseed(&self.random);
        setup::set_clock(resume.unix_ns);
        // A kernel that refuses a name is seen from inside.
        let _ = rustix::system::sethostname(resume.hostname);
        let [name, hosts, id, number] = &mut self.files;
        name.write(&[resume.hostname, b"\n"].concat(), stands_still);
        hosts.write(
            &setup::hosts(resume.hostname, resume.network.as_ref()),
            stands_still,
        );
        id.write(&machine_id(resume.machine_id), stands_still);
        number.write(&generation(resume.generation), stands_still);
    }
}

fn machine_id(bytes: [u8; ID / 2]) -> Vec<u8> {
    let mut text = String::with_capacity(ID + 1);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    text.into_bytes()
}

/// As long as a number of microseconds since 1970, which it is.
fn generation(number: u64) -> Vec<u8> {
    format!("{number:016}\n").into_bytes()
}

fn lay((path, seen_at): (&CStr, Option<&CStr>)) -> Result<Slot, Failure> {
    let laying = || format!("laying out {}", path.to_string_lossy());
    let mut content: Vec<u8> = seen_at
        .and_then(|at| read_bounded(at).ok())
        .unwrap_or_default();
    if content.is_empty() {
        // What is empty has no page that can be written to.
        content.push(b'\n');
    }
    file::write(path, &[&content]).context(laying)?;
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let file = file.context(laying)?;
    if let Some(at) = seen_at {
        if rustix::fs::access(at, rustix::fs::Access::EXISTS).is_err() {
            file::write(at, &[]).context(laying)?;
        }
        rustix::mount::mount_bind(path, at).context(laying)?;
    }
    let page = Page::map(&file).context(laying)?;
    Ok(Slot {
        file,
        page,
        length: content.len(),
    })
}
