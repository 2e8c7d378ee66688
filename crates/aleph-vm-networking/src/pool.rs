//! Which /30 is whose.
//!
//! Slot `n` is the `n`th /30 of the pool: its first usable address is the host's, the second the
//! guest's. Slots are given in the order in which they became free, so that one rests for as long
//! as possible, and never before the cool-down has passed: a late packet must not find a new
//! owner. Taking and giving back are O(1). Time comes in as a value.

use aleph_types::Ipv4Network;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// One /30 of a pool, by its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// All /30s of a node.
#[derive(Debug)]
pub struct Pool {
    network: Ipv4Network,
    cool_down: Duration,
    slots: Vec<State>,
    /// Free ones in the order of giving, each with the generation in which it became free. One
    /// that has another by now, or an owner, stays until it is met.
    free: VecDeque<(Slot, u32)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    used: bool,
    /// Grows each time that it becomes free.
    generation: u32,
    /// The moment from which it may be given.
    from: Option<Instant>,
}

/// Why no address was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Not even one /30.
    #[error("the pool {0} has no room for one /30")]
    Small(Ipv4Network),
    /// All are in use or cool down.
    #[error("all {size} addresses of the pool {network} are taken, {cooling} of them cool down")]
    Exhausted {
        /// The pool.
        network: Ipv4Network,
        /// How many VMs it is for.
        size: usize,
        /// How many rest after their last owner.
        cooling: usize,
    },
}

impl Pool {
    /// A pool with all its slots free. Those up to and including `last` come at the end of the
    /// queue, so that a node that starts again does not give what it has just taken back.
    ///
    /// # Errors
    /// Where the network is smaller than a /30.
    pub fn new(
        network: Ipv4Network,
        cool_down: Duration,
        last: Option<Slot>,
    ) -> Result<Self, PoolError> {
        if network.prefix() > 30 {
            return Err(PoolError::Small(network));
        }
        let size = 1_u32 << (30 - network.prefix());
        let first = last.map_or(0, |slot| (slot.0 + 1) % size);
        let order = (first..size).chain(0..first);
        Ok(Self {
            network,
            cool_down,
            slots: (0..size).map(|_| State::default()).collect(),
            free: order.map(|n| (Slot(n), 0)).collect(),
        })
    }

    /// The whole.
    #[must_use]
    pub fn network(&self) -> Ipv4Network {
        self.network
    }

    /// How many VMs it is for.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Gives a slot.
    ///
    /// # Errors
    /// Where none is free.
    pub fn take(&mut self, now: Instant) -> Result<Slot, PoolError> {
        while let Some((slot, generation)) = self.free.front().copied() {
            let Some(state) = self.state(slot) else {
                break;
            };
            let is_free = !state.used && state.generation == generation;
            if is_free && state.from.is_some_and(|from| from > now) {
                break;
            }
            state.used |= is_free;
            self.free.pop_front();
            if is_free {
                return Ok(slot);
            }
        }
        Err(PoolError::Exhausted {
            network: self.network,
            size: self.size(),
            // What is free and cannot be given rests.
            cooling: self.slots.iter().filter(|state| !state.used).count(),
        })
    }

    /// Takes this very slot, whose owner is known from a record. Says whether it was free.
    pub fn claim(&mut self, slot: Slot) -> bool {
        match self.state(slot) {
            Some(state) if !state.used => {
                state.used = true;
                true
            }
            _ => false,
        }
    }

    /// Gives it back. A slot that is free already stays where it is.
    pub fn release(&mut self, slot: Slot, now: Instant) {
        let from = now.checked_add(self.cool_down);
        let Some(state) = self.state(slot).filter(|state| state.used) else {
            return;
        };
        state.used = false;
        state.from = from;
        state.generation = state.generation.wrapping_add(1);
        let generation = state.generation;
        self.free.push_back((slot, generation));
    }

    /// The host's address in a slot.
    #[must_use]
    pub fn host(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.first().to_bits() + slot.0 * 4 + 1)
    }

    /// The guest's address in a slot.
    #[must_use]
    pub fn guest(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.first().to_bits() + slot.0 * 4 + 2)
    }

    fn state(&mut self, slot: Slot) -> Option<&mut State> {
        self.slots.get_mut(usize::try_from(slot.0).ok()?)
    }
}

