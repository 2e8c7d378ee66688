//! New volumes: empty ones, copies of others, and imported disk images.
//!
//! | step | what a crash before the next leaves |
//! | --- | --- |
//! | `volume.intend`: rows of volume and layer, both `making`; name and quota are taken | rows that nobody sees: they go |
//! | the layer's file, its filesystem, synced | the same and a file: both go |
//! | `volume.ready`: both rows are ready | a volume |

use super::backend::{Branch, NewTop, OpenLayer, head_of, is_device, scratch_file};
use super::content::{self, Content};
use super::error::{VolumeError, at};
use super::filesystem::{self, least};
use super::images::{self, Target};
use super::keys::{KeyId, NewKey, Passphrase};
use super::layer::LayerFormat;
use super::qcow2::{self, Header};
use super::records::{LayerId, LayerRow, Life, NewLayer, VolumeRow};
use super::store::{Inner, OnItsWay, Volumes, check_name, check_size, present};
use crate::failpoint;
use crate::place::fill_sparse;
use aleph_types::{DiskImageFormat, Filesystem, MadeVolume, MiB, Timestamp, Volume, VolumeId};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Whose volume, and what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewVolume<'a> {
    /// The account that it belongs to.
    pub account: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Whether it is encrypted; as the node's configuration says, when absent. A copy of an encrypted one is
    /// encrypted whatever this says.
    pub encrypted: Option<bool>,
}

/// What a new volume is a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A volume as it is now. It must not be attached for writing.
    Volume(VolumeId),
    /// A snapshot of one, by its name.
    Snapshot(VolumeId, &'a str),
}

/// How an image is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Import {
    /// What it is; by its bytes, when absent.
    pub format: Option<DiskImageFormat>,
    /// The volume's size, where it is to be larger than the image's.
    pub size: Option<MiB>,
}

