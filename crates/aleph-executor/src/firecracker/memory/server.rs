//! The program: what a memory server does from its start to its end.

use super::error::{MemoryServerError, io};
use super::regions::Regions;
use super::serving::Serving;
use super::uffd::Uffd;
use super::working_set::{self, Recorder};
use crate::process::FIRST_FILE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{DumpableBehavior, PidfdFlags, pidfd_open, set_dumpable_behavior};
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

/// The longest text of a handshake that is read.
const LONGEST: usize = 1 << 20;

/// What it does with a working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Nothing,
    Record,
    Prefetch,
}

impl Use {
    pub(super) const ALL: [Self; 3] = [Self::Nothing, Self::Record, Self::Prefetch];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Nothing => "serve",
            Self::Record => "record",
            Self::Prefetch => "prefetch",
        }
    }
}

/// What it is handed, by descriptor from [`FIRST_FILE`] on, in this order; the last one only where
/// there is a use for it.
struct Handed {
    listener: UnixListener,
    memory: File,
    /// At its end once whoever started this has gone.
    starter: OwnedFd,
    working_set: Option<File>,
}

/// A memory server's life: `arguments` is what it was started with, after its own name. For the
/// `main` of a program that has nothing else to do.
///
/// Why it ended early is on standard error, in one line.
pub fn serve_memory(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let word = arguments.next().unwrap_or_default();
    let ended = match Use::ALL.into_iter().find(|it| it.word() == word) {
        Some(how) => run(how),
        None => Err(MemoryServerError::Arguments(word)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(how: Use) -> Result<(), MemoryServerError> {
    // A VMM has the same user: it must not look into this process.
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    hidden.map_err(io("close this process to others"))?;
    let handed = take(how);
    let Some(vmm) = accept(&handed)? else {
        return Ok(());
    };
    let Handed {
        memory,
        working_set,
        ..
    } = handed;
    let vmm_process = process_of(&vmm)?;
    let length = memory
        .metadata()
        .map_err(io("look at the memory file"))?
        .len();
    let (uffd, regions) = receive(&vmm, length)?;
    let mut serving = Serving::new(uffd, vmm_process, memory, regions);
    match (how, working_set) {
        (Use::Record, Some(to)) => serving.recorder = Some(Recorder::new(to)),
        (Use::Prefetch, Some(from)) => {
            let runs = working_set::read(&from, &serving.regions);
            // It is advice: without it pages come as they are touched.
            let runs = runs.unwrap_or_else(|error| {
                eprintln!("the working set is not used: {error}");
                None
            });
            serving.ahead = runs.unwrap_or_default();
            serving.ahead.reverse();
        }
        _ => {}
    }
    serving.run()
}

#[allow(unsafe_code)]
fn take(how: Use) -> Handed {
    // SAFETY: whoever starts this program hands over just these, and nobody else here has them.
    let file = |n: i32| unsafe { OwnedFd::from_raw_fd(FIRST_FILE + n) };
    Handed {
        listener: file(0).into(),
        memory: file(1).into(),
        starter: file(2),
        working_set: (how != Use::Nothing).then(|| file(3).into()),
    }
}

/// Waits for the VMM, or until nobody is there any more who would have it come.
fn accept(handed: &Handed) -> Result<Option<UnixStream>, MemoryServerError> {
    let mut fds = [
        PollFd::new(&handed.listener, PollFlags::IN),
        PollFd::new(&handed.starter, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(io("wait for the VMM")(errno)),
        }
    }
    if fds[0].revents().is_empty() {
        return Ok(None);
    }
    let accepted = handed.listener.accept();
    Ok(Some(accepted.map_err(io("take the VMM's connection"))?.0))
}

/// The process at the other end. Up to 1.11 the connection itself ends at once, so it says nothing of
/// the VMM's life.
fn process_of(vmm: &UnixStream) -> Result<OwnedFd, MemoryServerError> {
    let peer = rustix::net::sockopt::socket_peercred(vmm).map_err(io("ask who the VMM is"))?;
    pidfd_open(peer.pid, PidfdFlags::empty()).map_err(io("hold the VMM's process"))
}

/// Takes the userfaultfd, and where the memory is.
fn receive(vmm: &UnixStream, file: u64) -> Result<(Uffd, Regions), MemoryServerError> {
    let mut text = Vec::new();
    let mut uffd = None;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let received = recvmsg(vmm, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let bytes = match received {
            Ok(message) => message.bytes,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(io("hear the VMM")(errno)),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                uffd = descriptors.last().or(uffd);
            }
        }
        text.extend_from_slice(&chunk[..bytes]);
        if let Some(regions) = Regions::parse(&text, file)? {
            let uffd = uffd.ok_or_else(|| MemoryServerError::Handshake("no userfaultfd".into()))?;
            return Ok((Uffd::from(uffd), regions));
        }
        if bytes == 0 || text.len() > LONGEST {
            let why = "it does not say where its memory is";
            return Err(MemoryServerError::Handshake(why.into()));
        }
    }
}
