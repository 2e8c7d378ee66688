//! Memory of guests that go on from a snapshot, filled as they touch it.
//!
//! | file | what it is |
//! | --- | --- |
//! | `regions` | where a guest's memory is, in the VMM and in the memory file: pure |
//! | `working_set` | which pages are needed first, and the record of it |
//! | [`uffd`] | the kernel's userfaultfd |
//! | `serving` | the loop |
//! | `server` | the program, [`serve_memory`] |
//! | `child` | its process, as a node sees it |
//!
//! ```text
//! driver ── socket, memory file, working set ──▶ memory server
//!    └──── /snapshot/load, backend Uffd ──▶ VMM ── userfaultfd, regions ──▶ memory server
//! ```
//!
//! A memory server is a process of its own for each VM, under the VM's user, which can do nothing but
//! what its open files allow. Whoever clones guests from one template has two choices: a private
//! mapping of the memory file ([`MemoryMode::File`]), where the kernel does all of it, or a server
//! ([`MemoryMode::Userfaultfd`]), which can give a guest its working set in few large copies before it
//! asks. The record of that is beside the memory file, as `NAME.working-set`, made by the first guest
//! that goes on from there.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the memory file is shorter than the guest's memory | refused before anything is loaded |
//! | it shrinks later, or anything else a server cannot go on from | the server ends, and says why |
//! | the server ends, or is killed | the VM is killed, and its end says `its memory server ended` |
//! | it ended while no node was there | the same, once a node adopts the VM |
//! | the VM ends | so does the server, and by itself, where no node is there |
//! | the VMM may not make a userfaultfd | its load fails, and the VM's end says so |

mod child;
mod error;
mod regions;
mod server;
mod serving;
pub mod uffd;
mod working_set;

pub(super) use child::{MemoryServer, Serve};
pub use error::MemoryServerError;
pub use server::serve_memory;

use std::path::PathBuf;

/// The word that has a program of this project be a memory server, [`serve_memory`].
pub const MEMORY_SERVER: &str = "memory-server";

/// How guests come to the memory of the template that they go on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MemoryMode {
    /// By a private mapping of the file.
    #[default]
    File,
    /// By a memory server. The jailer gives its VMM `/dev/userfaultfd`; without a jailer, the VMM's
    /// user has to have that, or `vm.unprivileged_userfaultfd` has to be set.
    Userfaultfd {
        /// What is started as the server.
        server: ServerProgram,
        /// Whether the working set is recorded, and given ahead of need from then on.
        prefetch: bool,
    },
}

impl MemoryMode {
    /// `file`, `userfaultfd`, or `prefetch`, which is `userfaultfd` with prefetch; the server is the
    /// running program.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let server = || ServerProgram::this();
        match name {
            "file" => Some(Self::File),
            "userfaultfd" | "prefetch" => Some(Self::Userfaultfd {
                server: server(),
                prefetch: name == "prefetch",
            }),
            _ => None,
        }
    }
}

impl MemoryMode {
    /// Its name, as [`MemoryMode::of_name`] reads it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Userfaultfd {
                prefetch: false, ..
            } => "userfaultfd",
            Self::Userfaultfd { prefetch: true, .. } => "prefetch",
        }
    }
}

/// A program that calls [`serve_memory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProgram {
    /// The program.
    pub program: PathBuf,
    /// What comes before the arguments of [`serve_memory`].
    pub arguments: Vec<String>,
}

impl ServerProgram {
    /// The running program, started with [`MEMORY_SERVER`]: also where its file was replaced since.
    #[must_use]
    pub fn this() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec![MEMORY_SERVER.into()],
        }
    }
}