/// A filesystem that an image is said to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// Which; by its bytes, when absent.
    pub filesystem: Option<Filesystem>,
    /// Whether its writer had not ended in order: it is checked before somebody is given it.
    pub unclean: bool,
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// Makes an empty volume.
    ///
    /// # Errors
    /// Where name, size or quota do not allow it, or there is no room; nothing is left then.
    pub fn create(&self, new: NewVolume<'_>, size: MiB, filesystem: Filesystem) -> Result<Volume> {
        self.create_unseen(new, size, filesystem)?.show()
    }

    /// Makes an empty volume that nobody sees, and that is gone again with what this gives, unless
    /// [`Unseen::show`] says otherwise: for somebody who needs it and something else together. Its name is
    /// taken, and its account charged, from now on.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub fn create_unseen(
        &self,
        new: NewVolume<'_>,
        size: MiB,
        filesystem: Filesystem,
    ) -> Result<Unseen> {
        check_name(new.name)?;
        check_size(size, least(filesystem), &filesystem.to_string())?;
        let inner = &self.inner;
        let size = inner.backend.whole(size);
        let key = inner.key_for(new)?;
        let form = Form::lowest(size, filesystem, key);
        let row = inner.begin(new, form, |top| {
            let file = inner.backend.create(top)?;
            let Some(key) = top.key.filter(|_| filesystem != Filesystem::None) else {
                filesystem::make(&file, filesystem, size)?;
                return Ok(file);
            };
            // An empty one is nobody's secret: its programs know no LUKS.
            let work = inner.work();
            let scratch = scratch_file(&work).map_err(at("make a file in", &work))?;
            let sized = scratch.set_len(size.bytes());
            sized.map_err(at("size a file in", &work))?;
            filesystem::make(&scratch, filesystem, size)?;
            let (file, key) = (&file, Some(key));
            images::take_in(&scratch, Target { file, key }, size)?;
            file.try_clone().map_err(at("open", top.path))
        })?;
        Ok(Unseen {
            volumes: self.clone(),
            row,
            is_shown: false,
        })
    }

    /// A file to gather an image in before [`Volumes::import`] under this name. It has no name of its own,
    /// and goes with its descriptor. It takes no more of the disk than the account may have, and leaves
    /// some of it free.
    ///
    /// # Errors
    /// Where the volume could not be made whatever comes, or there are as many images on their way as may
    /// be.
    pub fn stage(&self, new: NewVolume<'_>) -> Result<Staged> {
        self.stage_for(new, 1 << 20)
    }

    /// The same for an image that will have so many bytes.
    ///
    /// # Errors
    /// As [`Volumes::stage`], and where no volume may be so large.
    pub fn stage_for(&self, new: NewVolume<'_>, bytes: u64) -> Result<Staged> {
        check_name(new.name)?;
        check_size(whole_mib(bytes)?, MiB(1), "a volume")?;
        let inner = &self.inner;
        let held = inner.records.read(|tx| {
            if tx.is_taken(new.account, new.name)? {
                return Err(VolumeError::NameTaken(new.name.to_owned()));
            }
            inner.check_quota(tx, new.account, (1, bytes))?;
            Ok(tx.held(new.account)?.1)
        })?;
        let (place, free) = inner.image_of(new.account)?;
        let quota = inner.config.quota.bytes;
        let left = quota.map(|most| most.saturating_sub(held));
        let work = inner.work();
        let file = scratch_file(&work).map_err(at("make a file in", &work))?;
        Ok(Staged {
            file,
            length: 0,
            room: free,
            left,
            _place: place,
        })
    }

    /// What a failure to write to a [`Staged`] file is.
    #[must_use]
    pub fn staging_error(source: io::Error) -> VolumeError {
        at("write a file in", Path::new("volumes/work"))(source)
    }

    /// Makes a volume of a disk image that nobody else changes meanwhile.
    ///
    /// A qcow2 image is one file that stands for itself: one that names another file is refused before
    /// any program sees it.
    ///
    /// # Errors
    /// Where it is no image that is taken, or as [`Volumes::create`].
    pub fn import(&self, new: NewVolume<'_>, image: &File, how: Import) -> Result<Volume> {
        let contents = Contents {
            filesystem: None,
            unclean: false,
        };
        self.import_with(new, image, (how, contents))
    }

    /// The same of an image whose contents are known.
    ///
    /// # Errors
    /// As [`Volumes::import`].
    pub fn import_with(
        &self,
        new: NewVolume<'_>,
        image: &File,
        (how, contents): (Import, Contents),
    ) -> Result<Volume> {
        check_name(new.name)?;
        let (head, length) = head_of(image, content::HEAD).map_err(VolumeError::Source)?;
        let bytes = match format_of(&head, how.format)? {
            DiskImageFormat::Raw => (length, None),
            DiskImageFormat::Qcow2 => {
                let most = head.len().min(qcow2::HEAD);
                let header = Header::parse(&head[..most], length)?;
                (header.size, Some(header))
            }
        };
        let (bytes, header) = bytes;
        let own = whole_mib(bytes)?;
        let size = how.size.unwrap_or(own);
        check_size(size, own.max(MiB(1)), "the image")?;
        let inner = &self.inner;
        let size = inner.backend.whole(size);
        let key = inner.key_for(new)?;
        let found = match header {
            None => content::filesystem_of(&head),
            // What is in it is known once it is unpacked, and that is a disk of a whole system most often.
            Some(_) => Filesystem::None,
        };
        let form = Form {
            unclean: contents.unclean,
            ..Form::lowest(size, contents.filesystem.unwrap_or(found), key)
        };
        inner.make(new, form, |top| {
            let file = inner.backend.create(top)?;
            let (written, key) = (&file, top.key);
            let target = Target { file: written, key };
            match (header, key) {
                (Some(_), _) => images::unpack(image, target, size)?,
                (None, Some(_)) => images::take_in(image, target, size)?,
                (None, None) => {
                    let copied = fill_sparse(image, &file);
                    copied.map_err(at("copy the image to", top.path))?;
                    if !is_device(&file).map_err(at("look at", top.path))? {
                        file.set_len(size.bytes()).map_err(at("size", top.path))?;
                    }
                }
            }
            Ok(file)
        })
    }

    /// Makes a volume that is a copy of another one, or of a snapshot. With qcow2 this takes the same
    /// short time however much there is; one of [`MAX_DEPTH`](super::MAX_DEPTH) layers is copied in whole.
    ///
    /// # Errors
    /// Where the original is being written, or as [`Volumes::create`].
    pub fn clone_of(
        &self,
        new: NewVolume<'_>,
        source: Source<'_>,
        size: Option<MiB>,
    ) -> Result<Volume> {
        check_name(new.name)?;
        let id = match source {
            Source::Volume(id) | Source::Snapshot(id, _) => id,
        };
        let inner = &self.inner;
        let original = inner.records.read(|tx| present(tx, id))?;
        let _turn = inner.turn(&original)?;
        let (layer, least) = match source {
            Source::Snapshot(_, name) => {
                let snapshots = inner.records.read(|tx| tx.snapshots(id))?;
                let mut found = snapshots.into_iter();
                let found = found.find(|(snapshot, _)| snapshot.name == name);
                let found = found.ok_or_else(|| VolumeError::NoSnapshot(name.to_owned()))?;
                (found.1, found.0.size)
            }
            Source::Volume(_) => (inner.frozen(id)?, original.size),
        };
        let size = inner.backend.whole(size.unwrap_or(least));
        check_size(size, least, "a copy of it")?;
        let chain = inner.records.read(|tx| tx.chain(layer))?;
        let branch = inner.backend.branch(chain.len());
        let opened = inner.open_for(&chain, branch)?;
        // It shares layers, and may be the same bytes.
        let over = match (chain.first(), opened.first()) {
            (Some(layer), Some(opened)) => layer.key.clone().zip(opened.key.clone()),
            _ => None,
        };
        let key = match over {
            Some((id, passphrase)) => Some(FormKey::Known(id, passphrase)),
            None => inner.key_for(new)?,
        };
        let layer = inner.form_of(branch, layer, key.as_ref().map(FormKey::id));
        let form = Form {
            size,
            // A state that was kept may be of a filesystem whose writer did not end in order.
            unclean: original.unclean || matches!(source, Source::Snapshot(..)),
            filesystem: original.filesystem,
            format: layer.format,
            parent: layer.parent,
            key,
        };
        inner.make(new, form, |top| inner.backend.make(&opened, branch, top))
    }
}

