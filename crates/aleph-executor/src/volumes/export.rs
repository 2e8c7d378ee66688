//! Volumes as images.
//!
//! | volume | as raw | as qcow2 |
//! | --- | --- | --- |
//! | one raw layer | is read as it is | is written into a file first |
//! | a chain | is written into a file first | the same |
//! | encrypted, in any layer | is read piece by piece, into memory | is refused |
//!
//! A file that is written first has no name, and goes with its descriptor. What is encrypted never gets into
//! one: its bytes would be on the disk in the clear.

use super::backend::{OpenLayer, scratch_file};
use super::error::{VolumeError, at};
use super::images::{self, Target};
use super::layer::LayerFormat;
use super::store::{OnItsWay, Volumes, present};
use aleph_types::{DiskImageFormat, MiB, VolumeId};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// How much of an encrypted volume is read at a time, by one program.
const PIECE: u64 = 64 << 20;

/// An image. Nobody writes to its volume meanwhile.
#[derive(Debug)]
pub struct Exported {
    bytes: Bytes,
    /// How many bytes there are.
    pub length: u64,
    /// How much of it [`Read`] has read.
    read: u64,
    _place: OnItsWay,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Pieces(Pieces),
}

impl Exported {
    /// The file that holds it, where one does.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        match &self.bytes {
            Bytes::File(file) => Some(file),
            Bytes::Pieces(_) => None,
        }
    }

    /// Fills a buffer with what is at a place.
    ///
    /// # Errors
    /// Where it cannot be read, or ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => read_or_zeros(file, buffer, (offset, self.length)),
            Bytes::Pieces(pieces) => pieces.read_exact_at(buffer, offset),
        }
    }
}

/// Fills a buffer with what is at a place of an image of this length. Behind a file's end are zeros.
fn read_or_zeros(
    file: &File,
    mut buffer: &mut [u8],
    (mut offset, length): (u64, u64),
) -> io::Result<()> {
    if offset.saturating_add(buffer.len() as u64) > length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(read) => {
                offset += read as u64;
                buffer = buffer.get_mut(read..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Read for Exported {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.read).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..most) else {
            return Ok(0);
        };
        self.read_exact_at(buffer, self.read)?;
        self.read += most as u64;
        Ok(most)
    }
}

/// A disk that is read piece by piece.
#[derive(Debug)]
struct Pieces {
    chain: Vec<OpenLayer>,
    /// How much there is, in bytes.
    size: u64,
    /// The piece that was read last, and which it is.
    last: Mutex<Option<(u64, File)>>,
}

impl Pieces {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        while !buffer.is_empty() {
            let (wanted, within) = (offset / PIECE, offset % PIECE);
            let piece = match last.take() {
                Some((n, piece)) if n == wanted => piece,
                _ => self.read(wanted)?,
            };
            let (_, piece) = last.insert((wanted, piece));
            let left = usize::try_from(PIECE - within).unwrap_or(usize::MAX);
            let (now, rest) = buffer.split_at_mut(left.min(buffer.len()));
            piece.read_exact_at(now, within)?;
            offset += now.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn read(&self, n: u64) -> io::Result<File> {
        let piece = File::from(memfd_create("piece", MemfdFlags::CLOEXEC)?);
        let left = self.size.checked_sub(n * PIECE).filter(|left| *left > 0);
        let bytes = left.ok_or(io::ErrorKind::UnexpectedEof)?.min(PIECE);
        piece.set_len(bytes)?;
        images::piece(&self.chain, &piece, (n * PIECE, bytes)).map_err(io::Error::other)?;
        Ok(piece)
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// A volume, or a snapshot of it, as an image.
    ///
    /// # Errors
    /// Where it is being written, or there is no room; where an encrypted one is to be qcow2.
    pub fn export(
        &self,
        id: VolumeId,
        snapshot: Option<&str>,
        format: DiskImageFormat,
    ) -> Result<Exported> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| present(tx, id))?;
        let (place, free) = inner.image_of(&row.account)?;
        let turn = inner.turn(&row)?;
        let (size, opened) = match snapshot {
            Some(name) => {
                let (snapshot, _, opened) = inner.kept(id, name)?;
                (snapshot.size, opened)
            }
            None => {
                let (row, chain) = inner.records.read(|tx| {
                    let row = present(tx, id)?;
                    inner.check_unwritten(tx, &row)?;
                    let chain = tx.chain(row.top)?;
                    Ok((row, chain))
                })?;
                let opened = inner.open_chain(&chain, false)?;
                inner.check_unlocked(&row, &opened)?;
                (row.size, opened)
            }
        };
        // What is opened is locked, and stays when its name goes: others need not wait for the image.
        drop(turn);
        self.exported(opened, format, (size, free), place)
    }

