//! How much a guest may send and receive in a second.
//!
//! Amounts are decimal, as those of networks are: `10M` is 10,000,000 bits or packets a second. In
//! one word for both ways they are written `100M`, or `sent=10M,received=1G`, from the guest's view.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// How much may go through a network in a second; as much as can where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkLimits {
    /// What the guest sends.
    #[serde(default, skip_serializing_if = "RateLimit::is_none")]
    pub sent: RateLimit,
    /// What the guest receives.
    #[serde(default, skip_serializing_if = "RateLimit::is_none")]
    pub received: RateLimit,
}

/// How much may go one way. What is above it is dropped. A guest that was quiet may send or receive
/// a second's bits, or a tenth of a second's packets, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bits of IP packets, from 8k to 100G.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<Rate>,
    /// Packets, from 1 to 100M. What a guest's kernel hands over at once to be cut into packets
    /// later counts as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<Rate>,
}

/// What the kernel can count, with its own numbers of 64 bits, and what lets one packet through.
const BITS: RangeInclusive<u64> = 8_000..=100_000_000_000;
const PACKETS: RangeInclusive<u64> = 1..=100_000_000;

impl NetworkLimits {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The lower of both, each way.
    #[must_use]
    pub fn within(self, most: Self) -> Self {
        Self {
            sent: self.sent.within(most.sent),
            received: self.received.within(most.received),
        }
    }

    /// Sets the bits of both ways, or of those that are said.
    #[must_use]
    pub fn with_bandwidth(mut self, bits: BothWays) -> Self {
        let BothWays { sent, received } = bits;
        self.sent.bits_per_second = sent.or(self.sent.bits_per_second);
        self.received.bits_per_second = received.or(self.received.bits_per_second);
        self
    }

    /// Sets the packets of both ways, or of those that are said.
    #[must_use]
    pub fn with_packet_rate(mut self, packets: BothWays) -> Self {
        let BothWays { sent, received } = packets;
        self.sent.packets_per_second = sent.or(self.sent.packets_per_second);
        self.received.packets_per_second = received.or(self.received.packets_per_second);
        self
    }

    /// Checks that the kernel can count so.
    ///
    /// # Errors
    /// The first that it cannot.
    pub fn check(&self) -> Result<(), InvalidRate> {
        self.sent.check().and_then(|()| self.received.check())
    }
}

impl RateLimit {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn within(self, most: Self) -> Self {
        let lower = |asked: Option<Rate>, most: Option<Rate>| match (asked, most) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            _ => asked.or(most),
        };
        Self {
            bits_per_second: lower(self.bits_per_second, most.bits_per_second),
            packets_per_second: lower(self.packets_per_second, most.packets_per_second),
        }
    }

    fn check(self) -> Result<(), InvalidRate> {
        match (self.bits_per_second, self.packets_per_second) {
            (Some(bits), _) if !BITS.contains(&bits.0) => Err(InvalidRate::Bits(bits)),
            (_, Some(packets)) if !PACKETS.contains(&packets.0) => {
                Err(InvalidRate::Packets(packets))
            }
            _ => Ok(()),
        }
    }
}

/// So many in a second. It is written with the largest unit that leaves a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Rate(pub u64);

const UNITS: [(u64, &str); 3] = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(size, _): &&(u64, &str)| self.0 > 0 && self.0.is_multiple_of(*size);
        match UNITS.iter().find(fits) {
            Some((size, unit)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let wrong = || InvalidRate::Text(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let of_unit = |(_, name): &&(u64, &str)| name.eq_ignore_ascii_case(unit);
        let size = match UNITS.iter().find(of_unit) {
            Some((size, _)) => *size,
            None if unit.is_empty() => 1,
            None => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(size).map(Self).ok_or_else(wrong)
    }
}

/// Reads a number, or text such as `100M`.
impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Amount;
        impl serde::de::Visitor<'_> for Amount {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number in a second, or text such as \"100M\"")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Rate, E> {
                Ok(Rate(number))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Rate, E> {
                let number = u64::try_from(number);
                number.map(Rate).map_err(|_| E::custom("less than nothing"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Amount)
    }
}

/// The rates of both ways in one word: `100M`, `sent=10M`, `sent=10M,received=1G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BothWays {
    /// What the guest sends.
    pub sent: Option<Rate>,
    /// What the guest receives.
    pub received: Option<Rate>,
}

impl fmt::Display for BothWays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sent, self.received) {
            (Some(sent), Some(received)) if sent == received => write!(f, "{sent}"),
            (Some(sent), Some(received)) => write!(f, "sent={sent},received={received}"),
            (Some(sent), None) => write!(f, "sent={sent}"),
            (None, Some(received)) => write!(f, "received={received}"),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for BothWays {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        if !text.contains('=') {
            let both = Some(text.parse()?);
            let (sent, received) = (both, both);
            return Ok(Self { sent, received });
        }
        let mut ways = Self::default();
        for part in text.split(',') {
            let way = match part.split_once('=') {
                Some(("sent", rate)) if ways.sent.is_none() => (&mut ways.sent, rate),
                Some(("received", rate)) if ways.received.is_none() => (&mut ways.received, rate),
                _ => return Err(InvalidRate::Text(text.to_owned())),
            };
            *way.0 = Some(way.1.parse()?);
        }
        Ok(ways)
    }
}

