//! A host for sessions under test, and the process that a session runs in.
//!
//! A session collects every child of its process and blocks its signals, so each test gets one
//! in a process of its own, which also is the reaper of its orphans as PID 1 would be. The
//! stand-in machine signals children of that process alone.
#![allow(unsafe_code)]

use aleph_guest::{Channel, End, Failure, Machine, Session};
use aleph_guest_proto::{
    CONTROL, Decoder, Exec, Exit, FileInfo, FileKind, Item, Kept, Link, ListBuf, MARK, Mount,
    Mounts, Resume, Root, SendWindow, Setup, Terminal, ToGuest, ToHost, Upper, Usage, Versions,
};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a session may take to answer.
const LIMIT: Duration = Duration::from_secs(20);

/// What a test hears from the guest: [`ToHost`] with bytes of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    Hello { is_ready: bool, boot_id: [u8; 16] },
    Kept(Kept),
    Ready,
    Fatal(String),
    Pong(u64),
    Started(u32),
    Data(Vec<u8>),
    ErrorData(Vec<u8>),
    Eof,
    Credit(u32),
    Exited(Exit),
    Failed(u32, String),
    File(FileInfo),
    Done,
    Open,
    Accepted(u16),
    Stat(FileKind, u64, String),
    Usage(Usage),
}

/// The outcome of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) errors: String,
    pub(crate) end: Heard,
}

/// What to run, with what most tests leave out.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) argv: &'a [&'a str],
    pub(crate) env: &'a [&'a str],
    pub(crate) workdir: &'a str,
    pub(crate) user: &'a str,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) stdin: bool,
    pub(crate) main: bool,
    pub(crate) keep: bool,
}

/// Numbers that are as good as random, and the same in each run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// One below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    /// One from `low` to `high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }
}

/// The host's side of a session.
pub(crate) struct Host {
    stream: UnixStream,
    decoder: Decoder,
    nonces: Dice,
    /// Its process, or 0 once it was waited for.
    agent: libc::pid_t,
    /// Whether data is credited as it arrives.
    pub(crate) credits: bool,
}

/// Sessions start commands as their users, which takes root.
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        eprintln!("skipped: starting commands takes root");
    }
    is_root
}

struct StandIn;

impl Machine for StandIn {
    fn set_up(&mut self, setup: &Setup<'_>) -> Result<(), Failure> {
        match setup.root.filesystem {
            b"broken" => Err(Failure {
                errno: 22,
                message: "broken as asked for".into(),
            }),
            _ => Ok(()),
        }
    }

    fn mount(&mut self, mount: &Mount<'_>) -> Result<(), Failure> {
        Err(Failure {
            errno: 19,
            message: format!("mounting {}", String::from_utf8_lossy(mount.target)),
        })
    }

