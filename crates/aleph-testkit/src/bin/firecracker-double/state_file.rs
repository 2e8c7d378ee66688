//! The state file of a snapshot: Firecracker's frame (what it is, of which version, and a
//! checksum) around what QEMU writes of its devices.

use crate::bodies;
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const MAGIC: u64 = 0x0710_1984_8664_0000;
/// The longest that is read.
const LIMIT: usize = 10_000_000;

/// What a guest was when it was written down.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct State {
    pub(crate) machine: bodies::Machine,
    pub(crate) drives: Vec<bodies::Drive>,
    pub(crate) nics: Vec<bodies::Nic>,
    pub(crate) vsock: Option<bodies::Vsock>,
    pub(crate) entropy: Option<bodies::Entropy>,
    pub(crate) balloon: Option<bodies::Balloon>,
    pub(crate) mmds: Option<bodies::MmdsConfig>,
    /// The [`family`] of the version that wrote it.
    pub(crate) by: String,
    /// QEMU's part, which follows the text.
    #[serde(skip)]
    pub(crate) devices: Vec<u8>,
}

/// A file that is no state for this version, in the real one's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("Failed to open snapshot file: {0}")]
    Open(String),
    #[error("Failed to load snapshot state from file: {0}")]
    Load(String),
}

impl State {
    /// Writes it: magic, version, length and text of what it was, QEMU's part, checksum.
    pub(crate) fn write(&self, file: &File, version: Version) -> io::Result<()> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for text in [version.snapshots().to_owned(), serde_json::to_string(self)?] {
            bytes.extend(u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(&self.devices);
        bytes.extend(checksum(&bytes).to_le_bytes());
        let mut file = file;
        file.write_all(&bytes)?;
        file.sync_all()
    }

    /// Reads one that this version can go on from.
    pub(crate) fn read(path: &Path, version: Version) -> Result<Self, StateError> {
        let bytes =
            std::fs::read(path).map_err(|error| StateError::Open(crate::fault::os_text(&error)))?;
        let load = |why: &str| StateError::Load(why.to_owned());
        if bytes.len() > LIMIT {
            return Err(load(&format!(
                "Snapshot size exceeds limit of {LIMIT} bytes"
            )));
        }
        let torn = "An error occurred during bitcode serialization: EOF";
        let checked = bytes.len().checked_sub(8).ok_or_else(|| load(torn))?;
        let (bytes, sum) = bytes.split_at(checked);
        if checksum(bytes).to_le_bytes() != sum {
            let wrong = match version.has(14) {
                true => "CRC64 validation failed".to_owned(),
                false => format!("CRC64 validation failed: {}", checksum(bytes)),
            };
            return Err(load(&wrong));
        }
        let mut rest = bytes;
        let magic = number(&mut rest).ok_or_else(|| load(torn))?;
        if magic != MAGIC {
            return Err(load(&format!("Magic value does not match arch: {magic}")));
        }
        let format = text(&mut rest).ok_or_else(|| load(torn))?;
        if !fits(&format, version.snapshots()) {
            return Err(load(&format!("Invalid data version: {format}")));
        }
        let text = text(&mut rest).ok_or_else(|| load(torn))?;
        let mut state: Self = serde_json::from_str(&text).map_err(|_| load(torn))?;
        if state.by != family(version) {
            return Err(load(torn));
        }
        state.devices = rest.to_vec();
        Ok(state)
    }
}

/// The version of a state file's format.
pub(crate) fn format_of(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    let mut rest = &bytes[..];
    (number(&mut rest)? == MAGIC).then(|| text(&mut rest))?
}

/// 1.13 and 1.14 write the same number and not the same content.
pub(crate) fn family(version: Version) -> String {
    format!(
        "{}{}",
        version.snapshots(),
        if version.has(14) { "+" } else { "" }
    )
}

/// The same major version, and no later minor one.
fn fits(format: &str, own: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.')
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    let (format, own) = (numbers(format), numbers(own));
    format.len() == 3 && format[0] == own[0] && format[1] <= own[1]
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*bytes))
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).ok()
}

/// CRC-64 of ECMA-182, reflected.
fn checksum(bytes: &[u8]) -> u64 {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u64::from(*byte), |sum: u64, _| {
            (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 }
        })
    })
}
