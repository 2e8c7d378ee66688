//! What a test needs of its host, and a store of its own.

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod layout;
pub(crate) mod registry;
pub(crate) mod runtime_api;

use aleph_image::Store;
use libtest_mimic::{Arguments, Trial};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Something that not every host has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// To own files of others, to make device nodes, to mount.
    Root,
    /// A kernel that mounts images itself.
    Mount,
    /// A program.
    Tool(&'static str),
    /// Packages that apt can download.
    Apt,
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => {
                let uid =
                    fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
                (uid.ok() != Some(0)).then(|| "needs root".into())
            }
            Self::Mount => {
                let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
                let can = known.contains("erofs") && Path::new("/dev/loop-control").exists();
                (!can).then(|| "needs a kernel with erofs and loop devices".into())
            }
            Self::Tool(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let there = std::env::split_paths(&path)
                    .chain(["/usr/sbin".into(), "/sbin".into()])
                    .any(|dir| dir.join(name).is_file());
                (!there).then(|| format!("needs the program {name}"))
            }
            Self::Apt => {
                let uris = Command::new("apt-get")
                    .args(["download", "--print-uris", "busybox-static"])
                    .output();
                let known = uris.is_ok_and(|o| o.status.success() && !o.stdout.is_empty());
                (!known).then(|| "needs apt with package lists".into())
            }
        }
    }
}

/// A test, or an ignored one that says why it cannot run here.
pub(crate) fn trial(name: &str, needs: &[Need], test: fn()) -> Trial {
    let missing = needs.iter().find_map(|need| need.missing());
    let trial = Trial::test(name, move || {
        test();
        Ok(())
    });
    match missing {
        None => trial,
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
    }
}

pub(crate) fn run(trials: Vec<Trial>) -> ! {
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A state folder that is gone after the test.
pub(crate) struct State {
    dir: tempfile::TempDir,
}

impl State {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("aleph-image-").tempdir();
        Self { dir: dir.unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path()).unwrap()
    }

    /// A file or folder beside the store.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A folder with two files in it that differ with `content`.
    pub(crate) fn tree(&self, name: &str, content: &str) -> PathBuf {
        let tree = self.file(name);
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("hello"), content).unwrap();
        fs::write(tree.join("other"), "the same").unwrap();
        tree
    }

    /// Everything in `images/` but locks: objects, names, and what should not be there.
    pub(crate) fn left(&self) -> Vec<String> {
        let images = self.file("images");
        let mut left = names_in(&images);
        left.extend(
            names_in(&images.join("names"))
                .iter()
                .map(|n| format!("names/{n}")),
        );
        left.retain(|name| name != "names" && name != ".lock" && name != ".mmdebstrap.lock");
        left.sort();
        left
    }
}

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Waits until `condition` holds; only a hang takes longer than the limit.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a tool prints, which has to succeed.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `dump.erofs` says of a path in an image.
pub(crate) fn dump(image: &aleph_image::Image, path: &str) -> String {
    output(
        "dump.erofs",
        &[
            &format!("--path={path}"),
            &image.rootfs().display().to_string(),
        ],
    )
}

/// What a shell command prints in the root of an image, which this kernel mounts in a namespace
/// of its own: nothing is left, whatever happens. `fsck.erofs` looks at the image before.
pub(crate) fn inside(image: &aleph_image::Image, command: &str) -> String {
    let rootfs = image.rootfs().display().to_string();
    output("fsck.erofs", &[&rootfs]);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display().to_string();
    let script = format!("mount -t erofs -o loop,ro \"$1\" \"$2\" && cd \"$2\" && {command}");
    output(
        "unshare",
        &["--mount", "sh", "-c", &script, "sh", &rootfs, &dir],
    )
}

/// A small file system in memory; unmounted even when the test fails.
pub(crate) struct SmallDisk {
    pub(crate) path: PathBuf,
}

impl SmallDisk {
    pub(crate) fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let target = path.display().to_string();
        output(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}"),
                "none",
                &target,
            ],
        );
        Self { path }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        output("umount", &[&self.path.display().to_string()]);
    }
}
