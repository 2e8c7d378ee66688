//! A state of a volume, read where it lies: what backups read, and how they know what changed.
//!
//! A chain is read through its layers, and nothing is written for it. `qemu-img map` says of each overlay,
//! alone and locked up, which parts of the disk it holds and where in its file; what is left is reading files
//! that we have open. So an overlay that is not what it should be leads to bytes of its own file, and to no
//! other.
//!
//! What changed between two states of a volume is what the layers between them hold: a layer below the top
//! never changes. A state has a name where it is such a layer's ([`Reading::state`]): the layer's number, its
//! file's inode and when that was made and last written. Whoever finds that name again later, in a chain that
//! goes on from there, knows that all else is as it was ([`Reading::changed_since`]). A disk that was put back
//! from elsewhere, a layer that somebody wrote to, and a chain that was copied in whole have other names:
//! then nothing is known to be unchanged. So a layer that a VMM still has open for writing, below what its guest
//! writes to, has a name, too. It is taken before anything is read of the layer, or a copy is made of it
//! ([`exposed`](super::exposed)), and a VMM that was broken into and writes there all the same takes the name away,
//! or spoils the backups of its own volume.
//!
//! The other way would be dirty bitmaps of QEMU. They are kept by the VMM, so what a VMM that was broken into
//! or killed says of them would have to be believed, and a volume that was written without them, or restored,
//! has none. Layers are there anyway, and outlive whoever wrote them.
//!
//! # Failure cases
//! What cannot be read in place (an encrypted layer; a compressed cluster, which none of ours has; more extents
//! than [`MAP_BYTES`] of JSON or, of all layers together, than [`MOST_EXTENTS`]) is read as exports are, and has
//! no name of a state. Nor has a layer in a pool of LVM, whose device does not say when it was written.

use super::backend::OpenLayer;
use super::error::{VolumeError, at};
use super::export::Exported;
use super::images::map;
use super::layer::LayerFormat;
use super::records::{LayerId, LayerRow};
use super::store::{OnItsWay, Volumes, present};
use crate::failpoint;
use aleph_types::{DiskImageFormat, MiB, VolumeId};
use rustix::fs::{AtFlags, SeekFrom, StatxFlags, seek, statx};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// How many bytes of JSON a map of a layer has at most: some 600,000 extents.
pub(super) const MAP_BYTES: u64 = 64 << 20;

/// How many extents the layers of a chain have at most, together: some 100 MiB of memory.
const MOST_EXTENTS: usize = 1 << 20;

/// A part of a disk that a layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// Which part, in bytes of the disk.
    pub(super) range: Range<u64>,
    /// Where its bytes begin in the layer's file; `None` where they are zeros.
    pub(super) at: Option<u64>,
}

/// A layer, with what it holds in order.
#[derive(Debug)]
struct Layer {
    file: File,
    size: u64,
    extents: Vec<Extent>,
    /// What names the state of the disk that this layer and those below it are; `None` where it may change.
    state: Option<String>,
}

/// A part of the disk that is not zeros, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    range: Range<u64>,
    layer: usize,
    at: u64,
}

/// A state of a volume that stays as it is for as long as this lives.
#[derive(Debug)]
pub struct Reading {
    size: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// Where they lie.
    Layers {
        /// From the top down.
        layers: Vec<Layer>,
        segments: Vec<Segment>,
        state: Option<String>,
        _place: OnItsWay,
    },
    /// As an image of the disk, which has no history.
    Image(Exported),
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// A volume, or a snapshot of it, to be read in any order. Nobody writes to the volume meanwhile.
    ///
    /// # Errors
    /// Where it is being written, or a layer is not what it should be.
    pub fn read(&self, id: VolumeId, snapshot: Option<&str>) -> Result<Reading> {
        let inner = &self.inner;
        let (place, free) = inner.image()?;
        let row = inner.records.read(|tx| present(tx, id))?;
        let turn = inner.turn(&row)?;
        let (size, chain, opened) = match snapshot {
            Some(name) => {
                let (snapshot, chain, opened) = inner.kept(id, name)?;
                (snapshot.size, chain, opened)
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
                (row.size, chain, opened)
            }
        };
        drop(turn);
        self.reading((&chain, opened), (size, free), snapshot.is_some(), place)
    }

