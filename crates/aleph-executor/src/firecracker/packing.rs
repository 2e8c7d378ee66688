//! A guest in one file.
//!
//! Firecracker writes the state of a guest's devices to one file and its memory to another. Whoever
//! keeps snapshots has one file for both:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `ALEPHFC1` |
//! | 8 | how long the state is, little-endian |
//! | 8 | how long the memory is; 0 where it is elsewhere |
//! | … | the state |
//! | … | from the next page on, the memory |
//!
//! # Failure cases
//! What is not of this form, or ends early, is [`std::io::ErrorKind::InvalidData`] before Firecracker
//! sees any of it.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"ALEPHFC1";
const HEAD: u64 = 24;
const PAGE: u64 = 4096;

/// The longest state that is taken: those of Firecracker are some 100 KiB.
const MAX_STATE: u64 = 64 * 1024 * 1024;

/// The most memory that a guest can have.
const MAX_MEMORY: u64 = 1 << 42;

/// Where the memory begins.
fn after(state: u64) -> u64 {
    (HEAD + state).next_multiple_of(PAGE)
}

/// Memory in a file, or what has changed in it since: nothing is said where the file has holes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) file: &'a File,
    /// Where it begins.
    pub(super) offset: u64,
}

/// Packs a state, and the memory where it is not elsewhere: what the first layer has, then what each
/// one after it has changed. The last one is as long as the memory. Gives where in the file the memory
/// begins.
///
/// # Errors
/// Where a file cannot be read or written.
pub(super) fn pack(to: &File, state: &mut File, memory: &[Layer<'_>]) -> io::Result<u64> {
    let length = state.metadata()?.len();
    let memory_length = match memory.last() {
        Some(Layer { file, offset }) => file.metadata()?.len().saturating_sub(*offset),
        None => 0,
    };
    if length > MAX_STATE || memory_length > MAX_MEMORY {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is longer than any guest",
        ));
    }
    let mut head = MAGIC.to_vec();
    head.extend(length.to_le_bytes());
    head.extend(memory_length.to_le_bytes());
    let mut writer = to;
    writer.write_all(&head)?;
    state.seek(SeekFrom::Start(0))?;
    let written = io::copy(&mut state.take(length), &mut writer)?;
    if written != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let begin = after(length);
    if !memory.is_empty() {
        to.set_len(begin + memory_length)?;
    }
    for Layer { file, offset } in memory {
        copy_data(file, *offset, to, begin, memory_length)?;
    }
    Ok(begin)
}

/// Whether files in a folder have holes as small as a page, so that what was written to one can be
/// told from what was not.
pub(super) fn keeps_small_holes(folder: &Path) -> bool {
    let probe = || -> io::Result<bool> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?);
        let at = 256 * PAGE;
        file.set_len(2 * at)?;
        file.write_all_at(&[1], at)?;
        file.set_len(2 * at)?;
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0))?;
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data))?;
        Ok((data, hole) == (at, at + PAGE))
    };
    probe().unwrap_or(false)
}

/// Reads what was packed, from a stream: the state to one file, the memory to another. Says whether
/// there was any.
///
/// # Errors
/// Where it is of another form or ends early, or a file cannot be written.
pub(super) fn unpack(from: &mut impl Read, state: &File, memory: &File) -> io::Result<bool> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut head = [0; 24];
    from.read_exact(&mut head)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it ends early"),
            _ => error,
        })?;
    let number = |at: usize| -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (length, memory_length) = (number(8), number(16));
    if &head[..8] != MAGIC {
        return Err(invalid("it is no guest of Firecracker's"));
    }
    if length > MAX_STATE || memory_length > MAX_MEMORY {
        return Err(invalid("it is longer than any guest"));
    }
    let mut writer = state;
    if io::copy(&mut from.take(length), &mut writer)? != length {
        return Err(invalid("its state ends early"));
    }
    if memory_length == 0 {
        return Ok(false);
    }
    let gap = after(length) - HEAD - length;
    if io::copy(&mut from.take(gap), &mut io::sink())? != gap {
        return Err(invalid("it ends before its memory"));
    }
    memory.set_len(memory_length)?;
    let mut page = [0; 65536];
    let mut at = 0;
    while at < memory_length {
        let want = usize::try_from((memory_length - at).min(65536)).unwrap_or(page.len());
        let page = &mut page[..want];
        from.read_exact(page)
            .map_err(|_| invalid("its memory ends early"))?;
        // What is empty stays a hole.
        if page.iter().any(|byte| *byte != 0) {
            memory.write_all_at(page, at)?;
        }
        at += want as u64;
    }
    Ok(true)
}

