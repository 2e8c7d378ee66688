//! Where a guest may open connections to.
//!
//! A target of a list is written as one word: a network (`192.0.2.0/24`, `2001:db8::/32`), an
//! address (`192.0.2.7`, `2001:db8::7`), a name (`example.com`), or all names below one (`*.example.com`). What looks
//! like an address is never a name: a last label of digits alone is no domain (RFC 3696, 2). Nor is
//! a single word, which is rather a mistake (`none`).

use super::{InvalidNetwork, Ipv4Network};
use crate::Ipv6Network;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where a guest may open connections to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// To everywhere, but neither to the host nor to other VMs.
    #[default]
    Allow,
    /// To nowhere. Ports that are forwarded to it still answer.
    Deny,
    /// To these alone: networks in CIDR notation, addresses, and domain names. With a name on the
    /// list, the guest is told of no names but those.
    Only(Vec<EgressTarget>),
}

impl Egress {
    pub(super) fn is_allow(&self) -> bool {
        *self == Self::Allow
    }

    /// The IPv4 networks of a list.
    pub fn networks(&self) -> impl Iterator<Item = Ipv4Network> {
        self.targets().iter().filter_map(|target| match target {
            EgressTarget::Network(network) => Some(*network),
            _ => None,
        })
    }

    /// The IPv6 networks of a list.
    pub fn networks6(&self) -> impl Iterator<Item = Ipv6Network> {
        self.targets().iter().filter_map(|target| match target {
            EgressTarget::Network6(network) => Some(*network),
            _ => None,
        })
    }

    /// The names of a list.
    pub fn domains(&self) -> impl Iterator<Item = &DomainPattern> {
        self.targets().iter().filter_map(|target| match target {
            EgressTarget::Domain(pattern) => Some(pattern),
            _ => None,
        })
    }

    fn targets(&self) -> &[EgressTarget] {
        match self {
            Self::Only(targets) => targets,
            Self::Allow | Self::Deny => &[],
        }
    }
}

/// One target of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EgressTarget {
    /// A network, or one address.
    Network(Ipv4Network),
    /// The same in IPv6.
    Network6(Ipv6Network),
    /// What a name leads to, for as long as its records say.
    Domain(DomainPattern),
}

impl fmt::Display for EgressTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Network6(network) => network.fmt(f),
            Self::Domain(pattern) => pattern.fmt(f),
        }
    }
}

impl FromStr for EgressTarget {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        if text.contains(':') {
            text.parse().map(Self::Network6)
        } else if text.contains('/') || ends_in_number(text) {
            text.parse().map(Self::Network)
        } else {
            text.parse().map(Self::Domain)
        }
    }
}

/// A domain name, or all names below one. It is in lower case, without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DomainPattern {
    name: String,
    is_below: bool,
}

/// Characters of a name without its last dot (RFC 1035, 2.3.4), and of one label.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

impl DomainPattern {
    /// Whether a name is meant, which is in lower case and without its last dot.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.is_below {
            return name == self.name;
        }
        let before = name.strip_suffix(&self.name);
        before.is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_below { "*." } else { "" })?;
        f.write_str(&self.name)
    }
}

impl FromStr for DomainPattern {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (name, is_below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_good = name.len() <= LONGEST_NAME && name.split('.').all(is_label);
        let is_word = !is_below && !name.contains('.');
        if !is_good || is_word || ends_in_number(name) {
            return Err(InvalidNetwork::Target(text.to_owned()));
        }
        Ok(Self {
            name: name.to_ascii_lowercase(),
            is_below,
        })
    }
}

/// Those that the DNS forwarder takes: of letters, digits, `-` and `_`.
fn is_label(label: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=LONGEST_LABEL).contains(&label.len())
        && label.bytes().all(is_good)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn ends_in_number(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(feature = "schema")]
mod schema {
    use super::EgressTarget;
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    use utoipa::openapi::{RefOr, Schema};

    impl utoipa::PartialSchema for EgressTarget {
        fn schema() -> RefOr<Schema> {
            ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some(
                    "a network in CIDR notation, an address, a domain name, or all names below \
                     one: `192.0.2.0/24`, `2001:db8::/32`, `192.0.2.7`, `example.com`, \
                     `*.example.com`",
                ))
                .into()
        }
    }

    impl utoipa::ToSchema for EgressTarget {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<EgressTarget, InvalidNetwork> {
        text.parse()
    }

    #[test]
    fn targets_are_read_and_written() {
        for (text, written) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8::7", "2001:db8::7/128"),
            ("example.com", "example.com"),
            ("*.Example.COM.", "*.example.com"),
            ("*.test", "*.test"),
            ("_acme.x-1.example", "_acme.x-1.example"),
            ("1.2.3.4.example", "1.2.3.4.example"),
        ] {
            let read = target(text).unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(target(written).unwrap(), read);
        }
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert!(target(&longest).is_ok());
        assert!(target(&format!("{longest}b")).is_err());
        assert!(target(&format!("{}.example", "a".repeat(64))).is_err());
    }

    #[test]
    fn wrong_targets_are_refused() {
        for text in [
            "",
            "none",
            "localhost.",
            ".",
            "*",
            "*.",
            "*.*.example",
            "a.*.example",
            "*example",
            "a..b",
            ".a",
            "-a.b",
            "a-.b",
            "a b",
            "exämple.com",
            "http:",
            "example.com:443",
            "example.com/24",
            "a/b",
        ] {
            assert!(target(text).is_err(), "{text:?}");
        }
        // What was to be an address is not taken for a name.
        for text in [
            "192.0.2.256",
            "192.0.2",
            "192.0.2.1.",
            "7",
            "*.7",
            "10.0.0.1/16",
            "::1/64",
        ] {
            assert!(target(text).is_err(), "{text:?}");
        }
        assert_eq!(
            target("192.0.2.256"),
            Err(InvalidNetwork::Network("192.0.2.256".into()))
        );
    }

    #[test]
    fn a_pattern_is_of_one_name_or_of_all_below() {
        let matches = |pattern: &str, name| pattern.parse::<DomainPattern>().unwrap().matches(name);
        assert!(matches("example.com", "example.com"));
        assert!(!matches("example.com", "www.example.com"));
        assert!(!matches("example.com", "xample.com"));
        for name in ["www.example.com", "a.b.example.com"] {
            assert!(matches("*.example.com", name));
        }
        for name in [
            "example.com",
            "badexample.com",
            ".example.com",
            "example.com.evil",
            "",
        ] {
            assert!(!matches("*.example.com", name), "{name}");
        }
    }
}
