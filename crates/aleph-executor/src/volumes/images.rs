//! Layers and images by `qemu-img`: made, grown, converted, read.
//!
//! Each layer is told by its descriptor, whatever their headers say of others, and each key by one, too: as
//! the file of a `secret` object, so that no list of processes and no log has it. `qemu-img` runs locked up
//! ([`sandbox`](super::sandbox)), and what a layer's header says is checked before.
//!
//! # Encryption
//! LUKS in qcow2, AES-256 in XTS. The key is 256 random bits, so nothing is gained by making whoever guesses
//! it wait: the least number of rounds is asked for. SHA-512, since QEMU 7.2 measures how quick rounds are,
//! refuses where they are too quick for the host's clock, and SHA-256 has instructions of its own.
//!
//! # Failure cases
//! [`VolumeError::Tool`], with what the program said; [`VolumeError::NotAnImage`] where it is a user's image
//! that is at fault; [`VolumeError::Qcow2`] where a VMM spoilt its layer.

use super::backend::{OpenLayer, head_of, is_device, length_of};
use super::disk_fault::found_in;
use super::error::VolumeError;
use super::keys::Passphrase;
use super::layer::LayerFormat;
use super::reading::{Extent, MAP_BYTES};
use super::sandbox::{QEMU_IMG, Tool, ToolError, read_path};
use aleph_types::{DiskImageFormat, MiB};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::File;
use std::time::Duration;

/// The time that a program gets for each GiB, over [`LEAST_TIME`]: some 17 MB/s.
const TIME_PER_GIB: Duration = Duration::from_secs(60);
const LEAST_TIME: Duration = Duration::from_secs(120);

/// How an encrypted image is made, beside its key.
const LUKS: &str = "encrypt.format=luks,encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts,encrypt.ivgen-alg=plain64,\
                    encrypt.hash-alg=sha512,encrypt.iter-time=1";

/// What is written to: an empty raw file or device, or an encrypted image that was just made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) file: &'a File,
    pub(super) key: Option<&'a Passphrase>,
}

/// What a program reads and writes, each by its place among the descriptors that it has.
#[derive(Default)]
struct Files<'a> {
    layers: Vec<&'a File>,
    keys: Vec<File>,
}

impl<'a> Files<'a> {
    /// All files of layers come before the first key.
    fn layer(&mut self, file: &'a File) -> String {
        self.layers.push(file);
        read_path(self.layers.len() - 1)
    }

    /// The name of a key's object.
    fn key(&mut self, key: &Passphrase) -> Result<String, VolumeError> {
        self.keys.push(key.file().map_err(VolumeError::Key)?);
        Ok(format!("k{}", self.keys.len() - 1))
    }

    fn objects(&self) -> Vec<String> {
        let keys = (0..self.keys.len()).flat_map(|n| {
            let path = read_path(self.layers.len() + n);
            ["--object".into(), format!("secret,id=k{n},file={path}")]
        });
        keys.collect()
    }

    /// What is written comes last.
    fn written(&self) -> String {
        read_path(self.layers.len() + self.keys.len())
    }

    fn run(
        &self,
        call: Call<'_>,
        failed: impl FnOnce(ToolError) -> VolumeError,
    ) -> Result<(), VolumeError> {
        let written = call.writes;
        let ran = self.tool(call).run();
        ran.map_err(|error| self.explained(error, written, failed))
    }

    /// What a failure is: the disk's, where a file that was read or written says so, too.
    fn explained(
        &self,
        error: ToolError,
        written: Option<&File>,
        failed: impl FnOnce(ToolError) -> VolumeError,
    ) -> VolumeError {
        let fault = error.says_so().then(|| found_in(&self.layers, written));
        fault.flatten().unwrap_or_else(|| failed(error))
    }

    fn tool<'t>(&'t self, call: Call<'t>) -> Tool<'t> {
        Tool {
            program: QEMU_IMG,
            arguments: [call.word.to_owned()]
                .into_iter()
                .chain(self.objects())
                .chain(call.arguments)
                .collect(),
            reads: self.layers.iter().copied().chain(&self.keys).collect(),
            writes: call.writes,
            time: call.time,
            output: call.output,
        }
    }
}

struct Call<'a> {
    word: &'a str,
    arguments: Vec<String>,
    writes: Option<&'a File>,
    time: Duration,
    output: u64,
}

