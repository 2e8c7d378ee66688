//! The network of a node's VMs: a cable, an address, isolation and forwarded ports for each.
//!
//! ```text
//!            guest                                host
//!  eth0 10.0.0.2/30  ───── TAP ─────  tap-1234abcd 10.0.0.1/30 ─── nftables ─── uplink
//! ```
//!
//! Each VM has a /30 of its own out of the node's pool, so that no two VMs share a segment and the
//! host routes everything between them. What may pass is decided by one table of nftables: a fixed
//! set of rules over maps and sets, to which a VM adds elements. The ten-thousandth VM costs what
//! the first did.
//!
//! | module | what it is | effects |
//! | --- | --- | --- |
//! | [`pool`] | which /30 is whose | none |
//! | [`ipv6`] | which IPv6 prefix is whose | none |
//! | [`mac`] | hardware addresses | none |
//! | [`forwards`] | which port of the host leads where | none |
//! | [`ruleset`] | the rules, and what a VM adds to them | none |
//! | [`port`] | a port of the host, held so that no other process takes it | sockets |
//! | [`tap`] | TAP devices | `/dev/net/tun` |
//! | [`frames`] | frames of a TAP as messages of a socket | sockets, rtnetlink |
//! | [`forwarding`], [`forwarding6`] | which links the host forwards from | sysctl |
//! | [`link`] | links, addresses, routes, counters | rtnetlink |
//! | [`nft`] | the rules in the kernel | `nft`, nfnetlink |
//! | [`foreign`] | rules of others that are in the way | `nft` |
//! | [`conntrack`] | connections that the kernel follows | nfnetlink |
//! | [`dns`] | a DNS forwarder for all guests | sockets |
//! | [`watch`] | hears of rules that are gone | nfnetlink |
//! | `names` | names of jobs within private networks, and which others a guest may ask for | none |
//! | [`network`] | all of it for one node | the above |
//!
//! # Failure cases
//! A VM's network is made in the order claim (pool and ports, in memory), journal (by the owner),
//! TAP, rules; it is undone in the reverse order. Each step can be made and undone again. TAPs
//! are named by their [`VmId`](aleph_types::VmId) and carry the node's link group, elements carry
//! the TAP's name, so [`Network::sweep`](network::Network::sweep) finds what a crash left between
//! any two. The rules are rewritten whole where someone has flushed them, as soon as
//! [`Watch`](watch::Watch) hears of it; what guests began meanwhile, which no rule has looked at,
//! is forgotten, and has to pass the rules to go on.

pub mod conntrack;
pub mod dns;
mod error;
pub mod foreign;
pub mod forwarding;
pub mod forwarding6;
pub mod forwards;
pub mod frames;
pub mod ipv6;
pub mod link;
pub mod mac;
mod names;
pub mod network;
pub mod nft;
pub mod pool;
pub mod port;
pub mod ruleset;
pub mod tap;
mod transaction;
pub mod watch;

/// Where addresses come from when nobody says: 10.0.0.0/16, 16,384 VMs.
pub const DEFAULT_POOL: aleph_types::Ipv4Network =
    match aleph_types::Ipv4Network::new(std::net::Ipv4Addr::new(10, 0, 0, 0), 16) {
        Some(pool) => pool,
        None => unreachable!(),
    };

pub use error::NetworkError;
pub use ipv6::Ipv6Config;
pub use network::{Attachment, Claim, Counters, Network, NetworkConfig};
