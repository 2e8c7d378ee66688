//! Amounts of memory and disk.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An amount in binary megabytes (2²⁰ bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Default)]
#[serde(transparent)]
pub struct MiB(pub u32);

/// As it is read: a number of MiB, or text. It is always written as a number.
#[cfg(feature = "schema")]
impl utoipa::PartialSchema for MiB {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::{ObjectBuilder, OneOfBuilder, Type};
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(0))
            .maximum(Some(u32::MAX));
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]{1,9}[mMgG]$"));
        OneOfBuilder::new()
            .description(Some("MiB as a number, or text such as 512m or 2g."))
            .item(number)
            .item(text)
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for MiB {}

/// Reads a number of MiB, or text such as `512m` or `2g`.
impl<'de> Deserialize<'de> for MiB {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl serde::de::Visitor<'_> for Amount {
            type Value = MiB;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of MiB, or a size such as \"512m\" or \"2g\"")
            }

            fn visit_u64<E: serde::de::Error>(self, mib: u64) -> Result<MiB, E> {
                u32::try_from(mib)
                    .map(MiB)
                    .map_err(|_| E::custom(format!("{mib} MiB is more than any machine has")))
            }

            fn visit_i64<E: serde::de::Error>(self, mib: i64) -> Result<MiB, E> {
                u64::try_from(mib)
                    .map_err(|_| E::custom(format!("{mib} is less than nothing")))
                    .and_then(|mib| self.visit_u64(mib))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MiB, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

impl MiB {
    /// The amount in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * 1024 * 1024
    }

    /// The whole MiB in so many bytes, rounded down; at most [`u32::MAX`] of them.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Self {
        Self(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Not a whole number with an optional unit.
    #[error("{0:?} is not a size: write a number with m or g, such as 512m or 2g")]
    NotASize(String),
    /// Not a whole number of MiB.
    #[error("{0:?} is not a whole number of MiB, the smallest step")]
    TooFine(String),
    /// More than the type can hold.
    #[error("{0:?} is more than any machine has")]
    TooLarge(String),
}

/// Reads docker's form: a number and a unit (`b`, `k`, `m`, `g`, `t`; binary, either case, with
/// an optional `i` and `b` after it). A bare number is bytes, as docker has it.
///
/// ```
/// # use aleph_types::MiB;
/// assert_eq!("512m".parse(), Ok(MiB(512)));
/// assert_eq!("2GiB".parse(), Ok(MiB(2048)));
/// assert!("2.5g".parse::<MiB>().is_err());
/// ```
impl FromStr for MiB {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(ParseSizeError::NotASize(text.to_owned()));
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(ParseSizeError::NotASize(text.to_owned())),
        };
        let bytes = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .ok_or_else(|| ParseSizeError::TooLarge(text.to_owned()))?;
        if bytes % (1 << 20) != 0 {
            return Err(ParseSizeError::TooFine(text.to_owned()));
        }
        u32::try_from(bytes >> 20)
            .map(Self)
            .map_err(|_| ParseSizeError::TooLarge(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, mib) in [
            ("64m", 64),
            ("64M", 64),
            ("1g", 1024),
            ("1048576", 1),
            ("2048k", 2),
            ("1T", 1 << 20),
        ] {
            assert_eq!(text.parse(), Ok(MiB(mib)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        for text in ["", "m", "-5m", "5x", "1.5g", "5 m"] {
            assert!(
                matches!(text.parse::<MiB>(), Err(ParseSizeError::NotASize(_))),
                "{text}"
            );
        }
        for text in ["1", "512k", "1000000"] {
            assert!(
                matches!(text.parse::<MiB>(), Err(ParseSizeError::TooFine(_))),
                "{text}"
            );
        }
        for text in ["99999999999999999999m", "9999999t", "5000t"] {
            assert!(
                matches!(text.parse::<MiB>(), Err(ParseSizeError::TooLarge(_))),
                "{text}"
            );
        }
    }
}
