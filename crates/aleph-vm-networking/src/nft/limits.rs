//! Buckets of tokens as named objects, over nfnetlink.
//!
//! An object must be there before an element leads to it, and can only go after the last that did:
//! both in one transaction, so none is ever left. The bindings know no objects of this kind, so
//! their parts are written here (`linux/netfilter/nf_tables.h`).

use super::{INET, Rules, header};
use crate::ruleset::{Element, Limit, Unit, Value};
use netlink_bindings::nftables;
use netlink_bindings::utils::Pusher;
use std::collections::HashSet;
use std::io;

/// `NFT_OBJECT_LIMIT`.
const LIMIT: u32 = 4;
/// `NFTA_OBJ_DATA`.
const DATA: u16 = 4 | NESTED;
/// `NFTA_SET_ELEM_OBJREF`, for which the bindings write 8.
const OBJREF: u16 = 9;
const NESTED: u16 = 0x8000;

/// Those that elements lead to.
pub(super) fn of(elements: &[Element]) -> impl Iterator<Item = &Limit> {
    elements.iter().filter_map(|element| match &element.value {
        Some(Value::Limit(limit)) => Some(limit),
        _ => None,
    })
}

impl Rules {
    /// The objects that are there, by name; none where the tables are not.
    pub(super) fn objects(&mut self) -> io::Result<HashSet<String>> {
        let mut request = nftables::Request::new().op_getobj_dump(&header(INET));
        request
            .encode()
            .push_table_bytes(self.base.table.as_bytes())
            .push_type(LIMIT);
        let mut replies = self.socket.request(&request)?;
        let mut names = HashSet::new();
        while let Some(reply) = replies.recv() {
            let attributes = match reply {
                Ok((_, attributes)) => attributes,
                Err(error) if error.as_io_error().raw_os_error() == Some(libc::ENOENT) => {
                    return Ok(HashSet::new());
                }
                Err(error) => return Err(error.into()),
            };
            let is_own = attributes
                .get_table()
                .is_ok_and(|table| table.to_bytes() == self.base.table.as_bytes());
            if is_own && let Ok(name) = attributes.get_name() {
                names.insert(name.to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }
}

/// Makes an object. One that is there stays what it is.
pub(super) fn push_new(batch: &mut nftables::Chained<'_>, table: &[u8], limit: &Limit) {
    // NFTA_LIMIT_RATE and so on, numbers in the network's order.
    const ONE_SECOND: u64 = 1;
    const OVER: u32 = 1;
    let kind: u32 = match limit.unit {
        Unit::Packets => 0,
        Unit::Bytes => 1,
    };
    let mut data = Vec::new();
    attribute(&mut data, 1, &limit.rate.to_be_bytes());
    attribute(&mut data, 2, &ONE_SECOND.to_be_bytes());
    attribute(&mut data, 3, &limit.burst.to_be_bytes());
    attribute(&mut data, 4, &kind.to_be_bytes());
    attribute(&mut data, 5, &OVER.to_be_bytes());
    let mut request = batch.request().set_create().op_newobj_do(&header(INET));
    let mut object = request
        .encode()
        .push_table_bytes(table)
        .push_name_bytes(limit.name.as_bytes())
        .push_type(LIMIT);
    attribute(object.as_vec_mut(), DATA, &data);
}

/// Removes an object, which must be there, and nothing may lead to it.
pub(super) fn push_delete(batch: &mut nftables::Chained<'_>, table: &[u8], name: &str) {
    let mut request = batch.request().op_delobj_do(&header(INET));
    request
        .encode()
        .push_table_bytes(table)
        .push_name_bytes(name.as_bytes())
        .push_type(LIMIT);
}

/// Lets an element lead to an object.
pub(super) fn push_reference(to: &mut Vec<u8>, limit: &Limit) {
    let name = [limit.name.as_bytes(), &[0]].concat();
    attribute(to, OBJREF, &name);
}

/// `nlattr`: length, type, and the value filled up to whole words.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Names and numbers: far below 64 KiB.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}
