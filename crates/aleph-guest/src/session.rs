//! The agent's loop: one thread that waits for the channel, for children and for commands.

use crate::channel::{Channel, Received};
use crate::dialogue::{Dialogue, Machine};
use crate::failure::Failure;
use crate::stream::Slot;
use crate::sys::{self, Watch};
use aleph_guest_proto::{CONTROL, Decoder, Item, ToGuest, ToHost};
use alloc::vec::Vec;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// How long a hang-up lasts before it counts as the end, where it does, in microseconds.
const HANG_UP_US: u64 = 2_000_000;

/// How long the last word may take to go out, in microseconds.
const LAST_WORD_US: u64 = 2_000_000;

/// Reads of the channel in one round, so that a host that sends much does not keep commands
/// waiting. A virtio-serial port gives a page at a time.
const READS: usize = 16;

/// Why a session ended. The guest powers off in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The host asked for it, or the main command ended.
    Finished,
    /// The host hung up for good.
    HungUp,
    /// The guest could not go on, and has told the host so where it could.
    Failed(Failure),
}

/// A session with the host, over all of its connections.
#[derive(Debug)]
pub struct Session<M> {
    channel: Channel,
    link: Link,
    decoder: Decoder,
    dialogue: Dialogue<M>,
    children: OwnedFd,
    watches: Vec<Watch>,
    sources: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Nobody is there, since this time where somebody was before.
    Down {
        since: Option<u64>,
    },
}

/// Whose descriptor is watched.
#[derive(Debug, Clone, Copy)]
enum Source {
    Children,
    Channel,
    Changes,
    Listener(usize),
    Stream(usize, Slot),
}

impl<M: Machine> Session<M> {
    /// A session on a channel. It blocks all signals of its thread, which must be the process's
    /// only one: it collects every child that ends. `started_us` is when the agent began.
    ///
    /// # Errors
    /// The kernel's, where it has no descriptors left.
    pub fn new(channel: Channel, machine: M, started_us: u64) -> Result<Self, Errno> {
        sys::block_signals();
        Ok(Self {
            channel,
            link: Link::Down { since: None },
            decoder: Decoder::for_guest(),
            dialogue: Dialogue::new(machine, started_us),
            children: sys::watch_children()?,
            watches: Vec::new(),
            sources: Vec::new(),
        })
    }

