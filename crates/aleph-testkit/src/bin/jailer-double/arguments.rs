//! The command line, in the jailer's form.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What it says.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) id: String,
    pub(crate) exec_file: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) base: PathBuf,
    pub(crate) netns: Option<PathBuf>,
    /// Files of a group and their values.
    pub(crate) cgroups: Vec<(String, String)>,
    pub(crate) cgroup_version: u32,
    pub(crate) parent_cgroup: Option<String>,
    pub(crate) file_size: Option<u64>,
    pub(crate) open_files: u64,
    /// The program's own.
    pub(crate) extra: Vec<String>,
}

impl Arguments {
    /// The program's name.
    pub(crate) fn name(&self) -> Result<String> {
        let name = self.exec_file.file_name().and_then(|name| name.to_str());
        Ok(name.context("a program without a name")?.to_owned())
    }

    /// The version that the program's folder is called, as in `1.12.0/firecracker`.
    pub(crate) fn version(&self) -> Option<OsString> {
        let folder = self.exec_file.parent().and_then(Path::file_name)?;
        let numbers = folder
            .to_str()?
            .split('.')
            .all(|part| part.parse::<u32>().is_ok());
        numbers.then(|| folder.to_owned())
    }
}

/// Understands the words after the program's name.
pub(crate) fn parse(words: &[String]) -> Result<Arguments> {
    let end = words.iter().position(|word| word == "--");
    let (own, extra) = match end {
        Some(end) => (&words[..end], &words[end + 1..]),
        None => (words, &[][..]),
    };
    let mut given: Vec<(&str, &str)> = Vec::new();
    let mut rest = own.iter();
    while let Some(word) = rest.next() {
        let name = word.strip_prefix("--").unwrap_or(word);
        match name {
            "daemonize" | "new-pid-ns" => bail!("the double of the jailer has no --{name}"),
            "id" | "exec-file" | "uid" | "gid" | "chroot-base-dir" | "netns" | "cgroup"
            | "cgroup-version" | "parent-cgroup" | "resource-limit" => {}
            _ => bail!(
                "Failed to parse arguments: Found argument '{name}' which wasn't expected, or \
                 isn't valid in this context."
            ),
        }
        let value = rest.next().filter(|value| !value.starts_with("--"));
        let value = value.with_context(|| {
            format!(
                "Failed to parse arguments: The argument '{name}' requires a value, but none was \
                 supplied."
            )
        })?;
        let repeats = matches!(name, "cgroup" | "resource-limit");
        ensure!(
            repeats || given.iter().all(|(known, _)| *known != name),
            "Failed to parse arguments: The argument '{name}' was provided more than once."
        );
        given.push((name, value));
    }
    let find = |name: &str| {
        given
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, v)| *v)
    };
    let required = |name: &str| {
        find(name).with_context(|| {
            format!("Failed to parse arguments: Argument '{name}' required, but not found.")
        })
    };
    let all = |name: &'static str| {
        let of_name = given.iter().filter(move |(known, _)| *known == name);
        of_name.map(|(_, value)| *value)
    };
    let id = required("id")?.to_owned();
    let valid = |c: char| c == '-' || c.is_alphanumeric();
    ensure!(
        (1..=64).contains(&id.len()) && id.chars().all(valid),
        "Invalid instance ID: {id}"
    );
    let canonical = |path: &str| {
        std::fs::canonicalize(path).with_context(|| format!("Failed to canonicalize path {path}"))
    };
    let exec_file = canonical(required("exec-file")?)?;
    ensure!(exec_file.is_file(), "{} is not a file", exec_file.display());
    let base = canonical(find("chroot-base-dir").unwrap_or("/srv/jailer"))?;
    ensure!(base.is_dir(), "{} is not a directory", base.display());
    let number = |name: &str| -> Result<u32> {
        let text = required(name)?;
        text.parse()
            .with_context(|| format!("Invalid {name}: {text}"))
    };
    let mut cgroups = Vec::new();
    for text in all("cgroup") {
        let (file, value) = text
            .split_once('=')
            .with_context(|| format!("Invalid format for cgroups: {text}"))?;
        ensure!(
            !file.is_empty() && !value.is_empty() && !file.contains("/.."),
            "Invalid format for cgroups: {text}"
        );
        cgroups.push((file.to_owned(), value.to_owned()));
    }
    let (mut file_size, mut open_files) = (None, 2048);
    for text in all("resource-limit") {
        let (resource, value) = text
            .split_once('=')
            .with_context(|| format!("Invalid format for resources limits: {text}"))?;
        let limit: u64 = value
            .parse()
            .with_context(|| format!("Invalid limit value for resource: {resource}: {value}"))?;
        match resource {
            "fsize" => file_size = Some(limit),
            "no-file" => open_files = limit,
            _ => bail!("Invalid resource argument: {resource}"),
        }
    }
    let cgroup_version = find("cgroup-version").unwrap_or("1");
    Ok(Arguments {
        uid: number("uid")?,
        gid: number("gid")?,
        netns: find("netns").map(PathBuf::from),
        cgroup_version: cgroup_version
            .parse()
            .ok()
            .filter(|version| (1..=2).contains(version))
            .with_context(|| format!("{cgroup_version} is an invalid cgroup version specifier"))?,
        parent_cgroup: find("parent-cgroup").map(str::to_owned),
        extra: extra.to_vec(),
        id,
        exec_file,
        base,
        cgroups,
        file_size,
        open_files,
    })
}