/// A volume that is whole and that nobody sees yet. Dropped, it is removed; so it is by the next opening
/// of the volumes after a crash.
#[derive(Debug)]
#[must_use = "dropped, it is gone"]
pub struct Unseen {
    volumes: Volumes,
    row: VolumeRow,
    is_shown: bool,
}

impl Unseen {
    /// What it is.
    #[must_use]
    pub fn what(&self) -> MadeVolume {
        MadeVolume {
            name: self.row.name.clone(),
            size: self.row.size,
            filesystem: self.row.filesystem,
        }
    }

    /// Has it be seen, for good.
    ///
    /// # Errors
    /// Where the records cannot be written; it is gone then.
    pub fn show(mut self) -> Result<Volume> {
        let shown = self.volumes.inner.show(&self.row);
        self.is_shown = shown.is_ok();
        shown
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if !self.is_shown {
            self.volumes.inner.forget(&self.row);
        }
    }
}

/// What is made.
struct Form {
    size: MiB,
    unclean: bool,
    filesystem: Filesystem,
    format: LayerFormat,
    parent: Option<LayerId>,
    key: Option<FormKey>,
}

/// What a new volume is encrypted with.
enum FormKey {
    /// A key of its own.
    New(NewKey),
    /// That of what it is a copy of.
    Known(KeyId, Passphrase),
}

impl FormKey {
    fn id(&self) -> KeyId {
        match self {
            Self::New(key) => key.id.clone(),
            Self::Known(id, _) => id.clone(),
        }
    }

    fn passphrase(&self) -> &Passphrase {
        match self {
            Self::New(key) => &key.passphrase,
            Self::Known(_, passphrase) => passphrase,
        }
    }
}

impl Form {
    /// One that is over nothing.
    fn lowest(size: MiB, filesystem: Filesystem, key: Option<FormKey>) -> Self {
        Self {
            size,
            unclean: false,
            filesystem,
            format: LayerFormat::of_lowest(key.is_some()),
            parent: None,
            key,
        }
    }
}

impl Inner {
    /// The key of a new volume that is no copy of an encrypted one.
    fn key_for(&self, new: NewVolume<'_>) -> Result<Option<FormKey>> {
        match new.encrypted.unwrap_or(self.config.encrypt) {
            true => self.new_key().map(FormKey::New).map(Some),
            false => Ok(None),
        }
    }

