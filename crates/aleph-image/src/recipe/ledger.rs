//! What an unpacker remembers of what it has made, and what that costs.

use super::root::{Attributes, Place};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub(super) struct Ledger {
    /// Folders by inode. Their attributes are set last: until then, making entries changes
    /// their times.
    folders: HashMap<u64, (PathBuf, Attributes)>,
    /// Names that this layer made, by their folder's inode; kept only over other layers.
    names: HashMap<u64, HashSet<OsString>>,
    over_others: bool,
    folder_bytes: u64,
    name_bytes: u64,
    made: Made,
}

/// What has come to be on the disk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) inodes: u64,
    /// Of these, folders that no entry stands for.
    pub(super) implied: u64,
}

impl Ledger {
    /// With the tree's root, by its inode.
    pub(super) fn new(root: u64) -> Self {
        Self {
            folders: HashMap::from([(root, (PathBuf::new(), Attributes::IMPLIED))]),
            names: HashMap::new(),
            over_others: false,
            folder_bytes: 0,
            name_bytes: 0,
            made: Made::default(),
        }
    }

    pub(super) fn next_layer(&mut self) {
        self.names.clear();
        self.name_bytes = 0;
        self.over_others = true;
    }

    /// Whether there are layers below this one.
    pub(super) fn is_over_others(&self) -> bool {
        self.over_others
    }

    /// Whether this layer itself made that name.
    pub(super) fn is_own(&self, folder: u64, name: &OsStr) -> bool {
        let names = self.names.get(&folder);
        names.is_some_and(|names| names.contains(name))
    }

    pub(super) fn folders(&self) -> impl Iterator<Item = (&u64, &(PathBuf, Attributes))> {
        self.folders.iter()
    }

    /// Remembers the folder at `path` and what it is to be like in the end.
    pub(super) fn keep(&mut self, inode: u64, path: &Path, attributes: Attributes) {
        let length = |path: &Path| path.as_os_str().len() as u64;
        self.folder_bytes += length(path);
        let before = self.folders.insert(inode, (path.to_owned(), attributes));
        self.folder_bytes -= before.map_or(0, |(path, _)| length(&path));
    }

    /// Remembers that the layer has an entry at this place.
    pub(super) fn note(&mut self, place: &Place<'_>) {
        if !self.over_others {
            return;
        }
        let names = self.names.entry(place.dir.inode).or_default();
        let name = place.name.as_os_str();
        if names.insert(name.to_owned()) {
            self.name_bytes += name.len() as u64;
        }
    }

    /// Counts something that was made, for an entry of its own or not.
    pub(super) fn count(&mut self, implied: bool) {
        self.made.inodes += 1;
        self.made.implied += u64::from(implied);
    }

    /// What was made since the last time that this was asked.
    pub(super) fn take_made(&mut self) -> Made {
        std::mem::take(&mut self.made)
    }

    /// Bytes of the paths and names that are remembered.
    pub(super) fn path_bytes(&self) -> u64 {
        self.folder_bytes + self.name_bytes
    }
}