/// Makes an empty image of QEMU's in an empty file.
pub(super) fn create(file: &File, size: MiB, key: Option<&Passphrase>) -> Result<(), VolumeError> {
    let mut files = Files::default();
    let key = key.map(|key| files.key(key)).transpose()?;
    let mut arguments: Vec<String> = ["-q", "-f", "qcow2"].map(String::from).into();
    if let Some(key) = key {
        arguments.extend(["-o".into(), format!("{LUKS},encrypt.key-secret={key}")]);
    }
    arguments.extend([files.written(), size.bytes().to_string()]);
    let call = Call {
        word: "create",
        arguments,
        writes: Some(file),
        time: LEAST_TIME,
        output: 1 << 30,
    };
    files.run(call, tool_error("make a layer"))
}

/// Makes an image's disk larger.
pub(super) fn resize(top: &OpenLayer, size: MiB) -> Result<(), VolumeError> {
    top.header()?;
    let mut files = Files::default();
    let key = top.key.as_ref().map(|key| files.key(key)).transpose()?;
    let node = node(
        LayerFormat::Qcow2,
        (&top.file, files.written()),
        key.as_deref(),
        Value::Null,
    )?;
    let call = Call {
        word: "resize",
        arguments: vec![
            "-q".into(),
            format!("json:{node}"),
            size.bytes().to_string(),
        ],
        writes: Some(&top.file),
        time: LEAST_TIME,
        output: most_of_an_image(size),
    };
    files.run(call, tool_error("resize the disk"))
}

/// Writes what a chain holds into a layer of at least its size.
pub(super) fn convert(chain: &[OpenLayer], into: Target<'_>, size: MiB) -> Result<(), VolumeError> {
    let (files, source) = opened(chain)?;
    write(files, &source, (into, size), tool_error("copy the disk"))
}

/// Writes what is in a raw file into a layer of at least its size.
pub(super) fn take_in(raw: &File, into: Target<'_>, size: MiB) -> Result<(), VolumeError> {
    let mut files = Files::default();
    let path = files.layer(raw);
    let source = node(LayerFormat::Raw, (raw, path), None, Value::Null)?;
    write(files, &source, (into, size), tool_error("copy the disk"))
}

/// Writes what a chain holds into a new image.
pub(super) fn pack(chain: &[OpenLayer], into: &File, size: MiB) -> Result<(), VolumeError> {
    let (files, source) = opened(chain)?;
    let call = Call {
        word: "convert",
        arguments: vec![
            "-O".into(),
            "qcow2".into(),
            format!("json:{source}"),
            files.written(),
        ],
        writes: Some(into),
        time: time_for(size),
        output: most_of_an_image(size),
    };
    files.run(call, tool_error("write the image"))
}

/// Writes what a user's image holds into a layer of at least its size. Its header was read before.
pub(super) fn unpack(image: &File, into: Target<'_>, size: MiB) -> Result<(), VolumeError> {
    let broken = |error| match error {
        // Our own disk is fine, so it is the image.
        ToolError::Failed { said, .. } if !said.contains("No space left") => {
            VolumeError::NotAnImage(said)
        }
        error => tool_error("read the image")(error),
    };
    let mut files = Files::default();
    let path = files.layer(image);
    let source = json!({
        "driver": DiskImageFormat::Qcow2.to_string(),
        "backing": null,
        "file": {"driver": "file", "filename": path},
    });
    // What is behind the end of a file that was cut off reads as zeros: only this finds it.
    let check = Call {
        word: "check",
        arguments: vec!["-q".into(), format!("json:{source}")],
        writes: None,
        time: time_for(size),
        output: 0,
    };
    match files.tool(check).run() {
        // 3: clusters that nothing uses, which do no harm (qemu-img(1)).
        Ok(()) | Err(ToolError::Failed { code: Some(3), .. }) => {}
        Err(error) => return Err(files.explained(error, None, broken)),
    }
    write(files, &source, (into, size), broken)
}

/// Writes so many bytes, from a place on, of what a chain holds into a file that has nothing but zeros.
pub(super) fn piece(
    chain: &[OpenLayer],
    into: &File,
    (offset, bytes): (u64, u64),
) -> Result<(), VolumeError> {
    let (files, source) = opened(chain)?;
    let window = json!({"driver": "raw", "offset": offset, "size": bytes, "file": source});
    let call = Call {
        word: "convert",
        arguments: vec![
            "-n".into(),
            "--target-is-zero".into(),
            "-O".into(),
            "raw".into(),
            format!("json:{window}"),
            files.written(),
        ],
        writes: Some(into),
        time: LEAST_TIME,
        output: bytes,
    };
    files.run(call, tool_error("read the disk"))
}

