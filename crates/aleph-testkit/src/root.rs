//! A node's folder of a test's own.

use aleph_executor::Paths;
use aleph_image::{Bundle, Digest, Image, KernelStore, NoProgress, Recipe, Store};
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A root folder that no other test uses. Images and kernels in it are those of all tests,
/// built once; VMs, sockets and records are its own, and all of it goes when it is dropped.
#[derive(Debug)]
pub struct TestRoot {
    path: PathBuf,
    /// It goes with this; that of another process stays.
    _dir: Option<tempfile::TempDir>,
}

impl TestRoot {
    /// A root folder with the kernel bundle and the busybox image.
    ///
    /// # Errors
    /// Where they cannot be built.
    pub fn new() -> Result<Self> {
        let shared = shared()?;
        let root = Self::empty()?;
        for store in ["images", "kernels"] {
            std::os::unix::fs::symlink(shared.join(store), root.path().join(store))?;
        }
        Ok(root)
    }

    /// A root folder with nothing in it.
    ///
    /// # Errors
    /// Where no folder can be made.
    pub fn empty() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("aleph-test-").tempdir()?;
        Ok(Self {
            path: dir.path().to_owned(),
            _dir: Some(dir),
        })
    }

    /// That of another process, which goes with that one.
    #[must_use]
    pub fn over(path: PathBuf) -> Self {
        Self { path, _dir: None }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's folders in it.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn paths(&self) -> Result<Paths> {
        Ok(Paths::new(Some(self.path()))?)
    }

    /// The shared kernel bundle.
    ///
    /// # Errors
    /// Where there is none.
    pub fn bundle(&self) -> Result<Bundle> {
        Ok(KernelStore::open(self.path())?.default_bundle()?)
    }

    /// The shared busybox image.
    ///
    /// # Errors
    /// Where there is none.
    pub fn busybox(&self) -> Result<Image> {
        Ok(Store::open(self.path())?.resolve("busybox")?)
    }

    /// What the node of this folder has left on the host, a line each: empty when it is clean.
    ///
    /// # Errors
    /// Where the host cannot be looked at.
    pub fn residue(&self) -> Result<Vec<String>> {
        let paths = self.paths()?;
        let mut left = Vec::new();
        for dir in [paths.vms(), paths.run().join("vms")] {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    left.push(format!("file {}", entry.path().display()));
                }
            }
        }
        let root = self.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(
            mounts
                .lines()
                .filter(|l| l.contains(&root))
                .map(|l| format!("mount {l}")),
        );
        let sockets = fs::read_to_string("/proc/net/unix")?;
        left.extend(
            sockets
                .lines()
                .filter(|l| l.contains(&root))
                .map(|l| format!("socket {l}")),
        );
        let group = format!("aleph-{}", paths.name());
        if let Some(at) = aleph_executor::cgroup::mount_point(&mounts) {
            let tree = at.join(&group);
            if tree.exists() {
                left.push(format!("cgroup {}", tree.display()));
            }
        }
        left.extend(processes_in(&group));
        Ok(left)
    }
}

/// A test that failed may have left guests that outlive their node.
impl Drop for TestRoot {
    fn drop(&mut self) {
        let Ok(paths) = self.paths() else { return };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(top) = aleph_executor::cgroup::mount_point(&mounts) else {
            return;
        };
        let tree = top.join(format!("aleph-{}", paths.name()));
        for group in fs::read_dir(&tree).into_iter().flatten().flatten() {
            let _ = fs::write(group.path().join("cgroup.kill"), "1");
        }
    }
}

/// Processes in a cgroup tree of that name, and those that hold a file in it.
fn processes_in(group: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(groups) = fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        // One that has ended and waits for the host's init to notice holds nothing any more.
        let ended = fs::read_to_string(entry.path().join("stat"))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")));
        if groups.contains(group) && !ended {
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name();
            found.push(format!(
                "process {} {}",
                pid.display(),
                line.replace('\0', " ")
            ));
        }
    }
    found
}

/// The folder with the kernel bundle and the image of all tests, built on first use. Kept in
/// the build folder, so that `cargo clean` removes it too.
fn shared() -> Result<PathBuf> {
    let dir = shared_dir()?;
    let lock = File::create(dir.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    // Both are quick when they have been built: they are kept by what goes into them.
    KernelStore::open(&dir)?
        .build_default(aleph_image::AGENT, &mut NoProgress)
        .context("cannot build the kernel bundle for the tests")?;
    let store = Store::open(&dir)?;
    if store.resolve("busybox").is_err() {
        store
            .build(Recipe::Busybox, &mut NoProgress)
            .context("cannot build the busybox image for the tests")?;
    }
    Ok(dir)
}

fn shared_dir() -> Result<PathBuf> {
    let dir = target().join("test-root");
    fs::create_dir_all(&dir)?;
    Ok(dir.canonicalize()?)
}

/// Cargo's build folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    )
}

/// The image of a recipe, in the store that all tests share: built on first use, and again when
/// the recipe has changed. A [`TestRoot`] has it too.
///
/// # Errors
/// Where it cannot be built.
pub fn recipe_image(recipe: Recipe) -> Result<Image> {
    let dir = shared_dir()?;
    let lock = File::create(dir.join(format!("lock-{recipe}")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let store = Store::open(&dir)?;
    let made_of = dir.join(format!("{recipe}.made-of"));
    let sources = recipe_sources()?;
    if fs::read_to_string(&made_of).is_ok_and(|known| known == sources)
        && let Ok(image) = store.resolve(recipe.name())
    {
        return Ok(image);
    }
    let image = store
        .build(recipe, &mut NoProgress)
        .with_context(|| format!("cannot build the image {recipe} for the tests"))?;
    fs::write(made_of, sources)?;
    Ok(image)
}

/// Stands for the sources of all recipes.
fn recipe_sources() -> Result<String> {
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../aleph-image/src/recipe")];
    let mut digests = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else {
            digests.push(Digest::of(&fs::read(&path)?).to_string());
        }
    }
    digests.sort();
    Ok(Digest::of(digests.concat().as_bytes()).to_string())
}
