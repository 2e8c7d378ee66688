//! The rules in the kernel.
//!
//! The tables come as text through `nft -f`, once for a node; what VMs add and take away goes over
//! nfnetlink in transactions of our own, at some 10 microseconds for each element.

mod limits;
mod resolved;

pub use resolved::Resolved;

use crate::NetworkError;
use crate::ruleset::{Base, DropReason, Element, Limit, Set, Value};
use crate::transaction::Transactions;
use netlink_bindings::nftables::{self, Nfgenmsg};
use netlink_bindings::traits::NetlinkChained;
use netlink_bindings::utils::Pusher;
use netlink_socket2::NetlinkSocket;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// A node's rules, in the network namespace of the thread that made this.
pub struct Rules {
    socket: NetlinkSocket,
    transactions: Transactions,
    base: Base,
}

/// What one transaction changes, in this order.
#[derive(Debug, Default)]
pub struct Change {
    /// All sets are emptied first, and all limits removed.
    pub flush: bool,
    /// Elements that go. Each must be there.
    pub remove: Vec<Element>,
    /// Elements that come. One that is there already must be the same.
    pub add: Vec<Element>,
}

const INET: u8 = 1;
const ARP: u8 = 3;
/// Elements of one message: an attribute holds 64 KiB at most.
const AT_ONCE: usize = 256;

impl Rules {
    /// Rules that are not in the kernel yet.
    #[must_use]
    pub fn new(base: Base) -> Self {
        Self {
            socket: NetlinkSocket::new(),
            transactions: Transactions::default(),
            base,
        }
    }

