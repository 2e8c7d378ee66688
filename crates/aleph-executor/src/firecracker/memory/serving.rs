//! Fills a guest's memory as it is touched.
//!
//! One thread, one loop: what the kernel tells is answered first, then what could not be filled
//! before, then a run of the working set that is given ahead of need.
//!
//! The memory file is read, not mapped. A file that is cut then answers with fewer bytes than were
//! asked for, exactly there, where a mapping would fault; each byte is looked at anyway, since a page
//! of zeros takes no memory where the kernel is told so; and the file's pages do not count as this
//! process's.
//!
//! # Failure cases
//! Anything that would leave a guest's processor waiting, or give it other bytes than the file's, is
//! an error: the server ends, and the VM with it.

use super::error::{MemoryServerError, io};
use super::regions::{PAGE, Regions};
use super::uffd::{Event, Filled, Stop, Uffd};
use super::working_set::Recorder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// How soon what could not be filled is tried again where the kernel tells nothing new.
const AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A guest's memory.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) uffd: Uffd,
    /// Readable once the VMM has ended.
    pub(super) vmm: OwnedFd,
    pub(super) memory: File,
    pub(super) regions: Regions,
    pub(super) recorder: Option<Recorder>,
    /// What is given ahead of need, the last first.
    pub(super) ahead: Vec<(u64, u64)>,
    pages: Pages,
    waiting: Vec<u64>,
    buffer: Vec<u8>,
}

/// How filling a page or a run went.
enum Outcome {
    Done,
    Again,
    Gone,
}

