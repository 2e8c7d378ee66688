//! A connection to a TCP port of the guest's own loopback address.

use crate::failure::{Context, Failure};
use crate::input::{Input, Target};
use crate::outlet::{Flow, Outlet, Passed};
use crate::stream::Slot;
use crate::sys::Watch;
use aleph_guest_proto::{SendWindow, ToHost};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
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
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn begin(port: u16) -> Result<Self, Failure> {
        let connect = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
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
        })
    }

    pub(crate) fn input(&mut self) -> &mut Input {
        &mut self.input
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
        match outlet.pass(
            stream,
            &self.socket,
            &mut self.window,
            (Flow::Data, usize::MAX),
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
