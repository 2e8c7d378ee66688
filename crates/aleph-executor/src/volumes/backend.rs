//! How the bytes of volumes are kept: one trait, and those that have it.
//!
//! A volume is a chain of layers. The top is written; those below never change again. [`Backend::branch`]
//! says, without doing anything, how a new top begins over a chain, and [`Backend::make`] makes it.
//!
//! | back end | a new top over a chain | cost |
//! | --- | --- | --- |
//! | [`Files`] | a raw file that shares its blocks with the old one, where the filesystem can (`FICLONE`), else a copy | by the filesystem |
//! | [`Overlays`] | a qcow2 file of what is different | none: some 200 KiB |
//!
//! A chain ends in a raw file, and all above it are qcow2. An overlay's header names no other file: which
//! layer is below it is in the records, and tools are told each layer. So a VMM that was broken into
//! cannot lead anybody elsewhere by what it writes into its own top.

use super::error::{VolumeError, at};
use super::qcow2;
use super::records::LayerFormat;
use super::sandbox::{Tool, ToolError, read_path};
use crate::place::copy_sparse;
use aleph_types::{DiskImageFormat, MiB};
use serde_json::{Value, json};
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// How many layers a chain has at most: each costs the VMM a file and a look-up.
pub const MAX_DEPTH: usize = 16;

/// The time that a program gets for each GiB, over [`LEAST_TIME`]: some 17 MB/s.
const TIME_PER_GIB: Duration = Duration::from_secs(60);
const LEAST_TIME: Duration = Duration::from_secs(120);

/// How a new top begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// As an overlay over the chain, which it needs from then on.
    Overlay,
    /// As a copy of the chain, without a parent.
    Copy,
}

/// An opened layer.
#[derive(Debug)]
pub struct OpenLayer {
    /// Its file.
    pub file: File,
    /// How it is written down.
    pub format: LayerFormat,
}

impl OpenLayer {
    /// What its guest sees as the disk's size, in bytes.
    pub(super) fn size(&self) -> Result<u64, VolumeError> {
        let (head, length) = head_of(&self.file, qcow2::HEAD).map_err(VolumeError::Source)?;
        match self.format {
            LayerFormat::Raw => Ok(length),
            LayerFormat::Qcow2 => Ok(qcow2::Header::parse(&head, length)?.size),
        }
    }
}

/// A way to keep volumes.
pub trait Backend: Debug + Send + Sync {
    /// What its configuration calls it.
    fn name(&self) -> &'static str;

    /// How a new top begins over a chain of `depth` layers. Pure.
    fn branch(&self, depth: usize) -> Branch;

    /// Makes an empty disk.
    ///
    /// # Errors
    /// Where there is no room.
    fn create(&self, path: &Path, size: MiB) -> Result<File, VolumeError> {
        let file = new_file(path)?;
        file.set_len(size.bytes()).map_err(at("size", path))?;
        Ok(file)
    }

    /// Makes a new top over a chain, of at least its size, as [`Backend::branch`] says.
    ///
    /// # Errors
    /// Where there is no room, or a program fails.
    fn make(
        &self,
        chain: &[OpenLayer],
        branch: Branch,
        path: &Path,
        size: MiB,
    ) -> Result<File, VolumeError> {
        match branch {
            Branch::Overlay => overlay(path, size),
            Branch::Copy => copy(chain, path, size),
        }
    }

    /// Makes a top larger. `file` can be written.
    ///
    /// # Errors
    /// Where there is no room, or a program fails.
    fn grow(&self, top: &OpenLayer, path: &Path, size: MiB) -> Result<(), VolumeError> {
        match top.format {
            LayerFormat::Raw => top.file.set_len(size.bytes()).map_err(at("size", path)),
            LayerFormat::Qcow2 => resize(&top.file, size),
        }
    }
}

/// Raw files, each on its own.
#[derive(Debug, Clone, Copy)]
pub struct Files;

impl Backend for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn branch(&self, _depth: usize) -> Branch {
        Branch::Copy
    }
}

/// qcow2 files over raw ones.
#[derive(Debug, Clone, Copy)]
pub struct Overlays;

impl Backend for Overlays {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn branch(&self, depth: usize) -> Branch {
        match depth < MAX_DEPTH {
            true => Branch::Overlay,
            false => Branch::Copy,
        }
    }
}

