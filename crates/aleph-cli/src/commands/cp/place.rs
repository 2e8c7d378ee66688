//! Where something is, and where it goes, by docker's rules.

use anyhow::{Context, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One of the two sides of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Local(PathBuf),
    Guest {
        job: String,
        path: String,
    },
    /// A tar archive on a standard stream.
    Stream,
}

impl FromStr for Place {
    type Err = String;

    /// A colon makes it a job's, unless the text begins as a path does.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err("a path is empty".into());
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Local(text.into()));
        }
        match text.split_once(':') {
            None => Ok(Self::Local(text.into())),
            Some((job, path)) if job.contains('/') => Err(format!(
                "{job:?} is no job: write ./{job}:{path} for a local path"
            )),
            Some((job, path)) => {
                // A guest's paths begin at its root, as docker has it.
                let path = match path.starts_with('/') {
                    true => path.to_owned(),
                    false => format!("/{path}"),
                };
                Ok(Self::Guest {
                    job: job.to_owned(),
                    path,
                })
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Guest { job, path } => write!(f, "{job}:{path}"),
            Self::Stream => f.write_str("-"),
        }
    }
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) folder: bool,
    /// Only what is in the folder.
    pub(super) contents: bool,
}

/// Where an archive is unpacked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalTarget {
    pub(super) folder: PathBuf,
    /// What the copied thing is called there; `None` puts what is in it into the folder.
    pub(super) name: Option<String>,
}

/// Where an archive is unpacked in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestTarget {
    pub(super) folder: String,
    pub(super) name: Option<String>,
}

/// Whether a path names what is in a folder and not the folder.
pub(super) fn means_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// The last part of a path that names something.
pub(super) fn last_part(path: &str) -> Option<&str> {
    let mut parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.next_back().filter(|part| *part != "..")
}

/// Where a link at `path` leads.
pub(super) fn linked(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    format!("{}/{target}", parent(path).trim_end_matches('/'))
}

