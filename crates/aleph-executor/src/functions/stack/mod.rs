//! TCP connections of a guest that end in this process, without its agent in between.
//!
//! A guest of functions has a network device of its own for the runtime API. The other end of it is
//! a socket here, on which each message is an Ethernet frame, and behind that socket is a
//! whole TCP/IP stack for that one guest: smoltcp. What a program in the guest says to
//! [`HOST_ADDRESS`] comes out of a [`Stream`], and what is written there leaves the process within
//! the same call.
//!
//! | file | what it is |
//! | --- | --- |
//! | `wire` | frames: which are let in, and those that are made here |
//! | `allowance` | how many frames of a guest are read |
//! | `frames` | the socket, which takes and gives them |
//! | `link` | what passes by on it |
//! | `core` | smoltcp's interface and sockets, and whose they are |
//! | `connection` | what is known of each beside its socket |
//! | `kept` | connections whose guest is written down, and how they go on |
//! | `stream` | a connection, as whoever speaks over it has it |
//!
//! Connections live through a snapshot: [`Stack::kept`] says what is to be kept of them once the
//! guest stands still, and [`Stack::open`] goes on with that, in any process and as often as there
//! are clones.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the guest sends anything but whole TCP segments to this host | it is dropped; ARP is answered |
//! | it opens more connections than there may be | those that nobody has any more make room, others are refused |
//! | it does not read | what is written waits in its connection, and then the writer does |
//! | it sends frames without end | so many a second are read, the others wait in the guest |
//! | it reads no frames | a few wait, and no more of its frames are read |
//! | a connection is not quiet when the guest is frozen | it is not kept: its program sees a reset, and connects again |
//! | what is kept does not fit | the same |
//! | the VMM is gone | streams end with `ConnectionReset` when something is sent next, or with [`Stack::close`] |
//! | smoltcp panics | all connections of this guest end |

mod allowance;
mod connection;
mod core;
mod frames;
mod kept;
mod link;
mod stream;
mod wire;

#[cfg(test)]
mod tests;

use self::allowance::Allowance;
use self::core::Core;
use self::frames::Frames;
use self::link::Link;
use smoltcp::time::Instant;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use kept::Kept;
pub(super) use stream::Stream;

/// The guest's address on the link.
pub(super) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);
/// This host's.
pub(super) const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);
/// The length of the prefix that both have in common.
pub(super) const PREFIX: u8 = 30;
/// What the guest's device is called.
pub(super) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xa1, 0, 2];
/// What the guest finds its neighbour by.
pub(super) const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xa1, 0, 1];
/// The longest IP packet. A frame of it is four pages of the guest's memory, with all that its
/// kernel puts around it: longer ones are hard to come by there, shorter ones are more interrupts.
pub(super) const MTU: u16 = 9000;

/// What the guest is told of its end of the link.
pub(super) fn told() -> aleph_guest_proto::Link {
    aleph_guest_proto::Link {
        mac: GUEST_MAC,
        address: GUEST_ADDRESS.octets(),
        prefix_length: PREFIX,
        host: HOST_ADDRESS.octets(),
        host_mac: HOST_MAC,
        mtu: MTU,
    }
}

/// The most frames that are read before others have their turn.
const FRAMES: usize = 64;

/// How long a guest that has sent all that it may is not heard.
const REFILL: Duration = Duration::from_millis(2);

/// How long what is under way has to come to its end, once the guest stands still.
const SETTLING: Duration = Duration::from_secs(1);

/// How often it is looked whether a guest has answered.
const PROBE_STEP: Duration = Duration::from_millis(1);

/// How often it is looked at.
const SETTLING_STEP: Duration = Duration::from_millis(2);

/// The shortest time for which the stack is left alone.
const REST: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);

/// The stack of one guest. It ends when it and all its streams are dropped.
#[derive(Debug, Clone)]
pub(super) struct Stack(Arc<Handle>);

/// What keeps a stack going.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    _running: DropGuard,
}

struct Shared {
    core: Mutex<Core>,
    socket: Arc<Frames>,
    /// Something is to be done earlier than was thought.
    sooner: Notify,
    /// A connection waits to be accepted.
    opened: Notify,
    ended: CancellationToken,
}

