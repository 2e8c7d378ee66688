//! What stands for Firecracker, with something wrong at one of its requests.
//!
//! The program reads what is to go wrong from the file `NAME.faults` beside it, a line with the number
//! of a request, from 1 on, and a [`Fault`]'s word. Where that file is there, it notes each request in
//! `NAME.requests` beside itself as it comes, a line such as `PUT /vsock`. In a jail the program and both
//! files are in the jail's root.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never listens. Of no request: its number is 0.
    Deaf,
    /// It ends with [`Fault::DEATH`] before the request is done.
    Dies,
    /// The same when the request is done, and not answered.
    DiesDone,
    /// The same when the request is answered.
    DiesAnswered,
    /// It never does this request, nor any after it.
    Hangs,
    /// It does this request and never answers, nor does any after it.
    HangsDone,
    /// It answers 400 with a fault message, and does nothing.
    Refuses,
    /// It answers what is no HTTP, and does nothing.
    Garbles,
    /// It answers with a body that never ends, and does nothing.
    Floods,
}

impl Fault {
    /// The exit code with which it dies: none of Firecracker's own.
    pub const DEATH: i32 = 137;

    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Deaf,
        Self::Dies,
        Self::DiesDone,
        Self::DiesAnswered,
        Self::Hangs,
        Self::HangsDone,
        Self::Refuses,
        Self::Garbles,
        Self::Floods,
    ];

    /// How it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Deaf => "deaf",
            Self::Dies => "dies",
            Self::DiesDone => "dies-done",
            Self::DiesAnswered => "dies-answered",
            Self::Hangs => "hangs",
            Self::HangsDone => "hangs-done",
            Self::Refuses => "refuses",
            Self::Garbles => "garbles",
            Self::Floods => "floods",
        }
    }

    /// That of a word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.word() == word)
    }
}

/// The file of that ending beside a program, whose name has dots of its own.
fn beside(program: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(program);
    path.push(ending);
    path.into()
}

/// A program with Firecracker's command line and API, as [`crate::firecracker_double`], that does
/// what a test says at one request.
#[derive(Debug)]
pub struct FaultyFirecracker {
    program: PathBuf,
}

impl FaultyFirecracker {
    /// One in this folder, of this version. Nothing goes wrong yet, and its requests are noted.
    ///
    /// # Errors
    /// Where the double cannot be built, or the folder cannot be written to.
    pub fn new(dir: &Path, version: &str) -> Result<Self> {
        Self::of(&crate::firecracker_double(version)?, dir)
    }

    /// One in this folder, as this program is, which [`crate::firecracker_double`] gave.
    ///
    /// # Errors
    /// Where the folder cannot be written to.
    pub fn of(double: &Path, dir: &Path) -> Result<Self> {
        let name = double.file_name().context("a program without a name")?;
        let program = dir.join(name);
        for (from, to) in [
            (double.to_owned(), program.clone()),
            (
                double.with_file_name("libvsock.so"),
                dir.join("libvsock.so"),
            ),
        ] {
            // Another filesystem has no links to it.
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).with_context(|| to.display().to_string())?;
            }
        }
        let faulty = Self { program };
        faulty.go_right()?;
        Ok(faulty)
    }

    /// It, as it is started.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// From now on nothing goes wrong.
    ///
    /// # Errors
    /// Where its folder cannot be written to.
    pub fn go_right(&self) -> Result<()> {
        self.write("")
    }

    /// From now on this goes wrong at this request, counted from 1 on in each process.
    ///
    /// # Errors
    /// Where its folder cannot be written to.
    pub fn go_wrong(&self, request: usize, fault: Fault) -> Result<()> {
        self.write(&format!("{request} {}\n", fault.word()))
    }

    fn write(&self, text: &str) -> Result<()> {
        let requests = self.requests_of(None);
        if requests.exists() {
            fs::remove_file(requests)?;
        }
        Ok(fs::write(Self::faults(&self.program), text)?)
    }

    /// Where a program finds what goes wrong.
    #[must_use]
    pub fn faults(program: &Path) -> PathBuf {
        beside(program, ".faults")
    }

    /// Where a program notes its requests.
    #[must_use]
    pub fn requests(program: &Path) -> PathBuf {
        beside(program, ".requests")
    }

    /// Where it notes its requests when it runs in a jail with this root, or in the open.
    #[must_use]
    pub fn requests_of(&self, jail: Option<&Path>) -> PathBuf {
        match (jail, self.program.file_name()) {
            (Some(root), Some(name)) => Self::requests(&root.join(name)),
            _ => Self::requests(&self.program),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_a_word_of_its_own() {
        for fault in Fault::ALL {
            assert_eq!(Fault::of_word(fault.word()), Some(fault));
        }
        assert_eq!(Fault::of_word("sings"), None);
    }

    #[test]
    fn files_are_beside_a_name_with_dots() {
        let faults = FaultyFirecracker::faults(Path::new("/a/firecracker-v1.16.1"));
        assert_eq!(faults, Path::new("/a/firecracker-v1.16.1.faults"));
    }
}