    /// The image of an opened chain.
    pub(super) fn exported(
        &self,
        opened: Vec<OpenLayer>,
        format: DiskImageFormat,
        (size, free): (MiB, u64),
        place: OnItsWay,
    ) -> Result<Exported> {
        let bytes = self.image(opened, format, (size, free))?;
        let length = match (&bytes, format) {
            (Bytes::File(file), DiskImageFormat::Qcow2) => {
                file.metadata().map_err(VolumeError::Source)?.len()
            }
            // The disk's size, whatever its device has.
            _ => size.bytes(),
        };
        Ok(Exported {
            bytes,
            length,
            read: 0,
            _place: place,
        })
    }

    fn image(
        &self,
        mut chain: Vec<OpenLayer>,
        format: DiskImageFormat,
        (size, free): (MiB, u64),
    ) -> Result<Bytes> {
        if chain.iter().any(|layer| layer.is_encrypted) {
            if format != DiskImageFormat::Raw {
                return Err(VolumeError::BadRequest(
                    "an encrypted volume is exported as raw, which is never written down in the clear",
                ));
            }
            return Ok(Bytes::Pieces(Pieces {
                chain,
                size: size.bytes(),
                last: Mutex::default(),
            }));
        }
        let is_one = matches!(chain.as_slice(), [only] if only.format == LayerFormat::Raw);
        if is_one && format == DiskImageFormat::Raw {
            return Ok(Bytes::File(chain.remove(0).file));
        }
        let work = self.inner.work();
        let held = self.inner.held(&chain)?;
        if held > free {
            let full = io::ErrorKind::StorageFull.into();
            return Err(at("write an image in", &work)(full));
        }
        let _promised = self.inner.promise(held, "write an image in")?;
        let file = scratch_file(&work).map_err(at("make a file in", &work))?;
        match format {
            DiskImageFormat::Raw => {
                file.set_len(size.bytes())
                    .map_err(at("size a file in", &work))?;
                let target = Target {
                    file: &file,
                    key: None,
                };
                images::convert(&chain, target, size)?;
            }
            DiskImageFormat::Qcow2 => images::pack(&chain, &file, size)?,
        }
        // What could not be written out reads as something else later, and says so here alone.
        file.sync_data().map_err(at("write an image in", &work))?;
        Ok(Bytes::File(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_end_of_a_file_its_disk_has_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3], 0).unwrap();
        let read = |offset, bytes: usize| {
            let mut buffer = vec![1; bytes];
            read_or_zeros(&file, &mut buffer, (offset, 6)).map(|()| buffer)
        };
        assert_eq!(read(0, 6).unwrap(), [7, 7, 7, 0, 0, 0]);
        assert_eq!(read(4, 2).unwrap(), [0, 0]);
        assert_eq!(read(1, 2).unwrap(), [7, 7]);
        assert!(read(6, 0).unwrap().is_empty());
        for (offset, bytes) in [(0, 7), (6, 1), (u64::MAX, 1)] {
            read(offset, bytes).unwrap_err();
        }
    }
}
