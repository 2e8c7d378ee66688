//! The jailer's command line, as a pure function of what a jail is to be.
//!
//! The arguments are the same in Firecracker 1.10 to 1.17 (`src/jailer/src/main.rs` at each tag).
//! What differs is what they mean: up to 1.12 the program's file name has to contain
//! `firecracker`, which is asked for whatever the version. What the jailer would refuse is refused
//! here, with the argument's name.

use std::path::{Component, Path, PathBuf};

/// All that decides the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailerCommand<'a> {
    /// The name of the jail: 1 to 64 letters, digits and hyphens. Firecracker gets it as its id.
    pub id: &'a str,
    /// Firecracker. The jailer copies it into the jail, where it runs.
    pub exec_file: &'a Path,
    /// The user under which it runs.
    pub uid: u32,
    /// The group under which it runs.
    pub gid: u32,
    /// The folder with all jails.
    pub chroot_base: &'a Path,
    /// The network namespace that it joins, as a path such as `/run/netns/NAME`.
    pub netns: Option<&'a Path>,
    /// Whether it runs in a process namespace of its own. The jailer ends with 0 as soon as
    /// Firecracker has begun, whose number is in `EXEC_FILE.pid` in the jail then.
    pub new_pid_ns: bool,
    /// Whether the jailer leaves its session and closes standard input, output and error.
    pub daemonize: bool,
    /// Which cgroup it is put in.
    pub cgroup: JailerCgroup<'a>,
    /// What its process may use.
    pub limits: ResourceLimits,
    /// Firecracker's own arguments. The jailer adds `--id` and times.
    pub arguments: &'a [String],
}

/// What the jailer does about cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JailerCgroup<'a> {
    /// Nothing: Firecracker stays where whoever starts the jailer is, such as a group that has its
    /// limits already, or none where the host has no cgroups.
    Inherited,
    /// It makes the group `PARENT/ID` of cgroup v2 with these limits. Nobody removes it but who
    /// asked for it.
    Made {
        /// The parent's path in the hierarchy, without a slash at its beginning.
        parent: &'a str,
        /// Files and values, such as `memory.max` and `268435456`. Each controller has to be
        /// there, or the jailer fails.
        values: &'a [(&'static str, String)],
    },
}

/// Limits of Firecracker's process (`setrlimit(2)`), hard and soft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceLimits {
    /// How long a file may get that it writes to, in bytes; any length by default. Disks count.
    pub file_size: Option<u64>,
    /// How many descriptors it may have open; 2,048 by the jailer's default.
    pub open_files: Option<u64>,
}

/// An argument that the jailer would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{argument} of the jailer cannot be {value:?}: {why}")]
pub struct InvalidArgument {
    /// Which one.
    pub argument: &'static str,
    /// What was to be given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The longest id that the jailer takes (`src/utils/src/validators.rs`).
const LONGEST_ID: usize = 64;

impl JailerCommand<'_> {
    /// The arguments, without the jailer's own name.
    ///
    /// # Errors
    /// The first argument that the jailer would refuse.
    pub fn argv(&self) -> Result<Vec<String>, InvalidArgument> {
        let invalid = |argument, value: &str, why| InvalidArgument {
            argument,
            value: value.to_owned(),
            why,
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.id.is_empty() || self.id.len() > LONGEST_ID || !self.id.chars().all(fits) {
            let why = "it has to be 1 to 64 letters, digits and hyphens";
            return Err(invalid("--id", self.id, why));
        }
        let exec_file = absolute("--exec-file", self.exec_file)?;
        exec_name(self.exec_file).map_err(|why| invalid("--exec-file", &exec_file, why))?;
        for (argument, id) in [("--uid", self.uid), ("--gid", self.gid)] {
            if id == 0 {
                return Err(invalid(argument, "0", "the jail is there to give up root"));
            }
        }
        let mut argv: Vec<String> = Vec::with_capacity(32);
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|w| (*w).to_owned()));
        add(&["--id", self.id, "--exec-file", &exec_file]);
        add(&[
            "--uid",
            &self.uid.to_string(),
            "--gid",
            &self.gid.to_string(),
        ]);
        let base = absolute("--chroot-base-dir", self.chroot_base)?;
        add(&["--chroot-base-dir", &base]);
        if let Some(netns) = self.netns {
            add(&["--netns", &absolute("--netns", netns)?]);
        }
        if self.new_pid_ns {
            add(&["--new-pid-ns"]);
        }
        if self.daemonize {
            add(&["--daemonize"]);
        }
        if let JailerCgroup::Made { parent, values } = &self.cgroup {
            if parent.is_empty() || !stays_below(Path::new(parent)) {
                let why = "it has to be a path below the hierarchy's top, without . and ..";
                return Err(invalid("--parent-cgroup", parent, why));
            }
            // With version 2 and no values the jailer would join the parent itself.
            if values.is_empty() {
                return Err(invalid(
                    "--cgroup",
                    "",
                    "a group without limits is not made",
                ));
            }
            add(&["--cgroup-version", "2", "--parent-cgroup", parent]);
            for (file, value) in *values {
                let pair = format!("{file}={value}");
                let controlled = file.contains('.') && !file.contains(['/', '=']);
                if !controlled || value.is_empty() || value.contains('=') {
                    return Err(invalid("--cgroup", &pair, "it has to be FILE=VALUE"));
                }
                add(&["--cgroup", &pair]);
            }
        }
        let limits = [
            ("fsize", self.limits.file_size),
            ("no-file", self.limits.open_files),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit {
                add(&["--resource-limit", &format!("{name}={limit}")]);
            }
        }
        if !self.arguments.is_empty() {
            add(&["--"]);
            argv.extend(self.arguments.iter().cloned());
        }
        Ok(argv)
    }
}

