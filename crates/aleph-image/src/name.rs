//! What people call an image: names, digests and digest prefixes.

use crate::digest::Digest;
use crate::error::ImageError;
use crate::oci;
use crate::recipe::Recipe;

/// Fewer digits than this name nothing: too easily ambiguous.
const SHORTEST_PREFIX: usize = 8;
const LONGEST_NAME: usize = 128;

/// A reference to an image, as a user gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    Name(String),
    /// Lower-case hex digits, 8 to 64 of them.
    Prefix(String),
}

impl Reference {
    /// Reads what names an image here. A reference to a registry becomes its familiar form, and
    /// what could be a name as it is stays one.
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |why: &'static str| ImageError::BadReference {
            reference: text.to_owned(),
            why,
        };
        if let Some(hex) = text.strip_prefix("sha256:") {
            let hex = hex.to_ascii_lowercase();
            if is_prefix(&hex) {
                return Ok(Self::Prefix(hex));
            }
            return Err(bad("after sha256: there have to be 8 to 64 hex digits"));
        }
        let lower = text.to_ascii_lowercase();
        if is_prefix(&lower) {
            return Ok(Self::Prefix(lower));
        }
        match (check(text), familiar(text)) {
            (Err(why), None) => Err(bad(why)),
            (Err(_), Some(familiar)) => Ok(Self::Name(familiar)),
            (Ok(()), _) => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// The name that an image pulled as `text` has.
pub(crate) fn familiar(text: &str) -> Option<String> {
    text.parse()
        .ok()
        .map(|reference: oci::Reference| reference.to_string())
}

/// The file that a name is in the folder of names. The slash of a registry's references becomes
/// a plus, which no name has.
pub(crate) fn file_of(name: &str) -> String {
    name.replace('/', "+")
}

/// The name that a file in the folder of names stands for.
pub(crate) fn name_of(file: &str) -> Option<String> {
    let name = file.replace('+', "/");
    let known = check_name(&name).is_ok() || familiar(&name).is_some_and(|own| own == name);
    known.then_some(name)
}

/// Whether `text` can be the beginning of a digest.
pub(crate) fn is_prefix(text: &str) -> bool {
    (SHORTEST_PREFIX..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Checks that `name` can be an image's name, which is a file's name in the store too.
pub(crate) fn check_name(name: &str) -> Result<(), ImageError> {
    let refused = if name.starts_with("sha256:") || is_prefix(&name.to_ascii_lowercase()) {
        Err("it would read as a digest")
    } else {
        check(name)
    };
    refused.map_err(|why| ImageError::BadName {
        name: name.to_owned(),
        why,
    })
}

fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err("a name has 1 to 128 characters");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("a name begins with a letter or a digit");
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    if !name.chars().all(fits) {
        return Err("a name has letters, digits and . _ - : only");
    }
    Ok(())
}

/// The known names that `wanted` may have been meant to be.
pub(crate) fn near(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut near: Vec<String> = names
        .into_iter()
        .chain(Recipe::ALL.iter().map(ToString::to_string))
        .filter(|name| {
            name != wanted
                && (distance(wanted, name) <= 2
                    || (wanted.len() >= 3 && (name.contains(wanted) || wanted.contains(&**name))))
        })
        .collect();
    near.sort();
    near.dedup();
    near
}

/// The images of `digests` whose digests begin with `prefix`.
pub(crate) fn with_prefix<'a>(
    prefix: &str,
    digests: impl IntoIterator<Item = &'a Digest>,
) -> Vec<Digest> {
    digests
        .into_iter()
        .filter(|digest| digest.hex().starts_with(prefix))
        .copied()
        .collect()
}

/// How many letters have to be put in, left out or changed to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_told_apart() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, expected) in [
            ("busybox", Reference::Name("busybox".into())),
            ("deadbee", Reference::Name("deadbee".into())),
            ("DEADBEEF", Reference::Prefix("deadbeef".into())),
            (&hex, Reference::Prefix(hex.clone())),
            (&format!("sha256:{hex}"), Reference::Prefix(hex.clone())),
            ("alpine:3.20", Reference::Name("alpine:3.20".into())),
            ("docker.io/org/x", Reference::Name("org/x:latest".into())),
        ] {
            assert_eq!(Reference::parse(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "sha256:12",
            "sha256:zzzzzzzz",
            "../x",
            "a b",
            ".hidden",
            "a\0",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_never_reads_as_a_digest() {
        for name in ["deadbeef", "sha256:x", "", "-x", "a/b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("debian-12").unwrap();
    }

    #[test]
    fn every_name_has_a_file_of_its_own() {
        let digest = format!("a.b/c@sha256:{}", "0".repeat(64));
        for name in ["debian-12", "debian:12", "localhost:5000/x/y:1", &digest] {
            let file = file_of(name);
            assert!(!file.contains('/'));
            assert_eq!(name_of(&file).unwrap(), name);
        }
        for file in [".new", "a+b", "..", "+", "docker.io+x:1", "deadbeef"] {
            assert_eq!(name_of(file), None, "{file}");
        }
    }

    #[test]
    fn near_names_are_found() {
        assert_eq!(near("debain-12", []), ["debian-12"]);
        assert_eq!(near("busybx", ["busybox-2".to_owned()]), ["busybox"]);
        assert!(near("alpine", []).is_empty());
    }

    proptest! {
        #[test]
        fn a_valid_name_is_one_plain_path_component(name in "\\PC{0,20}") {
            if check_name(&name).is_ok() {
                let parts: Vec<_> = std::path::Path::new(&name).components().collect();
                prop_assert_eq!(parts.len(), 1);
                prop_assert!(matches!(parts[0], std::path::Component::Normal(_)));
            }
        }
    }
}