/// Copies the data of a file, and none of its holes.
fn copy_data(from: &File, start: u64, to: &File, begin: u64, length: u64) -> io::Result<()> {
    let mut at = start;
    let mut chunk = vec![0; 1 << 20];
    while at < start + length {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but holes is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?;
        let end = hole.min(start + length);
        at = data;
        while at < end {
            let want = usize::try_from((end - at).min(1 << 20)).unwrap_or(chunk.len());
            from.read_exact_at(&mut chunk[..want], at)?;
            to.write_all_at(&chunk[..want], begin + at - start)?;
            at += want as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn packed(state: &[u8], memory: Option<&[u8]>) -> Vec<u8> {
        let to = tempfile::tempfile().unwrap();
        let memory = memory.map(file);
        let layer = memory.as_ref().map(|file| Layer { file, offset: 0 });
        pack(&to, &mut file(state), layer.as_slice()).unwrap();
        let mut all = Vec::new();
        let mut to = to;
        to.seek(SeekFrom::Start(0)).unwrap();
        to.read_to_end(&mut all).unwrap();
        all
    }

    fn unpacked(mut bytes: &[u8]) -> io::Result<(Vec<u8>, Option<Vec<u8>>)> {
        let (mut state, memory) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let has_memory = unpack(&mut bytes, &state, &memory)?;
        let read = |file: &mut File| {
            let mut all = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut all)?;
            Ok::<_, io::Error>(all)
        };
        let mut memory = memory;
        let memory = has_memory.then(|| read(&mut memory)).transpose()?;
        Ok((read(&mut state)?, memory))
    }

    #[test]
    fn what_was_packed_comes_out() {
        let mut memory = vec![0; 300_000];
        memory[5] = 1;
        memory[299_999] = 2;
        for memory in [None, Some(&memory[..])] {
            let (state, found) = unpacked(&packed(b"state", memory)).unwrap();
            assert_eq!(state, b"state");
            assert_eq!(found.as_deref(), memory);
        }
    }

    /// As a guest is written down a second time: the base is within an earlier file, and the diff has
    /// the pages that were written to, some of them with zeros.
    #[test]
    fn what_has_changed_is_laid_over_what_was() {
        let (page, pages) = (4096_usize, 10);
        let mut memory: Vec<u8> = (0..pages).flat_map(|n| vec![n + 1; page]).collect();
        let before = file(&[&vec![9; page][..], &memory].concat());
        let diff = tempfile::tempfile().unwrap();
        diff.set_len(memory.len() as u64).unwrap();
        for (n, byte) in [(2, 77), (3, 0), (9, 78)] {
            let changed = vec![byte; page];
            diff.write_all_at(&changed, (n * page) as u64).unwrap();
            memory[n * page..(n + 1) * page].copy_from_slice(&changed);
        }
        let to = tempfile::tempfile().unwrap();
        let layers = [(&before, PAGE), (&diff, 0)].map(|(file, offset)| Layer { file, offset });
        let begin = pack(&to, &mut file(b"state"), &layers).unwrap();
        let mut found = vec![0; memory.len()];
        to.read_exact_at(&mut found, begin).unwrap();
        assert!(found == memory);
    }

    #[test]
    fn what_is_cut_or_foreign_is_refused() {
        let whole = packed(b"state", Some(&[7; 5000]));
        for cut in [0, 7, 23, 26, 100, 4096, whole.len() - 1] {
            assert!(unpacked(&whole[..cut]).is_err(), "{cut}");
        }
        let mut foreign = whole.clone();
        foreign[0] = b'B';
        assert!(unpacked(&foreign).is_err());
        let mut long = whole;
        long[15] = 0xff;
        assert!(unpacked(&long).is_err());
    }
}
