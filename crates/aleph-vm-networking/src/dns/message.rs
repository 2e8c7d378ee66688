//! What a guest asks, and what it is told: pure.

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Bytes that a guest may send in one message.
pub(super) const LARGEST_QUERY: usize = 4096;

/// For how long a guest may keep an answer of the node's own: far shorter than an address rests
/// before its next owner.
const PRIVATE_TTL: u32 = 5;

/// Addresses that fit with the longest name into 512 bytes (RFC 1035, 4.2.1).
const MOST_ADDRESSES: usize = 14;

/// Aliases that are followed.
const LONGEST_CHAIN: usize = 16;

/// What a guest sent.
#[derive(Debug)]
pub(super) enum Received {
    Question(Question),
    /// It gets this answer, whatever it was.
    Refused(Vec<u8>),
    /// It gets none.
    Nothing,
}

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    id: u16,
    recursion_desired: bool,
    edns: bool,
    query: Query,
    /// In lower case without the last dot; `None` where it has other characters than hosts have.
    pub(super) name: Option<String>,
}

/// What a resolver answered to a question.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    /// It has no answer, and another resolver may have one.
    pub(super) is_failure: bool,
    /// The addresses that the name leads to.
    pub(super) addresses: Vec<(IpAddr, Duration)>,
}

impl Received {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let &[a, b, flags, _, 0..=255, 0..=255, ..] = bytes else {
            return Self::Nothing;
        };
        if bytes.len() < 12 || flags & 0x80 != 0 {
            return Self::Nothing;
        }
        let bare = |code| Self::Refused(bare(u16::from_be_bytes([a, b]), flags, code));
        if flags & 0x78 != 0 {
            return bare(ResponseCode::NotImp);
        }
        // Exactly one question, and records at most in the additional section.
        if bytes[4..10] != [0, 1, 0, 0, 0, 0] {
            return bare(ResponseCode::FormErr);
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return bare(ResponseCode::FormErr);
        };
        let Some(query) = message.queries.into_iter().next() else {
            return bare(ResponseCode::FormErr);
        };
        let is_transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
        if query.query_class != DNSClass::IN || is_transfer {
            return bare(ResponseCode::Refused);
        }
        Self::Question(Question {
            id: message.metadata.id,
            recursion_desired: message.metadata.recursion_desired,
            edns: message.edns.is_some(),
            name: plain(&query.name),
            query,
        })
    }
}

impl Question {
    /// The node's own answer: addresses, where they are asked for.
    pub(super) fn addresses(&self, addresses: &[Ipv4Addr]) -> Vec<u8> {
        let asked = matches!(self.query.query_type, RecordType::A | RecordType::ANY);
        let addresses = addresses.iter().filter(|_| asked).take(MOST_ADDRESSES);
        let records = addresses.map(|address| {
            let data = RData::A(A(*address));
            Record::from_rdata(self.query.name.clone(), PRIVATE_TTL, data)
        });
        self.told(ResponseCode::NoError, records.collect())
    }

    /// The answer that there is no such name.
    pub(super) fn no_such_name(&self) -> Vec<u8> {
        self.told(ResponseCode::NXDomain, Vec::new())
    }

    /// The answer that it may not be asked.
    pub(super) fn refusal(&self) -> Vec<u8> {
        self.told(ResponseCode::Refused, Vec::new())
    }

    /// The answer that no resolver answers.
    pub(super) fn failure(&self) -> Vec<u8> {
        self.told(ResponseCode::ServFail, Vec::new())
    }

    fn told(&self, code: ResponseCode, answers: Vec<Record>) -> Vec<u8> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        message.answers = answers;
        if self.edns {
            message.set_edns(Edns::new());
        }
        message
            .to_vec()
            .unwrap_or_else(|_| bare(self.id, 0, ResponseCode::ServFail))
    }

    /// The reply of a resolver that was asked under this ID; `None` where it is not one.
    pub(super) fn reply(&self, id: u16, mut bytes: Vec<u8>) -> Option<Reply> {
        let message = Message::from_vec(&bytes).ok()?;
        let is_reply = bytes[2] & 0x80 != 0 && message.metadata.op_code == OpCode::Query;
        if message.metadata.id != id || !is_reply {
            return None;
        }
        let code = message.metadata.response_code;
        let fits = match message.queries.as_slice() {
            [query] => {
                query.name == self.query.name
                    && query.query_type == self.query.query_type
                    && query.query_class == self.query.query_class
            }
            // One that could not read it does not repeat it.
            [] => code != ResponseCode::NoError && message.answers.is_empty(),
            _ => false,
        };
        if !fits {
            return None;
        }
        let is_failure = matches!(
            code,
            ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
        );
        let addresses = addresses(&self.query.name, &message.answers);
        bytes.get_mut(..2)?.copy_from_slice(&self.id.to_be_bytes());
        Some(Reply {
            bytes,
            is_failure,
            addresses,
        })
    }
}

/// A header alone.
fn bare(id: u16, flags: u8, code: ResponseCode) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    // The operation and RD are repeated.
    bytes[2] = 0x80 | (flags & 0x79);
    bytes[3] = 0x80 | code.low();
    bytes
}

