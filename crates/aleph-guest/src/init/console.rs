//! The console: for what cannot be said on the channel. It is an emulated serial port, so
//! nothing is printed while all is well.

use crate::sys::stderr;

/// Prints a line.
pub fn print(message: &str) {
    for part in ["aleph-guest: ", message, "\n"] {
        // There is nowhere to tell that the console does not work.
        let _ = rustix::io::write(stderr(), part.as_bytes());
    }
}

/// Whether standard error is open, and so the streams below it.
pub(super) fn has_streams() -> bool {
    rustix::io::fcntl_getfd(stderr()).is_ok()
}
