//! Kernels that users bring, as bundles beside those that are built.

use super::archive::{self, ArchiveFault};
use super::bundle::{
    Bundle, BundleFile, BundleRecord, INITRD, Imported, RECORD, RECORD_VERSION, VMLINUX, VMLINUZ,
};
use super::config::{Config, GuestMode, lacks, sentence};
use super::error::KernelError;
use super::initramfs;
use super::inspection::{self, Inspection, KernelForm};
use super::store::KernelStore;
use crate::digest::Digest;
use crate::disk::{Doing, ensure_room};
use crate::staging::Staging;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

/// The largest kernel or initramfs: the largest that distributions ship are a fifth of it.
const MOST_BYTES: u64 = 512 << 20;

/// Some multiple of what a kernel with its uncompressed form and an initramfs take.
const ROOM: u64 = 256 << 20;

/// A kernel to import.
#[derive(Debug, Clone, Copy)]
pub struct KernelImport<'a> {
    /// What to call it. A name that is taken then means this one.
    pub name: &'a str,
    /// A bzImage or an ELF kernel, plain or compressed.
    pub kernel: &'a Path,
    /// An initramfs with the guest agent and the modules that the kernel needs. Without one, that of the
    /// default bundle is taken where it is for the same release, else one with the agent alone where
    /// the kernel needs no modules.
    pub initrd: Option<&'a Path>,
    /// The kernel's configuration, where it does not carry it.
    pub config: Option<&'a Path>,
    /// The guest agent for an initramfs.
    pub agent: &'a [u8],
}

/// An initramfs for a kernel, and what it has.
struct Initrd {
    bytes: Vec<u8>,
    modules: BTreeMap<String, Option<String>>,
}

impl KernelStore {
    /// Imports a kernel: checks its form, its architecture and, where its configuration is known, that it
    /// has the drivers that guests need.
    ///
    /// # Errors
    /// [`KernelError::NotAKernel`], [`KernelError::NotAnInitrd`], [`KernelError::NotAConfig`] where a
    /// file is something else; [`KernelError::LacksDrivers`] where no kind of guest could run with it;
    /// [`KernelError::NeedsInitrd`] where it has no initramfs that fits. The store is as before then.
    pub fn import(&self, import: &KernelImport<'_>) -> Result<Bundle, KernelError> {
        Self::check_kernel_name(import.name)?;
        let path = import.kernel;
        let kernel = read(path, |path, why| KernelError::NotAKernel { path, why })?;
        let found = inspection::inspect(&kernel).map_err(|fault| KernelError::NotAKernel {
            path: path.to_owned(),
            why: fault.to_string(),
        })?;
        let config = match import.config {
            None => found.config.clone(),
            Some(path) => Some(read_config(path)?),
        };
        let initrd = self.initrd_for(import, &found, config.as_ref())?;
        let modules = initrd.modules.keys().cloned().collect();
        let unfit = config
            .as_ref()
            .map(|config| lacks(config, &modules))
            .unwrap_or_default();
        if unfit.len() == GuestMode::ALL.len() {
            return Err(KernelError::LacksDrivers {
                path: path.to_owned(),
                lacks: sentence(&unfit),
            });
        }
        let imported = Imported {
            form: found.form,
            checked: config.is_some(),
            unfit,
            own_initrd: Some(import.initrd.is_some()),
        };
        self.store(import.name, (&kernel, &found), &initrd.bytes, imported)
    }

    /// The initramfs for a kernel.
    fn initrd_for(
        &self,
        import: &KernelImport<'_>,
        found: &Inspection,
        config: Option<&Config>,
    ) -> Result<Initrd, KernelError> {
        if let Some(path) = import.initrd {
            let refuse = |path, why| KernelError::NotAnInitrd { path, why };
            let bytes = read(path, refuse)?;
            return checked(bytes, found).map_err(|why| refuse(path.to_owned(), why));
        }
        if let Ok(default) = self.default_bundle()
            && default.release() == Some(&found.release)
        {
            let path = default.initrd();
            let bytes = fs::read(path).doing("read", path)?;
            return checked(bytes, found).map_err(|why| KernelError::Damaged {
                path: path.to_owned(),
                why,
            });
        }
        let alone = BTreeSet::new();
        let needs = match config.map(|config| lacks(config, &alone)) {
            None => "its configuration is not known, so the modules that it needs are not either"
                .to_owned(),
            Some(lacks) if lacks.len() < GuestMode::ALL.len() => {
                return Ok(Initrd {
                    bytes: initramfs::write(import.agent, &[]).doing("make", Path::new(INITRD))?,
                    modules: BTreeMap::new(),
                });
            }
            Some(lacks) => sentence(&lacks),
        };
        Err(KernelError::NeedsInitrd {
            path: import.kernel.to_owned(),
            release: found.release.clone(),
            needs,
        })
    }

