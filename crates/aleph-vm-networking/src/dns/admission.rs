//! How much of something each guest may have at a time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// Places for all guests. Where less than half is left, a guest gets at most an eighth of what is
/// left: some always is for one that has none yet.
#[derive(Debug)]
pub(super) struct Admission {
    per_guest: usize,
    total: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_guest: HashMap<Ipv4Addr, usize>,
}

/// A place. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    guest: Ipv4Addr,
    of: Arc<Admission>,
}

impl Admission {
    pub(super) fn new(per_guest: usize, total: usize) -> Arc<Self> {
        Arc::new(Self {
            per_guest,
            total,
            taken: Mutex::default(),
        })
    }

    /// A place, where this guest may have one more.
    pub(super) fn enter(self: &Arc<Self>, guest: Ipv4Addr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.total.saturating_sub(taken.total);
        let most = match left {
            0 => 0,
            left if left * 2 < self.total => self.per_guest.min(left.div_ceil(8)),
            _ => self.per_guest,
        };
        let has = taken.by_guest.get(&guest).copied().unwrap_or(0);
        if has >= most {
            return None;
        }
        taken.total += 1;
        taken.by_guest.insert(guest, has + 1);
        Some(Place {
            guest,
            of: Arc::clone(self),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        if let Some(has) = taken.by_guest.get_mut(&self.guest) {
            *has -= 1;
            if *has == 0 {
                taken.by_guest.remove(&self.guest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0002 + 4 * n)
    }

    #[test]
    fn a_guest_has_so_many_places_and_gets_them_back() {
        let admission = Admission::new(3, 100);
        let mut places: Vec<Place> = (0..3).map(|_| admission.enter(guest(0)).unwrap()).collect();
        assert!(admission.enter(guest(0)).is_none());
        assert!(admission.enter(guest(1)).is_some());
        places.pop();
        assert!(admission.enter(guest(0)).is_some());
        drop(places);
        let taken = admission.taken.lock().unwrap();
        assert_eq!((taken.total, taken.by_guest.len()), (0, 0));
    }

    #[test]
    fn greedy_guests_leave_some_for_the_others() {
        let admission = Admission::new(32, 1024);
        let mut places = Vec::new();
        for greedy in 0..48 {
            places.extend(std::iter::from_fn(|| admission.enter(guest(greedy))));
        }
        assert!(places.len() < 1024);
        places.push(admission.enter(guest(1000)).unwrap());
        // And yet there is an end.
        for more in 2000..10_000 {
            places.extend(admission.enter(guest(more)));
        }
        assert_eq!(places.len(), 1024);
    }
}