    /// Serves the host until the guest is to power off.
    pub fn run(&mut self) -> End {
        if self.channel.connect() {
            self.link = Link::Up;
        }
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(failure) => {
                    self.tell_failure(&failure);
                    break End::Failed(failure);
                }
            }
        };
        self.channel.finish();
        end
    }

    /// The machine, after the session.
    pub fn into_machine(self) -> M {
        self.dialogue.into_machine()
    }

    /// Does what can be done, waits for what happens next, and takes it up.
    fn turn(&mut self) -> Result<Option<End>, Failure> {
        let now = sys::monotonic_us();
        self.dialogue.advance(now);
        if self.link == Link::Up {
            self.dialogue.flush(&self.channel);
            // Whole frames may have waited for room to answer them.
            self.handle_frames()?;
        }
        if self.dialogue.is_over(now) {
            return Ok(Some(End::Finished));
        }
        let hung_up_at = self.hung_up_at();
        if hung_up_at.is_some_and(|at| now >= at) {
            return Ok(Some(End::HungUp));
        }
        let deadline = self.dialogue.deadline().into_iter().chain(hung_up_at).min();
        let timeout = if self.dialogue.is_busy() {
            Some(0)
        } else {
            deadline.map(|at| at.saturating_sub(now))
        };
        self.watch();
        sys::poll(&mut self.watches, timeout);
        self.take_up()?;
        Ok(None)
    }

    /// When the hang-up counts as the end of the guest.
    fn hung_up_at(&self) -> Option<u64> {
        match self.link {
            Link::Down { since: Some(since) } if self.dialogue.ends_on_hangup() => {
                Some(since + HANG_UP_US)
            }
            _ => None,
        }
    }

    /// Collects what to wait for. The channel comes last, since its messages change the places
    /// of streams.
    fn watch(&mut self) {
        let Self {
            watches, sources, ..
        } = self;
        watches.clear();
        sources.clear();
        let mut add = |source, fd, events| {
            sources.push(source);
            watches.push(Watch::new(fd, events));
        };
        add(Source::Children, self.children.as_raw_fd(), Watch::READ);
        self.dialogue
            .watch(|at, slot, fd, events| add(Source::Stream(at, slot), fd, events));
        self.dialogue
            .watch_listeners(|at, fd| add(Source::Listener(at), fd, Watch::READ));
        if self.link == Link::Up {
            let transmit = &self.dialogue.outlet.transmit;
            let read = if transmit.is_over_limit() {
                0
            } else {
                Watch::READ
            };
            let write = if transmit.is_empty() { 0 } else { Watch::WRITE };
            // What reports that the host is gone is watched at all times: a socket takes writes then.
            let events = read | write | Watch::NO_MORE;
            add(Source::Channel, self.channel.fd(), events);
        } else {
            add(Source::Changes, self.channel.changes(), Watch::READ);
        }
    }

    fn take_up(&mut self) -> Result<(), Failure> {
        for at in 0..self.watches.len() {
            let seen = self.watches[at].seen();
            if seen == 0 {
                continue;
            }
            match self.sources[at] {
                Source::Children => {
                    sys::drain_signals(&self.children);
                    self.dialogue.reap();
                }
                Source::Stream(at, slot) => self.dialogue.ready(at, slot),
                // New streams come last, so the places of the others hold.
                Source::Listener(at) => self.dialogue.accept(at),
                Source::Changes => {
                    if self.channel.connect() {
                        self.link = Link::Up;
                    }
                }
                Source::Channel if seen & !Watch::WRITE != 0 => self.receive()?,
                Source::Channel => {}
            }
        }
        Ok(())
    }

    /// Drops half frames both ways, since they were for a host that is gone.
    fn hang_up(&mut self) {
        self.link = Link::Down {
            since: Some(sys::monotonic_us()),
        };
        self.channel.hang_up();
        self.decoder.reset();
        self.dialogue.hang_up();
    }

    /// Reads and handles what the host sent, a bounded part at a time.
    fn receive(&mut self) -> Result<(), Failure> {
        for _ in 0..READS {
            self.handle_frames()?;
            if self.dialogue.outlet.transmit.is_over_limit() {
                // Only a hang-up is looked for then, and there is one where even this host
                // can not be told from one that is gone.
                if !self.channel.is_open() {
                    self.hang_up();
                }
                return Ok(());
            }
            match self.channel.read(self.decoder.space()) {
                Received::Bytes(n) => self.decoder.filled(n),
                Received::Nothing => return Ok(()),
                Received::HungUp => {
                    self.hang_up();
                    return Ok(());
                }
            }
            self.handle_frames()?;
            if !self.decoder.is_mid_frame() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn handle_frames(&mut self) -> Result<(), Failure> {
        while !self.dialogue.outlet.transmit.is_over_limit() {
            match self.decoder.next_item().map_err(Failure::violation)? {
                Some(Item::Frame(frame)) => {
                    let message = ToGuest::decode(&frame).map_err(Failure::violation)?;
                    self.dialogue.handle(frame.stream, &message)?;
                }
                // The one before may have ended unseen.
                Some(Item::Mark) => self.dialogue.hang_up(),
                None => break,
            }
        }
        Ok(())
    }

    /// The last word to the host, as far as it takes it.
    fn tell_failure(&mut self, failure: &Failure) {
        if self.link != Link::Up {
            return;
        }
        let transmit = &mut self.dialogue.outlet.transmit;
        let (errno, message) = (failure.errno, failure.bytes());
        transmit.push(CONTROL, &ToHost::Fatal { errno, message });
        let deadline = sys::monotonic_us() + LAST_WORD_US;
        loop {
            transmit.flush(&self.channel);
            let now = sys::monotonic_us();
            if transmit.is_empty() || now >= deadline || !self.channel.is_open() {
                break;
            }
            let mut watch = [Watch::new(self.channel.fd(), Watch::WRITE)];
            sys::poll(&mut watch, Some(deadline - now));
        }
    }
}