    /// The three steps of making a volume.
    fn make(
        &self,
        new: NewVolume<'_>,
        form: Form,
        fill: impl FnOnce(NewTop<'_>) -> Result<File>,
    ) -> Result<Volume> {
        let row = self.begin(new, form, fill)?;
        self.show(&row).inspect_err(|_| self.forget(&row))
    }

    /// The first two of them.
    fn begin(
        &self,
        new: NewVolume<'_>,
        form: Form,
        fill: impl FnOnce(NewTop<'_>) -> Result<File>,
    ) -> Result<VolumeRow> {
        let Form {
            size,
            unclean,
            filesystem,
            format,
            parent,
            key,
        } = form;
        let (row, layer) = self.records.write("volume.intend", |tx| {
            if tx.is_taken(new.account, new.name)? {
                return Err(VolumeError::NameTaken(new.name.to_owned()));
            }
            self.check_quota(tx, new.account, (1, size.bytes()))?;
            if let Some(parent) = parent {
                self.check_standing(tx, &tx.chain(parent)?, new.name)?;
            }
            if let Some(FormKey::New(key)) = &key {
                tx.add_key(key)?;
            }
            let layer = NewLayer {
                format,
                parent,
                home: self.backend.home(),
                key: key.as_ref().map(FormKey::id),
            };
            let layer = tx.add_layer(new.account, &layer, size.bytes())?;
            let row = VolumeRow {
                id: VolumeId::random(),
                account: new.account.to_owned(),
                name: new.name.to_owned(),
                size,
                filesystem,
                life: Life::Making,
                top: layer.id,
                unclean,
                created: Timestamp::now(),
                purged: None,
            };
            tx.add_volume(&row)?;
            Ok((row, layer))
        })?;
        let passphrase = key.as_ref().map(FormKey::passphrase);
        match self.fill(&layer, (size, passphrase), fill) {
            Ok(()) => {
                self.look();
                Ok(row)
            }
            Err(error) => {
                self.forget(&row);
                Err(error)
            }
        }
    }

    /// The last of them: it is seen from now on.
    fn show(&self, row: &VolumeRow) -> Result<Volume> {
        let row = VolumeRow {
            life: Life::Ready,
            ..row.clone()
        };
        self.records.write("volume.ready", |tx| {
            tx.finish_layer(row.top)?;
            tx.put_volume(&row)?;
            self.view(tx, &row)
        })
    }

    /// Takes back one that nobody has seen.
    fn forget(&self, row: &VolumeRow) {
        match self.records.read(|tx| tx.layer(row.top)) {
            Ok(layer) => self.abandon(&layer),
            Err(error) => tracing::warn!(%error, "the layer of a half-made volume stays"),
        }
        let forgotten = self
            .records
            .write("volume.abandon", |tx| tx.drop_volume(row.id));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "a half-made volume stays until they are opened again");
        }
    }

