//! The disk from which a guest's cloud-init reads, in cloud-init's `NoCloud` form.

use super::user_data::{self, UserDataKind};
use super::{CloudInitError, GuestSpec, Secret, config, mime, network, report, unit};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::fmt;
use std::io::{Cursor, Write};

/// The label by which `NoCloud` finds it, padded as FAT has it.
const LABEL: [u8; 11] = *b"cidata     ";
/// What an image is a multiple of, in bytes.
const GRAIN: usize = 1024 * 1024;
/// For tables and the ends of clusters.
const OVERHEAD: usize = 128 * 1024;

/// The documents of one guest. User-data has secrets in it; `Debug` shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    /// A MIME message: the user's part, then the node's.
    pub user_data: Secret,
    /// YAML: who the guest is.
    pub meta_data: String,
    /// A cloud-config of defaults.
    pub vendor_data: String,
    /// YAML, version 2.
    pub network_config: String,
    /// What the user's own part is.
    pub kind: Option<UserDataKind>,
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seed")
            .field("user_data", &self.user_data)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl GuestSpec {
    /// The documents for its cloud-init. Equal specifications have equal documents.
    ///
    /// # Errors
    /// [`CloudInitError`] where a field is not of its form, or the user-data would not be taken.
    pub fn seed(&self) -> Result<Seed, CloudInitError> {
        self.check()?;
        let own = match &self.user_data {
            Some(bytes) => user_data::read(bytes.expose())?,
            None => None,
        };
        let first = config::first(self)?;
        let main = config::main(self)?;
        let check = unit::check(self);
        let report = report::script();

        let document = |kind, name, text| mime::Part {
            kind,
            name: Some(name),
            merge: None,
            text,
        };
        // First of all, so that a guest in which all else goes wrong tells so.
        let mut parts = vec![document("text/cloud-boothook", "aleph-report", &report)];
        parts.extend(
            own.iter()
                .flat_map(|own| &own.documents)
                .map(|own| mime::Part {
                    kind: own.mime,
                    name: own.name.as_deref(),
                    merge: own.merge.as_deref(),
                    text: &own.text,
                }),
        );
        if let Some(first) = &first {
            parts.push(document("text/cloud-config", "aleph-first.yaml", first));
        }
        parts.push(document("text/cloud-config", "aleph.yaml", &main));
        // Scripts run in the order of their names, and `runcmd` is the name of one.
        parts.push(document("text/x-shellscript", "zz-aleph-check", &check));

        Ok(Seed {
            user_data: mime::message(&parts).into(),
            meta_data: config::meta_data(self)?,
            vendor_data: config::vendor_data(self)?,
            network_config: network::network_config(self)?,
            kind: own.map(|own| own.kind),
        })
    }
}

impl Seed {
    /// Their names on the disk, and what is in them.
    #[must_use]
    pub fn files(&self) -> [(&'static str, &[u8]); 4] {
        [
            ("meta-data", self.meta_data.as_bytes()),
            ("network-config", self.network_config.as_bytes()),
            ("user-data", self.user_data.expose()),
            ("vendor-data", self.vendor_data.as_bytes()),
        ]
    }

    /// A FAT file system with the label `cidata`, a whole number of MiB, and the same bytes for
    /// the same documents: all times in it are the first of 1980.
    ///
    /// Guests do not find a seed on an emulated CD drive of each machine type, so it is attached as
    /// a virtio disk, read-only.
    ///
    /// # Errors
    /// [`CloudInitError::Image`] where it cannot be made.
    pub fn image(&self) -> Result<Secret, CloudInitError> {
        let files = self.files();
        let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let size = (content + OVERHEAD).next_multiple_of(GRAIN);
        let mut disk = Cursor::new(vec![0_u8; size]);
        fill(&mut disk, &files).map_err(CloudInitError::Image)?;
        Ok(Secret::new(disk.into_inner()))
    }
}

fn fill(disk: &mut Cursor<Vec<u8>>, files: &[(&str, &[u8])]) -> std::io::Result<()> {
    fatfs::format_volume(&mut *disk, FormatVolumeOptions::new().volume_label(LABEL))?;
    let volume = FileSystem::new(disk, FsOptions::new())?;
    for (name, bytes) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    volume.unmount()
}
