//! What a clone has of its own: random state, clock, name, ids.
//!
//! It is all in place before any of its processes runs. What a program drew from a generator of
//! its own before the snapshot is beyond the agent's reach: such a program asks the host when it
//! goes on (`restore/next` of the functions' contract), or looks at [`GENERATION`].

use super::setup;
use crate::file;
use aleph_guest_proto::Resume;
use alloc::format;
use alloc::string::String;
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fs::Mode;

/// Holds a number that no other clone of the same template has.
const GENERATION: &CStr = c"/run/aleph/generation";

/// Gives the clone what is its own, but for its network.
pub(super) fn apply(resume: &Resume<'_>) {
    setup::add_entropy(resume.entropy);
    setup::set_clock(resume.unix_ns);
    // A kernel that refuses a name is seen from inside.
    let _ = rustix::system::sethostname(resume.hostname);
    setup::write_names(resume.hostname, resume.network.as_ref());
    let mut machine_id = String::new();
    for byte in resume.machine_id {
        let _ = write!(machine_id, "{byte:02x}");
    }
    machine_id.push('\n');
    let _ = file::write(c"/etc/machine-id", &[machine_id.as_bytes()]);
    let _ = rustix::fs::mkdir(c"/run/aleph", Mode::from_raw_mode(0o755));
    let generation = format!("{}\n", resume.generation);
    let _ = file::write(GENERATION, &[generation.as_bytes()]);
}
