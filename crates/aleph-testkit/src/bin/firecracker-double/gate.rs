//! Reading the bodies of requests as a certain version does: what a later one brought is unknown
//! to it, and said to be so at the place where its own parser stops.

use crate::version::Version;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor,
};
use std::fmt;

/// A field, and whether a version has it.
pub(crate) type Field = (&'static str, fn(Version) -> bool);

/// A request's body.
pub(crate) trait Body: DeserializeOwned {
    /// Its fields in the order of their declaration, where some came later than 1.10; else none.
    const FIELDS: &'static [Field] = &[];

    /// A value of an enumeration in it that the version does not have, and those that it has.
    fn too_new(&self, _version: Version) -> Option<(&'static str, &'static [&'static str])> {
        None
    }
}

/// Says of a field that each version has it.
pub(crate) fn always(_: Version) -> bool {
    true
}

/// Reads a body.
pub(crate) fn parse<T: Body>(text: &[u8], version: Version) -> Result<T, serde_json::Error> {
    let parsed = serde_json::from_slice::<T>(text);
    if let Some(unknown) = unknown_field(text, T::FIELDS, version) {
        let first = match &parsed {
            Ok(_) => true,
            Err(other) => (unknown.line(), unknown.column()) <= (other.line(), other.column()),
        };
        if first {
            return Err(unknown);
        }
    }
    let body = parsed?;
    if let Some((value, known)) = body.too_new(version) {
        return Err(unknown_value(text, value, known));
    }
    Ok(body)
}

fn unknown_field(text: &[u8], fields: &[Field], version: Version) -> Option<serde_json::Error> {
    if fields.iter().all(|(_, known)| known(version)) {
        return None;
    }
    let known = fields
        .iter()
        .filter(|(_, known)| known(version))
        .map(|(name, _)| *name);
    let known: &'static [&'static str] = Vec::leak(known.collect());
    let mut reader = serde_json::Deserializer::from_slice(text);
    let refused = reader.deserialize_map(Keys(known)).err()?;
    refused
        .to_string()
        .starts_with("unknown field")
        .then_some(refused)
}

/// The parser's place is where the value ends.
fn unknown_value(text: &[u8], value: &str, known: &[&str]) -> serde_json::Error {
    let quoted = format!("\"{value}\"");
    let text = String::from_utf8_lossy(text);
    let end = text.find(&quoted).map_or(0, |at| at + quoted.len());
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
    let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
    let known = match &known[..] {
        [one, other] => format!("{one} or {other}"),
        several => format!("one of {}", several.join(", ")),
    };
    serde_json::Error::custom(format!(
        "unknown variant `{value}`, expected {known} at line {line} column {column}"
    ))
}

/// Refuses keys that are not among these.
struct Keys(&'static [&'static str]);

impl<'de> Visitor<'de> for Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Key(self.0))?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("field identifier")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<(), E> {
        if self.0.contains(&key) {
            Ok(())
        } else {
            Err(E::unknown_field(key, self.0))
        }
    }
}