/// Whether files in a folder can share their blocks.
pub(super) fn shares_blocks(folder: &Path) -> io::Result<bool> {
    let (one, other) = (scratch_file(folder)?, scratch_file(folder)?);
    one.write_all_at(&[1; 4096], 0)?;
    Ok(rustix::fs::ioctl_ficlone(&other, &one).is_ok())
}

/// A file without a name, which goes with its last descriptor.
pub(super) fn scratch_file(folder: &Path) -> io::Result<File> {
    let file = tempfile_in(folder)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

fn tempfile_in(folder: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(folder, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => Ok(file.into()),
        // A filesystem that has no such files: the sweep finds it where we die in between.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!("{:x}", aleph_types::JobId::random().bits()));
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// A layer's file. Its folder is closed, so whoever has a descriptor may open it again to read, as
/// programs under users of their own do.
pub(super) fn new_file(path: &Path) -> Result<File, VolumeError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.map_err(at("make", path))?;
    file.set_permissions(Permissions::from_mode(0o644))
        .map_err(at("open", path))?;
    Ok(file)
}

fn overlay(path: &Path, size: MiB) -> Result<File, VolumeError> {
    let file = new_file(path)?;
    let tool = Tool {
        program: "qemu-img",
        arguments: ["create", "-q", "-f", "qcow2"]
            .map(String::from)
            .into_iter()
            .chain([read_path(0), size.bytes().to_string()])
            .collect(),
        reads: Vec::new(),
        writes: Some(&file),
        time: LEAST_TIME,
        output: 1 << 30,
    };
    tool.run().map_err(tool_error("make an overlay"))?;
    Ok(file)
}

fn copy(chain: &[OpenLayer], path: &Path, size: MiB) -> Result<File, VolumeError> {
    let file = match chain {
        [only] if only.format == LayerFormat::Raw => {
            let file = copy_sparse(&only.file, path).map_err(at("copy a disk to", path))?;
            file.set_permissions(Permissions::from_mode(0o644))
                .map_err(at("open", path))?;
            file
        }
        _ => {
            let file = new_file(path)?;
            file.set_len(size.bytes()).map_err(at("size", path))?;
            flatten(chain, &file, size)?;
            file
        }
    };
    // What it is a copy of may be smaller.
    file.set_len(size.bytes()).map_err(at("size", path))?;
    Ok(file)
}

/// Writes what a chain holds into an empty raw file of at least its size.
pub(super) fn flatten(chain: &[OpenLayer], into: &File, size: MiB) -> Result<(), VolumeError> {
    check_tops(chain)?;
    let tool = Tool {
        program: "qemu-img",
        arguments: vec![
            "convert".into(),
            "-n".into(),
            "--target-is-zero".into(),
            "-O".into(),
            "raw".into(),
            source(chain),
            read_path(chain.len()),
        ],
        reads: chain.iter().map(|layer| &layer.file).collect(),
        writes: Some(into),
        time: time_for(size),
        output: size.bytes(),
    };
    tool.run().map_err(tool_error("copy the disk"))
}

/// Writes what a chain holds into a new image.
pub(super) fn pack(chain: &[OpenLayer], into: &File, size: MiB) -> Result<(), VolumeError> {
    check_tops(chain)?;
    let tool = Tool {
        program: "qemu-img",
        arguments: vec![
            "convert".into(),
            "-O".into(),
            "qcow2".into(),
            source(chain),
            read_path(chain.len()),
        ],
        reads: chain.iter().map(|layer| &layer.file).collect(),
        writes: Some(into),
        time: time_for(size),
        output: size.bytes() + size.bytes() / 8 + (64 << 20),
    };
    tool.run().map_err(tool_error("write the image"))
}

/// Writes what a user's image holds into an empty raw file of its size. Its header was read before.
pub(super) fn unpack(image: &File, into: &File, size: MiB) -> Result<(), VolumeError> {
    let node = json!({
        "driver": DiskImageFormat::Qcow2.to_string(),
        "backing": null,
        "file": {"driver": "file", "filename": read_path(0)},
    });
    let broken = |error| match error {
        // Our own disk is fine, so it is the image.
        ToolError::Failed { said, .. } if !said.contains("No space left") => {
            VolumeError::NotAnImage(said)
        }
        error => tool_error("read the image")(error),
    };
    // What is behind the end of a file that was cut off reads as zeros: only this finds it.
    let check = Tool {
        program: "qemu-img",
        arguments: vec!["check".into(), "-q".into(), format!("json:{node}")],
        reads: vec![image],
        writes: None,
        time: time_for(size),
        output: 0,
    };
    match check.run() {
        // 3: clusters that nothing uses, which do no harm (qemu-img(1)).
        Ok(()) | Err(ToolError::Failed { code: Some(3), .. }) => {}
        Err(error) => return Err(broken(error)),
    }
    let tool = Tool {
        program: "qemu-img",
        arguments: vec![
            "convert".into(),
            "-n".into(),
            "--target-is-zero".into(),
            "-O".into(),
            "raw".into(),
            format!("json:{node}"),
            read_path(1),
        ],
        reads: vec![image],
        writes: Some(into),
        time: time_for(size),
        output: size.bytes(),
    };
    tool.run().map_err(broken)
}

fn resize(file: &File, size: MiB) -> Result<(), VolumeError> {
    check_top(file)?;
    let node = json!({
        "driver": "qcow2",
        "backing": null,
        "file": {"driver": "file", "filename": read_path(0)},
    });
    let tool = Tool {
        program: "qemu-img",
        arguments: vec![
            "resize".into(),
            "-q".into(),
            format!("json:{node}"),
            size.bytes().to_string(),
        ],
        reads: Vec::new(),
        writes: Some(file),
        time: LEAST_TIME,
        output: size.bytes() + size.bytes() / 8 + (64 << 20),
    };
    tool.run().map_err(tool_error("resize the disk"))
}

/// A chain as `qemu-img` takes it: each layer by its descriptor, whatever their headers say.
fn source(chain: &[OpenLayer]) -> String {
    let mut below = Value::Null;
    for (place, layer) in chain.iter().enumerate().rev() {
        let mut node = json!({
            "driver": layer.format.word(),
            "file": {"driver": "file", "filename": read_path(place)},
        });
        if layer.format == LayerFormat::Qcow2 {
            node["backing"] = below;
        }
        below = node;
    }
    format!("json:{below}")
}

fn check_tops(chain: &[OpenLayer]) -> Result<(), VolumeError> {
    let mut overlays = chain
        .iter()
        .filter(|layer| layer.format == LayerFormat::Qcow2);
    overlays.try_for_each(|layer| check_top(&layer.file))
}

/// A layer's header is written by its VMM, which may have been broken into.
fn check_top(file: &File) -> Result<(), VolumeError> {
    let (head, length) = head_of(file, qcow2::HEAD).map_err(VolumeError::Source)?;
    qcow2::Header::parse(&head, length)?;
    Ok(())
}

/// The first bytes of a file, and its length.
pub(super) fn head_of(file: &File, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let length = file.metadata()?.len();
    let mut head = vec![0; usize::try_from(length).unwrap_or(most).min(most)];
    file.read_exact_at(&mut head, 0)?;
    Ok((head, length))
}

fn time_for(size: MiB) -> Duration {
    LEAST_TIME + TIME_PER_GIB * size.0.div_ceil(1024)
}

fn tool_error(what: &'static str) -> impl FnOnce(ToolError) -> VolumeError {
    move |source| VolumeError::Tool { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_have_a_bound() {
        assert_eq!(Files.branch(1), Branch::Copy);
        assert_eq!(Overlays.branch(1), Branch::Overlay);
        assert_eq!(Overlays.branch(MAX_DEPTH - 1), Branch::Overlay);
        assert_eq!(Overlays.branch(MAX_DEPTH), Branch::Copy);
    }

    #[test]
    fn tools_are_told_each_layer() {
        let layer = |format| OpenLayer {
            file: File::open("/dev/null").unwrap(),
            format,
        };
        let chain = [
            layer(LayerFormat::Qcow2),
            layer(LayerFormat::Qcow2),
            layer(LayerFormat::Raw),
        ];
        let text = source(&chain);
        let node: Value = serde_json::from_str(text.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(node["file"]["filename"], "/proc/self/fd/3");
        assert_eq!(node["backing"]["driver"], "qcow2");
        assert_eq!(node["backing"]["backing"]["driver"], "raw");
        assert_eq!(
            node["backing"]["backing"]["file"]["filename"],
            "/proc/self/fd/5"
        );
        assert!(source(&chain[..1]).contains(r#""backing":null"#));
    }
}