/// What an overlay that is not encrypted holds of its disk, without those below it, in order; `None` where
/// that cannot be said of parts of its file.
pub(super) fn map(layer: &OpenLayer, size: u64) -> Result<Option<Vec<Extent>>, VolumeError> {
    #[derive(Deserialize)]
    struct Mapped {
        start: u64,
        length: u64,
        present: bool,
        zero: bool,
        offset: Option<u64>,
    }
    let out = memfd_create("map", MemfdFlags::CLOEXEC)
        .map_err(|error| VolumeError::Source(error.into()))?;
    let out = File::from(out);
    let (files, source) = opened(std::slice::from_ref(layer))?;
    let tool = files.tool(Call {
        word: "map",
        arguments: vec!["--output=json".into(), format!("json:{source}")],
        writes: None,
        time: time_for(MiB(u32::try_from(size >> 20).unwrap_or(u32::MAX))),
        output: MAP_BYTES,
    });
    match tool.run_printing(&out) {
        Ok(()) => {}
        // It has more to say than it may.
        Err(ToolError::Failed { .. })
            if length_of(&out).is_ok_and(|length| length >= MAP_BYTES) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(files.explained(error, None, tool_error("look at an overlay"))),
    }
    let (json, _) = head_of(&out, usize::try_from(MAP_BYTES).unwrap_or(usize::MAX))
        .map_err(VolumeError::Source)?;
    let not = |why: String| VolumeError::NotAnImage(format!("qemu-img tells no map of it: {why}"));
    let mapped: Vec<Mapped> =
        serde_json::from_slice(&json).map_err(|error| not(error.to_string()))?;
    let mut extents: Vec<Extent> = Vec::new();
    for part in mapped.into_iter().filter(|part| part.present) {
        let range = part.start..part.start.saturating_add(part.length).min(size);
        let before = extents.last().map_or(0, |last| last.range.end);
        if range.start < before || range.is_empty() {
            return Err(not("its parts overlap".to_owned()));
        }
        let at = match (part.zero, part.offset) {
            (true, _) => None,
            (false, Some(at)) => Some(at),
            // Compressed.
            (false, None) => return Ok(None),
        };
        extents.push(Extent { range, at });
    }
    Ok(Some(extents))
}

/// Writes what one overlay holds, without those below it, over what an image of ours holds already. Neither
/// has anything below it here but a disk of zeros: so parts that the overlay does not hold are left alone, and
/// zeros that it does hold hide what will be below the image.
pub(super) fn add(layer: &OpenLayer, into: Target<'_>, size: MiB) -> Result<(), VolumeError> {
    let held = layer.header()?.size;
    let nothing = json!({"driver": "null-co", "size": held, "read-zeroes": true});
    let mut files = Files::default();
    let path = files.layer(&layer.file);
    let key = layer.key.as_ref().map(|key| files.key(key)).transpose()?;
    let file = (&layer.file, path);
    let source = node(layer.format, file, key.as_deref(), nothing)?;
    let encrypted = match into.key {
        Some(key) => format!(
            "encrypt.format=luks,encrypt.key-secret={},",
            files.key(key)?
        ),
        None => String::new(),
    };
    let target = format!(
        "driver=qcow2,{encrypted}file.driver={},file.filename={},backing.driver=null-co,\
         backing.size={},backing.read-zeroes=on",
        protocol(into.file)?,
        files.written(),
        size.bytes(),
    );
    // Whatever it is called: that there is something below the image leaves what is not held alone.
    let arguments = ["-n", "-B", "below", "--target-image-opts"].map(String::from);
    let call = Call {
        word: "convert",
        arguments: arguments
            .into_iter()
            .chain([format!("json:{source}"), target])
            .collect(),
        writes: Some(into.file),
        time: time_for(size),
        output: most_of_an_image(size),
    };
    files.run(call, tool_error("merge layers"))
}

