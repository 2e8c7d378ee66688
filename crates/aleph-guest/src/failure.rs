//! A failed operation as the host is told of it.

use alloc::format;
use alloc::string::String;
use core::fmt;
use rustix::io::Errno;

/// What failed, with what, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error number of the failed call, or 0.
    pub errno: u32,
    /// What it was doing, with what, and the error in words.
    pub message: String,
}

/// Longest message that is sent. A path of the host's may be longer.
const MAX_MESSAGE: usize = 1024;

impl Failure {
    /// A failed system call.
    #[must_use]
    pub fn new(what: &str, errno: Errno) -> Self {
        Self {
            errno: number(errno),
            message: format!("{what}: {}", words(errno)),
        }
    }

    /// A failure with its own words and the error number that fits it.
    #[must_use]
    pub fn because(message: String, errno: Errno) -> Self {
        Self {
            errno: number(errno),
            message,
        }
    }

    /// A host that broke the rules of the protocol.
    #[must_use]
    pub fn violation(what: impl fmt::Display) -> Self {
        Self {
            errno: number(Errno::PROTO),
            message: format!("protocol violation: {what}"),
        }
    }

    /// The message, as much as is sent of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let bytes = self.message.as_bytes();
        bytes.get(..MAX_MESSAGE).unwrap_or(bytes)
    }
}

/// Attaches what was being done to a result of the kernel's.
pub(crate) trait Context<T> {
    /// Says what was being done; only a failure costs its text.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(&what(), errno))
    }
}

/// Bytes as text, for messages.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}

/// The errors that a guest's operations end in, in the words of strerror(3).
#[must_use]
pub(crate) fn words(errno: Errno) -> String {
    let known = match errno {
        Errno::PERM => "Operation not permitted",
        Errno::NOENT => "No such file or directory",
        Errno::SRCH => "No such process",
        Errno::INTR => "Interrupted system call",
        Errno::IO => "Input/output error",
        Errno::NXIO => "No such device or address",
        Errno::TOOBIG => "Argument list too long",
        Errno::NOEXEC => "Exec format error",
        Errno::BADF => "Bad file descriptor",
        Errno::CHILD => "No child processes",
        Errno::AGAIN => "Resource temporarily unavailable",
        Errno::NOMEM => "Cannot allocate memory",
        Errno::ACCESS => "Permission denied",
        Errno::NOTBLK => "Block device required",
        Errno::BUSY => "Device or resource busy",
        Errno::EXIST => "File exists",
        Errno::NODEV => "No such device",
        Errno::NOTDIR => "Not a directory",
        Errno::ISDIR => "Is a directory",
        Errno::INVAL => "Invalid argument",
        Errno::NFILE => "Too many open files in system",
        Errno::MFILE => "Too many open files",
        Errno::TXTBSY => "Text file busy",
        Errno::FBIG => "File too large",
        Errno::NOSPC => "No space left on device",
        Errno::ROFS => "Read-only file system",
        Errno::PIPE => "Broken pipe",
        Errno::NAMETOOLONG => "File name too long",
        Errno::NOSYS => "Function not implemented",
        Errno::LOOP => "Too many levels of symbolic links",
        Errno::BADMSG => "Bad message",
        Errno::PROTO => "Protocol error",
        Errno::AFNOSUPPORT => "Address family not supported by protocol",
        Errno::ADDRNOTAVAIL => "Cannot assign requested address",
        Errno::NETUNREACH => "Network is unreachable",
        Errno::OPNOTSUPP => "Operation not supported",
        Errno::TIMEDOUT => "Connection timed out",
        Errno::CONNREFUSED => "Connection refused",
        Errno::CONNRESET => "Connection reset by peer",
        Errno::UCLEAN => "Structure needs cleaning",
        Errno::DQUOT => "Disk quota exceeded",
        other => return format!("error {}", other.raw_os_error()),
    };
    String::from(known)
}
