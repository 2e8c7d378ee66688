//! What a VM with limits has in the tables: objects that count, and elements that lead to them.
//!
//! An object is a bucket of tokens. The rules are the same for all: a map leads from a TAP to its
//! object, and a TAP that is in none of them passes. Those without any limit are not looked up
//! there at all: what a guest sends is led there by the look-up that says whose it is.

use super::{Element, Key, Set, Value};
use aleph_types::{NetworkLimits, Rate};

/// A bucket that lets so much through in a second, by its name in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Its name: of what it counts, and of its VM's TAP.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// So many in a second.
    pub rate: u64,
    /// So many more at once. The kernel adds a second's bytes to those of bytes, and nothing to
    /// those of packets (`nft_limit_init`).
    pub burst: u32,
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of IP packets.
    Bytes,
    /// Packets.
    Packets,
}

/// Two of the largest that a guest hands over at once to be cut into packets later: one that is
/// larger than its bucket would never pass.
const LEAST_BYTES: u32 = 128 * 1024;
/// What a few connections begin with.
const LEAST_PACKETS: u64 = 32;

/// The elements of a VM with these limits.
pub(super) fn elements(tap: &str, limits: &NetworkLimits) -> Vec<Element> {
    if limits.is_none() {
        return Vec::new();
    }
    let element = |set, value| Element {
        set,
        key: Key::default().name(tap).0,
        last: None,
        value,
    };
    let counted = |set: Set, unit, rate: Option<Rate>| {
        let Rate(rate) = rate?;
        let limit = match unit {
            Unit::Bytes => Limit {
                name: object(set, tap),
                unit,
                rate: (rate / 8).max(1),
                burst: LEAST_BYTES,
            },
            Unit::Packets => Limit {
                name: object(set, tap),
                unit,
                rate: rate.max(1),
                burst: u32::try_from((rate / 10).max(LEAST_PACKETS)).unwrap_or(u32::MAX),
            },
        };
        Some(element(set, Some(Value::Limit(limit))))
    };
    let (sent, received) = (limits.sent, limits.received);
    let counted = [
        counted(Set::SentBytes, Unit::Bytes, sent.bits_per_second),
        counted(Set::SentPackets, Unit::Packets, sent.packets_per_second),
        counted(Set::ReceivedBytes, Unit::Bytes, received.bits_per_second),
        counted(
            Set::ReceivedPackets,
            Unit::Packets,
            received.packets_per_second,
        ),
    ];
    let mut elements: Vec<_> = counted.into_iter().flatten().collect();
    // What is sent is led there by whose it is.
    if !received.is_none() {
        elements.push(element(Set::Limited, None));
    }
    elements
}

fn object(set: Set, tap: &str) -> String {
    format!("{}-{tap}", set.name())
}
