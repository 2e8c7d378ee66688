//! Turning a request into a running command.

use crate::command::Parts;
use crate::failure::{Context, Failure, text, words};
use crate::file::make_folders;
use crate::input::{Input, Target};
use crate::sys::{self, Outcome, Plan, Stage, Strings};
use crate::terminal;
use crate::user::{Identity, look_up};
use aleph_guest_proto::{Exec, List};
use alloc::ffi::CString;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Access, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Where programs are looked up when the request has no `PATH`.
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a command. It runs when this returns, or the failure says why not.
pub(crate) fn launch(exec: &Exec<'_>) -> Result<Parts, Failure> {
    let name = exec.argv.iter().next().unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::because(
            "the command is empty".into(),
            Errno::INVAL,
        ));
    }
    let identity = look_up(exec.user)?;
    let argv = Strings::new(exec.argv.iter().map(c_string).collect());
    let env = Strings::new(environment(exec, &identity));
    let candidates = candidates(name, exec.env);
    let workdir = workdir(exec.workdir)?;
    let streams = Streams::open(exec, identity.uid)
        .context(|| format!("{}: opening its standard streams", text(name)))?;
    let plan = Plan {
        candidates: &candidates,
        argv: &argv,
        env: &env,
        stdio: streams.theirs(),
        terminal: exec.terminal.is_some(),
        workdir: workdir.as_deref(),
        uid: identity.uid,
        gid: identity.gid,
        groups: &identity.groups,
    };
    match sys::spawn(&plan) {
        Outcome::Running(pid) => Ok(streams.into_parts(pid, exec)),
        Outcome::Failed(stage, errno) => Err(explain(stage, errno, exec)),
    }
}

fn c_string(bytes: &[u8]) -> CString {
    // The protocol's texts have no NUL.
    CString::new(bytes).unwrap_or_default()
}

/// The guest's defaults, each where the request does not have its own, and then the request's.
fn environment(exec: &Exec<'_>, identity: &Identity) -> Vec<CString> {
    let uname = rustix::system::uname();
    let fallback: &[u8] = if identity.uid.is_root() {
        b"/root"
    } else {
        b"/"
    };
    let defaults: [(&[u8], &[u8]); 4] = [
        (b"PATH", PATH),
        (b"HOME", identity.home.as_deref().unwrap_or(fallback)),
        (b"HOSTNAME", uname.nodename().to_bytes()),
        (b"TERM", b"xterm"),
    ];
    let count = if exec.terminal.is_some() { 4 } else { 3 };
    defaults[..count]
        .iter()
        .filter(|(name, _)| variable(exec.env, name).is_none())
        .map(|(name, value)| c_string(&[name, &b"="[..], value].concat()))
        .chain(exec.env.iter().map(c_string))
        .collect()
}

/// The value of a variable of the request's.
fn variable<'a>(env: List<'a>, name: &[u8]) -> Option<&'a [u8]> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

/// Where the program may be: its path, or its name in each folder of the command's `PATH`.
fn candidates(name: &[u8], env: List<'_>) -> Vec<CString> {
    if name.contains(&b'/') {
        return vec![c_string(name)];
    }
    let path = variable(env, b"PATH").unwrap_or(PATH);
    path.split(|b| *b == b':')
        .map(|folder| if folder.is_empty() { b"." } else { folder })
        .map(|folder| c_string(&[folder, b"/", name].concat()))
        .collect()
}

/// The folder to enter, made where it is missing; none where it is the agent's own, `/`.
fn workdir(path: &[u8]) -> Result<Option<CString>, Failure> {
    if path.is_empty() || path == b"/" {
        return Ok(None);
    }
    make_folders(path).context(|| format!("making the working directory {}", text(path)))?;
    Ok(Some(c_string(path)))
}

/// What failed, in the words that a shell would use.
fn explain(stage: Stage, errno: Errno, exec: &Exec<'_>) -> Failure {
    let name = exec.argv.iter().next().unwrap_or_default();
    let subject = text(name);
    match stage {
        Stage::Program => {
            let is_there = name.contains(&b'/') && rustix::fs::access(name, Access::EXISTS).is_ok();
            let why = match errno {
                Errno::NOENT if is_there => "the interpreter that it names is missing".into(),
                Errno::NOENT => "command not found".into(),
                other => words(other).to_lowercase(),
            };
            Failure::because(format!("{subject}: {why}"), errno)
        }
        Stage::Workdir => Failure::new(
            &format!("entering the working directory {}", text(exec.workdir)),
            errno,
        ),
        Stage::User => Failure::new(&format!("becoming the user {}", text(exec.user)), errno),
        Stage::Session => Failure::new(&format!("{subject}: making its process"), errno),
        Stage::Streams => Failure::new(&format!("{subject}: placing its standard streams"), errno),
    }
}

