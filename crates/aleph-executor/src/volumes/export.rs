//! Volumes as images.

use super::backend::{OpenLayer, flatten, pack, scratch_file};
use super::error::{VolumeError, at};
use super::records::LayerFormat;
use super::store::{OnItsWay, Volumes, present};
use aleph_types::{DiskImageFormat, MiB, VolumeId};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

/// An image that is read from its beginning.
#[derive(Debug)]
pub struct Exported {
    /// Its bytes.
    pub file: File,
    /// How many there are.
    pub length: u64,
    _place: OnItsWay,
}

impl Read for Exported {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// A volume, or a snapshot of it, as an image. A chain, and all that becomes qcow2, is written into a
    /// file first, which goes with its descriptor; a volume of one raw file is read as it is, and cannot be
    /// written to meanwhile.
    ///
    /// # Errors
    /// Where it is being written, or there is no room.
    pub fn export(
        &self,
        id: VolumeId,
        snapshot: Option<&str>,
        format: DiskImageFormat,
    ) -> Result<Exported> {
        let inner = &self.inner;
        let (place, free) = inner.image()?;
        let row = inner.records.read(|tx| present(tx, id))?;
        let _turn = inner.turn(&row)?;
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
        let file = self.image(opened, format, (size, free))?;
        let work = inner.work();
        let length = file
            .metadata()
            .map_err(at("look at a file in", &work))?
            .len();
        Ok(Exported {
            file,
            length,
            _place: place,
        })
    }

    fn image(
        &self,
        mut chain: Vec<OpenLayer>,
        format: DiskImageFormat,
        (size, free): (MiB, u64),
    ) -> Result<File> {
        let is_one = matches!(chain.as_slice(), [only] if only.format == LayerFormat::Raw);
        if is_one && format == DiskImageFormat::Raw {
            return Ok(chain.remove(0).file);
        }
        let work = self.inner.work();
        let held = chain.iter().map(|layer| layer.file.metadata());
        let held = held.map(|meta| meta.map_or(0, |meta| meta.blocks() * 512));
        if held.sum::<u64>() > free {
            let full = io::ErrorKind::StorageFull.into();
            return Err(at("write an image in", &work)(full));
        }
        let file = scratch_file(&work).map_err(at("make a file in", &work))?;
        match format {
            DiskImageFormat::Raw => {
                file.set_len(size.bytes())
                    .map_err(at("size a file in", &work))?;
                flatten(&chain, &file, size)?;
            }
            DiskImageFormat::Qcow2 => pack(&chain, &file, size)?,
        }
        Ok(file)
    }
}
