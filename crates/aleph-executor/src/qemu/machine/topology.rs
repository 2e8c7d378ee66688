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

impl Topology {
    pub(super) fn places(self) -> u64 {
        u64::from(self.sockets) * u64::from(self.cores) * u64::from(self.threads)
    }

    /// That of who says nothing of it. A guest takes the processors of a socket to share a cache, and so to be
    /// in one node: where each node has as many, one after the other, it is a socket, and else each processor is.
    pub(super) fn usual(places: u16, numa: &[NumaNode]) -> Self {
        let nodes = u16::try_from(numa.len()).unwrap_or(u16::MAX).max(1);
        let cores = places / nodes;
        let is_socket = |node: &NumaNode| {
            let first = node.cpus.first().copied().unwrap_or(0);
            let is_row = (first..).zip(&node.cpus).all(|(n, cpu)| n == *cpu);
            is_row && node.cpus.len() == usize::from(cores) && first.is_multiple_of(cores)
        };
        let (sockets, cores) = match numa.iter().all(is_socket) {
            true => (nodes, cores),
            false => (places, 1),
        };
        Self {
            sockets,
            cores,
            threads: 1,
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
}