    /// A chain that is open, and whose top stands still, too, where `is_frozen` says so for good.
    pub(super) fn reading(
        &self,
        (chain, opened): (&[LayerRow], Vec<OpenLayer>),
        sizes: (MiB, u64),
        is_frozen: bool,
        place: OnItsWay,
    ) -> Result<Reading> {
        let size = sizes.0.bytes();
        if let Some(layers) = layers_of(chain, &opened, is_frozen)? {
            return Ok(Reading::new(size, layers, place));
        }
        let image = self.exported(opened, DiskImageFormat::Raw, sizes, place)?;
        Ok(Reading {
            size,
            bytes: Bytes::Image(image),
        })
    }
}

/// The layers with what they hold; `None` where one cannot be read in place.
fn layers_of(
    chain: &[LayerRow],
    opened: &[OpenLayer],
    is_frozen: bool,
) -> Result<Option<Vec<Layer>>> {
    if opened.iter().any(|layer| layer.is_encrypted) {
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(opened.len());
    let mut left = MOST_EXTENTS;
    for (place, layer) in opened.iter().enumerate() {
        let size = layer.size()?;
        let extents = match layer.format {
            LayerFormat::Raw => {
                let data = data_of(&layer.file, size, left);
                data.map_err(at("look at", &layer.path))?
            }
            LayerFormat::Qcow2 => map(layer, size)?,
        };
        let Some((extents, rest)) = extents.and_then(|extents| {
            let rest = left.checked_sub(extents.len())?;
            Some((extents, rest))
        }) else {
            return Ok(None);
        };
        left = rest;
        let is_kept = is_frozen || place > 0;
        layers.push(Layer {
            state: layer.name.clone().filter(|_| is_kept),
            file: layer.file.try_clone().map_err(VolumeError::Source)?,
            size,
            extents,
        });
    }
    // A top that nobody wrote to is what its parent is.
    if let (false, Some(row), [top, below, ..]) = (is_frozen, chain.first(), layers.as_mut_slice())
        && !row.written
        && top.size == below.size
    {
        top.state.clone_from(&below.state);
    }
    Ok(Some(layers))
}

/// What names a layer's file as it is now.
pub(super) fn name_of(layer: LayerId, file: &File) -> Option<String> {
    let wanted = StatxFlags::BTIME | StatxFlags::MTIME | StatxFlags::INO;
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask);
    told.contains(wanted).then(|| {
        let (made, written) = (stat.stx_btime, stat.stx_mtime);
        format!(
            "{}:{}:{}.{:09}:{}.{:09}",
            layer, stat.stx_ino, made.tv_sec, made.tv_nsec, written.tv_sec, written.tv_nsec
        )
    })
}

/// The parts of a raw file that are no holes, one after the other.
pub(super) struct Parts<'a> {
    file: &'a File,
    size: u64,
    at: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn of(file: &'a File, size: u64) -> Self {
        Self { file, size, at: 0 }
    }

    fn following(&self) -> io::Result<Option<Range<u64>>> {
        let (file, at, size) = (self.file, self.at, self.size);
        if at >= size {
            return Ok(None);
        }
        let range = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start..seek(file, SeekFrom::Hole(start))?.min(size),
            // Nothing but a hole follows.
            Err(Errno::NXIO) => return Ok(None),
            // Some filesystems know no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at..size,
            Err(error) => return Err(error.into()),
        };
        match range.is_empty() {
            true => Err(io::Error::other("the file changes while it is read")),
            false => Ok(Some(range)),
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.following().transpose()?;
        self.at = found.as_ref().map_or(self.size, |range| range.end);
        Some(found)
    }
}

