//! Starting a program.
//!
//! The child is made with `CLONE_VM | CLONE_VFORK`: it borrows the agent's memory until it
//! executes its program, so no page table is copied and no page is faulted in twice, which
//! under emulation is most of what a fork costs. It also makes errors easy to report: the child
//! writes what failed into the plan that it was handed. The agent stands still until then.

use super::arch::{clone_shared, number};
use super::signal::{SIGHUP, SIGPIPE, set_mask};
use super::{call, error, exit};
use alloc::boxed::Box;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// Strings in the form that execve takes: pointers to each, and a null pointer.
#[derive(Debug)]
pub struct Strings {
    owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    /// These strings.
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(ptr::null());
        Self {
            owned: strings,
            pointers,
        }
    }

    /// The first string.
    #[must_use]
    pub fn first(&self) -> Option<&CStr> {
        self.owned.first().map(CString::as_c_str)
    }
}

/// What the child does, all of it prepared: between clone and execve it may not allocate.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where the program may be, in the order to try.
    pub candidates: &'a [CString],
    /// Its arguments.
    pub argv: &'a Strings,
    /// Its environment.
    pub env: &'a Strings,
    /// Its standard input, output and error: descriptors above 2, closed on exec themselves.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether its standard input becomes its controlling terminal.
    pub terminal: bool,
    /// Its working directory, where that is not the agent's.
    pub workdir: Option<&'a CStr>,
    /// Whom it runs as.
    pub uid: rustix::fs::Uid,
    /// The group that it runs as.
    pub gid: rustix::fs::Gid,
    /// Its supplementary groups.
    pub groups: &'a [rustix::fs::Gid],
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Making a session and its terminal.
    Session,
    /// Putting its standard streams in place.
    Streams,
    /// Entering its working directory.
    Workdir,
    /// Becoming its user.
    User,
    /// Executing its program.
    Program,
}

/// How starting a program went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It runs, under this process id.
    Running(i32),
    /// It failed at this stage.
    Failed(Stage, Errno),
}

/// What parent and child share.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    failed: Option<(Stage, Errno)>,
}

const STACK: usize = 16 * 1024;

#[repr(C, align(16))]
struct Stack(MaybeUninit<[u8; STACK]>);

/// Starts a program in its own session and waits until it is executed, or has failed to be. A
/// child that failed is a zombie for the next round of reaping.
pub fn spawn(plan: &Plan<'_>) -> Outcome {
    const VM_VFORK_SIGCHLD: usize = 0x100 | 0x4000 | 17;
    let mut shared = Shared { plan, failed: None };
    let mut stack = Box::<Stack>::new_uninit();
    // SAFETY: the end of the stack is one past its allocation, and aligned with its type. The
    // child uses the stack and the shared plan only while this function waits in the call, and
    // leaves by execve or exit.
    let result = unsafe {
        let top = stack.as_mut_ptr().add(1).cast::<u8>();
        clone_shared(
            VM_VFORK_SIGCHLD,
            top,
            child,
            ptr::from_mut(&mut shared).cast(),
        )
    };
    // SAFETY: the child wrote it behind the compiler's back, and is done with it.
    let failed = unsafe { ptr::read_volatile(&raw const shared.failed) };
    match (i32::try_from(result), failed) {
        (Ok(pid), None) if pid > 0 => Outcome::Running(pid),
        (_, Some((stage, errno))) => Outcome::Failed(stage, errno),
        _ => Outcome::Failed(Stage::Session, error(result)),
    }
}

extern "C" fn child(argument: *mut c_void) -> ! {
    // SAFETY: `spawn` hands in its own `Shared` and waits while this runs.
    let shared = unsafe { &mut *argument.cast::<Shared<'_>>() };
    shared.failed = Some(become_program(shared.plan));
    exit(127);
}

/// Becomes the program, or says what failed.
fn become_program(plan: &Plan<'_>) -> (Stage, Errno) {
    let steps = [
        (
            Stage::Session,
            enter_session as fn(&Plan<'_>) -> Result<(), Errno>,
        ),
        (Stage::Streams, place_streams),
        (Stage::Workdir, |plan| {
            plan.workdir.map_or(Ok(()), rustix::process::chdir)
        }),
        (Stage::User, become_user),
    ];
    for (stage, step) in steps {
        if let Err(errno) = step(plan) {
            return (stage, errno);
        }
    }
    reset_signals();
    (Stage::Program, execute(plan))
}

fn enter_session(plan: &Plan<'_>) -> Result<(), Errno> {
    rustix::process::setsid()?;
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(plan.stdio[0])?;
    }
    Ok(())
}

fn place_streams(plan: &Plan<'_>) -> Result<(), Errno> {
    let [input, output, errors] = plan.stdio;
    rustix::stdio::dup2_stdin(input.as_fd())?;
    rustix::stdio::dup2_stdout(output.as_fd())?;
    rustix::stdio::dup2_stderr(errors.as_fd())
}

/// Groups first: after the user changed they could not be.
fn become_user(plan: &Plan<'_>) -> Result<(), Errno> {
    set_thread_groups(plan.groups)?;
    set_thread_gid(plan.gid)?;
    set_thread_uid(plan.uid)
}

/// Nothing stays blocked or ignored. The agent itself ignores nothing, but what runs its
/// session in a test may ignore a broken pipe or a hang-up, and that would be inherited.
fn reset_signals() {
    let default = [0_usize; 4];
    for signal in [SIGPIPE, usize::from(SIGHUP)] {
        // SAFETY: the kernel reads a sigaction whose handler is SIG_DFL; it has no flags.
        let _ = unsafe {
            call(
                number::RT_SIGACTION,
                [signal, default.as_ptr().addr(), 0, 8],
            )
        };
    }
    set_mask(0);
}

/// Executes the first candidate that can be, as execvp does: one that is not there is passed
/// over, and one that may not be executed is remembered.
fn execute(plan: &Plan<'_>) -> Errno {
    let mut seen = Errno::NOENT;
    for candidate in plan.candidates {
        // SAFETY: all three are NUL-terminated and outlive the call.
        let result = unsafe {
            call(
                number::EXECVE,
                [
                    candidate.as_ptr().addr(),
                    plan.argv.pointers.as_ptr().addr(),
                    plan.env.pointers.as_ptr().addr(),
                ],
            )
        };
        match result {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::ACCESS) => seen = Errno::ACCESS,
            Err(errno) => return errno,
            Ok(_) => {}
        }
    }
    seen
}
