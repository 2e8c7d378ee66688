//! What is kept of a connection while its guest is a file, and how another stack goes on with it.
//!
//! smoltcp makes no socket that is connected already. So a connection is opened a second time, with
//! a SYN as the guest sent it once and an ACK as it would have sent it; smoltcp's own part of that
//! does not leave the stack. What it chose as its sequence number is translated from then on.

use super::connection::{Connection, Flow, Phase};
use super::core::Core;
use super::wire::{self, Offer};
use serde::{Deserialize, Serialize};
use smoltcp::socket::tcp;
use smoltcp::wire::{TcpControl, TcpRepr};

/// The most bytes of requests that are kept with a connection.
pub(super) const MAX_UNANSWERED: usize = 8 * 1024;

/// A connection at a moment when nothing of it was under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Kept {
    /// The guest's.
    pub(super) port: u16,
    pub(super) offer: Offer,
    /// The sequence number that comes next from the guest.
    pub(super) guest_next: u32,
    /// The one that comes next from here.
    pub(super) host_next: u32,
    /// The guest's window, as it was written.
    pub(super) window: u16,
    /// What the guest said since it was answered last.
    pub(super) unanswered: Vec<u8>,
}

impl Kept {
    /// Whether the guest has said something that nobody has answered.
    pub(in super::super) fn has_request(&self) -> bool {
        !self.unanswered.is_empty()
    }
}

impl Core {
    /// Whether nothing is under way that a moment's waiting would bring to its end.
    pub(super) fn is_settled(&self) -> bool {
        !self.link.is_blocked()
            && self.connections.iter().all(|connection| {
                let socket = self.sockets.get::<tcp::Socket<'_>>(connection.handle);
                match socket.state() {
                    tcp::State::Established => self.all_is_acknowledged(connection, socket),
                    tcp::State::FinWait2
                    | tcp::State::TimeWait
                    | tcp::State::Closed
                    | tcp::State::CloseWait => true,
                    _ => false,
                }
            })
    }

    fn all_is_acknowledged(&self, connection: &Connection, socket: &tcp::Socket<'_>) -> bool {
        let flow = self.link.flow(connection.port);
        socket.send_queue() == 0
            && flow.is_some_and(|flow| flow.acknowledged == guest_next(flow, connection, socket))
    }

    /// What is to be kept of each connection that can be.
    pub(super) fn keep(&mut self) -> Vec<Kept> {
        let mut kept = Vec::new();
        for connection in &self.connections {
            let socket = self.sockets.get::<tcp::Socket<'_>>(connection.handle);
            if socket.state() != tcp::State::Established
                || matches!(connection.phase, Phase::Left)
                || !self.all_is_acknowledged(connection, socket)
            {
                continue;
            }
            let (Some(flow), Some(unanswered)) =
                (self.link.flow(connection.port), &connection.unanswered)
            else {
                continue;
            };
            let (flow, mut unanswered) = (*flow, unanswered.clone());
            let guest_next = guest_next(&flow, connection, socket);
            let unread = socket.recv_queue();
            if unanswered.len() + unread > MAX_UNANSWERED {
                continue;
            }
            let read = unanswered.len();
            unanswered.resize(read + unread, 0);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if socket.peek_slice(&mut unanswered[read..]) != Ok(unread) {
                continue;
            }
            kept.push(Kept {
                port: connection.port,
                offer: flow.offer,
                guest_next,
                host_next: flow
                    .host_first
                    .wrapping_add(1)
                    .wrapping_add(connection.written),
                window: flow.window,
                unanswered,
            });
        }
        kept
    }

    /// Goes on with a connection. One that does not fit is left: the guest learns of it when it
    /// speaks next.
    pub(super) fn take_over(&mut self, kept: &Kept) {
        let guest_first = kept.guest_next.wrapping_sub(1);
        if kept.port == 0 || kept.unanswered.len() > MAX_UNANSWERED {
            return;
        }
        if !self.open_for(kept.port, kept.offer, guest_first) {
            return;
        }
        self.link.mute(true);
        let syn = TcpRepr {
            src_port: kept.port,
            dst_port: self.port,
            control: TcpControl::Syn,
            seq_number: wire::sequence(guest_first),
            ack_number: None,
            window_len: kept.window,
            window_scale: kept.offer.window_scale,
            max_seg_size: kept.offer.max_segment,
            sack_permitted: kept.offer.selective_ack,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        self.feed(&syn);
        let chosen = self.link.flow(kept.port).map(|flow| flow.host_first);
        if let Some(chosen) = chosen {
            self.feed(&TcpRepr {
                control: TcpControl::None,
                seq_number: wire::sequence(kept.guest_next),
                ack_number: Some(wire::sequence(chosen.wrapping_add(1))),
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                ..syn
            });
            if let Some(flow) = self.link.flows().get_mut(&kept.port) {
                flow.host_first = kept.host_next.wrapping_sub(1);
                flow.ahead = flow.host_first.wrapping_sub(chosen);
                flow.acknowledged = kept.guest_next;
                flow.window = kept.window;
            }
        }
        self.link.mute(false);
        if let Some(connection) = self.connections.last_mut() {
            connection.unanswered = Some(kept.unanswered.clone());
        }
        self.sort();
    }

    fn feed(&mut self, segment: &TcpRepr<'_>) {
        self.link.place(&wire::from_guest(segment));
        self.take_in();
        self.send_out();
    }
}

/// What the guest's next byte is numbered, as it was read so far.
fn guest_next(flow: &Flow, connection: &Connection, socket: &tcp::Socket<'_>) -> u32 {
    // A receive buffer is far smaller than that.
    let unread = u32::try_from(socket.recv_queue()).unwrap_or(u32::MAX);
    flow.guest_first
        .wrapping_add(1)
        .wrapping_add(connection.read)
        .wrapping_add(unread)
}
