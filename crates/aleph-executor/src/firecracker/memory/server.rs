//! The program: what a memory server does from its start to its end.

use super::error::{MemoryServerError, io};
use super::regions::Regions;
use super::serving::Serving;
use super::uffd::Uffd;
use super::working_set::{self, Recorder};
use crate::process::FIRST_FILE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    DumpableBehavior, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open,
    set_dumpable_behavior,
};
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
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
/// It works with duplicates of the descriptors that it was handed by number, and refuses what is
/// not of their kind. Why it ended early is on standard error, in one line.
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
    let handed = take(how)?;
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

/// Duplicates of what it was handed: so nothing is taken from whoever else in this process might have
/// descriptors of those numbers.
fn take(how: Use) -> Result<Handed, MemoryServerError> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(io("look at this process"))?;
    let file = |n: i32| {
        let file = pidfd_getfd(&own, FIRST_FILE + n, PidfdGetfdFlags::empty());
        file.map_err(|errno| match errno {
            Errno::BADF => MemoryServerError::NotHanded(FIRST_FILE + n),
            errno => io("take what it was handed")(errno),
        })
    };
    let kind = |n: i32, is: fn(FileType) -> bool| {
        let file = file(n)?;
        let stat = fstat(&file).map_err(io("look at what it was handed"))?;
        match is(FileType::from_raw_mode(stat.st_mode)) {
            true => Ok(file),
            false => Err(MemoryServerError::NotHanded(FIRST_FILE + n)),
        }
    };
    let is_file = |kind| kind == FileType::RegularFile;
    Ok(Handed {
        listener: kind(0, |kind| kind == FileType::Socket)?.into(),
        memory: kind(1, is_file)?.into(),
        starter: kind(2, |kind| kind == FileType::Fifo)?,
        working_set: match how {
            Use::Nothing => None,
            Use::Record | Use::Prefetch => Some(kind(3, is_file)?.into()),
        },
    })
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
