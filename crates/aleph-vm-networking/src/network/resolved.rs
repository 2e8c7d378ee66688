//! Addresses that the names on guests' egress lists led to.
//!
//! The DNS forwarder tells of them before it answers the guest, so that the guest's first packet
//! passes. Each stays for as long as its record says, and a while at least: who hears of it still
//! has to connect. What is there is remembered, so that a name that is asked for again costs the
//! kernel nothing while its time is not longer than before, and so that it comes back with what is
//! left of its time where somebody has flushed the rules.
//!
//! It has a lock and sockets of its own: neither do answers wait while VMs come and go, nor these
//! for answers. It is taken after the lock of the node's networks, never before.
//!
//! # Failure cases
//! - Whoever owns a name says where it leads. Addresses of this host, of the pool, of loopback, of
//!   links and of clouds' metadata are passed over.
//! - A guest has at most 1,024 at a time. A further one takes the place of that which would expire
//!   first.
//! - What is told of a guest that is gone is passed over.

use crate::link::Links;
use crate::nft::{Resolved, Rules};
use crate::ruleset::{Base, is_reserved};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an address stays at least, whatever its record says: a first packet that is lost comes
/// again after one and after three seconds (RFC 6298).
const LEAST: Duration = Duration::from_secs(5);
/// How long at most: as long as resolvers keep a record (unbound's `cache-max-ttl`).
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How much longer than its record: resolvers count in seconds, and whoever asks again within one
/// need not renew anything.
const GRACE: Duration = Duration::from_secs(1);
/// Addresses that one guest may have at a time.
const MOST: usize = 1024;

/// What guests with names on their lists may reach now.
pub(super) struct ResolvedAddresses(Mutex<Inner>);

struct Inner {
    rules: Rules,
    links: Links,
    base: Base,
    guests: HashMap<Ipv4Addr, Reachable>,
    /// What is in the kernel of guests that are gone. Nothing comes from their TAPs any more.
    gone: Vec<Reachable>,
}

struct Reachable {
    tap: String,
    until: HashMap<IpAddr, Instant>,
}

impl ResolvedAddresses {
    /// Those of a node without guests.
    pub(super) fn new(base: Base) -> Self {
        Self(Mutex::new(Inner {
            rules: Rules::new(base.clone()),
            base,
            links: Links::new(),
            guests: HashMap::new(),
            gone: Vec::new(),
        }))
    }

    /// What an earlier process left in the kernel.
    pub(super) fn left(&self) -> io::Result<Vec<Resolved>> {
        self.lock().rules.resolved()
    }