fn plain(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !label.iter().all(is_plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

/// What a name leads to, over its aliases. An address holds for as long as the whole way to it.
fn addresses(name: &Name, answers: &[Record]) -> Vec<(IpAddr, Duration)> {
    let (mut name, mut least) = (name, u32::MAX);
    for _ in 0..=LONGEST_CHAIN {
        let here = || answers.iter().filter(|record| record.name == *name);
        let found: Vec<_> = here()
            .filter_map(|record| match record.data {
                RData::A(A(address)) => Some((IpAddr::V4(address), record.ttl)),
                RData::AAAA(AAAA(address)) => Some((IpAddr::V6(address), record.ttl)),
                _ => None,
            })
            .map(|(address, ttl)| (address, seconds(ttl.min(least))))
            .collect();
        if !found.is_empty() {
            return found;
        }
        let alias = here().find_map(|record| match &record.data {
            RData::CNAME(to) => Some((&to.0, record.ttl)),
            _ => None,
        });
        let Some((to, ttl)) = alias else {
            break;
        };
        (name, least) = (to, least.min(ttl));
    }
    Vec::new()
}

/// Above 31 bits it counts as none (RFC 2181, 8).
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > i32::MAX.unsigned_abs() {
        0
    } else {
        ttl.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::CNAME;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn asked(text: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, hickory_proto::op::MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), kind));
        message.to_vec().unwrap()
    }

    fn question(text: &str) -> Question {
        match Received::read(&asked(text, RecordType::A)) {
            Received::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn code(received: &Received) -> ResponseCode {
        let Received::Refused(bytes) = received else {
            panic!("{received:?}");
        };
        assert_eq!((&bytes[..2], bytes[2] & 0x80), (&[0, 7][..], 0x80));
        Message::from_vec(bytes).unwrap().metadata.response_code
    }

    #[test]
    fn what_is_no_question_is_refused_or_gets_nothing() {
        let good = asked("web.internal.", RecordType::A);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Received::read(&bytes)
        };
        assert!(matches!(Received::read(&good[..11]), Received::Nothing));
        assert!(matches!(with(2, 0x81), Received::Nothing));
        assert_eq!(code(&with(2, 0x29)), ResponseCode::NotImp);
        assert_eq!(code(&with(5, 2)), ResponseCode::FormErr);
        assert_eq!(code(&with(5, 0)), ResponseCode::FormErr);
        assert_eq!(code(&with(7, 1)), ResponseCode::FormErr);
        assert_eq!(code(&with(12, 0xc0)), ResponseCode::FormErr);
        assert_eq!(code(&Received::read(&good[..20])), ResponseCode::FormErr);
        // CHAOS, which servers tell their version in.
        assert_eq!(code(&with(good.len() - 1, 3)), ResponseCode::Refused);
        let transfer = Received::read(&asked("example.org.", RecordType::AXFR));
        assert_eq!(code(&transfer), ResponseCode::Refused);
    }

    #[test]
    fn names_are_in_lower_case_and_of_hosts_alone() {
        assert_eq!(
            question("WeB.Internal.").name.as_deref(),
            Some("web.internal")
        );
        assert_eq!(question(".").name, None);
        // A dot within a label would make it another name.
        let mut bytes = asked("aXb.example.", RecordType::A);
        bytes[14] = b'.';
        let Received::Question(question) = Received::read(&bytes) else {
            panic!();
        };
        assert_eq!(question.name, None);
    }

    #[test]
    fn a_reply_fits_its_question() {
        let question = question("example.org.");
        let reply = |change: &dyn Fn(&mut Message)| {
            let mut message = Message::response(99, OpCode::Query);
            message.add_query(question.query.clone());
            change(&mut message);
            question.reply(99, message.to_vec().unwrap())
        };
        let good = reply(&|_| {}).unwrap();
        assert_eq!((&good.bytes[..2], good.is_failure), (&[0, 7][..], false));
        assert!(reply(&|m| m.metadata.id = 98).is_none());
        assert!(reply(&|m| m.queries[0].name = name("example.com.")).is_none());
        assert!(reply(&|m| m.queries[0].query_type = RecordType::AAAA).is_none());
        assert!(reply(&|m| m.queries.clear()).is_none());
        assert!(
            reply(&|m| m.metadata.message_type = hickory_proto::op::MessageType::Query).is_none()
        );
        let refused = reply(&|m| m.metadata.response_code = ResponseCode::Refused);
        assert!(refused.unwrap().is_failure);
    }

    #[test]
    fn addresses_are_those_behind_the_aliases() {
        let a = |at: &str, ttl, last| {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
            Record::from_rdata(name(at), ttl, data)
        };
        let alias = |at: &str, ttl, to: &str| {
            Record::from_rdata(name(at), ttl, RData::CNAME(CNAME(name(to))))
        };
        let answers = [
            a("c.example.", 300, 1),
            a("C.example.", 10, 2),
            alias("a.example.", 60, "B.example."),
            alias("b.example.", 900, "c.example."),
            a("unasked.example.", 300, 3),
            alias("loop.example.", 1, "loop.example."),
            a("for-ever.example.", u32::MAX, 4),
        ];
        let of = |at: &str| -> Vec<(u8, u64)> {
            let found = addresses(&name(at), &answers);
            found
                .iter()
                .map(|(ip, ttl)| match ip {
                    IpAddr::V4(ip) => (ip.octets()[3], ttl.as_secs()),
                    IpAddr::V6(_) => panic!("{ip}"),
                })
                .collect()
        };
        assert_eq!(of("a.example."), [(1, 60), (2, 10)]);
        assert_eq!(of("loop.example."), []);
        assert_eq!(of("nothing.example."), []);
        assert_eq!(of("for-ever.example."), [(4, 0)]);
    }

    #[test]
    fn the_nodes_own_answers_fit_the_smallest_message() {
        let long = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "b".repeat(61));
        let question = question(&long);
        let many = vec![Ipv4Addr::LOCALHOST; 100];
        let bytes = question.addresses(&many);
        assert!(bytes.len() <= 512, "{}", bytes.len());
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 14);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Received::read(&bytes);
            let _ = question("example.org.").reply(7, bytes);
        }
    }
}