    fn store(
        &self,
        name: &str,
        (kernel, found): (&[u8], &Inspection),
        initrd: &[u8],
        imported: Imported,
    ) -> Result<Bundle, KernelError> {
        // One that was imported before this was kept is another one.
        let input = serde_json::json!({
            "imported": 1,
            "kernel": Digest::of(kernel),
            "initrd": Digest::of(initrd),
            "checked": imported.checked,
            "unfit": imported.unfit,
            "own_initrd": imported.own_initrd,
        });
        let digest = Digest::of(input.to_string().as_bytes());
        ensure_room("import a kernel into", self.dir(), ROOM)?;
        let staging = Staging::create(self.dir())?;
        let object = staging.folder("object")?;
        let elf = matches!(imported.form, KernelForm::Elf | KernelForm::CompressedElf);
        // One that is no bzImage has the same bytes under both names: VMMs take either form.
        let boots = if elf { &found.vmlinux } else { kernel };
        let mut files = BTreeMap::new();
        for (name, bytes) in [
            (VMLINUZ, boots),
            (VMLINUX, &found.vmlinux),
            (INITRD, initrd),
        ] {
            let path = object.join(name);
            fs::write(&path, bytes).doing("write", &path)?;
            let file = BundleFile {
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
            };
            files.insert(name.to_owned(), file);
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let record = BundleRecord {
            version: RECORD_VERSION,
            digest,
            created: since.map_or(0, |since| since.as_secs()),
            package: "imported".to_owned(),
            package_version: String::new(),
            release: found.release.clone(),
            pvh: found.pvh,
            modules: Vec::new(),
            files,
            imported: Some(imported),
        };
        let path = object.join(RECORD);
        let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .doing("write", &path)?;
        self.publish(&staging, &object, &digest)?;
        self.name_bundle(name, &digest)?;
        self.by_digest(digest.hex().as_ref())
    }
}

/// Reads a regular file whole.
fn read(
    path: &Path,
    refuse: impl Fn(std::path::PathBuf, String) -> KernelError,
) -> Result<Vec<u8>, KernelError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse(path.to_owned(), "there is no such file".into()));
        }
        opened => opened.doing("open", path)?,
    };
    if !file.metadata().doing("look at", path)?.is_file() {
        return Err(refuse(path.to_owned(), "it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .doing("read", path)?;
    if bytes.len() as u64 > MOST_BYTES {
        let why = format!("it is larger than {} MiB", MOST_BYTES >> 20);
        return Err(refuse(path.to_owned(), why));
    }
    Ok(bytes)
}

fn read_config(path: &Path) -> Result<Config, KernelError> {
    let refuse = |path, why| KernelError::NotAConfig { path, why };
    let text = read(path, refuse)?;
    Config::parse(&text).map_err(|error| refuse(path.to_owned(), error.to_string()))
}

/// An initramfs whose modules are those of this kernel.
fn checked(bytes: Vec<u8>, found: &Inspection) -> Result<Initrd, String> {
    let contents = archive::inspect(&bytes).map_err(|fault: ArchiveFault| fault.to_string())?;
    for (module, release) in &contents.modules {
        if let Some(release) = release
            .as_ref()
            .filter(|release| **release != found.release)
        {
            return Err(format!(
                "its module {module} is for {release}, the kernel is {}",
                found.release
            ));
        }
    }
    Ok(Initrd {
        bytes,
        modules: contents.modules,
    })
}