impl Stack {
    /// A stack that listens on a port, over our end of a link. It goes on with the connections that
    /// were kept of the guest that this one is a copy of.
    ///
    /// It works in the background: this must be called within a tokio runtime.
    ///
    /// # Errors
    /// No more descriptors.
    pub(super) fn over(link: OwnedFd, port: u16, kept: &[Kept]) -> io::Result<Self> {
        let socket = Arc::new(Frames::new(link)?);
        let mut core = Core::new(Link::new(Arc::clone(&socket), port), port);
        for kept in kept {
            core.take_over(kept);
        }
        let ended = CancellationToken::new();
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            socket,
            sooner: Notify::new(),
            opened: Notify::new(),
            ended: ended.clone(),
        });
        tokio::spawn(drive(Arc::clone(&shared)));
        let handle = Handle {
            shared,
            _running: ended.drop_guard(),
        };
        Ok(Self(Arc::new(handle)))
    }

    /// The next connection that a program in the guest opened, those that were kept first. Once
    /// the stack is closed none comes any more.
    pub(super) async fn accept(&self) -> Stream {
        let shared = &self.0.shared;
        loop {
            let opened = shared.opened.notified();
            let mut opened = pin!(opened);
            opened.as_mut().enable();
            let accepted = shared.core().accept();
            if let Some((socket, earlier)) = accepted {
                return Stream {
                    handle: Arc::clone(&self.0),
                    socket,
                    earlier,
                };
            }
            opened.await;
        }
    }

    /// What is to be kept of each connection, once the guest's programs stand still. Its kernel must
    /// still run, to acknowledge what is under way: that is waited for a moment.
    ///
    /// This is the stack's end: nothing is sent any more, and its streams are broken.
    pub(super) async fn kept(&self) -> Vec<Kept> {
        let shared = &self.0.shared;
        let until = tokio::time::Instant::now() + SETTLING;
        loop {
            {
                let mut core = shared.core();
                shared.turn_with(&mut core, FRAMES);
                if core.is_settled() || tokio::time::Instant::now() >= until {
                    let kept = core.keep();
                    core.end();
                    shared.ended.cancel();
                    return kept;
                }
            }
            tokio::time::sleep(SETTLING_STEP).await;
        }
    }

    /// Asks the guest's kernel, over each connection, whether it is there, and waits for a frame.
    /// Where nothing is connected there is nothing to wait for.
    pub(super) async fn probe(&self) {
        let heard = {
            let mut core = self.0.shared.core();
            if !core.ask() {
                return;
            }
            self.0.shared.turn(&mut core);
            core.ask_no_more();
            core.link.heard()
        };
        while !self.0.shared.ended.is_cancelled() && self.0.shared.core().link.heard() == heard {
            tokio::time::sleep(PROBE_STEP).await;
        }
    }

    /// Ends the stack: its streams are broken.
    pub(super) fn close(&self) {
        self.0.shared.core().end();
        self.0.shared.ended.cancel();
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what there is to send.
    fn turn(&self, core: &mut Core) {
        self.turn_with(core, 0);
        let next = core.next();
        if next.is_some_and(|next| core.armed.is_none_or(|armed| next < armed)) {
            self.sooner.notify_one();
        }
    }

    /// Reads so many frames at the most, and sends what there is to send. Gives how many were not
    /// read.
    fn turn_with(&self, core: &mut Core, frames: usize) -> usize {
        let turned = catch_unwind(AssertUnwindSafe(|| core.turn(frames)));
        if core.is_anyone_waiting() {
            self.opened.notify_waiters();
        }
        let unread = turned.unwrap_or_else(|_| {
            tracing::warn!("a guest's TCP stack failed: its connections end");
            core.end();
            frames
        });
        if core.is_over {
            self.ended.cancel();
        }
        unread
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What is to happen before the stack is looked at again.
struct Rest {
    is_over: bool,
    /// Whether frames may be left to read.
    is_cut: bool,
    /// Whether the guest has sent all that it may for now.
    is_spent: bool,
    /// Whether frames wait until the socket takes them.
    is_blocked: bool,
    until: Option<Duration>,
}

impl Shared {
    fn work(&self, allowance: &mut Allowance) -> Rest {
        let mut core = self.core();
        let most = allowance.take(core.now(), FRAMES);
        let unread = self.turn_with(&mut core, most);
        allowance.give_back(unread);
        let now = core.now();
        // What has no room now is sent once there is some.
        let has_room = core.link.has_room();
        let next = core.next().filter(|_| has_room);
        let next = next.map(|next| next.max(now + REST));
        // An earlier alarm stays: to come for nothing costs less than to be called each time.
        let still = |armed: &Instant| *armed > now && next.is_none_or(|next| *armed < next);
        core.armed = core.armed.filter(still).or(next);
        Rest {
            is_over: core.is_over,
            is_cut: most > 0 && unread == 0,
            is_spent: most == 0,
            is_blocked: core.link.is_blocked(),
            until: core.armed.map(|armed| (armed - now).into()),
        }
    }
}

/// Reads what comes, and does what is due, until the stack ends.
async fn drive(shared: Arc<Shared>) {
    let mut allowance = Allowance::new(shared.core().now());
    loop {
        let rest = shared.work(&mut allowance);
        if rest.is_over {
            return;
        }
        if rest.is_cut && !rest.is_blocked {
            tokio::task::yield_now().await;
            if shared.ended.is_cancelled() {
                return;
            }
            continue;
        }
        let alarm = async {
            match rest.until {
                Some(until) => tokio::time::sleep(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.ended.cancelled() => return,
            // Errors of the socket are seen by who reads or writes.
            _ = shared.socket.readable(), if !rest.is_blocked && !rest.is_spent => {}
            () = tokio::time::sleep(REFILL), if rest.is_spent => {}
            _ = shared.socket.writable(), if rest.is_blocked => {}
            () = alarm => {}
            () = shared.sooner.notified() => {}
        }
    }
}
