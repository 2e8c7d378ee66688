//! Kernel bundles under their digests, and which of them is the default.

use super::bundle::{
    Bundle, BundleFile, BundleRecord, INITRD, RECORD, RECORD_VERSION, VMLINUX, VMLINUZ,
};
use super::bzimage;
use super::elf;
use super::error::KernelError;
use super::initramfs;
use super::package::{self, Content};
use super::wanted::WANTED;
use crate::apt::{self, Package};
use crate::digest::Digest;
use crate::disk::{Doing, ensure_room, sync_dir};
use crate::lock;
use crate::name::is_prefix;
use crate::progress::Progress;
use crate::staging::{self, Staging};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const DEFAULT: &str = "default";
/// How many digits of its digest are a bundle's folder name.
const FOLDER_DIGITS: usize = 16;
/// Of the files of a bundle of Debian's cloud kernel and its package: 14 + 51 + 2 + 26 MiB.
const ROOM: u64 = 128 << 20;

/// The kernel bundles of a node.
///
/// Any number of processes and threads may use one store at the same time.
#[derive(Debug, Clone)]
pub struct KernelStore {
    dir: PathBuf,
}

impl KernelStore {
    /// The package that a bundle is built from where nobody names one: Debian's kernel for
    /// virtual machines, without drivers for hardware.
    #[must_use]
    pub fn default_package() -> &'static str {
        if cfg!(target_arch = "aarch64") {
            "linux-image-cloud-arm64"
        } else {
            "linux-image-cloud-amd64"
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the store in `kernels/` of the node's state folder `dir`, creating it where it is
    /// missing, and removes what builds that died have left.
    ///
    /// # Errors
    /// When a folder cannot be created or read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, KernelError> {
        let dir = dir.as_ref().join("kernels");
        fs::create_dir_all(&dir).doing("create", &dir)?;
        let dir = dir.canonicalize().doing("find", &dir)?;
        staging::sweep(&dir)?;
        Ok(Self { dir })
    }

