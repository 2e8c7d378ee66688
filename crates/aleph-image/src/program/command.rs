//! A program about to be started.

use super::error::ProgramError;
use super::running::Running;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where administrators' programs are, which a daemon's or a user's `PATH` may lack.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program about to be started.
pub(crate) struct Program {
    name: String,
    command: Command,
    limit: Duration,
}

impl Program {
    /// Finds `name` on the path; `package` is the Debian package that has it.
    pub(crate) fn find(
        name: &str,
        package: &'static str,
        limit: Duration,
    ) -> Result<Self, ProgramError> {
        let file = locate(name).ok_or_else(|| ProgramError::Missing {
            program: name.to_owned(),
            package: Some(package),
        })?;
        Ok(Self::at(&file, name, limit))
    }

    /// The program in the file `file`.
    pub(crate) fn at(file: &Path, name: &str, limit: Duration) -> Self {
        let mut command = Command::new(file);
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::env::split_paths(&inherited).chain(SBIN.iter().map(PathBuf::from)),
        );
        command
            .env("PATH", path.unwrap_or(inherited))
            // Messages are matched and shown: they have to be in one language.
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // A group of its own, so that the whole family can be killed.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Self {
            name: name.to_owned(),
            command,
            limit,
        }
    }

    /// Errors name the program that this one runs, not this one.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.command.env(key, value.into());
        self
    }

    pub(crate) fn in_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it `bytes`, of which a pipe takes no more than 4 KiB for sure, as standard input.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Result<Self, ProgramError> {
        let piped = std::io::pipe().and_then(|(reader, mut writer)| {
            writer.write_all(bytes)?;
            Ok(reader)
        });
        let reader = piped.map_err(|source| ProgramError::Start {
            program: self.name.clone(),
            source,
        })?;
        self.command.stdin(reader);
        Ok(self)
    }

    /// Runs it to its end and calls `watch` about fifty times a second meanwhile.
    pub(crate) fn run(mut self, mut watch: impl FnMut()) -> Result<(), ProgramError> {
        self.command.stdout(Stdio::null());
        Running::start(self.name, &mut self.command, self.limit)?.wait(&mut watch)
    }

    /// Runs it to its end and returns what it wrote, of which more than `most` is an error.
    pub(crate) fn output(self, most: u64) -> Result<String, ProgramError> {
        let name = self.name.clone();
        self.stream(|stdout| {
            let failed = |source| ProgramError::Output {
                program: name.clone(),
                source,
            };
            let mut text = String::new();
            stdout
                .take(most)
                .read_to_string(&mut text)
                .map_err(failed)?;
            Ok(text)
        })
    }

    /// Runs it, hands its output to `consume` while it runs, and waits for its end.
    ///
    /// `consume` may stop early with success: what is left of the output is read and dropped.
    /// If it fails at the end of the output, the program's own failure is why, and wins; if it
    /// fails before, the program is killed.
    pub(crate) fn stream<T, E: From<ProgramError>>(
        mut self,
        consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> Result<T, E> {
        self.command.stdout(Stdio::piped());
        Running::start(self.name, &mut self.command, self.limit)?.stream(consume)
    }
}

fn locate(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_types::{Classify, ErrorClass};
    use std::io;
    use std::time::Instant;

    fn shell(script: &str, limit: Duration) -> Program {
        Program::find("sh", "dash", limit)
            .unwrap()
            .args(["-c", script])
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_missing_program_comes_with_the_command_that_installs_it() {
        let error = Program::find("no-such-tool", "its-package", LONG)
            .err()
            .unwrap();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Unavailable, "program_missing")
        );
        assert_eq!(
            error.advice().unwrap(),
            "Install it: apt-get install -y its-package."
        );
    }

    #[test]
    fn output_and_failure_arrive() {
        assert_eq!(shell("echo hello", LONG).output(100).unwrap(), "hello\n");
        let error = shell("echo why >&2; exit 3", LONG).output(100).unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): why");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        for streamed in [true, false] {
            let program = shell("sleep 60 & sleep 60; :", Duration::from_millis(100));
            let ended = if streamed {
                program.output(10).map(drop)
            } else {
                program.run(|| {})
            };
            assert!(
                matches!(ended, Err(ProgramError::TimedOut { .. })),
                "{ended:?}"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_reader_that_stops_has_the_reason() {
        let refused = shell("yes", LONG).stream(|stdout| {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            Err::<(), _>(ProgramError::Output {
                program: "reader".into(),
                source: io::Error::other("enough"),
            })
        });
        assert_eq!(
            refused.unwrap_err().to_string(),
            "cannot read the output of reader"
        );
    }

    #[test]
    fn a_reader_that_fails_at_the_end_gives_way_to_the_programs_reason() {
        let refused = shell("echo half; echo why >&2; exit 2", LONG).stream(|stdout| {
            io::copy(stdout, &mut io::sink()).unwrap();
            Err::<(), _>(ProgramError::Output {
                program: "reader".into(),
                source: io::Error::other("too short"),
            })
        });
        assert_eq!(
            refused.unwrap_err().to_string(),
            "sh failed (exit status: 2): why"
        );
    }

    #[test]
    fn a_full_disk_is_recognised_in_last_words() {
        let script = "echo 'x: No space left on device' >&2; seq 10000 >&2; exit 1";
        let error = shell(script, LONG).run(|| {}).unwrap_err();
        assert!(error.to_string().len() < 200);
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Capacity, "disk_full")
        );
    }
}