    /// Whether the kernel has these tables, of this very text, and all of their rules.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn are_there(&mut self) -> Result<bool, NetworkError> {
        let marker = self.base.marker();
        for (family, text) in [(INET, self.base.inet()), (ARP, self.base.arp())] {
            let there = self
                .has_chain(family, &marker)
                .and_then(|there| Ok(there && self.rules(family)? == rules_of(&text)));
            if !there.map_err(NetworkError::at("ask for the firewall's tables"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_chain(&mut self, family: u8, name: &str) -> io::Result<bool> {
        let mut request = nftables::Request::new().op_getchain_do(&header(family));
        request
            .encode()
            .push_table_bytes(self.base.table.as_bytes())
            .push_name_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        match reply.recv_one() {
            Ok(_) => Ok(true),
            Err(error) => match error.as_io_error().raw_os_error() {
                Some(libc::ENOENT) => Ok(false),
                _ => Err(error.into()),
            },
        }
    }

    /// How many there are: `nft flush table` and `nft flush chain` leave chains without rules.
    fn rules(&mut self, family: u8) -> io::Result<usize> {
        let mut request = nftables::Request::new().op_getrule_dump(&header(family));
        request
            .encode()
            .push_table_bytes(self.base.table.as_bytes());
        let mut replies = self.socket.request(&request)?;
        let mut count = 0;
        while let Some(reply) = replies.recv() {
            reply?;
            count += 1;
        }
        Ok(count)
    }

    /// Writes the tables, without any element.
    ///
    /// # Errors
    /// Where `nft` is missing or the kernel refuses.
    pub fn install(&self) -> Result<(), NetworkError> {
        nft(&self.base.text()).map_err(NetworkError::at("write the firewall's tables"))
    }

    /// Removes the tables.
    ///
    /// # Errors
    /// Where `nft` is missing or the kernel refuses.
    pub fn uninstall(&self) -> Result<(), NetworkError> {
        let table = &self.base.table;
        let text: String = ["inet", "arp"]
            .map(|family| format!("table {family} {table}\ndelete table {family} {table}\n"))
            .concat();
        nft(&text).map_err(NetworkError::at("remove the firewall's tables"))
    }

    /// Makes a change in one transaction: all of it, or nothing.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` where the tables, or an element to remove, are not there.
    pub fn change(&mut self, change: &Change) -> io::Result<()> {
        let groups = |elements: &[Element]| -> Vec<(Set, Vec<Element>)> {
            let mut by_set: HashMap<Set, Vec<Element>> = HashMap::new();
            for element in elements {
                by_set.entry(element.set).or_default().push(element.clone());
            }
            let mut sorted: Vec<_> = by_set.into_iter().collect();
            sorted.sort_by_key(|(set, _)| *set);
            sorted
        };
        let (remove, add) = (groups(&change.remove), groups(&change.add));
        let new: Vec<&Limit> = limits::of(&change.add).collect();
        let mut old: Vec<String> = { limits::of(&change.remove) }
            .map(|limit| limit.name.clone())
            .collect();
        if change.flush {
            old.extend(self.objects()?);
        }
        let messages = 2
            + Set::ALL.len()
            + new.len()
            + old.len()
            + [&remove, &add]
                .into_iter()
                .flatten()
                .map(|(_, elements)| elements.len().div_ceil(AT_ONCE))
                .sum::<usize>();
        let sequence = self
            .socket
            .reserve_seq(u32::try_from(messages).map_err(io::Error::other)?);
        let mut batch = nftables::Chained::new(sequence);
        batch.request().op_batch_begin_do(&bounds());
        let table = self.base.table.as_bytes();
        if change.flush {
            for set in Set::ALL {
                batch
                    .request()
                    .op_delsetelem_do(&header(family(set)))
                    .encode()
                    .push_table_bytes(table)
                    .push_set_bytes(set.name().as_bytes());
            }
        }
        for (set, elements) in &remove {
            for part in elements.chunks(AT_ONCE) {
                let mut request = batch.request().op_delsetelem_do(&header(family(*set)));
                push(request.encode(), table, *set, part);
            }
        }
        for name in old {
            limits::push_delete(&mut batch, table, &name);
        }
        for limit in new {
            limits::push_new(&mut batch, table, limit);
        }
        for (set, elements) in &add {
            for part in elements.chunks(AT_ONCE) {
                let mut request = batch
                    .request()
                    .set_create()
                    .op_newsetelem_do(&header(family(*set)));
                push(request.encode(), table, *set, part);
            }
        }
        batch.request().op_batch_end_do(&bounds());
        let batch = batch.finalize();
        self.transactions.send(batch.payload())
    }

    /// Packets that were dropped for each TAP and reason.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drops(&mut self) -> io::Result<HashMap<String, Vec<(DropReason, u64)>>> {
        let mut drops: HashMap<String, Vec<(DropReason, u64)>> = HashMap::new();
        for reason in DropReason::ALL {
            let mut request = nftables::Request::new().op_getsetelem_dump(&header(INET));
            request
                .encode()
                .push_table_bytes(self.base.table.as_bytes())
                .push_set_bytes(reason.set().as_bytes());
            let mut replies = self.socket.request(&request)?;
            while let Some(reply) = replies.recv() {
                let (_, attributes) = reply?;
                let Ok(elements) = attributes.get_elements() else {
                    continue;
                };
                for element in elements.flatten() {
                    let nftables::SetelemListElemAttrs::Elem(element) = element;
                    if let Some((tap, packets)) = counted(&element) {
                        drops.entry(tap).or_default().push((reason, packets));
                    }
                }
            }
        }
        Ok(drops)
    }

    /// Forgets what was dropped for these TAPs.
    ///
    /// A transaction that fails costs the kernel some 10 ms, which is why nothing is deleted here
    /// that was not seen before.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_drops(&mut self, taps: &HashSet<String>) -> io::Result<()> {
        let drops = self.drops()?;
        let gone = drops.iter().filter(|(tap, _)| taps.contains(*tap));
        let mut by_reason: BTreeMap<DropReason, Vec<&str>> = BTreeMap::new();
        for (tap, reasons) in gone {
            for (reason, _) in reasons {
                by_reason.entry(*reason).or_default().push(tap);
            }
        }
        if by_reason.is_empty() {
            return Ok(());
        }
        let table = self.base.table.as_bytes();
        let sequence = self.socket.reserve_seq(64);
        let mut batch = nftables::Chained::new(sequence);
        batch.request().op_batch_begin_do(&bounds());
        for (reason, taps) in by_reason {
            for part in taps.chunks(AT_ONCE) {
                let mut request = batch.request().op_delsetelem_do(&header(INET));
                let mut list = request
                    .encode()
                    .push_table_bytes(table)
                    .push_set_bytes(reason.set().as_bytes())
                    .nested_elements();
                for tap in part {
                    let mut key = tap.as_bytes().to_vec();
                    key.resize(16, 0);
                    let element = list.nested_elem().nested_key().push_value(&key);
                    list = element.end_nested().end_nested();
                }
            }
        }
        batch.request().op_batch_end_do(&bounds());
        let batch = batch.finalize();
        self.transactions.send(batch.payload())
    }
}

/// How many rules a table's text has: each is a line of a chain.
fn rules_of(text: &str) -> usize {
    let others = ["chain ", "set ", "map ", "type ", "}"];
    let lines = text.lines().map(str::trim_start);
    lines
        .filter(|line| !line.is_empty() && !others.iter().any(|other| line.starts_with(other)))
        .count()
}

/// The subsystem's number in a batch's bounds.
pub(crate) const NFTABLES: u16 = 10;

fn counted(element: &nftables::IterableSetelemAttrs<'_>) -> Option<(String, u64)> {
    let key = element.get_key().ok()?.get_value().ok()?;
    let end = key.iter().position(|b| *b == 0).unwrap_or(key.len());
    let tap = String::from_utf8(key[..end].to_vec()).ok()?;
    let expression = element.get_expr().ok()?;
    match expression.get_data().ok()? {
        nftables::ExprOps::Counter(counter) => Some((tap, counter.get_packets().ok()?)),
        _ => None,
    }
}

fn family(set: Set) -> u8 {
    if set.is_arp() { ARP } else { INET }
}

fn bounds() -> Nfgenmsg {
    let mut bounds = Nfgenmsg::new();
    bounds.set_res_id(NFTABLES);
    bounds
}

fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

fn push<P: Pusher>(
    to: nftables::PushSetelemListAttrs<P>,
    table: &[u8],
    set: Set,
    elements: &[Element],
) {
    let mut list = to
        .push_table_bytes(table)
        .push_set_bytes(set.name().as_bytes())
        .nested_elements();
    for element in elements {
        let mut item = list
            .nested_elem()
            .nested_key()
            .push_value(&element.key)
            .end_nested();
        if let Some(last) = &element.last {
            push_last(item.as_vec_mut(), last);
        }
        item = match &element.value {
            None => item,
            Some(Value::Bytes(bytes)) => item.nested_data().push_value(bytes).end_nested(),
            Some(Value::Accept) => {
                let verdict = item.nested_data().nested_verdict().push_code(ACCEPT);
                verdict.end_nested().end_nested()
            }
            Some(Value::Jump(chain)) => push_way(item, JUMP, chain),
            Some(Value::Goto(chain)) => push_way(item, GOTO, chain),
            Some(Value::Limit(limit)) => {
                limits::push_reference(item.as_vec_mut(), limit);
                item
            }
        };
        list = item.end_nested();
    }
}

/// `NFTA_SET_ELEM_KEY_END` is 10 in linux/netfilter/nf_tables.h; the bindings leave a gap in that
/// enumeration out, and write 9.
fn push_last(to: &mut Vec<u8>, last: &[u8]) {
    const KEY_END: u16 = 10 | NESTED;
    const DATA_VALUE: u16 = 1;
    const NESTED: u16 = 0x8000;
    // Keys are of whole words, so nothing is to be filled up.
    let length = u16::try_from(last.len()).unwrap_or(0);
    to.extend((length + 8).to_ne_bytes());
    to.extend(KEY_END.to_ne_bytes());
    to.extend((length + 4).to_ne_bytes());
    to.extend(DATA_VALUE.to_ne_bytes());
    to.extend(last);
}

/// `NF_ACCEPT`, and `NFT_JUMP` and `NFT_GOTO`, -3 and -4, as they are sent.
const ACCEPT: u32 = 1;
const JUMP: u32 = 0xffff_fffd;
const GOTO: u32 = 0xffff_fffc;

/// A verdict that leads to a chain.
fn push_way<P: Pusher>(
    item: nftables::PushSetelemAttrs<P>,
    code: u32,
    chain: &str,
) -> nftables::PushSetelemAttrs<P> {
    item.nested_data()
        .nested_verdict()
        .push_code(code)
        .push_chain_bytes(chain.as_bytes())
        .end_nested()
        .end_nested()
}

/// Runs `nft -f -`.
pub(crate) fn nft(text: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("nft: {error}")))?;
    // Where it ends early, what it says is worth more than the broken pipe.
    let wrote = child
        .stdin
        .take()
        .map_or(Ok(()), |mut to| to.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        return wrote;
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let refused = ["Operation not permitted", "you must be root"];
    if refused.iter().any(|words| said.contains(words)) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let unsupported = ["not supported", "No such file or directory"];
    if unsupported.iter().any(|words| said.contains(words)) {
        tracing::debug!(said, "nft");
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Err(io::Error::other(format!("nft: {said}")))
}