/// Writes what a node holds into a layer.
fn write(
    mut files: Files<'_>,
    source: &Value,
    (into, size): (Target<'_>, MiB),
    failed: impl FnOnce(ToolError) -> VolumeError,
) -> Result<(), VolumeError> {
    let key = into.key.map(|key| files.key(key)).transpose()?;
    let mut arguments: Vec<String> = ["-n", "--target-is-zero"].map(String::from).into();
    let written = files.written();
    let source = format!("json:{source}");
    let output = match key {
        None => {
            arguments.extend(["-O".into(), "raw".into(), source, written]);
            size.bytes()
        }
        Some(key) => {
            let driver = protocol(into.file)?;
            let target = format!(
                "driver=qcow2,encrypt.format=luks,encrypt.key-secret={key},\
                 file.driver={driver},file.filename={written}"
            );
            arguments.extend(["--target-image-opts".into(), source, target]);
            most_of_an_image(size)
        }
    };
    let call = Call {
        word: "convert",
        arguments,
        writes: Some(into.file),
        time: time_for(size),
        output,
    };
    files.run(call, failed)
}

/// A chain as `qemu-img` takes it. Its headers are checked: who wrote them may have been broken into.
fn opened(chain: &[OpenLayer]) -> Result<(Files<'_>, Value), VolumeError> {
    let mut files = Files::default();
    let mut paths = Vec::with_capacity(chain.len());
    for layer in chain {
        if layer.format == LayerFormat::Qcow2 {
            layer.header()?;
        }
        paths.push(files.layer(&layer.file));
    }
    let mut below = Value::Null;
    for (layer, path) in chain.iter().zip(paths).rev() {
        let key = layer.key.as_ref().map(|key| files.key(key)).transpose()?;
        below = node(layer.format, (&layer.file, path), key.as_deref(), below)?;
    }
    Ok((files, below))
}

fn node(
    format: LayerFormat,
    (file, path): (&File, String),
    key: Option<&str>,
    below: Value,
) -> Result<Value, VolumeError> {
    let mut node = json!({
        "driver": format.word(),
        "file": {"driver": protocol(file)?, "filename": path},
    });
    if format == LayerFormat::Qcow2 {
        node["backing"] = below;
    }
    if let Some(key) = key {
        node["encrypt"] = json!({"format": "luks", "key-secret": key});
    }
    Ok(node)
}

/// By what QEMU opens a file.
fn protocol(file: &File) -> Result<&'static str, VolumeError> {
    let is_device = is_device(file).map_err(VolumeError::Source)?;
    Ok(if is_device { "host_device" } else { "file" })
}

/// What an image has beside the disk's bytes.
fn most_of_an_image(size: MiB) -> u64 {
    size.bytes() + size.bytes() / 8 + (64 << 20)
}

fn time_for(size: MiB) -> Duration {
    LEAST_TIME.saturating_add(TIME_PER_GIB.saturating_mul(size.0 / 1024))
}

fn tool_error(what: &'static str) -> impl FnOnce(ToolError) -> VolumeError {
    move |source| VolumeError::Tool { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::layer::Home;

    fn layer(format: LayerFormat, key: Option<Passphrase>) -> OpenLayer {
        OpenLayer {
            file: File::open("/dev/null").unwrap(),
            format,
            is_encrypted: key.is_some(),
            key,
            home: Home::Folder,
            path: "/dev/null".into(),
            name: None,
        }
    }

    #[test]
    fn tools_are_told_each_layer_and_no_key() {
        let mut files = Files::default();
        let chain = [
            layer(LayerFormat::Qcow2, Some(Passphrase::random().unwrap())),
            layer(LayerFormat::Qcow2, None),
            layer(LayerFormat::Raw, None),
        ];
        let paths: Vec<_> = chain.iter().map(|layer| files.layer(&layer.file)).collect();
        let mut below = Value::Null;
        for (layer, path) in chain.iter().zip(paths).rev() {
            let key = layer.key.as_ref().map(|key| files.key(key).unwrap());
            let (file, key) = ((&layer.file, path), key.as_deref());
            below = node(layer.format, file, key, below).unwrap();
        }
        assert_eq!(below["file"]["filename"], "/proc/self/fd/3");
        assert_eq!(below["encrypt"]["key-secret"], "k0");
        assert_eq!(below["backing"]["driver"], "qcow2");
        assert!(below["backing"].get("encrypt").is_none());
        assert_eq!(below["backing"]["backing"]["driver"], "raw");
        let lowest = &below["backing"]["backing"]["file"]["filename"];
        assert_eq!(lowest, "/proc/self/fd/5");
        let wanted = ["--object", "secret,id=k0,file=/proc/self/fd/6"];
        assert_eq!(files.objects(), wanted);
        assert_eq!(files.written(), "/proc/self/fd/7");
    }
}
