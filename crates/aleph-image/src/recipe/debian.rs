//! Debian roots, made by mmdebstrap from the sources that the host uses.

use super::sources::{Form, select};
use super::{Recipe, Tree, archive};
use crate::disk::{DiskError, Doing, ensure_room};
use crate::error::ImageError;
use crate::filesystem::Times;
use crate::image::{Config, Source};
use crate::lock;
use crate::program::Program;
use crate::progress::Progress;
use crate::recipe::ArchiveError;
use crate::staging::Staging;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RELEASE: &str = "bookworm";
/// Files that the installation makes get this time (1 January 2025), so that the same packages
/// make the same image; older files keep theirs.
pub(super) const EPOCH: &str = "1735689600";
/// An installation, its packages and the image take 355 MiB at most.
const ROOM: u64 = 400 << 20;
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// How long to wait for another build's end: mmdebstrap alone keeps a small machine busy.
const TURN_LIMIT: Duration = Duration::from_secs(1800);

/// What mmdebstrap makes of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variant {
    /// A Debian with apt, its packages configured.
    Minimal,
    /// The files of these packages and of what they depend on: no scripts have run, there is no
    /// list of packages.
    Files(Vec<&'static str>),
}

pub(super) fn prepare(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    Ok(Tree {
        path: install(Recipe::Debian12, &Variant::Minimal, staging, progress)?,
        times: Times::Kept,
        source: Source::Recipe(Recipe::Debian12),
        config: Config::default(),
    })
}

/// Makes a root of Debian's packages for a recipe, in a folder of `staging`.
pub(super) fn install(
    recipe: Recipe,
    variant: &Variant,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<PathBuf, ImageError> {
    Program::find("mmdebstrap", "mmdebstrap", BUILD_LIMIT)?;
    // It mounts /proc and others in its work, and leaves them there when it is killed. In mount
    // and process namespaces of their own, they and all that it started go with it, and it goes
    // with us.
    let program = Program::find("setpriv", "util-linux", BUILD_LIMIT)?
        .named("mmdebstrap")
        .args(["--pdeathsig", "KILL"])
        .args([
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg("mmdebstrap");
    let _turn = take_turn(recipe, staging, progress)?;
    ensure_room("install Debian in", staging.path(), ROOM)?;
    let sources = host_sources(Path::new("/etc/apt"), staging)?;
    let tree = staging.folder("tree")?;
    let work = staging.folder("work")?;
    progress.begin(&format!("install Debian {RELEASE}"), None);
    let program = match variant {
        Variant::Minimal => program.arg("--variant=minbase"),
        Variant::Files(packages) => program
            .arg("--variant=extract")
            .arg(format!("--include={}", packages.join(","))),
    };
    let installed = program
        .env("SOURCE_DATE_EPOCH", EPOCH)
        // Its own work is in ours: removed with it, and on the disk that ours is on.
        .env("TMPDIR", &work)
        .args(["--mode=root", "--format=tar"])
        // The usual user of apt cannot look into our private work folder.
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .args([RELEASE, "-"])
        .args(sources)
        .stream(|tar| {
            archive::unpack(&mut archive::Counted { inner: tar, progress: &mut *progress }, &tree)
        });
    installed.map_err(|error| match error {
        ArchiveError::Program(error) if error.is_disk_full() => {
            DiskError::full("install Debian in", &work, Some(ROOM)).into()
        }
        ArchiveError::Program(error) => error.into(),
        ArchiveError::Disk(error) => error.into(),
        source => ImageError::Archive {
            path: "mmdebstrap".into(),
            source,
        },
    })?;
    progress.end();
    Ok(tree)
}

fn take_turn(
    recipe: Recipe,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<fs::File, ImageError> {
    let store = staging.path().parent().unwrap_or(Path::new("."));
    let path = store.join(".mmdebstrap.lock");
    let file = lock::open(&path)?;
    if !lock::try_exclusive(&file, &path)? {
        progress.begin("wait for another build", None);
        if !lock::exclusive_within(&file, &path, TURN_LIMIT)? {
            return Err(ImageError::Busy { recipe });
        }
        progress.end();
    }
    Ok(file)
}

/// Copies what the host's sources say of the release; none, and mmdebstrap's own default is
/// used, as on a host of another release.
fn host_sources(etc: &Path, staging: &Staging) -> Result<Vec<PathBuf>, ImageError> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if let Ok(entries) = fs::read_dir(&parts) {
        let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        found.sort();
        files.extend(found);
    }
    let dir = staging.folder("sources")?;
    let mut copies = Vec::new();
    for file in files {
        let form = file.extension().and_then(|e| Form::of(e.to_str()?));
        let (Some(form), Ok(text)) = (form, fs::read_to_string(&file)) else {
            continue;
        };
        if let Some(chosen) = select(&text, form, RELEASE) {
            let copy = dir.join(format!("debian-{}.{}", copies.len(), form.extension()));
            fs::write(&copy, chosen).doing("write", &copy)?;
            copies.push(copy);
        }
    }
    Ok(copies)
}
