//! One kernel bundle: its record, its files, and those that a user brings.

use super::bzimage;
use super::config::GuestMode;
use super::elf;
use super::error::KernelError;
use super::initramfs;
use super::inspection::KernelForm;
use super::wanted::Stage;
use crate::digest::Digest;
use crate::disk::Doing;
use crate::lock;
use crate::progress::NoProgress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The version of the records that this program writes, and part of each bundle's digest.
/// Version 2 has modules of the stage `net`, version 3 those of `serial` and `vsock`,
/// version 4 those of `balloon`.
pub(crate) const RECORD_VERSION: u32 = 4;
pub(crate) const RECORD: &str = "bundle.json";
pub(crate) const VMLINUZ: &str = "vmlinuz";
pub(crate) const VMLINUX: &str = "vmlinux";
pub(crate) const INITRD: &str = "initrd";

/// What is known of a bundle: the content of its `bundle.json`.
///
/// Unknown fields are ignored, and a later version is refused, as with images' records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// The version of this form; 4, or 3 without a balloon, or 2 without modules for vsock, or 1 without any for a network.
    pub version: u32,
    /// The SHA-256 of all that the bundle is made of.
    pub digest: Digest,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The Debian package that the kernel is from.
    pub package: String,
    /// The version of the package.
    pub package_version: String,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub release: String,
    /// Whether `vmlinux` has a PVH entry point.
    pub pvh: bool,
    /// The modules in the initramfs in the order to load, with the stage of each.
    pub modules: Vec<(Stage, String)>,
    /// Digest and size of each file.
    pub files: BTreeMap<String, BundleFile>,
    /// What was found when a user imported it; nothing of one that was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// What was found when a kernel was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// What kind of file it was.
    pub form: KernelForm,
    /// Whether its drivers were checked: its configuration was known.
    pub checked: bool,
    /// What it lacks for kinds of guests, which it does not serve then.
    pub unfit: BTreeMap<GuestMode, Vec<String>>,
    /// Whether its user brought the initramfs; nothing of one that was imported before that was kept.
    #[serde(default)]
    pub own_initrd: Option<bool>,
}

/// The files that a guest boots with, opened. They hold a shared lock, so the bundle of an imported
/// kernel is not removed before they are closed.
#[derive(Debug)]
pub struct BundleFiles {
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initrd: File,
}

/// Digest and size of a bundle's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// The SHA-256 of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A kernel and an initramfs to boot guests with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    digest: Digest,
    kernel: PathBuf,
    vmlinux: Option<PathBuf>,
    initrd: PathBuf,
    pvh: bool,
    release: Option<String>,
    record: Option<BundleRecord>,
}

impl Bundle {
    /// Reads the bundle in `dir` and checks that its files have their sizes.
    pub(crate) fn load(dir: &Path) -> Result<Self, KernelError> {
        let path = dir.join(RECORD);
        let text = fs::read(&path).doing("read", &path)?;
        let bad = |source| KernelError::BadRecord {
            path: path.clone(),
            source,
        };
        let Version { version } = serde_json::from_slice(&text).map_err(bad)?;
        if version > RECORD_VERSION {
            return Err(KernelError::Newer { path, version });
        }
        let record: BundleRecord = serde_json::from_slice(&text).map_err(bad)?;
        for (name, file) in &record.files {
            let size = fs::metadata(dir.join(name)).map(|m| m.len()).ok();
            if size != Some(file.size) {
                return Err(KernelError::Damaged {
                    path: dir.to_owned(),
                    why: format!("{name} is missing or does not have {} bytes", file.size),
                });
            }
        }
        Ok(Self {
            digest: record.digest,
            kernel: dir.join(VMLINUZ),
            vmlinux: Some(dir.join(VMLINUX)),
            initrd: dir.join(INITRD),
            pvh: record.pvh,
            release: Some(record.release.clone()),
            record: Some(record),
        })
    }

    /// A user's own kernel, a bzImage or an uncompressed ELF file, and initramfs. The files
    /// stay where they are.
    ///
    /// # Errors
    /// When a file is not there or is something else.
    pub fn custom(kernel: &Path, initrd: &Path) -> Result<Self, KernelError> {
        let kernel = canonical(kernel, |path, why| KernelError::NotAKernel { path, why })?;
        let initrd = canonical(initrd, |path, why| KernelError::NotAnInitrd { path, why })?;
        check_initrd(&initrd)?;
        let bytes = fs::read(&kernel).doing("read", &kernel)?;
        let refused = |why: String| KernelError::NotAKernel {
            path: kernel.clone(),
            why,
        };
        let is_elf = bytes.starts_with(b"\x7fELF");
        let pvh = if is_elf {
            elf::has_pvh_entry(&bytes).map_err(|error| refused(error.to_string()))?
        } else if bzimage::is_bzimage(&bytes) {
            false
        } else {
            return Err(refused(format!("first bytes {:02x?}", first(&bytes))));
        };
        let (initrd_digest, _) = Digest::of_file(&initrd, "", &mut NoProgress)?;
        let both = format!("{} {initrd_digest}", Digest::of(&bytes));
        Ok(Self {
            digest: Digest::of(both.as_bytes()),
            release: bzimage::release(&bytes).map(str::to_owned),
            vmlinux: is_elf.then(|| kernel.clone()),
            kernel,
            initrd,
            pvh,
            record: None,
        })
    }