    /// Builds the bundle of [`default_package`](Self::default_package) with the guest agent
    /// `agent`, unless it is there already, and makes it the default.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_default(
        &self,
        agent: &[u8],
        progress: &mut dyn Progress,
    ) -> Result<Bundle, KernelError> {
        let bundle = self.build(Self::default_package(), agent, progress)?;
        self.set_default(&bundle)?;
        Ok(bundle)
    }

    /// Builds the bundle of the kernel that the package `metapackage` depends on, with the
    /// guest agent `agent`, unless it is there already.
    ///
    /// # Errors
    /// When a package or a program cannot be had, the package lacks something, or the disk is
    /// full; the store is as before.
    pub fn build(
        &self,
        metapackage: &str,
        agent: &[u8],
        progress: &mut dyn Progress,
    ) -> Result<Bundle, KernelError> {
        apt::with_fresh_lists(
            progress,
            |progress| self.build_now(metapackage, agent, progress),
            |error| matches!(error, KernelError::Package(error) if error.may_be_stale()),
        )
    }

    fn build_now(
        &self,
        metapackage: &str,
        agent: &[u8],
        progress: &mut dyn Progress,
    ) -> Result<Bundle, KernelError> {
        let meta = Package::show(metapackage)?;
        let kernel = kernel_of(&meta.depends).ok_or_else(|| KernelError::NotMeta {
            package: metapackage.to_owned(),
        })?;
        let kernel = Package::show(&kernel)?;
        let digest = digest_of(&kernel, agent);
        if let Ok(bundle) = Bundle::load(&self.dir_of(&digest)) {
            return Ok(bundle);
        }
        ensure_room("build a kernel bundle in", &self.dir, ROOM)?;
        let staging = Staging::create(&self.dir)?;
        let deb = kernel.download(&staging.folder("download")?, progress)?;
        let content = package::read(&deb, &kernel.name, progress)?;

        let object = staging.folder("object")?;
        progress.begin("write the kernel bundle", None);
        let record = write_files(&object, agent, &content, |release, pvh, files| {
            BundleRecord {
                version: RECORD_VERSION,
                digest,
                created: SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
                package: kernel.name.clone(),
                package_version: kernel.version.clone(),
                release,
                pvh,
                modules: content
                    .modules
                    .iter()
                    .map(|m| (m.stage, m.name.clone()))
                    .collect(),
                files,
                imported: None,
            }
        })?;
        let path = object.join(RECORD);
        let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .doing("write", &path)?;
        self.publish(&staging, &object, &digest)?;
        progress.end();
        Bundle::load(&self.dir_of(&digest))
    }

    pub(super) fn publish(
        &self,
        staging: &Staging,
        object: &Path,
        digest: &Digest,
    ) -> Result<(), KernelError> {
        let _lock = lock::folder(&self.dir)?;
        let place = folder_name(digest);
        if !staging.commit(object, &place)? && Bundle::load(&self.dir_of(digest)).is_err() {
            self.remove_dir(&self.dir_of(digest))?;
            staging.commit(object, &place)?;
        }
        Ok(())
    }

    /// The bundle for guests whose job names none.
    ///
    /// # Errors
    /// [`KernelError::NoDefault`] before the first [`build_default`](Self::build_default).
    pub fn default_bundle(&self) -> Result<Bundle, KernelError> {
        let link = self.dir.join(DEFAULT);
        match fs::read_link(&link) {
            Ok(target) => Bundle::load(&self.dir.join(target)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(KernelError::NoDefault)
            }
            Err(error) => Err(error).doing("read", &link)?,
        }
    }

    /// Makes a bundle of this store the default.
    ///
    /// # Errors
    /// When it is no bundle of this store, or the disk is full.
    pub fn set_default(&self, bundle: &Bundle) -> Result<(), KernelError> {
        let _lock = lock::folder(&self.dir)?;
        let name = folder_name(&bundle.digest());
        if !self.dir.join(&name).is_dir() {
            return Err(KernelError::NotFound {
                reference: bundle.digest().to_string(),
            });
        }
        Ok(staging::replace_symlink(
            &self.dir.join(DEFAULT),
            Path::new(&name),
        )?)
    }

    /// Gives a bundle of this store a name.
    pub(super) fn name_bundle(&self, name: &str, digest: &Digest) -> Result<(), KernelError> {
        let _lock = lock::folder(&self.dir)?;
        self.set_name(name, &folder_name(digest))
    }

    /// The bundle with this name, or whose digest begins so.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn resolve(&self, reference: &str) -> Result<Bundle, KernelError> {
        match self.folders_by_name()?.get(reference) {
            Some(folder) => Bundle::load(&self.dir.join(folder)),
            None => self.by_digest(reference),
        }
    }

    /// The names of a bundle.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn names(&self, bundle: &Bundle) -> Result<Vec<String>, KernelError> {
        let folder = folder_name(&bundle.digest());
        let names = self.folders_by_name()?;
        let own = names.into_iter().filter(|(_, target)| *target == folder);
        Ok(own.map(|(name, _)| name).collect())
    }

    /// The bundle whose digest begins with `prefix`, 8 hex digits or more, with or without
    /// `sha256:` before them.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn by_digest(&self, prefix: &str) -> Result<Bundle, KernelError> {
        Bundle::load(&self.find(prefix)?)
    }

    /// All bundles, the newest first. Damaged ones are left out, with a warning in the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Bundle>, KernelError> {
        let mut bundles = Vec::new();
        for name in self.folders()? {
            match Bundle::load(&self.dir.join(&name)) {
                Ok(bundle) => bundles.push(bundle),
                Err(error) => tracing::warn!(%error, "a kernel bundle is left out of the list"),
            }
        }
        bundles.sort_by_key(|b| std::cmp::Reverse(b.record().map(|r| r.created)));
        Ok(bundles)
    }

    /// Removes a bundle, even a damaged one; if it is the default, there is none afterwards. A
    /// name takes its bundle with it where it is the last one; a digest takes all names.
    ///
    /// # Errors
    /// When there is no such bundle, or more than one; [`KernelError::InUse`] where a guest runs with
    /// one that was imported. Those that were built a guest does not need once it has booted.
    pub fn remove(&self, reference: &str) -> Result<(), KernelError> {
        let _lock = lock::folder(&self.dir)?;
        let names = self.folders_by_name()?;
        let dir = match names.get(reference) {
            Some(folder) => self.dir.join(folder),
            None => self.find(reference)?,
        };
        let own: Vec<&String> = names
            .iter()
            .filter(|(_, folder)| self.dir.join(folder) == dir)
            .map(|(name, _)| name)
            .collect();
        if own.len() > 1 && names.contains_key(reference) {
            return self.remove_name(reference);
        }
        // Held until the files have no path any more, so nobody begins to use them meanwhile.
        let _held = match Bundle::load(&dir) {
            Ok(bundle) => bundle.claim(reference)?,
            Err(_) => Vec::new(),
        };
        for name in own {
            self.remove_name(name)?;
        }
        let link = self.dir.join(DEFAULT);
        if fs::read_link(&link).is_ok_and(|target| self.dir.join(target) == dir) {
            fs::remove_file(&link).doing("remove", &link)?;
        }
        if dir.is_dir() {
            self.remove_dir(&dir)
        } else {
            Ok(())
        }
    }

    /// Moves a folder out of its place in one step, then removes its files.
    fn remove_dir(&self, dir: &Path) -> Result<(), KernelError> {
        // No process has the number 0, and the folder has no lock: a sweep finishes the work.
        let doomed = self.dir.join(".tmp-0-removed");
        staging::remove_tree(&doomed);
        fs::rename(dir, &doomed).doing("remove", dir)?;
        staging::remove_tree(&doomed);
        Ok(sync_dir(&self.dir)?)
    }

    fn find(&self, prefix: &str) -> Result<PathBuf, KernelError> {
        let not_found = || KernelError::NotFound {
            reference: prefix.to_owned(),
        };
        let digits = prefix
            .strip_prefix("sha256:")
            .unwrap_or(prefix)
            .to_ascii_lowercase();
        if !is_prefix(&digits) {
            return Err(not_found());
        }
        let known = &digits[..digits.len().min(FOLDER_DIGITS)];
        let found: Vec<String> = self
            .folders()?
            .into_iter()
            .filter(|name| name.starts_with(known))
            .collect();
        match &found[..] {
            [] => Err(not_found()),
            [name] => {
                let dir = self.dir.join(name);
                // Digits beyond those of the folder's name have to be right as well.
                match Bundle::load(&dir) {
                    Ok(bundle) if !bundle.digest().hex().starts_with(&digits) => Err(not_found()),
                    _ => Ok(dir),
                }
            }
            several => Err(KernelError::Ambiguous {
                prefix: digits,
                count: several.len(),
            }),
        }
    }

    fn folders(&self) -> Result<Vec<String>, KernelError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).doing("list", &self.dir)? {
            let name = entry.doing("list", &self.dir)?.file_name();
            let name = name.to_string_lossy().into_owned();
            if name.len() == FOLDER_DIGITS && is_prefix(&name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn dir_of(&self, digest: &Digest) -> PathBuf {
        self.dir.join(folder_name(digest))
    }
}

fn folder_name(digest: &Digest) -> String {
    digest.hex()[..FOLDER_DIGITS].to_owned()
}

/// The first dependency of the form `linux-image-... (= version)`, as `name=version`.
fn kernel_of(depends: &str) -> Option<String> {
    depends.split(',').find_map(|dependency| {
        let (name, version) = dependency.trim().split_once(' ')?;
        let version = version.trim().strip_prefix("(=")?.strip_suffix(')')?.trim();
        name.starts_with("linux-image-")
            .then(|| format!("{name}={version}"))
    })
}

/// Names all that a bundle is made of. The order of its modules follows from the package.
fn digest_of(kernel: &Package, agent: &[u8]) -> Digest {
    let modules: Vec<String> = WANTED
        .iter()
        .map(|module| format!("{} {}", module.stage, module.name))
        .collect();
    let input = serde_json::json!({
        "version": RECORD_VERSION,
        "package": kernel.name,
        "package_version": kernel.version,
        "package_sha256": kernel.sha256,
        "agent": Digest::of(agent),
        "modules": modules,
    });
    Digest::of(input.to_string().as_bytes())
}

fn write_files(
    object: &Path,
    agent: &[u8],
    content: &Content,
    record: impl FnOnce(String, bool, BTreeMap<String, BundleFile>) -> BundleRecord,
) -> Result<BundleRecord, KernelError> {
    let vmlinuz = object.join(VMLINUZ);
    let kernel = bzimage::extract(&content.vmlinuz).map_err(|source| KernelError::Extract {
        path: vmlinuz.clone(),
        source,
    })?;
    let not_a_kernel = |why: String| KernelError::NotAKernel {
        path: vmlinuz.clone(),
        why,
    };
    let pvh = elf::has_pvh_entry(&kernel).map_err(|error| not_a_kernel(error.to_string()))?;
    let release = bzimage::release(&content.vmlinuz)
        .ok_or_else(|| not_a_kernel("it does not say its release".into()))?;
    let initrd = object.join(INITRD);
    let archive = initramfs::write(agent, &content.modules).doing("make", &initrd)?;
    let mut files = BTreeMap::new();
    for (name, bytes) in [
        (VMLINUZ, &content.vmlinuz),
        (VMLINUX, &kernel),
        (INITRD, &archive),
    ] {
        let path = object.join(name);
        fs::write(&path, bytes).doing("write", &path)?;
        let file = BundleFile {
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        files.insert(name.to_owned(), file);
    }
    Ok(record(release.to_owned(), pvh, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_among_dependencies() {
        assert_eq!(
            kernel_of("foo (>= 1), linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-2)").as_deref(),
            Some("linux-image-6.1.0-1-cloud-amd64=6.1.1-2")
        );
        assert_eq!(kernel_of("kmod, linux-base (>= 4.3~)"), None);
    }

    #[test]
    fn an_empty_store_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = KernelStore::open(dir.path()).unwrap();
        assert!(matches!(
            store.default_bundle(),
            Err(KernelError::NoDefault)
        ));
        assert!(store.list().unwrap().is_empty());
        for prefix in ["0123456789abcdef", "sha256:01234567", "0", "../etc"] {
            assert!(matches!(
                store.by_digest(prefix),
                Err(KernelError::NotFound { .. })
            ));
            assert!(matches!(
                store.remove(prefix),
                Err(KernelError::NotFound { .. })
            ));
        }
    }

    #[test]
    fn another_agent_is_another_bundle() {
        let kernel = Package {
            name: "linux-image-x".into(),
            version: "1".into(),
            depends: String::new(),
            sha256: Digest::of(b"deb"),
            size: 3,
        };
        assert_eq!(digest_of(&kernel, b"one"), digest_of(&kernel, b"one"));
        assert_ne!(digest_of(&kernel, b"one"), digest_of(&kernel, b"two"));
    }
}
