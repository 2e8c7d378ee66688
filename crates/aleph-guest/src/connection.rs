//! A connection over the guest's own loopback address: to a port of the guest's, or from a program
//! to a port that the agent listens on for its host.
//!
//! One of the second kind outlives its host. The next host gets again what the program said since
//! it had its last answer: a request that nobody has answered is still to be answered, by the next
//! host, or by that of each clone.

use crate::failure::{Context, Failure};
use crate::input::{Input, Target};
use crate::outlet::{Flow, Outlet, Passed};
use crate::stream::Slot;
use crate::sys::Watch;
use aleph_guest_proto::{SendWindow, ToHost};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Ipv4Addr, SocketAddrV4, SocketFlags, SocketType, sockopt};

/// A socket, with at most a window under way in each direction.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Rc<OwnedFd>,
    port: u16,
    is_open: bool,
    /// Whether the other side has said all.
    is_read: bool,
    /// Whether the host was told of a failure.
    has_failed: bool,
    window: SendWindow,
    input: Input,
    /// What was said since the last answer, of one that outlives its host.
    unanswered: Option<Unanswered>,
}

/// The most that is kept for the next host.
const MAX_UNANSWERED: usize = 8 * 1024;

/// What a program said since it had its last answer.
#[derive(Debug, Default)]
struct Unanswered {
    bytes: Vec<u8>,
    /// Whether it was more than is kept.
    is_cut: bool,
}

impl Unanswered {
    fn add(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > MAX_UNANSWERED {
            self.is_cut = true;
            self.bytes = Vec::new();
        }
        if !self.is_cut {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.is_cut = false;
    }
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn begin(port: u16) -> Result<Self, Failure> {
        let connect = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            // What goes through it are short questions and answers.
            sockopt::set_tcp_nodelay(&socket, true)?;
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
            match rustix::net::connect(&socket, &address) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
                Err(errno) => Err(errno),
            }
        };
        let socket = Rc::new(connect().context(|| connecting(port))?);
        Ok(Self {
            input: Input::new(Some(socket.clone()), Target::Socket),
            socket,
            port,
            is_open: false,
            is_read: false,
            has_failed: false,
            window: SendWindow::default(),
            unanswered: None,
        })
    }

    /// One that a program in the guest opened to a port of the agent's.
    pub(crate) fn accepted(socket: OwnedFd, port: u16) -> Self {
        let socket = Rc::new(socket);
        Self {
            input: Input::new(Some(socket.clone()), Target::Socket),
            socket,
            port,
            is_open: true,
            is_read: false,
            has_failed: false,
            window: SendWindow::default(),
            unanswered: Some(Unanswered::default()),
        }
    }

    /// Tells a host of one that was accepted, with what it has not answered.
    pub(crate) fn announce(&mut self, stream: u32, outlet: &mut Outlet) {
        let Some(unanswered) = &self.unanswered else {
            return;
        };
        let port = self.port;
        outlet.push(stream, &ToHost::Accepted { port });
        let bytes = &unanswered.bytes;
        // A window is larger than what is kept.
        if !bytes.is_empty() && self.window.take(bytes.len()).is_ok() {
            outlet.push(stream, &ToHost::Data(bytes));
        }
    }

    /// Whether the next host can go on with it.
    pub(crate) fn outlives_host(&self) -> bool {
        let whole = self.unanswered.as_ref().is_some_and(|u| !u.is_cut);
        whole && !self.is_read && !self.has_failed && self.input.is_open()
    }

    /// The host is gone, and with it what was under way.
    pub(crate) fn hang_up(&mut self) {
        self.window = SendWindow::default();
        self.input.hang_up();
    }

    pub(crate) fn input(&mut self) -> &mut Input {
        &mut self.input
    }

    /// Takes what the host says, which answers all that was asked.
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> Result<Option<u32>, Failure> {
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.clear();
        }
        let credit = self.input.accept(bytes);
        // A program that says something in two pieces has the second one wait for our word on
        // the first (RFC 896), which the kernel keeps back for 40 ms from who has just spoken.
        let _ = sockopt::set_tcp_quickack(&*self.socket, true);
        credit
    }

    pub(crate) fn window(&mut self) -> &mut SendWindow {
        &mut self.window
    }

    /// What to wait for. Nothing is asked of a socket that could not be served: one that is
    /// hung up is ready at all times.
    pub(crate) fn watch(&self, outlet: &Outlet, mut watch: impl FnMut(Slot, RawFd, i16)) {
        let fd = self.socket.as_raw_fd();
        if self.has_failed {
            return;
        }
        if !self.is_open || self.input.blocked_on().is_some() {
            watch(Slot::Input, fd, Watch::WRITE);
        }
        if self.is_open && !self.is_read && outlet.takes(self.window) {
            watch(Slot::Output, fd, Watch::READ);
        }
    }

    /// Takes what is ready.
    pub(crate) fn ready(
        &mut self,
        slot: Slot,
        stream: u32,
        outlet: &mut Outlet,
    ) -> Result<(), Failure> {
        if !self.is_open {
            sockopt::socket_error(&*self.socket)
                .and_then(|result| result)
                .context(|| connecting(self.port))?;
            self.is_open = true;
            outlet.push(stream, &ToHost::Open);
        }
        if slot == Slot::Input {
            if let Some(credit) = self.input.pump() {
                outlet.push(stream, &ToHost::Credit(credit));
            }
            return Ok(());
        }
        let unanswered = &mut self.unanswered;
        match outlet.pass_seen(
            &self.socket,
            &mut self.window,
            (stream, Flow::Data, usize::MAX),
            |bytes| {
                if let Some(unanswered) = unanswered {
                    unanswered.add(bytes);
                }
            },
        ) {
            Passed::Bytes(_) | Passed::Nothing => Ok(()),
            Passed::End => {
                self.is_read = true;
                outlet.push(stream, &ToHost::Eof);
                Ok(())
            }
            Passed::Failed(errno) => {
                Err(errno).context(|| format!("reading from port {}", self.port))
            }
        }
    }

    /// Nothing more comes of it: the host was told why.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// What there is left to do in the end: `None` while it goes on, else whether the host is
    /// to be told.
    pub(crate) fn end(&self) -> Option<bool> {
        let is_over = self.is_read && self.input.is_over();
        (is_over || self.has_failed).then_some(!self.has_failed)
    }
}

fn connecting(port: u16) -> String {
    format!("connecting to port {port}")
}
