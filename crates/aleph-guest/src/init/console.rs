//! The console: for what cannot be said on the channel. It is an emulated serial port, so
//! nothing is printed while all is well.

use crate::sys::stderr;
use core::fmt::{self, Write};

/// Prints a line. It takes no memory, so that running out of it can be told.
pub fn print(message: impl fmt::Display) {
    // There is nowhere to tell that the console does not work.
    let _ = writeln!(Console, "aleph-guest: {message}");
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        rustix::io::write(stderr(), part.as_bytes()).map_or(Err(fmt::Error), |_| Ok(()))
    }
}

/// Whether standard error is open, and so the streams below it.
pub(super) fn has_streams() -> bool {
    rustix::io::fcntl_getfd(stderr()).is_ok()
}