    /// Names this very bundle: equal digests mean equal content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The kernel: a bzImage, or a user's own file in whatever form it has.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The kernel as an uncompressed ELF file; nothing if a user brought a bzImage.
    #[must_use]
    pub fn vmlinux(&self) -> Option<&Path> {
        self.vmlinux.as_deref()
    }

    /// Opens the files to boot a guest with. `uncompressed` is which form the VMM boots fastest.
    ///
    /// # Errors
    /// [`KernelError::Unfit`] where the kernel was found to lack something for this kind of guest;
    /// [`KernelError::NotFound`] where it was removed meanwhile.
    pub fn open(&self, mode: GuestMode, uncompressed: bool) -> Result<BundleFiles, KernelError> {
        let imported = self.record.as_ref().and_then(|r| r.imported.as_ref());
        if let Some(lacks) = imported.and_then(|imported| imported.unfit.get(&mode)) {
            return Err(KernelError::Unfit {
                digest: self.digest.to_string(),
                mode,
                lacks: lacks.join(", "),
            });
        }
        Ok(BundleFiles {
            kernel: self.open_file(self.form(uncompressed))?,
            initrd: self.open_file(&self.initrd)?,
        })
    }

    /// The same for a guest with a system of its own on its disks: with the initramfs that the user of an
    /// imported kernel brought, else with one that has nothing in it. The node's agent is not for such
    /// guests, so what it needs of a kernel does not matter.
    ///
    /// # Errors
    /// As [`Bundle::open`], and [`KernelError::UnknownInitrd`] where nobody knows whose its initramfs is: a disk
    /// that needs it would not be found without.
    pub fn open_for_disk(&self, uncompressed: bool) -> Result<BundleFiles, KernelError> {
        let imported = self.record.as_ref().and_then(|r| r.imported.as_ref());
        let initrd = match imported.map_or(Some(false), |imported| imported.own_initrd) {
            Some(true) => self.open_file(&self.initrd)?,
            Some(false) => initramfs::empty().doing("make", Path::new(INITRD))?,
            None => {
                let digest = self.digest.to_string();
                return Err(KernelError::UnknownInitrd { digest });
            }
        };
        Ok(BundleFiles {
            kernel: self.open_file(self.form(uncompressed))?,
            initrd,
        })
    }

    /// The form of the kernel to boot. An uncompressed one can be booted at once only where it has a PVH
    /// entry.
    fn form(&self, uncompressed: bool) -> &Path {
        match self.vmlinux() {
            Some(vmlinux) if uncompressed && self.pvh => vmlinux,
            _ => &self.kernel,
        }
    }

    fn open_file(&self, path: &Path) -> Result<File, KernelError> {
        let file = File::open(path).doing("open", path)?;
        if !lock::try_shared(&file, path)? {
            return Err(KernelError::NotFound {
                reference: self.digest.to_string(),
            });
        }
        Ok(file)
    }

    /// Takes the files of an imported kernel for oneself.
    pub(super) fn claim(&self, reference: &str) -> Result<Vec<File>, KernelError> {
        if self.record.as_ref().is_none_or(|r| r.imported.is_none()) {
            return Ok(Vec::new());
        }
        let paths = [
            Some(&self.kernel),
            self.vmlinux.as_ref(),
            Some(&self.initrd),
        ];
        let mut held = Vec::new();
        for path in paths.into_iter().flatten() {
            let file = File::open(path).doing("open", path)?;
            if !lock::try_exclusive(&file, path)? {
                return Err(KernelError::InUse {
                    reference: reference.to_owned(),
                });
            }
            held.push(file);
        }
        Ok(held)
    }

    /// The form that boots fastest where a VMM takes both: a guest need not decompress it.
    #[must_use]
    pub fn fastest_kernel(&self) -> &Path {
        self.vmlinux().unwrap_or(&self.kernel)
    }

    /// The initramfs.
    #[must_use]
    pub fn initrd(&self) -> &Path {
        &self.initrd
    }

    /// Whether [`vmlinux`](Self::vmlinux) is there and has a PVH entry point.
    #[must_use]
    pub fn pvh(&self) -> bool {
        self.pvh
    }

