//! What an installed QEMU is and can do.
//!
//! Asking costs three program starts, so the answer is kept in the node's runtime folder, under
//! the program's path, size and time of change: a new QEMU is asked anew.

use crate::hypervisor::LaunchError;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `microvm` machine's name.
pub const MICROVM: &str = "microvm";

/// What a QEMU program says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, such as `7.2.22`.
    pub version: String,
    /// The machines it has, by name.
    pub machines: Vec<String>,
    /// Its newest machine q35 by its own name, which says the version, such as `pc-q35-7.2`.
    pub q35: Option<String>,
    /// Whether it can wait with its own interface open before it makes its machine (`-preconfig`).
    pub preconfig: bool,
    stamp: Stamp,
}

/// What changes when a program is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(program: &Path) -> std::io::Result<Self> {
        let meta = fs::metadata(program)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// The program of that name in `PATH`, or at that path.
///
/// # Errors
/// [`LaunchError::Missing`] where there is none.
pub fn find(program: &Path) -> Result<PathBuf, LaunchError> {
    let missing = || LaunchError::Missing {
        program: program.display().to_string(),
    };
    let candidates: Vec<PathBuf> = if program.components().count() > 1 {
        vec![program.to_owned()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join(program))
            .collect()
    };
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(missing)
}

/// What the program is, from `cache` if it was asked before.
///
/// # Errors
/// Where it is missing, or is no QEMU.
pub fn probe(program: &Path, cache: &Path) -> Result<Qemu, LaunchError> {
    let program = find(program)?;
    let failed = |why: String| LaunchError::Probe {
        program: program.display().to_string(),
        why,
    };
    let stamp = Stamp::of(&program).map_err(|e| failed(e.to_string()))?;
    if let Some(known) = read(cache).filter(|k| k.program == program && k.stamp == stamp) {
        return Ok(known);
    }
    let ask = |arguments: &[&str]| {
        let output = Command::new(&program)
            .args(arguments)
            .output()
            .map_err(|e| failed(e.to_string()))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(stdout)
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(format!("{}: {stderr}", output.status)))
        }
    };
    let version = ask(&["-version"])?;
    let version = parse_version(&version)
        .ok_or_else(|| failed(format!("no version in {:?}", version.lines().next())))?;
    let help = ask(&["-machine", "help"])?;
    let (machines, q35) = (parse_machines(&help), parse_alias(&help, "q35"));
    // One that does not say what it takes is asked for nothing special.
    let preconfig = ask(&["-help"]).is_ok_and(|help| has_preconfig(&help));
    let qemu = Qemu {
        program,
        version,
        machines,
        q35,
        preconfig,
        stamp,
    };
    write(cache, &qemu);
    Ok(qemu)
}

impl Qemu {
    /// Checks that it has the machine.
    ///
    /// # Errors
    /// [`LaunchError::NoMachine`] where it has not.
    pub fn require(&self, machine: &str) -> Result<(), LaunchError> {
        if self.machines.iter().any(|m| m == machine) {
            return Ok(());
        }
        Err(LaunchError::NoMachine {
            program: self.program.display().to_string(),
            version: self.version.clone(),
            machine: machine.to_owned(),
        })
    }
}

fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Some(rest[..end].to_owned()).filter(|version| !version.is_empty())
}

fn parse_machines(text: &str) -> Vec<String> {
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// What a name stands for: `q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)`.
fn parse_alias(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines();
    let line = lines.find(|line| line.split_whitespace().next() == Some(name))?;
    let (_, alias) = line.rsplit_once("(alias of ")?;
    Some(alias.trim_end().strip_suffix(')')?.to_owned())
}

fn has_preconfig(help: &str) -> bool {
    let mut words = help
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    words.any(|word| word.trim_start_matches('-') == "preconfig")
}

fn read(cache: &Path) -> Option<Qemu> {
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

/// Keeps the answer; where that fails it is asked again next time.
fn write(cache: &Path, qemu: &Qemu) {
    let temporary = cache.with_extension(format!("tmp-{}", std::process::id()));
    let Ok(json) = serde_json::to_vec(qemu) else {
        return;
    };
    if fs::write(&temporary, json)
        .and_then(|()| fs::rename(&temporary, cache))
        .is_err()
    {
        let _ = fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_machines_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(debian).as_deref(), Some("7.2.22"));
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2\n").as_deref(),
            Some("10.0.2")
        );
        assert_eq!(parse_version("bash 5.2"), None);
        let help = "Supported machines are:\nmicrovm              microvm (i386)\nnone  empty\n";
        assert_eq!(parse_machines(help), ["microvm", "none"]);
        let help = "Supported machines are:\n\
            q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n\
            pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)\n";
        assert_eq!(parse_alias(help, "q35").as_deref(), Some("pc-q35-7.2"));
        assert_eq!(parse_alias(help, "pc-q35-7.2"), None);
        let help = "--preconfig     pause QEMU before machine is initialized (experimental)\n";
        assert!(has_preconfig(help));
        assert!(!has_preconfig("-incoming defer  see -preconfig\n"));
    }
}
