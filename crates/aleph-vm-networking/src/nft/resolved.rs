//! Addresses that names led to, each for a time, in the kernel.
//!
//! An element's time cannot be renewed by adding it again before Linux 6.12, and one that is not
//! there any more cannot be deleted: the kernel may have dropped it a moment ago, and a transaction
//! that fails costs 10 ms. So a transaction adds it, which does nothing where it is there; deletes
//! it, whichever it is; and adds it with its new time.

use super::{AT_ONCE, INET, Rules, bounds, header};
use netlink_bindings::nftables;
use netlink_bindings::traits::NetlinkChained;
use netlink_bindings::utils::Pusher;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The sets, one for each family.
const SETS: [&[u8]; 2] = [b"resolved", b"resolved6"];
/// Room for a link's name in a key.
const NAME: usize = 16;

/// An address that a guest may connect to for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The guest's TAP.
    pub tap: String,
    /// The address.
    pub address: IpAddr,
    /// For how long.
    pub left: Duration,
}

impl Resolved {
    fn key(&self) -> Vec<u8> {
        let mut key = self.tap.as_bytes().to_vec();
        key.resize(NAME, 0);
        match self.address {
            IpAddr::V4(address) => key.extend(address.octets()),
            IpAddr::V6(address) => key.extend(address.octets()),
        }
        key
    }

    fn set(&self) -> &'static [u8] {
        SETS[usize::from(self.address.is_ipv6())]
    }

    fn read(element: &nftables::IterableSetelemAttrs<'_>) -> Option<Self> {
        let key = element.get_key().ok()?.get_value().ok()?;
        let (name, address) = key.split_at_checked(NAME)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(NAME);
        let v4 = <[u8; 4]>::try_from(address).map(Ipv4Addr::from);
        let v6 = || <[u8; 16]>::try_from(address).map(Ipv6Addr::from);
        let address = v4.map(IpAddr::V4).or_else(|_| v6().map(IpAddr::V6)).ok()?;
        // The bindings read what is in the network's order as if it were not.
        let left = u64::from_be(element.get_expiration().ok()?);
        Some(Self {
            tap: String::from_utf8(name[..end].to_vec()).ok()?,
            address,
            left: Duration::from_millis(left),
        })
    }
}

impl Rules {
    /// What is in the sets; nothing where there are none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resolved(&mut self) -> io::Result<Vec<Resolved>> {
        let mut found = Vec::new();
        for set in SETS {
            found.extend(self.resolved_in(set)?);
        }
        Ok(found)
    }

    fn resolved_in(&mut self, set: &[u8]) -> io::Result<Vec<Resolved>> {
        let mut request = nftables::Request::new().op_getsetelem_dump(&header(INET));
        request
            .encode()
            .push_table_bytes(self.base.table.as_bytes())
            .push_set_bytes(set);
        let mut replies = self.socket.request(&request)?;
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let attributes = match reply {
                Ok((_, attributes)) => attributes,
                Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENOENT) => {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error.into()),
            };
            let Ok(elements) = attributes.get_elements() else {
                continue;
            };
            for element in elements.flatten() {
                let nftables::SetelemListElemAttrs::Elem(element) = element;
                found.extend(Resolved::read(&element));
            }
        }
        Ok(found)
    }

    /// Lets guests reach addresses from now on, for as long as each says, and no longer those that
    /// are `gone`, whether they are there or not.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` where the tables are not there.
    pub fn resolve(&mut self, renewed: &[Resolved], gone: &[Resolved]) -> io::Result<()> {
        let (all, table) = ([renewed, gone].concat(), self.base.table.as_bytes());
        if all.is_empty() {
            return Ok(());
        }
        let all = in_parts(&all);
        let messages = 2 + 3 * all.len();
        let messages = u32::try_from(messages).map_err(io::Error::other)?;
        let mut batch = nftables::Chained::new(self.socket.reserve_seq(messages));
        batch.request().op_batch_begin_do(&bounds());
        for part in &all {
            let mut request = { batch.request().set_create() }.op_newsetelem_do(&header(INET));
            push(request.encode(), table, part);
        }
        for part in &all {
            let mut request = batch.request().op_delsetelem_do(&header(INET));
            push(request.encode(), table, part);
        }
        for part in &in_parts(renewed) {
            let mut request = { batch.request().set_create() }.op_newsetelem_do(&header(INET));
            push(request.encode(), table, part);
        }
        batch.request().op_batch_end_do(&bounds());
        let batch = batch.finalize();
        self.transactions.send(batch.payload())
    }
}

/// As many of one set as a message takes.
fn in_parts(elements: &[Resolved]) -> Vec<Vec<&Resolved>> {
    let of_set = |set| {
        let those = elements.iter().filter(move |element| element.set() == set);
        let those: Vec<&Resolved> = those.collect();
        those.chunks(AT_ONCE).map(<[_]>::to_vec).collect::<Vec<_>>()
    };
    SETS.into_iter().flat_map(of_set).collect()
}

fn push<P: Pusher>(to: nftables::PushSetelemListAttrs<P>, table: &[u8], elements: &[&Resolved]) {
    let Some(set) = elements.first().map(|element| element.set()) else {
        return;
    };
    let mut list = to
        .push_table_bytes(table)
        .push_set_bytes(set)
        .nested_elements();
    for element in elements {
        // The kernel takes no time of none.
        let left = element.left.max(Duration::from_millis(1)).as_millis();
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        list = list
            .nested_elem()
            .nested_key()
            .push_value(&element.key())
            .end_nested()
            // In the network's order, which the bindings do not know.
            .push_timeout(left.to_be())
            .end_nested();
    }
}
