//! A command in a guest.

use super::error::AgentError;
use super::port::{StreamEvent, StreamHandle, StreamPort};
use aleph_guest_proto::{Exec, ListBuf, Terminal, ToGuest};
use aleph_types::ExitStatus;
use std::future::poll_fn;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a guest may take to be spoken with again whose connection ended with a snapshot: longer than
/// its node waits for it by default, by far.
const NEXT: Duration = Duration::from_secs(600);

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, over the guest's defaults.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` where it is empty.
    pub workdir: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; root where it is empty.
    pub user: String,
    /// Rows and columns of its terminal, where it gets one.
    pub terminal: Option<(u16, u16)>,
    /// Whether standard input follows.
    pub stdin: bool,
    /// Whether the VM ends with it.
    pub main: bool,
    /// Whether it outlives this connection: then whoever holds the handle says what is stored
    /// ([`ExecHandle::stored`], [`ExecHandle::end_stored`]), and the guest keeps the rest.
    pub keep: bool,
}

impl ExecRequest {
    /// A command with all else at its default.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    pub(super) fn with_message<T>(
        &self,
        send: impl FnOnce(&ToGuest<'_>, bool) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let argv = ListBuf::new(&self.argv).map_err(AgentError::Request)?;
        let env = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let env = ListBuf::new(env).map_err(AgentError::Request)?;
        let message = ToGuest::Exec(Exec {
            argv: argv.as_list(),
            env: env.as_list(),
            workdir: self.workdir.as_bytes(),
            user: self.user.as_bytes(),
            terminal: self
                .terminal
                .map(|(rows, columns)| Terminal { rows, columns }),
            stdin: self.stdin,
            main: self.main,
            keep: self.keep,
        });
        send(&message, self.main)
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs, under this process id in the guest.
    Started(u32),
    /// It wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended, and all it wrote has been told.
    Exited(ExitStatus),
}

/// A running command.
///
/// With [`ExecRequest::keep`], the guest sends at most a window beyond what is stored, and
/// forgets nothing before that. A loop over such a command:
///
/// ```text
/// match handle.next().await? {
///     ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
///         log.write(bytes)?;                    // so that it survives this process
///         handle.stored(handle.position())?;
///     }
///     ExecEvent::Exited(status) => {
///         journal.exited(status)?;              // likewise
///         handle.end_stored()?;                 // now the guest may power off
///     }
///     ExecEvent::Started(_) => {}
/// }
/// ```
#[derive(Debug)]
pub struct ExecHandle {
    stream: StreamHandle,
    position: u64,
    exit: Option<ExitStatus>,
}

impl ExecHandle {
    pub(super) fn new(stream: StreamHandle) -> Self {
        Self::at(stream, 0)
    }

    pub(super) fn at(stream: StreamHandle, position: u64) -> Self {
        Self {
            stream,
            position,
            exit: None,
        }
    }

    /// The number of its stream, which a kept command has on every connection.
    #[must_use]
    pub fn stream(&self) -> u32 {
        self.stream.port.id
    }

    /// How many bytes of output came before what [`ExecHandle::next`] gives next, both streams
    /// and all connections counted. Right after [`Agent::reattach`](super::Agent::reattach) it
    /// is where the output goes on: at what was stored, or beyond it where the guest had been
    /// told that more was.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Says that the first `total` bytes of a kept command's output are stored for good. Cheap:
    /// the guest is told a quarter of a window at a time. On other commands it does nothing.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn stored(&self, total: u64) -> Result<(), AgentError> {
        if !self.stream.keep {
            return Ok(());
        }
        let port = &self.stream.port;
        port.shared.stored(port.id, total.min(self.position), None)
    }

    /// Says that a kept command's end is stored for good, and all of its output: after
    /// [`ExecEvent::Exited`], before which it does nothing. The guest forgets the command, and
    /// ends where it was the main one; [`Agent::main_exit`](super::Agent::main_exit) tells of it
    /// only now.
    ///
    /// # Errors
    /// Where the channel is closed. The next connection then hears of the end again.
    pub fn end_stored(&self) -> Result<(), AgentError> {
        let port = &self.stream.port;
        match self.exit {
            Some(exit) if self.stream.keep => {
                port.shared.stored(port.id, self.position, Some(exit))
            }
            _ => Ok(()),
        }
    }

    /// Ends its session as a terminal's that is closed: hang-up, and after a second KILL. A
    /// kept command is only let go of.
    pub fn hang_up(self) {
        if !self.stream.keep {
            self.stream.port.shared.cancel(self.stream.port.id);
        }
    }