/// The name of the folder that the jails of a program are in, which is its file's name.
///
/// # Errors
/// What is wrong with the name.
pub fn exec_name(exec_file: &Path) -> Result<&str, &'static str> {
    let name = exec_file
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("it has to end with the name of a file")?;
    if name.contains("firecracker") {
        Ok(name)
    } else {
        Err("its name has to contain \"firecracker\", or jailers up to 1.12 refuse it")
    }
}

/// A path as an argument. The jailer reads text, and its own folder need not be ours.
fn absolute(argument: &'static str, path: &Path) -> Result<String, InvalidArgument> {
    let invalid = |why| InvalidArgument {
        argument,
        value: path.display().to_string(),
        why,
    };
    match path.to_str() {
        None => Err(invalid("it has to be text")),
        Some(_) if !path.is_absolute() => Err(invalid("it has to be an absolute path")),
        Some(text) => Ok(text.to_owned()),
    }
}

fn stays_below(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Where the jailer makes the root of a jail.
#[must_use]
pub fn root_of(chroot_base: &Path, exec_name: &str, id: &str) -> PathBuf {
    chroot_base.join(exec_name).join(id).join("root")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> JailerCommand<'static> {
        JailerCommand {
            id: "01234abc",
            exec_file: Path::new("/var/lib/aleph/firecracker/1.12.0/firecracker"),
            uid: 1_879_190_204,
            gid: 1_879_190_204,
            chroot_base: Path::new("/var/lib/aleph/jail"),
            netns: None,
            new_pid_ns: false,
            daemonize: false,
            cgroup: JailerCgroup::Inherited,
            limits: ResourceLimits::default(),
            arguments: &[],
        }
    }

    fn lines(command: &JailerCommand<'_>) -> String {
        command.argv().unwrap().join("\n").replace("\n--", "\n\n--")
    }

    #[test]
    fn the_smallest_jail() {
        insta::assert_snapshot!(lines(&plain()));
    }

    #[test]
    fn a_jail_with_all_that_there_is() {
        let values = [
            ("cpu.max", "200000 100000".to_owned()),
            ("memory.max", "671088640".to_owned()),
            ("memory.swap.max", "0".to_owned()),
        ];
        let arguments = ["--api-sock", "/api.sock", "--level", "Info"].map(str::to_owned);
        insta::assert_snapshot!(lines(&JailerCommand {
            netns: Some(Path::new("/run/netns/vm")),
            new_pid_ns: true,
            daemonize: true,
            cgroup: JailerCgroup::Made {
                parent: "aleph-node",
                values: &values,
            },
            limits: ResourceLimits {
                file_size: Some(1 << 34),
                open_files: Some(1024),
            },
            arguments: &arguments,
            ..plain()
        }));
    }

    #[test]
    fn what_the_jailer_would_refuse_is_refused() {
        let made = |parent, values| JailerCgroup::Made { parent, values };
        let long = "a".repeat(65);
        let good = [("memory.max", "1".to_owned())];
        let bad = [
            [("memory.max", String::new())],
            [("memory.max", "a=b".to_owned())],
            [("../memory.max", "1".to_owned())],
            [("memory", "1".to_owned())],
        ];
        let mut cases = vec![
            ("--id", JailerCommand { id: "", ..plain() }),
            (
                "--id",
                JailerCommand {
                    id: "a/b",
                    ..plain()
                },
            ),
            (
                "--id",
                JailerCommand {
                    id: "a_b",
                    ..plain()
                },
            ),
            (
                "--id",
                JailerCommand {
                    id: "..",
                    ..plain()
                },
            ),
            (
                "--id",
                JailerCommand {
                    id: &long,
                    ..plain()
                },
            ),
            ("--uid", JailerCommand { uid: 0, ..plain() }),
            ("--gid", JailerCommand { gid: 0, ..plain() }),
        ];
        for path in ["firecracker", "/usr/bin/qemu", "/usr/bin/firecracker/.."] {
            let exec_file = Path::new(path);
            cases.push((
                "--exec-file",
                JailerCommand {
                    exec_file,
                    ..plain()
                },
            ));
        }
        let chroot_base = Path::new("jail");
        cases.push((
            "--chroot-base-dir",
            JailerCommand {
                chroot_base,
                ..plain()
            },
        ));
        let netns = Some(Path::new("vm"));
        cases.push(("--netns", JailerCommand { netns, ..plain() }));
        for parent in ["", "/aleph", "aleph/../..", "./aleph"] {
            let cgroup = made(parent, &good);
            cases.push(("--parent-cgroup", JailerCommand { cgroup, ..plain() }));
        }
        let cgroup = made("aleph", &[]);
        cases.push(("--cgroup", JailerCommand { cgroup, ..plain() }));
        for values in &bad {
            let cgroup = made("aleph", values);
            cases.push(("--cgroup", JailerCommand { cgroup, ..plain() }));
        }
        for (argument, command) in cases {
            let error = command.argv().unwrap_err();
            assert_eq!(error.argument, argument, "{error}");
        }
    }

    #[test]
    fn firecrackers_arguments_are_never_the_jailers() {
        let arguments = ["--uid".to_owned(), "0".to_owned()];
        let command = JailerCommand {
            arguments: &arguments,
            ..plain()
        };
        let argv = command.argv().unwrap();
        let end = argv.iter().position(|word| word == "--").unwrap();
        assert_eq!(argv[end + 1..], arguments);
        assert_eq!(argv[..end].iter().filter(|w| *w == "--uid").count(), 1);
    }
}