fn parent(path: &str) -> &str {
    let path = path.trim_end_matches("/.").trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// What a local path is.
pub(super) fn local_source(path: &Path, follow: bool) -> Result<Source> {
    let text = path.to_string_lossy();
    let contents = means_contents(&text);
    // With a slash at its end a link means what it leads to.
    let found = if follow || contents || text.ends_with('/') {
        path.metadata()
    } else {
        path.symlink_metadata()
    };
    let found = found.with_context(|| format!("cannot look at {}", path.display()))?;
    let name = match last_part(&text) {
        Some(name) => name.to_owned(),
        None => {
            let real = path.canonicalize();
            let real = real.with_context(|| format!("cannot look at {}", path.display()))?;
            real.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        }
    };
    Ok(Source {
        name,
        folder: found.is_dir(),
        contents,
    })
}

/// Where something goes in a guest; `there` is what is at `to`: where it is, and whether that is
/// a folder.
pub(super) fn guest_target(
    source: &Source,
    to: &str,
    there: Option<(String, bool)>,
) -> Result<GuestTarget> {
    let (folder, name) = match there {
        Some((real, true)) if source.folder && source.contents => (real, None),
        Some((real, true)) => (real, Some(source.name.clone())),
        Some((_, false)) if source.folder => anyhow::bail!("{to} is no folder"),
        Some((real, false)) => {
            let name = last_part(&real).context("the destination has no name")?;
            (parent(&real).to_owned(), Some(name.to_owned()))
        }
        None if to.ends_with('/') && !source.folder => anyhow::bail!("there is no folder {to}"),
        None => {
            let name = last_part(to).context("the destination has no name")?;
            (parent(to).to_owned(), Some(name.to_owned()))
        }
    };
    Ok(GuestTarget { folder, name })
}

/// Where something goes here.
pub(super) fn local_target(source: &Source, to: &Path) -> Result<LocalTarget> {
    let text = to.to_string_lossy();
    let shown = to.display();
    match to.metadata() {
        Ok(found) if found.is_dir() => Ok(LocalTarget {
            folder: to.to_owned(),
            name: (!(source.folder && source.contents)).then(|| source.name.clone()),
        }),
        Ok(_) if source.folder => anyhow::bail!("{shown} is no folder"),
        Err(_) if text.ends_with('/') && !source.folder => {
            anyhow::bail!("there is no folder {shown}")
        }
        _ => {
            let name = to.file_name().context("the destination has no name")?;
            let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
            let folder = parent.unwrap_or(Path::new(".")).to_owned();
            anyhow::ensure!(folder.is_dir(), "there is no folder {}", folder.display());
            Ok(LocalTarget {
                folder,
                name: Some(name.to_string_lossy().into_owned()),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_path_a_jobs() {
        let guest = |job: &str, path: &str| Place::Guest {
            job: job.into(),
            path: path.into(),
        };
        for (text, place) in [
            ("-", Place::Stream),
            ("web:/etc/x", guest("web", "/etc/x")),
            ("web:etc/", guest("web", "/etc/")),
            ("web:", guest("web", "/")),
            ("./a:b", Place::Local("./a:b".into())),
            ("/a:b", Place::Local("/a:b".into())),
            ("plain", Place::Local("plain".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        assert!("a/b:c".parse::<Place>().is_err());
        assert!("".parse::<Place>().is_err());
    }

    fn file(name: &str) -> Source {
        Source {
            name: name.into(),
            folder: false,
            contents: false,
        }
    }

    fn folder(name: &str, contents: bool) -> Source {
        Source {
            name: name.into(),
            folder: true,
            contents,
        }
    }

    #[test]
    fn dockers_rules_hold_in_a_guest() {
        let there = |path: &str, folder| Some((path.to_owned(), folder));
        let target = |source: &Source, to: &str, there| {
            let target = guest_target(source, to, there).ok()?;
            Some((target.folder, target.name.unwrap_or_default()))
        };
        let want = |folder: &str, name: &str| Some((folder.to_owned(), name.to_owned()));
        // A file to a folder, over a file, to a new name, and where no folder is.
        assert_eq!(
            target(&file("a"), "/tmp", there("/tmp", true)),
            want("/tmp", "a")
        );
        assert_eq!(
            target(&file("a"), "/tmp/b", there("/tmp/b", false)),
            want("/tmp", "b")
        );
        assert_eq!(target(&file("a"), "/b", None), want("/", "b"));
        assert_eq!(target(&file("a"), "/tmp/b/", None), None);
        // A folder into a folder, its content alone, as a new one, and over a file.
        let tmp = || there("/tmp", true);
        assert_eq!(
            target(&folder("d", false), "/tmp", tmp()),
            want("/tmp", "d")
        );
        assert_eq!(target(&folder("d", true), "/tmp", tmp()), want("/tmp", ""));
        assert_eq!(
            target(&folder("d", true), "/tmp/new/", None),
            want("/tmp", "new")
        );
        assert_eq!(target(&folder("d", false), "/x", there("/x", false)), None);
    }

    #[test]
    fn dockers_rules_hold_here() -> Result<()> {
        let here = tempfile::tempdir()?;
        let at = |path: &str| here.path().join(path);
        std::fs::create_dir(at("folder"))?;
        std::fs::write(at("file"), "")?;
        let target = |source: &Source, to: &str| {
            let target = local_target(source, &at(to)).ok()?;
            Some((target.folder, target.name.unwrap_or_default()))
        };
        let want = |folder: &str, name: &str| Some((at(folder), name.to_owned()));
        assert_eq!(target(&file("a"), "folder"), want("folder", "a"));
        let root = Some((here.path().to_owned(), "file".to_owned()));
        assert_eq!(target(&file("a"), "file"), root);
        assert_eq!(target(&file("a"), "new/"), None);
        assert_eq!(target(&file("a"), "no/new"), None);
        assert_eq!(target(&folder("d", false), "file"), None);
        assert_eq!(target(&folder("d", true), "folder"), want("folder", ""));
        Ok(())
    }

    #[test]
    fn links_lead_from_where_they_are() {
        assert_eq!(linked("/var/run", "/run"), "/run");
        assert_eq!(linked("/var/run", "../run"), "/var/../run");
        assert_eq!(linked("/run", "x"), "/x");
    }
}