    /// The kernel's release, where the file tells: an uncompressed one of a user does not.
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.release.as_deref()
    }

    /// All that is recorded of it; nothing of a user's own files.
    #[must_use]
    pub fn record(&self) -> Option<&BundleRecord> {
        self.record.as_ref()
    }
}

fn canonical(
    path: &Path,
    refuse: impl Fn(PathBuf, String) -> KernelError,
) -> Result<PathBuf, KernelError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(path.canonicalize().doing("find", path)?),
        Ok(_) => Err(refuse(path.to_owned(), "it is not a regular file".into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(refuse(path.to_owned(), "there is no such file".into()))
        }
        Err(error) => Err(error).doing("look at", path)?,
    }
}

/// Every form that the kernel unpacks (init/initramfs.c, lib/decompress.c).
fn check_initrd(path: &Path) -> Result<(), KernelError> {
    const MAGICS: [&[u8]; 9] = [
        b"070701",
        b"070702",
        &[0x1f, 0x8b],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        &[0x28, 0xb5, 0x2f, 0xfd],
        &[0x02, 0x21, 0x4c, 0x18],
        b"BZh",
        &[0x5d, 0, 0],
        &[0x89, b'L', b'Z', b'O'],
    ];
    let mut file = File::open(path).doing("open", path)?;
    let mut start = Vec::new();
    file.by_ref()
        .take(8)
        .read_to_end(&mut start)
        .doing("read", path)?;
    if MAGICS.iter().any(|magic| start.starts_with(magic)) {
        return Ok(());
    }
    Err(KernelError::NotAnInitrd {
        path: path.to_owned(),
        why: format!("first bytes {:02x?}", first(&start)),
    })
}

fn first(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(6)]
}

/// The only field that every version of a record has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::Classify;

    #[test]
    fn a_users_files_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let initrd = file("initrd", b"070701and so on");
        let mut bzimage = vec![0; 0x300];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let vmlinuz = file("vmlinuz", &bzimage);
        let elf = file("vmlinux", &elf::tests::elf(b".x", b"", None));
        let text = file("text", b"hello, world");

        let bundle = Bundle::custom(&vmlinuz, &initrd).unwrap();
        assert!(bundle.vmlinux().is_none() && bundle.fastest_kernel() == bundle.kernel());
        let other = Bundle::custom(&elf, &initrd).unwrap();
        assert!(other.vmlinux() == Some(other.kernel()) && !other.pvh());
        assert_ne!(bundle.digest(), other.digest());

        let error = Bundle::custom(&text, &initrd).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("first bytes [68, 65, 6c, 6c, 6f, 2c]"),
            "{error}"
        );
        let error = Bundle::custom(&vmlinuz, &text).unwrap_err();
        assert!(matches!(error, KernelError::NotAnInitrd { .. }));
        let error = Bundle::custom(&dir.path().join("none"), &initrd).unwrap_err();
        assert!(
            error.to_string().ends_with("there is no such file"),
            "{error}"
        );
        let error = Bundle::custom(dir.path(), &initrd).unwrap_err();
        assert!(
            error.to_string().ends_with("it is not a regular file"),
            "{error}"
        );
    }

    #[test]
    fn an_initramfs_of_which_nobody_knows_whose_it_is_boots_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        for name in [VMLINUZ, VMLINUX, INITRD] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let opened = |own_initrd: Option<bool>| -> Result<Vec<u8>, KernelError> {
            let record = BundleRecord {
                version: RECORD_VERSION,
                digest: Digest::of(b"x"),
                created: 0,
                package: String::new(),
                package_version: String::new(),
                release: "6.1".into(),
                pvh: false,
                modules: Vec::new(),
                files: BTreeMap::new(),
                imported: Some(Imported {
                    form: KernelForm::Bzimage,
                    checked: false,
                    unfit: BTreeMap::new(),
                    own_initrd,
                }),
            };
            let mut record = serde_json::to_value(record).unwrap();
            if own_initrd.is_none() {
                let imported = record["imported"].as_object_mut().unwrap();
                assert!(imported.remove("own_initrd").is_some());
            }
            fs::write(dir.path().join(RECORD), record.to_string()).unwrap();
            let mut files = Bundle::load(dir.path()).unwrap().open_for_disk(false)?;
            let mut initrd = Vec::new();
            files.initrd.read_to_end(&mut initrd).unwrap();
            Ok(initrd)
        };
        assert_eq!(opened(Some(true)).unwrap(), INITRD.as_bytes());
        assert_ne!(opened(Some(false)).unwrap(), INITRD.as_bytes());
        let error = opened(None).unwrap_err();
        assert_eq!(error.code(), "kernel_initrd_unknown", "{error}");
        assert!(error.advice().unwrap().contains("aleph kernel import"));
    }
}