    /// What it does next. After [`ExecEvent::Exited`] or an error nothing follows.
    ///
    /// # Errors
    /// [`AgentError::Failed`] where it could not be started; others where the guest is gone.
    pub async fn next(&mut self) -> Result<ExecEvent, AgentError> {
        loop {
            return Ok(match self.stream.next().await? {
                StreamEvent::Started(pid) => ExecEvent::Started(pid),
                StreamEvent::Data(bytes) => {
                    self.position += bytes.len() as u64;
                    ExecEvent::Stdout(bytes)
                }
                StreamEvent::ErrorData(bytes) => {
                    self.position += bytes.len() as u64;
                    ExecEvent::Stderr(bytes)
                }
                StreamEvent::Exited(status) => {
                    self.exit = Some(status);
                    ExecEvent::Exited(status)
                }
                _ => continue,
            });
        }
    }

    /// Collects all that it writes until it ends: standard output, standard error, status. A
    /// kept command's counts as stored.
    ///
    /// # Errors
    /// As [`ExecHandle::next`].
    pub async fn collect(mut self) -> Result<(Vec<u8>, Vec<u8>, ExitStatus), AgentError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await? {
                ExecEvent::Started(_) => {}
                ExecEvent::Stdout(bytes) => stdout.extend(bytes),
                ExecEvent::Stderr(bytes) => stderr.extend(bytes),
                ExecEvent::Exited(status) => {
                    // A guest that has gone meanwhile need not be told.
                    let _ = self.end_stored();
                    return Ok((stdout, stderr, status));
                }
            }
            let _ = self.stored(self.position);
        }
    }

    /// A way to feed and steer it, which can be used beside [`ExecHandle::next`].
    #[must_use]
    pub fn input(&self) -> ExecInput {
        ExecInput::of(self.stream.port.clone())
    }
}

/// Feeds and steers a running command. On one that has ended it does nothing.
#[derive(Debug, Clone)]
pub struct ExecInput(Feeds);

#[derive(Debug, Clone)]
enum Feeds {
    /// A command, over the connection that it has now: over another one, once the one before ended
    /// with a snapshot.
    Command(watch::Sender<StreamPort>),
    /// The serial console of a guest without an agent.
    Console(mpsc::Sender<Vec<u8>>),
}

impl ExecInput {
    fn of(port: StreamPort) -> Self {
        Self(Feeds::Command(watch::Sender::new(port)))
    }

    /// What types at a guest's serial console, which has no end, no signals and no size.
    pub(crate) fn of_console(keys: mpsc::Sender<Vec<u8>>) -> Self {
        Self(Feeds::Console(keys))
    }

    fn ports(&self) -> Option<&watch::Sender<StreamPort>> {
        match &self.0 {
            Feeds::Command(ports) => Some(ports),
            Feeds::Console(_) => None,
        }
    }

    fn port(&self) -> Option<StreamPort> {
        Some(self.ports()?.borrow().clone())
    }

    /// Whether it waits, as its guest is written down.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        self.port().is_some_and(|port| port.is_held())
    }

    /// From now on this and all its clones feed the same command over another connection, with what was
    /// held back first.
    pub(crate) fn goes_on_as(&self, next: &Self) {
        let (Some(ports), Some(next)) = (self.ports(), next.port()) else {
            return;
        };
        // Nothing ends the one before in between.
        ports.send_modify(|port| {
            if port.end_is_held() {
                // Where that is closed too, nobody hears it.
                let _ = next.end();
            }
            *port = next;
        });
    }

    /// Sends bytes to its standard input, waiting while it does not read, and while its guest is
    /// written down.
    ///
    /// # Errors
    /// Where the channel closes. What was sent before that has arrived, as far as the guest lives.
    pub async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        let ports = match &self.0 {
            Feeds::Command(ports) => ports,
            Feeds::Console(keys) => {
                let typed = keys.send(bytes.to_vec()).await;
                return typed.map_err(|_| AgentError::Closed);
            }
        };
        let mut ports = ports.subscribe();
        while !bytes.is_empty() {
            let port = ports.borrow_and_update().clone();
            match poll_fn(|cx| port.poll_write(cx, bytes)).await {
                Ok(Some(n)) => bytes = &bytes[n..],
                Ok(None) => break,
                Err(error) if port.is_held() => {
                    let next = tokio::time::timeout(NEXT, ports.changed()).await;
                    next.ok().and_then(Result::ok).ok_or(error)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn close(&self) -> Result<(), AgentError> {
        self.port().map_or(Ok(()), |port| port.end())
    }

    /// Sends a signal to its process group, by number.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn signal(&self, signal: u8) -> Result<(), AgentError> {
        let port = self.port();
        port.map_or(Ok(()), |port| port.send(&ToGuest::Signal(signal)))
    }

    /// Gives its terminal a new size.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), AgentError> {
        let size = ToGuest::Resize(Terminal { rows, columns });
        self.port().map_or(Ok(()), |port| port.send(&size))
    }
}

/// The exit code that docker and shells give a command that could not be started: 127 where
/// there is none of that name, 126 where it cannot be executed.
#[must_use]
pub fn exit_code_of(errno: u32) -> u8 {
    const ENOENT: u32 = 2;
    if errno == ENOENT { 127 } else { 126 }
}
