//! The end of what a VMM wrote to its standard error.

use crate::console::visible;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// How many bytes are kept.
const CAPACITY: usize = 4 * 1024;

/// A pipe of which the last few KiB are kept. It is emptied whenever it is read, and a VMM that
/// fills it in between loses its words, not its time: the writing end does not block either.
#[derive(Debug)]
pub(crate) struct Tail {
    readers: Mutex<(Vec<File>, Vec<u8>)>,
}

impl Tail {
    /// A tail and the end that the VMM writes to.
    ///
    /// # Errors
    /// Where no pipe can be made.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((
            Self {
                readers: Mutex::new((vec![File::from(read)], Vec::new())),
            },
            write,
        ))
    }

    /// Reads from there, too, which must not block.
    pub(crate) fn read_too(&mut self, file: File) {
        let readers = self.readers.get_mut();
        readers.unwrap_or_else(PoisonError::into_inner).0.push(file);
    }

    /// What was written last, escaped for a terminal.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let mut guard = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, kept) = &mut *guard;
        let mut chunk = [0; 4096];
        for file in files {
            // A pipe holds 64 KiB at most here; the bound is for a writer that never stops.
            for _ in 0..32 {
                match file.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) => {
                        kept.extend_from_slice(&chunk[..n]);
                        let excess = kept.len().saturating_sub(CAPACITY);
                        kept.drain(..excess);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        let text = String::from_utf8_lossy(kept);
        text.lines().map(visible).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_the_end_is_kept_and_a_full_pipe_does_not_block() {
        let (tail, write) = Tail::new().unwrap();
        let mut write = File::from(write);
        while write.write(&[b'x'; 1000]).is_ok() {}
        assert_eq!(tail.text().len(), CAPACITY);
        write.write_all(b"\nlast\x1b[1m words\n").unwrap();
        assert!(tail.text().ends_with("last\\u{1b}[1m words"));
    }
}
