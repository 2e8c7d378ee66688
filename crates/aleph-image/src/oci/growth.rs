//! A file that one thread writes while another already reads it.
//!
//! The reader gets what is written as it comes, and the end only when the writer has said that
//! all of it is right: what was read of a file that turns out wrong ends in an error, never in
//! an end.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How far a file is.
#[derive(Debug, Default)]
struct State {
    /// Opened by the writer for the reader, at the beginning.
    file: Option<Arc<File>>,
    written: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Right,
    Wrong,
}

/// The writer's half. Dropped before [`finish`](Self::finish), the file is wrong.
#[derive(Debug)]
pub(super) struct Growing {
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// The reader's half: blocks where nothing is written yet.
#[derive(Debug)]
pub(super) struct Following {
    shared: Arc<(Mutex<State>, Condvar)>,
    at: u64,
}

/// The inner error of what [`Following`] gives when its writer stopped.
#[derive(Debug, thiserror::Error)]
#[error("the download stopped")]
pub(super) struct Stopped;

pub(super) fn growing_file() -> (Growing, Following) {
    let shared = Arc::<(Mutex<State>, Condvar)>::default();
    let growing = Growing {
        shared: Arc::clone(&shared),
    };
    (growing, Following { shared, at: 0 })
}

impl Growing {
    /// The file is `file`, of which the first `written` bytes are there.
    pub(super) fn begin(&self, file: File, written: u64) {
        self.change(|state| {
            state.file = Some(Arc::new(file));
            state.written = written;
        });
    }

    /// `n` bytes more are there.
    pub(super) fn grow(&self, n: u64) {
        self.change(|state| state.written += n);
    }

    /// All of it is there, and is what it should be.
    pub(super) fn finish(self) {
        self.change(|state| state.end = Some(End::Right));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let (state, changed) = &*self.shared;
        change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.change(|state| {
            state.end.get_or_insert(End::Wrong);
        });
    }
}

impl Following {
    /// The file, and how much there is to read at `at`; `None` at the end.
    fn wait(&self) -> io::Result<Option<(Arc<File>, u64)>> {
        let (state, changed) = &*self.shared;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.end == Some(End::Wrong) {
                return Err(io::Error::other(Stopped));
            }
            match (&state.file, state.written.saturating_sub(self.at)) {
                (Some(file), more) if more > 0 => return Ok(Some((Arc::clone(file), more))),
                _ if state.end.is_some() => return Ok(None),
                _ => {}
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((file, more)) = self.wait()? else {
            return Ok(0);
        };
        let most = usize::try_from(more).map_or(buffer.len(), |more| more.min(buffer.len()));
        let n = file.read_at(&mut buffer[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Whether an error comes from a writer that stopped, and not from what was read.
pub(super) fn is_stopped(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<Stopped>() || is_stopped(inner)) {
            return true;
        }
        at = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_reader_follows_its_writer_and_ends_with_it() {
        let mut file = tempfile::tempfile().unwrap();
        let (growing, mut following) = growing_file();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            following.read_to_string(&mut text).map(|_| text)
        });
        file.write_all(b"one ").unwrap();
        growing.begin(file.try_clone().unwrap(), 4);
        for word in ["two ", "three"] {
            file.write_all(word.as_bytes()).unwrap();
            growing.grow(word.len() as u64);
        }
        growing.finish();
        assert_eq!(reader.join().unwrap().unwrap(), "one two three");
    }

    #[test]
    fn a_writer_that_stops_is_no_end() {
        for begun in [false, true] {
            let (growing, mut following) = growing_file();
            if begun {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(b"half").unwrap();
                growing.begin(file, 4);
                let mut half = [0; 4];
                following.read_exact(&mut half).unwrap();
            }
            drop(growing);
            let error = following.read(&mut [0; 8]).unwrap_err();
            assert!(is_stopped(&error));
            let wrapped = crate::ArchiveError::Damaged {
                source: io::Error::other(error),
            };
            assert!(is_stopped(&wrapped));
        }
        assert!(!is_stopped(&io::Error::other("something else")));
    }
}