    /// Makes a layer's file, durable.
    pub(super) fn fill(
        &self,
        layer: &LayerRow,
        (size, key): (MiB, Option<&Passphrase>),
        fill: impl FnOnce(NewTop<'_>) -> Result<File>,
    ) -> Result<()> {
        let path = &self.path(layer);
        let file = fill(NewTop { path, size, key })?;
        failpoint::pass("layer.fill", "made");
        file.sync_all().map_err(at("write", path))?;
        self.sync_layers()
    }

    /// A layer with what a volume holds now, which nobody writes any more. Its turn is the caller's.
    pub(super) fn frozen(&self, id: VolumeId) -> Result<LayerId> {
        let (row, chain) = self.records.read(|tx| {
            let row = present(tx, id)?;
            self.check_unwritten(tx, &row)?;
            let chain = tx.chain(row.top)?;
            Ok((row, chain))
        })?;
        let branch = self.backend.branch(chain.len());
        let top = self.open_for(&chain, branch)?;
        self.check_unlocked(&row, &top)?;
        match (chain.first(), branch) {
            // Nothing was written since it was made: what it holds is what its parent does.
            (
                Some(LayerRow {
                    parent: Some(parent),
                    written: false,
                    ..
                }),
                _,
            ) => Ok(*parent),
            // The copy is made of the very top, while the caller keeps others from it.
            (_, Branch::Copy) => Ok(row.top),
            _ => {
                self.freeze(&row, &chain, &top, |_, _| Ok(()))?;
                Ok(row.top)
            }
        }
    }

    /// Has a volume go on in a new top, and leaves what it held in the old one. `note` writes down what
    /// else has to be true from then on: it gets the old top.
    pub(super) fn freeze(
        &self,
        row: &VolumeRow,
        chain: &[LayerRow],
        opened: &[OpenLayer],
        note: impl FnOnce(&super::records::Tx<'_>, LayerId) -> Result<()>,
    ) -> Result<()> {
        let Some(old) = chain.first() else {
            return Err(VolumeError::NoVolume(row.id.to_string()));
        };
        // What its VMM wrote and its guest did not sync: it is kept from now on, over a loss of power, too.
        if let Some(top) = opened.first() {
            top.file.sync_all().map_err(at("write", &top.path))?;
        }
        // While it was written, its account paid for all that it could hold.
        self.look();
        let held = self.allocated(old)?;
        let size = self.backend.whole(row.size);
        let branch = self.backend.branch(chain.len());
        let new = self.form_of(branch, old.id, old.key.clone());
        let new = self.records.write("volume.branch", |tx| {
            self.check_quota(tx, &row.account, (0, held))?;
            tx.add_layer(&row.account, &new, size.bytes())
        })?;
        let key = opened.first().and_then(|top| top.key.as_ref());
        let made = self.fill(&new, (size, key), |top| {
            self.backend.make(opened, branch, top)
        });
        let done = made.and_then(|()| {
            self.records.write("volume.freeze", |tx| {
                tx.finish_layer(new.id)?;
                let mut old = tx.layer(old.id)?;
                old.charge = held;
                tx.put_layer(&old)?;
                tx.put_volume(&VolumeRow {
                    top: new.id,
                    size,
                    ..row.clone()
                })?;
                note(tx, old.id)
            })
        });
        match &done {
            Ok(()) => self.keeper(old.home)?.freeze(&self.path(old)),
            Err(_) => self.abandon(&new),
        }
        done
    }

    /// A new top over a layer.
    pub(super) fn form_of(&self, branch: Branch, over: LayerId, key: Option<KeyId>) -> NewLayer {
        let (format, parent) = match branch {
            Branch::Overlay => (LayerFormat::Qcow2, Some(over)),
            Branch::Copy => (LayerFormat::of_lowest(key.is_some()), None),
        };
        NewLayer {
            format,
            parent,
            home: self.backend.home(),
            key,
        }
    }
}

fn whole_mib(bytes: u64) -> Result<MiB> {
    let whole = u32::try_from(bytes.div_ceil(1 << 20));
    whole.map(MiB).map_err(|_| {
        let size = MiB(u32::MAX);
        let why = format!("the image has {bytes} bytes");
        VolumeError::BadSize { size, why }
    })
}

/// What an image is.
fn format_of(head: &[u8], said: Option<DiskImageFormat>) -> Result<DiskImageFormat> {
    let not = |why: &str| VolumeError::NotAnImage(why.to_owned());
    match (Content::of(head), said) {
        // What reads the header says what is wrong with it.
        (_, Some(DiskImageFormat::Qcow2)) => Ok(DiskImageFormat::Qcow2),
        (_, Some(DiskImageFormat::Raw)) if !head.is_empty() => Ok(DiskImageFormat::Raw),
        (Content::Disk(format), _) => Ok(format),
        (Content::Foreign(what), _) => Err(not(&format!("it is {what}"))),
        (Content::Empty, _) => Err(not("there is nothing in it")),
        (Content::Unknown, _) => Err(not("it has no partition table and no filesystem")),
    }
}

/// An image while it comes.
#[derive(Debug)]
pub struct Staged {
    file: File,
    length: u64,
    /// How much more it may take of the disk.
    room: u64,
    /// How much more its account may have, where that is bounded.
    left: Option<u64>,
    _place: OnItsWay,
}

impl Staged {
    /// How much there is by now, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// The file, for somebody else who writes an image into it. Whoever holds this holds its place among
    /// those on their way.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Has the bytes of an earlier one in place of its own: what that took of the disk, its account has by now.
    ///
    /// # Errors
    /// Where it cannot be looked at.
    pub fn go_on_with(&mut self, file: File) -> io::Result<()> {
        let taken = file.metadata()?.blocks() * 512;
        self.left = self.left.map(|left| left.saturating_sub(taken));
        self.file = file;
        Ok(())
    }

    /// How many more bytes may be written to it.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.left.map_or(self.room, |left| left.min(self.room))
    }

    /// Whether there is nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of it, as it is on the disk: what could not be written out says so here alone.
    ///
    /// # Errors
    /// Where there is no room, or the disk fails.
    pub fn finish(self) -> io::Result<File> {
        self.file.set_len(self.length)?;
        self.file.sync_data()?;
        Ok(self.file)
    }
}

/// Zeros are left out: they are holes in the file.
impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const PIECE: usize = 64 * 1024;
        for piece in bytes.chunks(PIECE) {
            if piece.iter().any(|byte| *byte != 0) {
                let bytes = u64::try_from(piece.len()).map_err(io::Error::other)?;
                if let Some(left) = &mut self.left {
                    *left = left
                        .checked_sub(bytes)
                        .ok_or(io::ErrorKind::QuotaExceeded)?;
                }
                let room = self.room.checked_sub(bytes);
                self.room = room.ok_or(io::ErrorKind::StorageFull)?;
                self.file.write_all_at(piece, self.length)?;
            }
            self.length += u64::try_from(piece.len()).map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
