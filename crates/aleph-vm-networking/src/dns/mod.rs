//! A DNS forwarder for all guests of a node.
//!
//! ```text
//!  guest ── 10.0.0.1:53 ── redirect (nftables) ── 0.0.0.0:PORT ── Forwarder ── resolver of the host
//!                                                                    │
//!                                                                  Names: private names, egress
//! ```
//!
//! Each guest's resolver is the host's address on its own cable. One UDP socket and one TCP
//! listener serve all of them: the rules lead port 53 of a guest's own gateway to their port, so
//! that a query's source is the guest and its destination the gateway, from which the answer
//! leaves again. [`Names`] is the seam to the node: it knows the names of a guest's private
//! network, and is told which addresses a name was resolved to before the guest is. Everything
//! else goes on as the guest wrote it, with another ID and from another port, to the host's own
//! resolvers. There is no cache: those have one.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Forwarder`] | the sockets, bound in the network namespace of the thread that made it |
//! | [`ForwarderConfig`], [`Limits`] | what it depends on |
//! | [`Names`], [`Answer`] | what the node knows of names |
//! | [`Upstreams`] | the host's resolvers |
//!
//! # Failure cases
//! - A query that does not come from a guest of the pool to its own gateway gets no answer, so that
//!   the port is no open resolver.
//! - What is no query gets none either; what is one and cannot be read gets `FORMERR`; other
//!   operations than a query get `NOTIMP`; zone transfers and classes beside `IN` get `REFUSED`.
//! - A resolver that is silent for two seconds, or refuses, is passed over for the next; after two
//!   rounds the guest gets `SERVFAIL`. Answers that do not fit the question are not looked at.
//! - A guest that may ask for some names alone gets `REFUSED` for others, and nobody hears of them.
//! - Where [`Names::resolved`] fails, the guest gets `SERVFAIL` and no address that it may not
//!   reach yet.
//! - A guest has so many queries and connections at a time, and fewer where those of all guests
//!   run short; what is above that is dropped. A guest that does not read loses its answers.
//! - Sockets that run out delay new connections and end nothing.

mod admission;
mod datagram;
mod forwarder;
mod message;
mod upstream;

pub use forwarder::{Forwarder, ForwarderConfig, Limits};
pub use upstream::{Upstreams, resolv_conf};

use crate::NetworkError;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Reads any bytes as a guest's query, and others as a resolver's reply to it: for fuzzing.
#[doc(hidden)]
pub fn read(guest: &[u8], resolver: &[u8]) {
    if let message::Received::Question(question) = message::Received::read(guest) {
        let id = resolver
            .get(..2)
            .map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        let _ = question.reply(id, resolver.to_vec());
        let _ = question.addresses(&[Ipv4Addr::LOCALHOST]);
    }
}

/// What the node says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These are its addresses. It has none of another kind. The first 14 are told: more do not
    /// fit into the smallest message.
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name, and nobody else is to be asked.
    NoSuchName,
    /// This guest may not ask for it.
    Refused,
    /// The host's resolvers know.
    Forward,
    /// The same, and the node is told of the addresses before the guest is.
    ForwardListed,
}

/// What a node knows of names.
///
/// Names are in lower case, without the last dot. Only those of letters, digits, `-` and `_` are
/// given: no other can be a job's or be in an egress list.
pub trait Names: Send + Sync + 'static {
    /// What a guest is told of a name. Called for each query, and must not wait. A name with other
    /// letters than those is given as the empty one.
    fn of(&self, guest: Ipv4Addr, name: &str) -> Answer;

    /// A name of [`Answer::ForwardListed`] was resolved for a guest to these addresses, for as long
    /// as each says: its `A` and `AAAA` records, those behind aliases included. Called before the guest has the
    /// answer, on a thread that may wait. The addresses are whatever the owner of the name says:
    /// they may be addresses of the host or of another guest.
    ///
    /// # Errors
    /// Where the guest cannot reach them yet: it is told of a failure then.
    fn resolved(
        &self,
        guest: Ipv4Addr,
        name: &str,
        addresses: &[(IpAddr, Duration)],
    ) -> Result<(), NetworkError>;
}
