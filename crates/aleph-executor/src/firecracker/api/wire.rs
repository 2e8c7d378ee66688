//! How single values are written in the API's JSON.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// For `skip_serializing_if`: what a version may not know is left out while it has no meaning.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
pub(super) const fn is_false(value: &bool) -> bool {
    !*value
}

/// Durations as whole milliseconds.
pub(super) mod milliseconds {
    use super::{Deserialize, Deserializer, Serializer};
    use serde::ser::Error;
    use std::time::Duration;

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let milliseconds = u64::try_from(duration.as_millis()).map_err(S::Error::custom)?;
        serializer.serialize_u64(milliseconds)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Hardware addresses as `02:00:00:00:00:01`.
pub(super) mod mac {
    use super::{Deserialize, Deserializer, Error, Serializer};
    use aleph_vm_networking::mac::Mac;

    pub(in super::super) fn serialize<S: Serializer>(
        mac: &Option<Mac>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match mac {
            Some(mac) => serializer.collect_str(mac),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Mac>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        parse(&text)
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no hardware address")))
    }

    fn parse(text: &str) -> Option<Mac> {
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next()?;
            let is_hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = is_hex.then(|| u8::from_str_radix(part, 16).ok())??;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

/// Numbers as `"0x2a"`; `"0b101010"` is read too.
pub(super) mod hexadecimal {
    use super::{Deserialize, Deserializer, Error, Serializer};
    use std::fmt::LowerHex;

    pub(in super::super) fn serialize<S: Serializer, N: LowerHex>(
        number: &N,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:#x}"))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>, N: TryFrom<u64>>(
        deserializer: D,
    ) -> Result<N, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
            (Some(digits), _) => (digits, 16),
            (_, Some(digits)) => (digits, 2),
            _ => ("", 2),
        };
        let number = Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, radix).ok());
        number
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| {
                D::Error::custom(format!(
                    "{text:?} is no number that begins with 0x or 0b and fits its register"
                ))
            })
    }
}