/// Both ends of a command's standard streams.
enum Streams {
    Terminal { ours: OwnedFd, theirs: OwnedFd },
    Pipes { ours: Ours, theirs: [OwnedFd; 3] },
}

struct Ours {
    /// The host's input; none where the command reads `/dev/null`.
    input: Option<OwnedFd>,
    outputs: [OwnedFd; 2],
}

impl Streams {
    /// Opens them. A user other than root gets its ends as its own, so that it can open them
    /// again as `/dev/stdout`.
    fn open(exec: &Exec<'_>, owner: Uid) -> Result<Self, Errno> {
        if let Some(size) = exec.terminal {
            let (ours, theirs) = terminal::open(size)?;
            own(&theirs, owner)?;
            return Ok(Self::Terminal { ours, theirs });
        }
        let (input, reader) = if exec.stdin {
            let (reader, writer) = pipe()?;
            set_nonblocking(&writer)?;
            own(&reader, owner)?;
            (Some(writer), reader)
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (None, rustix::fs::open(c"/dev/null", flags, Mode::empty())?)
        };
        let (output, writer) = pipe()?;
        let (errors, error_writer) = pipe()?;
        for (ours, theirs) in [(&output, &writer), (&errors, &error_writer)] {
            set_nonblocking(ours)?;
            own(theirs, owner)?;
        }
        Ok(Self::Pipes {
            ours: Ours {
                input,
                outputs: [output, errors],
            },
            theirs: [reader, writer, error_writer],
        })
    }

    fn theirs(&self) -> [rustix::fd::BorrowedFd<'_>; 3] {
        match self {
            Self::Terminal { theirs, .. } => [theirs.as_fd(); 3],
            Self::Pipes { theirs, .. } => theirs.each_ref().map(AsFd::as_fd),
        }
    }

    /// Keeps the agent's ends; the command has its own by now. With a terminal the command
    /// reads it in any case, but what the host sends reaches it only where the request said so.
    fn into_parts(self, pid: i32, exec: &Exec<'_>) -> Parts {
        let (input, outputs, terminal) = match self {
            Self::Terminal { ours, .. } => {
                let ours = Rc::new(ours);
                let input = exec.stdin.then(|| ours.clone());
                (input, [Some(ours.clone()), None], Some(ours))
            }
            Self::Pipes { ours, .. } => (
                ours.input.map(Rc::new),
                ours.outputs.map(|fd| Some(Rc::new(fd))),
                None,
            ),
        };
        let kind = if terminal.is_some() {
            Target::Terminal
        } else {
            Target::Pipe
        };
        let input = Input::new(input, kind);
        Parts {
            pid,
            main: exec.main,
            keep: exec.keep,
            input,
            outputs,
            terminal,
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
}

/// Makes the agent's end of a pipe never block; the command's end is not affected.
fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)
}

fn own(fd: &OwnedFd, owner: Uid) -> Result<(), Errno> {
    if owner.is_root() {
        Ok(())
    } else {
        rustix::fs::fchown(fd, Some(owner), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_guest_proto::ListBuf;

    fn env(entries: &[&str]) -> ListBuf {
        ListBuf::new(entries).unwrap()
    }

    #[test]
    fn programs_are_looked_up_in_the_requests_path() {
        let seen = |name: &str, entries: &[&str]| -> Vec<String> {
            candidates(name.as_bytes(), env(entries).as_list())
                .into_iter()
                .map(|path| path.into_string().unwrap())
                .collect()
        };
        assert_eq!(seen("./x", &["PATH=/a"]), ["./x"]);
        assert_eq!(
            seen("x", &["PATHS=/b", "PATH=/a::/c"]),
            ["/a/x", "./x", "/c/x"]
        );
        assert_eq!(seen("x", &[])[0], "/usr/local/sbin/x");
    }

    #[test]
    fn the_requests_environment_wins_over_defaults() {
        let argv = env(&["x"]);
        let env = env(&["HOME=/mine", "A=b"]);
        let exec = Exec {
            argv: argv.as_list(),
            env: env.as_list(),
            workdir: b"",
            user: b"",
            terminal: None,
            stdin: false,
            main: false,
            keep: false,
        };
        let identity = look_up(b"12345").unwrap();
        let seen: Vec<_> = environment(&exec, &identity)
            .into_iter()
            .map(|entry| entry.into_string().unwrap())
            .collect();
        assert!(seen[0].starts_with("PATH=/usr/local/sbin:"), "{seen:?}");
        assert!(seen[1].starts_with("HOSTNAME="), "{seen:?}");
        assert_eq!(seen[2..], ["HOME=/mine", "A=b"]);
    }
}
