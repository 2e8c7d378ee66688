//! Where a computer's processors and its memory are.

use aleph_types::MiB;
use serde::{Deserialize, Serialize};

/// Where processors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    pub sockets: u16,
    /// Cores of each socket.
    pub cores: u16,
    /// Threads of each core.
    pub threads: u16,
}

/// A part of the machine whose processors are near its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Its places for processors, by number.
    pub cpus: Vec<u16>,
    /// Its memory.
    pub memory: MiB,
    /// The host's node that has this memory, and no other.
    pub host_node: Option<u32>,
}

/// The largest number that a processor's interrupt controller can have: 255 is all of them, and beyond it the guest
/// needs one of another kind (x2APIC with an IOMMU).
pub const MAX_APIC_ID: u64 = 254;

impl Topology {
    /// The number of the last processor's interrupt controller. Each level has as many bits of it as it needs, so
    /// where cores or threads are no power of two there are gaps.
    #[must_use]
    pub fn largest_apic_id(self) -> u64 {
        let bits = |count: u16| u64::from(count).next_power_of_two().trailing_zeros();
        let last = |count: u16| u64::from(count.saturating_sub(1));
        let of_core = bits(self.threads);
        let of_socket = of_core + bits(self.cores);
        last(self.sockets) << of_socket | last(self.cores) << of_core | last(self.threads)
    }

    pub(super) fn places(self) -> u64 {
        u64::from(self.sockets) * u64::from(self.cores) * u64::from(self.threads)
    }

    /// That of who says nothing of it. A guest takes the processors of a socket to share a cache, and so to be
    /// in one node: where each node has as many, one after the other, it is a socket, and else each processor is;
    /// also where the gaps between such sockets would leave processors without a number that works.
    pub(super) fn usual(places: u16, numa: &[NumaNode]) -> Self {
        let nodes = u16::try_from(numa.len()).unwrap_or(u16::MAX).max(1);
        let cores = places / nodes;
        let is_socket = |node: &NumaNode| {
            let first = node.cpus.first().copied().unwrap_or(0);
            let is_row = (first..).zip(&node.cpus).all(|(n, cpu)| n == *cpu);
            is_row && node.cpus.len() == usize::from(cores) && first.is_multiple_of(cores)
        };
        let of = |sockets, cores| Self {
            sockets,
            cores,
            threads: 1,
        };
        let by_node = of(nodes, cores);
        match numa.iter().all(is_socket) && by_node.largest_apic_id() <= MAX_APIC_ID {
            true => by_node,
            false => of(places, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_is_in_two_nodes_where_nobody_says_so() {
        let node = |cpus: &[u16]| NumaNode {
            cpus: cpus.to_vec(),
            memory: MiB(256),
            host_node: None,
        };
        for (numa, sockets, cores) in [
            (vec![], 1, 6),
            (vec![node(&[0, 1, 2]), node(&[3, 4, 5])], 2, 3),
            (vec![node(&[3, 4, 5]), node(&[0, 1, 2])], 2, 3),
            (vec![node(&[0, 2, 4]), node(&[1, 3, 5])], 6, 1),
            (vec![node(&[0, 1, 2, 3]), node(&[4, 5])], 6, 1),
        ] {
            let topology = Topology::usual(6, &numa);
            assert_eq!(topology.places(), 6);
            assert_eq!((topology.sockets, topology.cores), (sockets, cores));
        }
    }

    #[test]
    fn numbers_of_interrupt_controllers_have_gaps() {
        for ((sockets, cores, threads), largest) in [
            ((1, 1, 1), 0),
            ((1, 255, 1), 254),
            ((255, 1, 1), 254),
            ((2, 2, 2), 7),
            // Three cores have the bits of four.
            ((2, 3, 1), 6),
            ((2, 3, 2), 13),
            ((5, 33, 1), 288),
        ] {
            let topology = Topology {
                sockets,
                cores,
                threads,
            };
            assert_eq!(topology.largest_apic_id(), largest, "{topology:?}");
        }
    }

    #[test]
    fn nodes_are_no_sockets_where_their_processors_would_have_no_number() {
        let nodes = |count: u16, cores: u16| -> Vec<NumaNode> {
            let node = |n: u16| NumaNode {
                cpus: (n * cores..(n + 1) * cores).collect(),
                memory: MiB(256),
                host_node: None,
            };
            (0..count).map(node).collect()
        };
        for ((count, each), (sockets, cores)) in [
            ((4, 33), (4, 33)),
            ((5, 33), (165, 1)),
            ((7, 36), (252, 1)),
            ((3, 85), (255, 1)),
            ((15, 16), (15, 16)),
        ] {
            let topology = Topology::usual(count * each, &nodes(count, each));
            assert_eq!((topology.sockets, topology.cores), (sockets, cores));
            assert!(topology.largest_apic_id() <= MAX_APIC_ID);
        }
    }
}
