//! The pages that a guest needs first after it goes on from a snapshot, in the order of its first
//! faults: what the next guest that goes on from there is given before it asks.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `ALEPHWS1` |
//! | 8 | how large a page is, little-endian |
//! | 8 | how many there are in the memory file |
//! | 8 | how many follow |
//! | 4 each | the numbers of pages |
//!
//! The first bytes are written last, so a file that was half written when its writer died has no
//! meaning. A record is advice and nothing more: whatever it says, a page is filled with what the memory
//! file has there. One that is of another memory is not used.

use super::regions::Regions;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"ALEPHWS1";
const HEAD: u64 = 32;

/// For how long faults are recorded: the time between two counts in full where it is short, and a
/// little where it is long. So a guest that stands still, or has nothing to do, is recorded until it
/// has done something.
const WINDOW: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// The most bytes of one copy.
const RUN: u64 = 512 * 1024;

/// Notes the order of first faults.
#[derive(Debug)]
pub(super) struct Recorder {
    to: File,
    order: Vec<u32>,
    last: Option<Instant>,
    passed: Duration,
}

impl Recorder {
    pub(super) fn new(to: File) -> Self {
        Self {
            to,
            order: Vec::new(),
            last: None,
            passed: Duration::ZERO,
        }
    }

    /// Notes the first fault of a page. Says whether that is enough.
    pub(super) fn note(&mut self, page: u64, now: Instant) -> bool {
        if let Some(last) = self.last.replace(now) {
            self.passed += now.duration_since(last).min(PAUSE);
        }
        if let Ok(page) = u32::try_from(page) {
            self.order.push(page);
        }
        self.passed >= WINDOW
    }

    /// Writes them down.
    pub(super) fn write(&self, regions: &Regions) -> io::Result<()> {
        let body: Vec<u8> = self.order.iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut head = MAGIC.to_vec();
        for number in [regions.page(), regions.pages(), self.order.len() as u64] {
            head.extend(number.to_le_bytes());
        }
        self.to.set_len(0)?;
        self.to.write_all_at(&body, HEAD)?;
        self.to.write_all_at(&head, 0)
    }
}

/// Whether a file holds a record, of whatever memory.
pub(super) fn is_written(file: &File) -> bool {
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0).is_ok() && &magic == MAGIC
}

/// Reads a record of this memory as runs of pages, each with its first page and how many there are,
/// those first that were needed first. `None` where it is of another memory, or none.
pub(super) fn read(file: &File, regions: &Regions) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut head = [0; 32];
    if let Err(error) = file.read_exact_at(&mut head, 0) {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(None),
            _ => Err(error),
        };
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (page, pages, count) = (number(8), number(16), number(24));
    let is_ours = page == regions.page() && pages == regions.pages() && count <= pages;
    if &head[..8] != MAGIC || !is_ours {
        return Ok(None);
    }
    let mut body = vec![0; usize::try_from(count * 4).map_err(io::Error::other)?];
    if file.read_exact_at(&mut body, HEAD).is_err() {
        return Ok(None);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let order = body.chunks_exact(4).map(number);
    Ok(Some(runs(order.filter(|n| *n < pages), page)))
}

/// Neighbours become one run, up to a length that others can wait for.
fn runs(order: impl Iterator<Item = u64>, page: u64) -> Vec<(u64, u64)> {
    let longest = (RUN / page).max(1);
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    for (place, number) in order.enumerate() {
        places.entry(number).or_insert(place);
    }
    let mut runs: Vec<(usize, u64, u64)> = Vec::new();
    for (number, place) in places {
        match runs.last_mut() {
            Some((earliest, first, count)) if *first + *count == number && *count < longest => {
                *earliest = place.min(*earliest);
                *count += 1;
            }
            _ => runs.push((place, number, 1)),
        }
    }
    runs.sort_unstable();
    runs.into_iter().map(|(_, first, n)| (first, n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn regions(pages: u64) -> Regions {
        let json = format!(
            r#"[{{"base_host_virt_addr":4096,"size":{},"offset":0,"page_size":4096}}]"#,
            pages * 4096
        );
        let regions = Regions::parse(json.as_bytes(), u64::MAX);
        regions.unwrap().unwrap()
    }

    fn recorded(pages: &[u64], of: u64) -> File {
        let mut recorder = Recorder::new(tempfile::tempfile().unwrap());
        for page in pages {
            recorder.note(*page, Instant::now());
        }
        recorder.write(&regions(of)).unwrap();
        recorder.to
    }

    #[test]
    fn what_was_needed_first_comes_first_with_its_neighbours() {
        let file = recorded(&[7, 3, 8, 1, 6], 10);
        assert!(is_written(&file));
        let runs = read(&file, &regions(10)).unwrap().unwrap();
        assert_eq!(runs, [(6, 3), (3, 1), (1, 1)]);
    }

    #[test]
    fn what_is_cut_or_of_another_memory_is_not_used() {
        let file = recorded(&[1, 2, 3], 10);
        assert_eq!(read(&file, &regions(11)).unwrap(), None);
        for length in [0, 7, 31, 33, 43] {
            file.set_len(length).unwrap();
            let again = recorded(&[1, 2, 3], 10);
            again.set_len(length).unwrap();
            assert_eq!(read(&again, &regions(10)).unwrap(), None, "{length}");
        }
        // As a writer that died leaves it: all but the head.
        let half = recorded(&[1, 2, 3], 10);
        half.write_all_at(&[0; 32], 0).unwrap();
        assert!(!is_written(&half));
        assert_eq!(read(&half, &regions(10)).unwrap(), None);
    }

    #[test]
    fn a_guest_that_stands_still_is_recorded_further() {
        let mut recorder = Recorder::new(tempfile::tempfile().unwrap());
        let begin = Instant::now();
        assert!(!recorder.note(1, begin));
        assert!(!recorder.note(2, begin + Duration::from_secs(3600)));
        let busy = begin + Duration::from_secs(3600);
        let steps = 1..=200;
        let enough = steps.map(|n| recorder.note(3, busy + n * Duration::from_millis(10)));
        assert_eq!(enough.filter(|enough| *enough).count(), 3);
    }

    proptest! {
        #[test]
        fn every_page_is_in_one_run(order in proptest::collection::vec(0_u64..2000, 0..400)) {
            let runs = runs(order.iter().copied(), 4096);
            let mut seen = BTreeSet::new();
            for (first, count) in runs {
                prop_assert!(count * 4096 <= RUN);
                for page in first..first + count {
                    prop_assert!(seen.insert(page));
                }
            }
            prop_assert_eq!(seen, order.into_iter().collect::<BTreeSet<_>>());
        }
    }
}