/// The host's address on the cable of a guest; `None` for what is no guest's address in this pool.
#[must_use]
pub fn gateway_of(network: Ipv4Network, guest: Ipv4Addr) -> Option<Ipv4Addr> {
    let is_guest = network.contains(guest) && guest.to_bits() % 4 == 2;
    is_guest.then(|| Ipv4Addr::from_bits(guest.to_bits() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const COOL_DOWN: Duration = Duration::from_secs(60);

    fn pool(network: &str) -> Pool {
        Pool::new(network.parse().unwrap(), COOL_DOWN, None).unwrap()
    }

    #[test]
    fn a_slot_is_a_host_and_a_guest() {
        let pool = pool("10.0.0.0/16");
        assert_eq!(pool.size(), 16_384);
        let at = |n| {
            (
                pool.host(Slot(n)).to_string(),
                pool.guest(Slot(n)).to_string(),
            )
        };
        assert_eq!(at(0), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(at(16_383), ("10.0.255.253".into(), "10.0.255.254".into()));
        let gateway = |guest: &str| gateway_of(pool.network(), guest.parse().unwrap());
        assert_eq!(gateway("10.0.255.254"), Some(pool.host(Slot(16_383))));
        for other in ["10.0.0.0", "10.0.0.1", "10.0.0.3", "10.1.0.2", "192.0.2.2"] {
            assert_eq!(gateway(other), None);
        }
    }

    #[test]
    fn a_slot_rests_before_it_is_given_again() {
        let (mut pool, now) = (pool("10.0.0.0/29"), Instant::now());
        let (a, b) = (pool.take(now).unwrap(), pool.take(now).unwrap());
        assert_eq!((a, b), (Slot(0), Slot(1)));
        pool.release(a, now);
        let error = pool.take(now + COOL_DOWN / 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "all 2 addresses of the pool 10.0.0.0/29 are taken, 1 of them cool down"
        );
        assert_eq!(pool.take(now + COOL_DOWN), Ok(a));
        pool.release(Slot(7), now);
    }

    #[test]
    fn a_node_that_starts_again_goes_on_behind_its_last() {
        let network = "10.0.0.0/28".parse().unwrap();
        let mut pool = Pool::new(network, COOL_DOWN, Some(Slot(2))).unwrap();
        assert!(pool.claim(Slot(0)) && !pool.claim(Slot(0)) && !pool.claim(Slot(4)));
        let now = Instant::now();
        let given: Vec<_> = (0..3).map(|_| pool.take(now).unwrap().0).collect();
        assert_eq!(given, [3, 1, 2]);
        assert!(pool.take(now).is_err());
    }

    /// One that was claimed and released while its turn had not come does not hold up others.
    #[test]
    fn a_slot_that_rests_stands_in_nobodys_way() {
        let network = "10.0.0.0/28".parse().unwrap();
        let mut pool = Pool::new(network, COOL_DOWN, Some(Slot(3))).unwrap();
        let now = Instant::now();
        assert!(pool.claim(Slot(0)) && pool.claim(Slot(3)));
        pool.release(Slot(0), now);
        assert_eq!(pool.take(now), Ok(Slot(1)));
        assert_eq!(pool.take(now), Ok(Slot(2)));
        assert!(pool.take(now).is_err());
        assert_eq!(pool.take(now + COOL_DOWN), Ok(Slot(0)));
    }

    #[test]
    fn a_pool_has_a_slot() {
        let small = Pool::new("10.0.0.0/31".parse().unwrap(), COOL_DOWN, None);
        assert!(matches!(small, Err(PoolError::Small(_))));
        assert_eq!(pool("10.0.0.0/30").size(), 1);
    }

    proptest! {
        /// No slot has two owners, and none is lost, whatever the order.
        #[test]
        fn every_slot_has_one_owner_at_most(steps in prop::collection::vec((0_u8..4, 0_u32..10), 0..200)) {
            let mut pool = pool("10.0.0.0/27");
            let mut owned = HashSet::new();
            let mut now = Instant::now();
            for (step, n) in steps {
                match step {
                    0 => if let Ok(slot) = pool.take(now) {
                        prop_assert!(owned.insert(slot));
                    },
                    1 => if pool.claim(Slot(n)) {
                        prop_assert!(n < 8 && owned.insert(Slot(n)));
                    },
                    2 => {
                        pool.release(Slot(n), now);
                        owned.remove(&Slot(n));
                    }
                    _ => now += COOL_DOWN,
                }
            }
            now += COOL_DOWN;
            while let Ok(slot) = pool.take(now) {
                prop_assert!(owned.insert(slot));
            }
            prop_assert_eq!(owned.len(), 8);
        }
    }
}
