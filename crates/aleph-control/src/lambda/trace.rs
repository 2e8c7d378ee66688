//! To which trace an invocation belongs.
//!
//! Two forms say the same: `traceparent` of W3C (<https://www.w3.org/TR/trace-context/>) and
//! `X-Amzn-Trace-Id` of X-Ray
//! (<https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html>), which runtimes know.
//!
//! ```text
//! traceparent: 00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01
//! X-Amzn-Trace-Id: Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1
//! ```
//! A request that names a trace keeps it, and its caller's span stays the parent of the
//! function's: nothing is exported here, so a span of our own in between would be one that nobody
//! ever finds. Of a request that has both headers `traceparent` counts; one that cannot be read
//! counts for nothing. A request without gets a new trace, which is sampled where the function's
//! `TracingConfig` is `Active`. `tracestate` has no place in the form of X-Ray: a function behind
//! a URL or of a CloudEvent finds it where its sender put it.

use super::code::{hex, unhex};
use super::random;
use aleph_types::Timestamp;
use axum::http::HeaderMap;
use std::fmt;

/// The header of W3C.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The header of X-Ray.
pub(crate) const XRAY: &str = "x-amzn-trace-id";

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trace {
    root: [u8; 16],
    /// The span that led here.
    parent: [u8; 8],
    sampled: Sampled,
}

/// Whether somebody records the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sampled {
    Yes,
    No,
    /// Nobody has decided.
    Open,
}

impl Trace {
    /// A trace that begins now.
    pub(crate) fn new(now: Timestamp) -> Self {
        let mut root = random::<16>();
        // X-Ray takes the first part for the time of the beginning.
        let seconds = u32::try_from(now.as_second()).unwrap_or(0);
        root[..4].copy_from_slice(&seconds.to_be_bytes());
        Self {
            root,
            parent: random(),
            sampled: Sampled::Open,
        }
    }

    /// The trace that a request names, or a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        text(TRACEPARENT)
            .and_then(Self::of_traceparent)
            .or_else(|| text(XRAY).and_then(Self::of_xray))
            .unwrap_or_else(|| Self::new(Timestamp::now()))
    }

    /// Reads `traceparent`. Later versions may have more at the end.
    pub(crate) fn of_traceparent(text: &str) -> Option<Self> {
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        let mut parts = text.split('-');
        let mut bytes = |length: usize| {
            let part = parts.next().filter(|part| part.len() == 2 * length)?;
            unhex(part).filter(|_| lower)
        };
        let (version, root, parent, flags) = (bytes(1)?, bytes(16)?, bytes(8)?, bytes(1)?);
        let ended = parts.next().is_none();
        if version == [0xff] || version == [0] && !ended {
            return None;
        }
        let sampled = match flags[0] & 1 {
            0 => Sampled::No,
            _ => Sampled::Yes,
        };
        Self::some(root.try_into().ok()?, parent.try_into().ok()?, sampled)
    }

    /// Reads `X-Amzn-Trace-Id`. Fields come in any order, and unknown ones are left out.
    pub(crate) fn of_xray(text: &str) -> Option<Self> {
        let (mut root, mut parent, mut sampled) = (None, None, Sampled::Open);
        for field in text.split(';').filter(|field| !field.trim().is_empty()) {
            match field.trim().split_once('=')? {
                ("Root", id) => root = Some(xray_root(id)?),
                ("Parent", id) => parent = Some(unhex(id)?.try_into().ok()?),
                ("Sampled", "1") => sampled = Sampled::Yes,
                ("Sampled", "0") => sampled = Sampled::No,
                _ => {}
            }
        }
        Self::some(root?, parent.unwrap_or_else(random), sampled)
    }

    /// No id is all zeros.
    fn some(root: [u8; 16], parent: [u8; 8], sampled: Sampled) -> Option<Self> {
        let some = root != [0; 16] && parent != [0; 8];
        some.then_some(Self {
            root,
            parent,
            sampled,
        })
    }

    /// The same where somebody has decided whether it is recorded.
    pub(crate) fn decided(self, active: bool) -> Self {
        let sampled = match (self.sampled, active) {
            (Sampled::Open, true) => Sampled::Yes,
            (Sampled::Open, false) => Sampled::No,
            (decided, _) => decided,
        };
        Self { sampled, ..self }
    }

    /// The trace's id, as W3C writes it.
    pub(crate) fn id(&self) -> String {
        hex(&self.root)
    }

    /// What an answer says of it: the caller knows its own span.
    pub(crate) fn answer(&self) -> String {
        let root = hex(&self.root);
        let sampled = u8::from(self.sampled == Sampled::Yes);
        format!("Root=1-{}-{};Sampled={sampled}", &root[..8], &root[8..])
    }

    /// As `traceparent`.
    #[cfg(test)]
    fn traceparent(&self) -> String {
        let flags = u8::from(self.sampled == Sampled::Yes);
        format!("00-{}-{}-{flags:02x}", hex(&self.root), hex(&self.parent))
    }
}