/// The parts of a raw file that are no holes; `None` where there are more than `most`.
pub(super) fn data_of(file: &File, size: u64, most: usize) -> io::Result<Option<Vec<Extent>>> {
    let mut extents = Vec::new();
    for range in Parts::of(file, size) {
        let range = range?;
        if extents.len() == most {
            return Ok(None);
        }
        extents.push(Extent {
            at: Some(range.start),
            range,
        });
    }
    Ok(Some(extents))
}

impl Reading {
    fn new(size: u64, layers: Vec<Layer>, place: OnItsWay) -> Self {
        let held: Vec<_> = layers
            .iter()
            .map(|layer| (layer.size, layer.extents.as_slice()))
            .collect();
        Self {
            size,
            bytes: Bytes::Layers {
                segments: segments_of(size, &held),
                state: layers.first().and_then(|top| top.state.clone()),
                layers,
                _place: place,
            },
        }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What names this state of the volume, where it can never change.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        match &self.bytes {
            Bytes::Layers { state, .. } => state.as_deref(),
            Bytes::Image(_) => None,
        }
    }

    /// The parts that may have data, in order: all else are zeros.
    ///
    /// # Errors
    /// Where they cannot be told.
    pub fn allocated(&self) -> io::Result<Vec<Range<u64>>> {
        let all = || std::iter::once(0..self.size).collect();
        let parts = match &self.bytes {
            Bytes::Layers { segments, .. } => {
                segments.iter().map(|part| part.range.clone()).collect()
            }
            Bytes::Image(image) => match image.file() {
                Some(file) => match data_of(file, self.size, MOST_EXTENTS)? {
                    Some(data) => data.into_iter().map(|extent| extent.range).collect(),
                    None => all(),
                },
                None => all(),
            },
        };
        Ok(merged(Vec::into_iter(parts)))
    }

    /// All that may be different from an earlier state; `None` where that is not known.
    #[must_use]
    pub fn changed_since(&self, state: &str) -> Option<Vec<Range<u64>>> {
        let Bytes::Layers { layers, .. } = &self.bytes else {
            return None;
        };
        let is_it = |layer: &Layer| layer.state.as_deref() == Some(state);
        let above = layers.iter().position(is_it)?;
        let newer = layers.iter().take(above);
        let mut changed: Vec<_> = newer
            .flat_map(|layer| layer.extents.iter().map(|extent| extent.range.clone()))
            .collect();
        changed.sort_by_key(|range| range.start);
        Some(merged(changed.into_iter()))
    }

    /// Fills a buffer with what is at this place, which is within the disk.
    ///
    /// # Errors
    /// Where a layer cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).map_err(io::Error::other)?;
        let end = offset.saturating_add(length);
        if end > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        failpoint::pass("volume.read", "one");
        let (layers, segments) = match &self.bytes {
            Bytes::Image(image) => return image.read_exact_at(buffer, offset),
            Bytes::Layers {
                layers, segments, ..
            } => (layers, segments),
        };
        buffer.fill(0);
        let first = segments.partition_point(|segment| segment.range.end <= offset);
        let within = segments.iter().skip(first);
        for segment in within.take_while(|segment| segment.range.start < end) {
            let (from, to) = (segment.range.start.max(offset), segment.range.end.min(end));
            let place = |at: u64| usize::try_from(at - offset).map_err(io::Error::other);
            let part = buffer.get_mut(place(from)?..place(to)?).unwrap_or_default();
            let layer = layers.get(segment.layer);
            let file = &layer.ok_or(io::ErrorKind::NotFound)?.file;
            file.read_exact_at(part, segment.at + (from - segment.range.start))?;
        }
        Ok(())
    }
}