impl Serving {
    pub(super) fn new(uffd: Uffd, vmm: OwnedFd, memory: File, regions: Regions) -> Self {
        let pages = Pages::new(regions.pages());
        Self {
            uffd,
            vmm,
            memory,
            regions,
            recorder: None,
            ahead: Vec::new(),
            pages,
            waiting: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Serves until the VMM has ended.
    pub(super) fn run(&mut self) -> Result<(), MemoryServerError> {
        while self.wait()? && self.step()? {}
        self.end_recording();
        Ok(())
    }

    /// Waits until there is something to do; says whether the VMM is there still.
    fn wait(&self) -> Result<bool, MemoryServerError> {
        let timeout = match (self.ahead.is_empty(), self.waiting.is_empty()) {
            (false, _) => Some(&AT_ONCE),
            (true, false) => Some(&AGAIN),
            (true, true) => None,
        };
        let mut fds = [
            PollFd::new(&self.vmm, PollFlags::IN),
            PollFd::new(&self.uffd, PollFlags::IN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(io("wait for faults")(errno)),
        }
        if !fds[0].revents().is_empty() {
            return Ok(false);
        }
        let broken = PollFlags::ERR | PollFlags::NVAL | PollFlags::HUP;
        if fds[1].revents().intersects(broken) {
            return Err(io("wait for faults")(Errno::PIPE));
        }
        Ok(true)
    }

    /// Does what there is to do; says whether the VMM's memory is there still.
    fn step(&mut self) -> Result<bool, MemoryServerError> {
        for event in self.uffd.events().map_err(io("read faults"))? {
            match event {
                Event::Fault(address) => self.waiting.push(address),
                Event::Removed(start, end) => {
                    for page in self.regions.within(start, end) {
                        self.pages.remove(page);
                    }
                }
                // Nobody asked for another.
                Event::Other(_) => {}
            }
        }
        for address in std::mem::take(&mut self.waiting) {
            match self.fault(address)? {
                Outcome::Done => {}
                Outcome::Again => self.waiting.push(address),
                Outcome::Gone => return Ok(false),
            }
        }
        if self.waiting.is_empty()
            && let Some((first, count)) = self.ahead.pop()
        {
            match self.give(first, count)? {
                Outcome::Done => {}
                Outcome::Again => self.ahead.push((first, count)),
                Outcome::Gone => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Fills the page that somebody waits for.
    fn fault(&mut self, address: u64) -> Result<Outcome, MemoryServerError> {
        let (at, page) = self
            .regions
            .page_at(address)
            .ok_or(MemoryServerError::Elsewhere(address))?;
        let outcome = if self.pages.is_removed(page) {
            self.buffer.clear();
            self.buffer.resize(bytes(self.regions.page())?, 0);
            self.fill(at, 0, self.buffer.len())?
        } else {
            self.read(page, 1)?;
            self.fill(at, 0, self.buffer.len())?
        };
        if matches!(outcome, Outcome::Done)
            && self.pages.touch(page)
            && let Some(recorder) = &mut self.recorder
            && recorder.note(page, Instant::now())
        {
            self.end_recording();
        }
        Ok(outcome)
    }

    /// Fills a run of pages ahead of need.
    fn give(&mut self, first: u64, count: u64) -> Result<Outcome, MemoryServerError> {
        let Some((at, placed)) = self.regions.place(first, count) else {
            return Ok(Outcome::Done);
        };
        self.read(first, placed)?;
        let page = self.regions.page();
        let size = bytes(page)?;
        // What is empty is filled as such, and what was given up stays so.
        let kind = |serving: &Self, n: u64| {
            let begin = usize::try_from(n)
                .unwrap_or(usize::MAX)
                .saturating_mul(size);
            let is_zero = serving.buffer.get(begin..begin.saturating_add(size));
            let is_zero = is_zero.is_some_and(is_zeros);
            (serving.pages.is_removed(first + n), is_zero)
        };
        let mut n = 0;
        while n < placed {
            let (removed, zero) = kind(self, n);
            let mut end = n + 1;
            while end < placed && kind(self, end) == (removed, zero) {
                end += 1;
            }
            if !removed {
                match self.fill(at + n * page, bytes(n * page)?, bytes(end * page)?)? {
                    Outcome::Done => {}
                    other => return Ok(other),
                }
            }
            n = end;
        }
        // Not before: a run that is tried again comes back whole.
        self.ahead.extend(rest(first, count, placed));
        Ok(Outcome::Done)
    }

    /// Reads a run of pages into the buffer.
    fn read(&mut self, first: u64, count: u64) -> Result<(), MemoryServerError> {
        let page = self.regions.page();
        let offset = first * page;
        self.buffer.resize(bytes(count * page)?, 0);
        let read = self.memory.read_exact_at(&mut self.buffer, offset);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => MemoryServerError::Shrunk { offset },
            _ => io("read the memory file")(error),
        })
    }

    /// Fills a range of pages with a part of the buffer that is all zeros, or has some in each page.
    /// What is filled already stays as it is.
    fn fill(&self, at: u64, from: usize, to: usize) -> Result<Outcome, MemoryServerError> {
        let page = bytes(self.regions.page())?;
        let all = &self.buffer[from..to];
        let is_small = self.regions.page() == PAGE;
        let is_zero = is_small && is_zeros(&all[..page.min(all.len())]);
        let mut done = 0;
        while done < all.len() {
            let (to, rest) = (at + done as u64, &all[done..]);
            let Filled { bytes: more, stop } = match is_zero {
                true => self.uffd.zero(to, rest.len() as u64),
                false => self.uffd.copy(to, rest),
            };
            done += bytes(more)?;
            match stop {
                None => {}
                Some(Stop::Exists) => done += page,
                // A part was filled: it ended where the next attempt tells why.
                Some(Stop::Again) if more > 0 => {}
                Some(Stop::Again) => return Ok(Outcome::Again),
                Some(Stop::Gone) => return Ok(Outcome::Gone),
                Some(Stop::Failed(errno)) => return Err(io("fill the guest's memory")(errno)),
            }
        }
        Ok(Outcome::Done)
    }

    /// Writes the working set down. One that cannot be written is no reason to end a VM.
    fn end_recording(&mut self) {
        if let Some(recorder) = self.recorder.take()
            && let Err(error) = recorder.write(&self.regions)
        {
            eprintln!("the working set is not written: {error}");
        }
    }
}

/// What is left of a run of which so much is done.
fn rest(first: u64, count: u64, done: u64) -> Option<(u64, u64)> {
    let left = count.checked_sub(done).filter(|left| *left > 0)?;
    Some((first + done, left))
}

fn bytes(number: u64) -> Result<usize, MemoryServerError> {
    usize::try_from(number).map_err(|_| io("hold so much memory")(Errno::OVERFLOW))
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Compared in pieces, which also a build without optimisation does quickly.
    bytes
        .chunks(ZEROS.len())
        .all(|piece| piece == &ZEROS[..piece.len()])
}

static ZEROS: [u8; 4096] = [0; 4096];

/// What is known of each page.
#[derive(Debug)]
struct Pages {
    removed: Vec<u64>,
    touched: Vec<u64>,
}

impl Pages {
    fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
        Self {
            removed: vec![0; words],
            touched: vec![0; words],
        }
    }

    fn place(page: u64) -> (usize, u64) {
        (
            usize::try_from(page / 64).unwrap_or(usize::MAX),
            1 << (page % 64),
        )
    }

    fn is_removed(&self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        self.removed.get(word).is_some_and(|word| word & bit != 0)
    }

    fn remove(&mut self, page: u64) {
        let (word, bit) = Self::place(page);
        if let Some(word) = self.removed.get_mut(word) {
            *word |= bit;
        }
    }

    /// Notes that it was touched; says whether that was the first time.
    fn touch(&mut self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        let Some(word) = self.touched.get_mut(word) else {
            return false;
        };
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As a run is given piece by piece, and some pieces are tried again.
        #[test]
        fn a_run_is_given_once_however_often_it_is_tried(
            count in 1..200_u64,
            steps in prop::collection::vec((1..50_u64, any::<bool>()), 1..300),
        ) {
            let (mut ahead, mut given) = (vec![(7, count)], Vec::new());
            for (most, is_done) in steps {
                let Some((first, count)) = ahead.pop() else { break };
                let placed = count.min(most);
                match is_done {
                    true => {
                        given.extend(first..first + placed);
                        ahead.extend(rest(first, count, placed));
                    }
                    false => ahead.push((first, count)),
                }
                prop_assert!(ahead.len() <= 1, "it has grown");
            }
            let left: u64 = ahead.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(given, (7..7 + count - left).collect::<Vec<_>>());
        }
    }
}
