//! What guests are told of names: those of jobs within their private networks, and which others
//! they may ask for.
//!
//! A guest knows the jobs of its own account's private network as `NAME` and as `NAME.internal`,
//! itself included, and those of no other. What ends in `.internal` is never asked elsewhere: it
//! is of the node's, whether there is such a job or not (ICANN keeps it for private use).

use crate::dns::Answer;
use aleph_types::DomainPattern;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

/// The names of all private networks of a node. It has a lock of its own: queries do not wait for
/// changes of the kernel.
#[derive(Debug, Default)]
pub(crate) struct PrivateNames(RwLock<Tables>);

/// A private network: the account and the name.
type PrivateNetwork = (String, String);

#[derive(Debug, Default)]
struct Tables {
    networks: HashMap<Ipv4Addr, PrivateNetwork>,
    jobs: HashMap<PrivateNetwork, HashMap<String, BTreeSet<Ipv4Addr>>>,
    /// Guests that may connect to nothing: a question for a name can carry anything out.
    cut_off: HashSet<Ipv4Addr>,
    /// Guests that may ask for some names alone, for the same reason.
    listed: HashMap<Ipv4Addr, Vec<DomainPattern>>,
}

const INTERNAL: &str = ".internal";

impl PrivateNames {
    pub(crate) fn insert(&self, guest: Ipv4Addr, network: &PrivateNetwork, job: &str) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.networks.insert(guest, network.clone());
        let jobs = tables.jobs.entry(network.clone()).or_default();
        let addresses = jobs.entry(job.to_ascii_lowercase()).or_default();
        addresses.insert(guest);
    }

    /// A guest that hears of no names but those of its private network.
    pub(crate) fn cut_off(&self, guest: Ipv4Addr) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.cut_off.insert(guest);
    }

    /// A guest that hears of these names and of those of its private network.
    pub(crate) fn list(&self, guest: Ipv4Addr, patterns: Vec<DomainPattern>) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.listed.insert(guest, patterns);
    }

    /// Takes a guest back; one that is not here, too.
    pub(crate) fn remove(&self, guest: Ipv4Addr) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.cut_off.remove(&guest);
        tables.listed.remove(&guest);
        let Some(network) = tables.networks.remove(&guest) else {
            return;
        };
        let Some(jobs) = tables.jobs.get_mut(&network) else {
            return;
        };
        jobs.retain(|_, addresses| {
            addresses.remove(&guest);
            !addresses.is_empty()
        });
        if jobs.is_empty() {
            tables.jobs.remove(&network);
        }
    }

    /// What a guest is told of a name, which is in lower case.
    pub(crate) fn of(&self, guest: Ipv4Addr, name: &str) -> Answer {
        let (job, is_internal) = match name.strip_suffix(INTERNAL) {
            Some(job) => (job, true),
            None => (name, name == &INTERNAL[1..]),
        };
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let network = tables.networks.get(&guest);
        let jobs = network.and_then(|network| tables.jobs.get(network));
        match jobs.and_then(|jobs| jobs.get(job)) {
            Some(addresses) => Answer::Addresses(addresses.iter().copied().collect()),
            None if is_internal || tables.cut_off.contains(&guest) => Answer::NoSuchName,
            None => match tables.listed.get(&guest) {
                None => Answer::Forward,
                Some(list) if list.iter().any(|pattern| pattern.matches(name)) => {
                    Answer::ForwardListed
                }
                Some(_) => Answer::Refused,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_connects_to_nothing_asks_nobody() {
        let (names, guest) = (PrivateNames::default(), Ipv4Addr::new(10, 0, 0, 2));
        names.cut_off(guest);
        names.insert(guest, &("a".into(), "x".into()), "me");
        assert_eq!(names.of(guest, "me"), Answer::Addresses(vec![guest]));
        for name in ["secret.example.com", "", "x.internal"] {
            assert_eq!(names.of(guest, name), Answer::NoSuchName, "{name}");
        }
        names.remove(guest);
        assert_eq!(names.of(guest, "example.com"), Answer::Forward);
    }

    #[test]
    fn who_has_a_list_of_names_asks_for_no_other() {
        let (names, guest) = (PrivateNames::default(), Ipv4Addr::new(10, 0, 0, 2));
        let list = ["example.com", "*.example.org", "x.internal"];
        names.list(guest, list.map(|text| text.parse().unwrap()).into());
        names.insert(guest, &("a".into(), "x".into()), "me");
        assert_eq!(names.of(guest, "me"), Answer::Addresses(vec![guest]));
        for name in ["example.com", "a.example.org"] {
            assert_eq!(names.of(guest, name), Answer::ForwardListed, "{name}");
        }
        for name in ["secret.example.com", "example.org", ""] {
            assert_eq!(names.of(guest, name), Answer::Refused, "{name}");
        }
        assert_eq!(names.of(guest, "x.internal"), Answer::NoSuchName);
        names.remove(guest);
        assert_eq!(names.of(guest, "example.org"), Answer::Forward);
    }

    #[test]
    fn names_are_those_of_ones_own_network() {
        let guest = |n| Ipv4Addr::new(10, 0, 0, n);
        let network = |account: &str, name: &str| (account.to_owned(), name.to_owned());
        let names = PrivateNames::default();
        names.insert(guest(2), &network("a", "x"), "Web");
        names.insert(guest(6), &network("a", "x"), "db");
        names.insert(guest(10), &network("a", "x"), "db");
        names.insert(guest(14), &network("b", "x"), "other");
        let known = |ns: &[u8]| Answer::Addresses(ns.iter().map(|n| guest(*n)).collect());
        assert_eq!(names.of(guest(2), "db"), known(&[6, 10]));
        assert_eq!(names.of(guest(2), "db.internal"), known(&[6, 10]));
        assert_eq!(names.of(guest(2), "web"), known(&[2]));
        for name in ["other.internal", "db.x.internal", "internal"] {
            assert_eq!(names.of(guest(2), name), Answer::NoSuchName, "{name}");
        }
        for name in ["other", "db.example", "dbinternal", ""] {
            assert_eq!(names.of(guest(2), name), Answer::Forward, "{name}");
        }
        // Another account, and a guest of no private network.
        for stranger in [guest(14), guest(18)] {
            assert_eq!(names.of(stranger, "db"), Answer::Forward);
            assert_eq!(names.of(stranger, "db.internal"), Answer::NoSuchName);
        }
        names.remove(guest(6));
        assert_eq!(names.of(guest(2), "db"), known(&[10]));
        for n in [2, 6, 10, 14] {
            names.remove(guest(n));
        }
        let tables = names.0.read().unwrap();
        assert!(tables.networks.is_empty() && tables.jobs.is_empty());
    }
}