/// Ranges in order of their starts, with those joined that touch.
fn merged(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Where the bytes of a disk are: for each part the topmost layer that holds it. Behind a layer's end are
/// zeros, whatever is below it. Pure.
fn segments_of(size: u64, layers: &[(u64, &[Extent])]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut gaps: Vec<Range<u64>> = std::iter::once(0..size).collect();
    for (number, (end, extents)) in layers.iter().enumerate() {
        let mut left = Vec::new();
        let mut extents = extents.iter().peekable();
        for gap in gaps {
            let gap = gap.start..gap.end.min(*end);
            let mut at = gap.start;
            while let Some(extent) = extents.peek() {
                let (from, to) = (extent.range.start.max(at), extent.range.end.min(gap.end));
                if from >= gap.end {
                    break;
                }
                if from < to {
                    if at < from {
                        left.push(at..from);
                    }
                    if let Some(start) = extent.at {
                        segments.push(Segment {
                            range: from..to,
                            layer: number,
                            at: start + (from - extent.range.start),
                        });
                    }
                    at = to;
                }
                if extent.range.end > gap.end {
                    break;
                }
                extents.next();
            }
            if at < gap.end {
                left.push(at..gap.end);
            }
        }
        gaps = left;
    }
    segments.sort_by_key(|segment| segment.range.start);
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 60;

    /// Layers as tables of what each byte is: nothing, a zero, or data.
    fn layer() -> impl Strategy<Value = (u64, Vec<Option<bool>>)> {
        let byte = prop_oneof![Just(None), Just(Some(false)), Just(Some(true))];
        let runs = prop::collection::vec((byte, 1_usize..9), 0..20);
        (1..=SIZE, runs).prop_map(|(size, runs)| {
            let bytes = runs.into_iter().flat_map(|(byte, n)| vec![byte; n]);
            let mut bytes: Vec<_> = bytes.take(usize::try_from(size).unwrap()).collect();
            bytes.resize(usize::try_from(size).unwrap(), None);
            (size, bytes)
        })
    }

    fn extents(bytes: &[Option<bool>]) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (place, byte) in (0..).zip(bytes) {
            let Some(is_data) = byte else { continue };
            // Data is found 1000 further on in its file.
            let at = is_data.then_some(1000 + place);
            match extents.last_mut() {
                Some(last) if last.range.end == place && last.at.is_some() == *is_data => {
                    last.range.end = place + 1;
                }
                _ => extents.push(Extent {
                    range: place..place + 1,
                    at,
                }),
            }
        }
        extents
    }

    #[test]
    fn what_is_known_of_a_file_has_a_bound() {
        let file = tempfile::tempfile().unwrap();
        for part in [0, 1 << 20] {
            file.write_all_at(&[7; 4096], part).unwrap();
        }
        let size = 2 << 20;
        file.set_len(size).unwrap();
        let all = data_of(&file, size, 8).unwrap().unwrap();
        let count = all.len();
        assert_eq!(data_of(&file, size, count).unwrap(), Some(all));
        assert_eq!(data_of(&file, size, count - 1).unwrap(), None);
    }

    proptest! {
        #[test]
        fn each_byte_is_of_the_topmost_layer_that_holds_it(
            layers in prop::collection::vec(layer(), 1..5),
        ) {
            let mut found = vec![None; usize::try_from(SIZE).unwrap()];
            let held: Vec<_> = layers.iter().map(|(size, bytes)| (*size, extents(bytes))).collect();
            let held: Vec<_> = held.iter().map(|(size, extents)| (*size, extents.as_slice())).collect();
            let segments = segments_of(SIZE, &held);
            prop_assert!(segments.windows(2).all(|two| two[0].range.end <= two[1].range.start));
            for segment in segments {
                for place in segment.range.clone() {
                    let at = segment.at + (place - segment.range.start);
                    prop_assert_eq!(at, 1000 + place);
                    found[usize::try_from(place).unwrap()] = Some(segment.layer);
                }
            }
            for (place, found) in found.iter().enumerate() {
                let mut wanted = None;
                for (number, (_, bytes)) in layers.iter().enumerate() {
                    // Behind its end, or where it holds something, nobody looks further down.
                    match bytes.get(place) {
                        None => break,
                        Some(Some(is_data)) => {
                            wanted = is_data.then_some(number);
                            break;
                        }
                        Some(None) => {}
                    }
                }
                prop_assert_eq!(*found, wanted, "byte {}", place);
            }
        }
    }
}