/// A rate that no network has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRate {
    /// Not of the form.
    #[error("{0:?} is no rate")]
    Text(String),
    /// Out of range.
    #[error("{0} bits in a second are out of the range from 8k to 100G")]
    Bits(Rate),
    /// Out of range.
    #[error("{0} packets in a second are out of the range from 1 to 100M")]
    Packets(Rate),
}

impl InvalidRate {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Text(_) => "Write 100M for both ways, or sent=10M,received=1G.".into(),
            Self::Bits(_) | Self::Packets(_) => "Leave it out for no limit.".into(),
        }
    }
}

#[cfg(feature = "schema")]
mod schema {
    use super::Rate;
    use utoipa::openapi::{ObjectBuilder, OneOfBuilder, RefOr, Schema, Type};

    /// As it is read: a number, or text. It is always written as a number.
    impl utoipa::PartialSchema for Rate {
        fn schema() -> RefOr<Schema> {
            let number = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(1))
                .maximum(Some(100_000_000_000_u64));
            let text = ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some("^[1-9][0-9]{0,7}[kM]$"));
            OneOfBuilder::new()
                .description(Some("So many in a second, or text such as 10k or 100M."))
                .item(number)
                .item(text)
                .into()
        }
    }

    impl utoipa::ToSchema for Rate {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_written() {
        for (text, rate, written) in [
            ("100M", 100_000_000, "100M"),
            ("1g", 1_000_000_000, "1G"),
            ("1500K", 1_500_000, "1500k"),
            ("1000", 1000, "1k"),
            ("7", 7, "7"),
        ] {
            assert_eq!(text.parse(), Ok(Rate(rate)));
            assert_eq!(Rate(rate).to_string(), written);
        }
        for text in ["", "M", "1.5M", "-1", "+1", "1Mbit", "1 M", "99999999999G"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn both_ways_fit_into_one_word() {
        for text in ["100M", "sent=10M", "received=1G", "sent=10M,received=1G"] {
            let ways: BothWays = text.parse().unwrap();
            assert_eq!(ways.to_string(), text);
        }
        for text in [
            "",
            "sent",
            "sent=",
            "sent=1,sent=2",
            "up=1M",
            "sent=1M,",
            "1M,2M",
        ] {
            assert!(text.parse::<BothWays>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_lower_limit_holds() {
        let limit = |bits: Option<u64>, packets: Option<u64>| RateLimit {
            bits_per_second: bits.map(Rate),
            packets_per_second: packets.map(Rate),
        };
        let (job, node) = (limit(Some(5), None), limit(Some(9), Some(2)));
        assert_eq!(job.within(node), limit(Some(5), Some(2)));
        assert_eq!(node.within(job), limit(Some(5), Some(2)));
        assert_eq!(job.within(limit(None, None)), job);
    }

    #[test]
    fn what_the_kernel_cannot_count_is_refused() {
        let check = |json: &str| serde_json::from_str::<NetworkLimits>(json).unwrap().check();
        assert_eq!(check(r#"{"sent": {"bits_per_second": "8k"}}"#), Ok(()));
        let zero = check(r#"{"sent": {"packets_per_second": 0}}"#);
        assert_eq!(zero, Err(InvalidRate::Packets(Rate(0))));
        let fast = check(r#"{"received": {"bits_per_second": "101G"}}"#);
        assert_eq!(fast, Err(InvalidRate::Bits(Rate(101_000_000_000))));
        assert!(serde_json::from_str::<NetworkLimits>(r#"{"sent": {"bits": 1}}"#).is_err());
    }
}