/// As `X-Amzn-Trace-Id` and `Lambda-Runtime-Trace-Id`.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, parent) = (hex(&self.root), hex(&self.parent));
        let (time, rest) = root.split_at(8);
        write!(f, "Root=1-{time}-{rest};Parent={parent}")?;
        match self.sampled {
            Sampled::Yes => f.write_str(";Sampled=1"),
            Sampled::No => f.write_str(";Sampled=0"),
            Sampled::Open => Ok(()),
        }
    }
}

/// Reads `1-5759e988-bd862e3fe1be46a994272793`.
fn xray_root(id: &str) -> Option<[u8; 16]> {
    let (time, rest) = id.strip_prefix("1-")?.split_once('-')?;
    let whole = time.len() == 8 && rest.len() == 24;
    unhex(&format!("{time}{rest}"))
        .filter(|_| whole)?
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const W3C: &str = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";
    const AMZN: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";

    #[test]
    fn both_forms_say_the_same_and_nothing_is_lost_between_them() {
        let trace = Trace::of_traceparent(W3C).unwrap();
        assert_eq!(trace.to_string(), AMZN);
        assert_eq!(Trace::of_xray(AMZN).unwrap().traceparent(), W3C);
        assert_eq!(trace.id(), "5759e988bd862e3fe1be46a994272793");
        for _ in 0..100 {
            let new = Trace::new(Timestamp::now()).decided(random::<1>()[0] & 1 == 0);
            let xray = Trace::of_xray(&new.to_string()).unwrap();
            assert_eq!(Trace::of_traceparent(&xray.traceparent()), Some(new));
        }
    }

    #[test]
    fn fields_of_x_ray_come_in_any_order_and_some_are_missing() {
        let said = "Sampled=0;Self=1-67891234-12456789abcdef012345678a;\
                    Root=1-5759e988-bd862e3fe1be46a994272793;Lineage=a:1|b:2";
        let trace = Trace::of_xray(said).unwrap();
        assert_eq!(
            trace.answer(),
            "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0"
        );
        // Whoever names no parent gets one, and what is open stays so until it is decided.
        let open = Trace::of_xray("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=?").unwrap();
        assert!(!open.to_string().contains("Sampled"), "{open}");
        assert!(open.decided(true).to_string().ends_with(";Sampled=1"));
        assert!(trace.decided(true).to_string().ends_with(";Sampled=0"));
    }

    #[test]
    fn what_cannot_be_read_counts_for_nothing() {
        for wrong in [
            "",
            "00",
            "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8",
            "00-5759E988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
            "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01-more",
            "ff-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
            "00-00000000000000000000000000000000-53995c3f42cd8ad8-01",
            "00-5759e988bd862e3fe1be46a994272793-0000000000000000-01",
            "00-5759e988bd862e3fe1be46a99427279x-53995c3f42cd8ad8-01",
        ] {
            assert_eq!(Trace::of_traceparent(wrong), None, "{wrong}");
        }
        let later = "01-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-00-more";
        assert!(Trace::of_traceparent(later).is_some());
        for wrong in [
            "",
            "Root",
            "Parent=53995c3f42cd8ad8",
            "Root=1-5759e988-bd862e",
            "Root=2-5759e988-bd862e3fe1be46a994272793",
            "Root=1-5759e988bd-862e3fe1be46a994272793",
        ] {
            assert_eq!(Trace::of_xray(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn traceparent_comes_first_and_a_request_without_gets_a_trace() {
        let mut headers = HeaderMap::new();
        let new = Trace::of(&headers);
        assert_ne!(new, Trace::of(&headers));
        let other = "Root=1-00000001-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8";
        headers.insert(XRAY, other.parse().unwrap());
        assert!(Trace::of(&headers).to_string().starts_with(other));
        headers.insert(TRACEPARENT, W3C.parse().unwrap());
        assert_eq!(Trace::of(&headers).to_string(), AMZN);
        headers.insert(TRACEPARENT, "nothing".parse().unwrap());
        assert!(Trace::of(&headers).to_string().starts_with(other));
    }
}