    /// Takes over what an earlier process left for guests that are here, and removes the rest.
    pub(super) fn take_over(&self, left: Vec<Resolved>) -> io::Result<()> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let mut gone = Vec::new();
        for element in left {
            let guests = &mut inner.guests;
            match guests.values_mut().find(|g| g.tap == element.tap) {
                Some(guest) => {
                    guest.until.insert(element.address, now + element.left);
                }
                None => gone.push(element),
            }
        }
        unless_flushed(inner.rules.resolve(&[], &gone))
    }

    /// Lets a guest have addresses. Can be done again.
    pub(super) fn insert(&self, guest: Ipv4Addr, tap: String) {
        let mut inner = self.lock();
        let Inner { guests, gone, .. } = &mut *inner;
        guests.entry(guest).or_insert_with(|| {
            let before = gone.iter().position(|before| before.tap == tap);
            let new = Reachable {
                tap,
                until: HashMap::new(),
            };
            before.map_or(new, |at| gone.swap_remove(at))
        });
    }

    /// A guest is gone; one that is not here, too. What it had stays until [`Self::forget`].
    pub(super) fn remove(&self, guest: Ipv4Addr) {
        let mut inner = self.lock();
        let gone = inner.guests.remove(&guest);
        inner.gone.extend(gone);
    }

    /// Takes away what guests had that are gone: up to a thousand addresses of each.
    pub(super) fn forget(&self) -> io::Result<()> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let gone = inner.gone.iter();
        let gone: Vec<Resolved> = gone.flat_map(|guest| guest.elements(now)).collect();
        unless_flushed(inner.rules.resolve(&[], &gone))?;
        inner.gone.clear();
        Ok(())
    }

    /// Lets a guest reach these addresses, for as long as each says.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` where the tables are gone. Nothing has changed then.
    pub(super) fn resolved(
        &self,
        guest: Ipv4Addr,
        addresses: impl Iterator<Item = (IpAddr, Duration)>,
    ) -> io::Result<()> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let Inner {
            rules,
            links,
            base,
            guests,
            ..
        } = &mut *inner;
        let Some(guest) = guests.get_mut(&guest) else {
            return Ok(());
        };
        let mut news = guest.news(addresses, now);
        news.retain(|address, _| {
            !is_reserved(*address)
                && !base.is_of_guests(*address)
                && (guest.until.contains_key(address) || !links.is_own(*address))
        });
        let surplus = guest.surplus(&news, now);
        let gone = surplus.iter().map(|at| guest.element(*at, now, now));
        let renewed = news
            .iter()
            .map(|(at, until)| guest.element(*at, *until, now));
        rules.resolve(&renewed.collect::<Vec<_>>(), &gone.collect::<Vec<_>>())?;
        guest
            .until
            .retain(|address, until| *until > now && !surplus.contains(address));
        guest.until.extend(news);
        Ok(())
    }

    /// Writes all of them again, with what is left of their time, where the tables are new.
    pub(super) fn rewrite(&self) -> io::Result<()> {
        let (mut inner, now) = (self.lock(), Instant::now());
        let guests = inner.guests.values();
        let live: Vec<Resolved> = guests.flat_map(|guest| guest.elements(now)).collect();
        inner.rules.resolve(&live, &[])
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reachable {
    /// Those of an answer that would be gone sooner than the answer says, and until when they stay.
    fn news(
        &self,
        addresses: impl Iterator<Item = (IpAddr, Duration)>,
        now: Instant,
    ) -> HashMap<IpAddr, Instant> {
        let mut news = HashMap::new();
        for (address, ttl) in addresses {
            let until = now + ttl.clamp(LEAST, LONGEST);
            let is_known = self
                .until
                .get(&address)
                .is_some_and(|known| *known >= until);
            if !is_known && (news.len() < MOST || news.contains_key(&address)) {
                let longest: &mut Instant = news.entry(address).or_insert(until + GRACE);
                *longest = (*longest).max(until + GRACE);
            }
        }
        news
    }

    /// What makes room for them: those that would expire first.
    fn surplus(&self, news: &HashMap<IpAddr, Instant>, now: Instant) -> HashSet<IpAddr> {
        let others = self.until.iter();
        let mut others: Vec<_> = others
            .filter(|(address, until)| **until > now && !news.contains_key(address))
            .map(|(address, until)| (*until, *address))
            .collect();
        let surplus = (others.len() + news.len()).saturating_sub(MOST);
        others.sort_unstable();
        let first = others.into_iter().take(surplus);
        first.map(|(_, address)| address).collect()
    }

    fn elements(&self, now: Instant) -> Vec<Resolved> {
        let live = self.until.iter().filter(|(_, until)| **until > now);
        live.map(|(address, until)| self.element(*address, *until, now))
            .collect()
    }

    fn element(&self, address: IpAddr, until: Instant, now: Instant) -> Resolved {
        Resolved {
            tap: self.tap.clone(),
            address,
            left: until.saturating_duration_since(now),
        }
    }
}

/// What is gone with the tables is gone.
fn unless_flushed(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0xc633_6400 + u32::try_from(n).unwrap()).into()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn reachable(until: impl Iterator<Item = (IpAddr, Instant)>) -> Reachable {
        Reachable {
            tap: "tap-1".into(),
            until: until.collect(),
        }
    }

    #[test]
    fn what_is_there_for_long_enough_is_not_renewed() {
        let now = Instant::now();
        let guest = reachable([(address(1), now + seconds(60))].into_iter());
        let news = |n, ttl| guest.news([(address(n), seconds(ttl))].into_iter(), now);
        assert!(news(1, 0).is_empty() && news(1, 60).is_empty());
        assert_eq!(news(1, 61)[&address(1)], now + seconds(62));
        // A while at least, and not for ever.
        assert_eq!(news(2, 0)[&address(2)], now + LEAST + GRACE);
        assert_eq!(news(2, u64::MAX)[&address(2)], now + LONGEST + GRACE);
        let twice = [(address(2), seconds(90)), (address(2), seconds(30))];
        let news = guest.news(twice.into_iter(), now);
        assert_eq!(news[&address(2)], now + seconds(91));
    }

    #[test]
    fn a_guest_has_so_many_and_loses_those_that_end_first() {
        let now = Instant::now();
        let ends = |n: usize| now + seconds(100) + Duration::from_millis(n.try_into().unwrap());
        let guest = reachable((0..MOST).map(|n| (address(n), ends(n))));
        let many = (MOST - 1..MOST + 2).map(|n| (address(n), seconds(1000)));
        let news = guest.news(many, now);
        assert_eq!(
            guest.surplus(&news, now),
            HashSet::from([address(0), address(1)])
        );
        // Those whose time is over need no room.
        assert_eq!(guest.surplus(&news, ends(1)), HashSet::new());
        let flood = guest.news((0..5 * MOST).map(|n| (address(n), seconds(1000))), now);
        assert_eq!(flood.len(), MOST);
    }
}
