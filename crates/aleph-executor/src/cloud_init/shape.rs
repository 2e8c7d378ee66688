//! YAML as far as its structure: what keys there are, and what is a list.
//!
//! A user's document goes to the guest as it was written. Reading it into values and writing them
//! again would change it: `0644` is a number in YAML.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A node of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing.
    Null,
    /// Any scalar, as text; bytes and numbers need not be as they were written.
    Text(String),
    /// A sequence.
    List(Vec<Shape>),
    /// A mapping; keys that are no scalars have an empty name.
    Map(Vec<(String, Shape)>),
}

/// Reads one document, within the parser's limits on depth, nodes and aliases; else line and column
/// of what is wrong, from 1, and 0 where they are not known.
pub(super) fn read(text: &str) -> Result<Shape, (u64, u64)> {
    serde_saphyr::from_str(text).map_err(|error| {
        error
            .location()
            .map_or((0, 0), |at| (at.line(), at.column()))
    })
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

macro_rules! scalars {
    ($($visit:ident: $kind:ty),*) => {
        $(fn $visit<E>(self, value: $kind) -> Result<Shape, E> {
            Ok(Shape::Text(value.to_string()))
        })*
    };
}

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    scalars! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128,
        visit_f64: f64, visit_str: &str
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Shape, E> {
        Ok(Shape::Text(String::new()))
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        Shape::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = seq.next_element()? {
            list.push(entry);
        }
        Ok(Shape::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Shape, Shape>()? {
            let name = match key {
                Shape::Text(name) => name,
                Shape::Null | Shape::List(_) | Shape::Map(_) => String::new(),
            };
            entries.push((name, value));
        }
        Ok(Shape::Map(entries))
    }
}