    fn freeze(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn settle(&mut self) {}

    fn resume(&mut self, _: &Resume<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn link(&mut self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    fn set_clock(&mut self, _: u64) {}

    fn signal_all(&mut self, signal: u8, except: &[i32]) {
        let own = std::process::id();
        for child in children(own) {
            // SAFETY: both take numbers alone, and the process is this one's child.
            unsafe {
                if !except.contains(&libc::getpgid(child)) {
                    libc::kill(child, i32::from(signal));
                }
            }
        }
    }
}

/// The children of a process, zombies too.
pub(crate) fn children(of: u32) -> Vec<libc::pid_t> {
    let path = format!("/proc/{of}/task/{of}/children");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn serve_stream(stream: UnixStream) -> i32 {
    stream.set_nonblocking(true).unwrap();
    serve(Channel::new(OwnedFd::from(stream)).unwrap())
}

fn serve(channel: Channel) -> i32 {
    match Session::new(channel, StandIn, 0).unwrap().run() {
        End::Finished => 10,
        End::HungUp => 11,
        End::Failed(_) => 12,
    }
}

impl Host {
    /// A host that has not said a word yet.
    pub(crate) fn silent() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        Self::with_agent(ours, || serve_stream(theirs))
    }

    /// A host whose guest takes connections at this path, as the first of them.
    pub(crate) fn first_at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ours = UnixStream::connect(path).unwrap();
        Self::with_agent(ours, || serve(Channel::listening(listener.into())))
    }

    /// The next host at this path. The one before is gone where it was dropped.
    pub(crate) fn next_at(&mut self, path: &Path) -> UnixStream {
        let next = UnixStream::connect(path).unwrap();
        next.set_read_timeout(Some(LIMIT)).unwrap();
        next.set_write_timeout(Some(LIMIT)).unwrap();
        std::mem::replace(&mut self.stream, next)
    }

    fn with_agent(ours: UnixStream, serve: impl FnOnce() -> i32) -> Self {
        // SAFETY: the child is single-threaded, uses the allocator, which fork keeps usable,
        // and leaves without running what belongs to the test's process.
        let agent = unsafe { libc::fork() };
        assert!(agent >= 0);
        if agent == 0 {
            // SAFETY: all take numbers alone, the host's end is the child's to close, and the last
            // one does not come back.
            unsafe {
                libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
                libc::close(ours.as_raw_fd());
                libc::_exit(serve());
            }
        }
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        ours.set_write_timeout(Some(LIMIT)).unwrap();
        Self {
            stream: ours,
            decoder: Decoder::for_host([0; 16]),
            nonces: Dice::new(77),
            agent,
            credits: true,
        }
    }

    /// A host whose guest is ready, and ends when it hangs up.
    pub(crate) fn ready() -> Self {
        Self::ready_with(true)
    }

    /// A host whose guest is ready.
    pub(crate) fn ready_with(poweroff_on_hangup: bool) -> Self {
        let mut host = Self::silent();
        host.make_ready(poweroff_on_hangup);
        host
    }

    /// Says what makes a guest ready, and hears that it is.
    pub(crate) fn make_ready(&mut self, poweroff_on_hangup: bool) {
        self.greet();
        self.set_up_with("erofs", poweroff_on_hangup);
        self.hear_hello(false);
        assert_eq!(self.hear(), (CONTROL, Heard::Ready));
    }

    /// Begins a connection, whatever was before it in the stream.
    pub(crate) fn greet(&mut self) {
        self.greet_as(Versions::OURS);
    }

    pub(crate) fn greet_as(&mut self, versions: Versions) {
        let nonce = std::array::from_fn(|_| self.nonces.below(256).try_into().unwrap());
        self.decoder = Decoder::for_host(nonce);
        self.say_raw(&MARK);
        self.say(CONTROL, &ToGuest::Hello { versions, nonce });
    }

    /// Hears the answer to a greeting.
    pub(crate) fn hear_hello(&mut self, ready: bool) -> [u8; 16] {
        match self.hear() {
            (CONTROL, Heard::Hello { is_ready, boot_id }) if is_ready == ready => boot_id,
            other => panic!("no hello: {other:?}"),
        }
    }

    /// Another host in this one's place, which the agent does not see go: what was under way to
    /// it is lost up to `lost` bytes, and it comes with the rest of what the agent says to it.
    /// Gives the commands that it hears of.
    pub(crate) fn replace(&mut self, lost: usize) -> Vec<(u32, Kept)> {
        self.stream.set_nonblocking(true).unwrap();
        let mut waste = vec![0; lost];
        // Nothing there is nothing lost.
        let _ = self.stream.read(&mut waste);
        self.stream.set_nonblocking(false).unwrap();
        self.greet_again()
    }

    /// Begins a connection to a guest that is ready, and gives the commands that it hears of.
    pub(crate) fn greet_again(&mut self) -> Vec<(u32, Kept)> {
        self.greet();
        self.hear_hello(true);
        let mut all = Vec::new();
        loop {
            match self.hear() {
                (stream, Heard::Kept(kept)) => all.push((stream, kept)),
                (CONTROL, Heard::Ready) => return all,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn set_up(&mut self, filesystem: &str) {
        self.set_up_with(filesystem, true);
    }

    fn set_up_with(&mut self, filesystem: &str, poweroff_on_hangup: bool) {
        let root = Root {
            image_serial: b"rootfs",
            filesystem: filesystem.as_bytes(),
            upper: Upper::Memory,
        };
        self.say(
            CONTROL,
            &ToGuest::Setup(Setup {
                hostname: b"job",
                unix_ns: 0,
                entropy: &[7; 32],
                root,
                poweroff_on_hangup,
                network: None,
                mounts: Mounts::NONE,
            }),
        );
    }

    /// The same connection once more, for a thread that writes.
    pub(crate) fn second_stream(&self) -> UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// Children of the agent, dead or alive, go away by themselves.
    pub(crate) fn assert_no_children(&self) {
        self.until_childless(|_| ());
    }

    /// Kills all children of the agent, and what becomes its child by that; all are collected.
    pub(crate) fn kill_children(&self) {
        self.until_childless(|child| {
            // SAFETY: it takes numbers alone, and the process is the agent's child.
            unsafe { libc::kill(child, libc::SIGKILL) };
        });
    }

    fn until_childless(&self, each: impl Fn(i32)) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = children(self.agent.try_into().unwrap());
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "children stay: {left:?}");
            left.into_iter().for_each(&each);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn say(&mut self, stream: u32, message: &ToGuest<'_>) {
        let mut wire = Vec::new();
        message.encode(stream, &mut wire).unwrap();
        self.say_raw(&wire);
    }

    pub(crate) fn say_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn exec(&mut self, stream: u32, request: &Request<'_>) {
        let (argv, env) = (
            ListBuf::new(request.argv).unwrap(),
            ListBuf::new(request.env).unwrap(),
        );
        self.say(
            stream,
            &ToGuest::Exec(Exec {
                argv: argv.as_list(),
                env: env.as_list(),
                workdir: request.workdir.as_bytes(),
                user: request.user.as_bytes(),
                terminal: request.terminal,
                stdin: request.stdin,
                main: request.main,
                keep: request.keep,
            }),
        );
    }

    /// The next message.
    pub(crate) fn hear(&mut self) -> (u32, Heard) {
        loop {
            if let Some(item) = self.decoder.next_item().unwrap() {
                let Item::Frame(frame) = item else { continue };
                let stream = frame.stream;
                let heard = own(&ToHost::decode(&frame).unwrap());
                if let (true, Heard::Data(bytes) | Heard::ErrorData(bytes)) = (self.credits, &heard)
                {
                    let credit = ToGuest::Credit(bytes.len().try_into().unwrap());
                    let mut wire = Vec::new();
                    credit.encode(stream, &mut wire).unwrap();
                    // A guest that has ended takes no credit, and what it said can be read.
                    let _ = self.stream.write_all(&wire);
                }
                return (stream, heard);
            }
            let n = match self.stream.read(self.decoder.space()) {
                // A socket with a time limit is not read on after a signal, whoever it was for.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(n > 0, "the agent hung up");
            self.decoder.filled(n);
        }
    }

    /// Everything on a stream up to its last word.
    pub(crate) fn collect(&mut self, stream: u32) -> Ran {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        loop {
            match self.hear() {
                (s, Heard::Data(bytes)) if s == stream => output.extend(bytes),
                (s, Heard::ErrorData(bytes)) if s == stream => errors.extend(bytes),
                (s, end @ (Heard::Exited(_) | Heard::Failed(..) | Heard::Done)) if s == stream => {
                    return Ran {
                        output: text(output),
                        errors: text(errors),
                        end,
                    };
                }
                (_, Heard::Fatal(why)) => panic!("the guest gave up: {why}"),
                _ => {}
            }
        }
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, stream: u32, request: &Request<'_>) -> Ran {
        self.exec(stream, request);
        self.collect(stream)
    }

    pub(crate) fn shell(&mut self, stream: u32, script: &str) -> Ran {
        self.run(
            stream,
            &Request {
                argv: &["sh", "-c", script],
                ..Request::default()
            },
        )
    }

    /// Sends bytes within the window, and gives the bytes that came back meanwhile. What they are
    /// sent to must not end before they are through.
    pub(crate) fn pour(&mut self, stream: u32, bytes: &[u8]) -> Vec<u8> {
        let (mut window, mut echoed) = (SendWindow::default(), Vec::new());
        for chunk in bytes.chunks(50_000) {
            while window.available() < chunk.len() {
                match self.hear() {
                    (s, Heard::Credit(n)) if s == stream => window.credit(n).unwrap(),
                    (_, Heard::Data(bytes)) => echoed.extend(bytes),
                    (s, Heard::Exited(exit)) if s == stream => {
                        panic!("it ended before its input was through: {exit:?}");
                    }
                    _ => {}
                }
            }
            window.take(chunk.len()).unwrap();
            self.say(stream, &ToGuest::Data(chunk));
        }
        self.say(stream, &ToGuest::Eof);
        echoed
    }

    /// Sends bytes of something that may fail before its end; gives the last word.
    pub(crate) fn pour_quietly(&mut self, stream: u32, bytes: &[u8]) -> Heard {
        let mut window = SendWindow::default();
        let mut chunks = bytes.chunks(50_000);
        let mut chunk = chunks.next();
        loop {
            if let Some(bytes) = chunk
                && window.available() >= bytes.len()
            {
                window.take(bytes.len()).unwrap();
                self.say(stream, &ToGuest::Data(bytes));
                chunk = chunks.next();
                if chunk.is_none() {
                    self.say(stream, &ToGuest::Eof);
                }
                continue;
            }
            match self.hear() {
                (s, Heard::Credit(n)) if s == stream => window.credit(n).unwrap(),
                (s, end @ (Heard::Done | Heard::Failed(..))) if s == stream => return end,
                (_, Heard::Fatal(why)) => panic!("the guest gave up: {why}"),
                _ => {}
            }
        }
    }

    /// The reason why the guest gave up, which must be the next thing it says but for others'
    /// output.
    pub(crate) fn hear_fatal(&mut self) -> String {
        loop {
            if let (CONTROL, Heard::Fatal(why)) = self.hear() {
                return why;
            }
        }
    }

    /// Hangs up where asked to, and waits for the agent's end.
    pub(crate) fn end(mut self, hang_up: bool) -> &'static str {
        if hang_up {
            self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let mut status = 0;
        // SAFETY: the status outlives the call.
        unsafe { libc::waitpid(self.agent, &raw mut status, 0) };
        self.agent = 0;
        match libc::WEXITSTATUS(status) {
            10 => "finished",
            11 => "hung up",
            12 => "failed",
            _ => "died",
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.agent == 0 {
            return;
        }
        // SAFETY: the agent is this process's child and not waited for yet.
        unsafe {
            libc::kill(self.agent, libc::SIGKILL);
            libc::waitpid(self.agent, std::ptr::null_mut(), 0);
        }
    }
}

fn own(message: &ToHost<'_>) -> Heard {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match *message {
        ToHost::Hello {
            versions,
            boot_id,
            is_ready,
            ..
        } => {
            assert_eq!(versions, Versions::OURS);
            Heard::Hello { is_ready, boot_id }
        }
        ToHost::Kept(kept) => Heard::Kept(kept),
        ToHost::Ready { .. } => Heard::Ready,
        ToHost::Fatal { message, .. } => Heard::Fatal(text(message)),
        ToHost::Pong(n) => Heard::Pong(n),
        ToHost::Started { pid } => Heard::Started(pid),
        ToHost::Data(bytes) => Heard::Data(bytes.to_vec()),
        ToHost::ErrorData(bytes) => Heard::ErrorData(bytes.to_vec()),
        ToHost::Eof => Heard::Eof,
        ToHost::Credit(n) => Heard::Credit(n),
        ToHost::Exited(exit) => Heard::Exited(exit),
        ToHost::Failed { errno, message } => Heard::Failed(errno, text(message)),
        ToHost::File(info) => Heard::File(info),
        ToHost::Done => Heard::Done,
        ToHost::Open => Heard::Open,
        ToHost::Accepted { port } => Heard::Accepted(port),
        ToHost::Stat(stat) => Heard::Stat(stat.kind, stat.size, text(stat.target)),
        ToHost::Usage(usage) => Heard::Usage(usage),
    }
}
