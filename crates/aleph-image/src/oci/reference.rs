//! References to images in registries, as docker writes and reads them.

use crate::digest::Digest;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The registry of references that name none.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub keeps the images that have one word for a name.
const LIBRARY: &str = "library/";
const LATEST: &str = "latest";
/// What the distribution specification allows.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`: what to pull, and from where.
///
/// Docker's rules hold: the first part is a registry if it has a dot or a colon or is
/// `localhost`; without one, the registry is `docker.io`, where names of one part are in
/// `library/`; without tag and digest, the tag is `latest`. A digest wins over a tag.
///
/// It prints in the familiar form, which is the name of the image in a
/// [`Store`](crate::Store): `debian:12`, `ghcr.io/org/app@sha256:...`.
///
/// ```
/// # use aleph_image::oci::Reference;
/// let reference: Reference = "docker.io/library/debian:12".parse().unwrap();
/// assert_eq!(reference.to_string(), "debian:12");
/// assert_eq!((reference.registry(), reference.repository()), ("docker.io", "library/debian"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    which: Which,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Which {
    Tag(String),
    Digest(Digest),
}

/// Text that is no reference to an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct ParseReferenceError {
    pub(crate) why: &'static str,
}

impl Reference {
    /// The registry's host, with its port if it has one: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` where a digest says which image is meant.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.which {
            Which::Tag(tag) => Some(tag),
            Which::Digest(_) => None,
        }
    }

    /// The digest of the manifest or index that is meant, where one was given.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match &self.which {
            Which::Tag(_) => None,
            Which::Digest(digest) => Some(*digest),
        }
    }

    /// The tag or digest, as the address of its manifest ends.
    pub(crate) fn manifest(&self) -> String {
        match &self.which {
            Which::Tag(tag) => tag.clone(),
            Which::Digest(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repository = &self.repository;
        // Without its registry, docker.io/a.b/c would read as c of a registry a.b.
        let misread = repository
            .split_once('/')
            .is_some_and(|(first, _)| is_registry(first));
        if self.registry != DOCKER_HUB || misread {
            write!(f, "{}/{repository}", self.registry)?;
        } else {
            let short = repository.strip_prefix(LIBRARY);
            let short = short.filter(|rest| !rest.contains('/'));
            f.write_str(short.unwrap_or(repository))?;
        }
        match &self.which {
            Which::Tag(tag) => write!(f, ":{tag}"),
            Which::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        let wrong = |why| ParseReferenceError { why };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let lower_case = !digest.bytes().any(|b| b.is_ascii_uppercase());
                let digest = digest.parse().ok().filter(|_| lower_case);
                let digest = digest.ok_or_else(|| {
                    wrong("after @ there has to be sha256: and 64 hex digits in lower case")
                })?;
                (rest, Some(digest))
            }
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_registry(first) => (Some(first), rest),
            _ => (None, rest),
        };
        // Registries are behind us: a colon can only begin a tag.
        let (name, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((name, tag)) => (name, Some(tag)),
        };
        let registry = match registry {
            None | Some("index.docker.io") => DOCKER_HUB.to_owned(),
            Some(registry) if is_host(registry) => registry.to_owned(),
            Some(_) => return Err(wrong("what is before the first / is no host")),
        };
        if !name.split('/').all(is_component) {
            return Err(wrong(
                "a name has lower-case letters and digits, and . _ - or / between them",
            ));
        }
        let repository = if registry == DOCKER_HUB && !name.contains('/') {
            format!("{LIBRARY}{name}")
        } else {
            name.to_owned()
        };
        if repository.len() > LONGEST_REPOSITORY {
            return Err(wrong("a name has at most 255 characters"));
        }
        if !tag.is_none_or(is_tag) {
            return Err(wrong(
                "a tag has letters, digits and _ . - , and at most 128 of them",
            ));
        }
        let which = match (digest, tag) {
            (Some(digest), _) => Which::Digest(digest),
            (None, tag) => Which::Tag(tag.unwrap_or(LATEST).to_owned()),
        };
        Ok(Self {
            registry,
            repository,
            which,
        })
    }
}

/// Whether the first part of a reference is a registry and no part of a name.
fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// A host name or address, with or without a port.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| {
        (1..=5).contains(&port.len())
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let is_name = |host: &str| {
        host.len() <= 253
            && host.split('.').all(|label| {
                let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                (1..=63).contains(&label.len())
                    && label.bytes().all(fits)
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    };
    let is_v6 = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        inner.is_some_and(|h| h.parse::<Ipv6Addr>().is_ok())
    };
    port.is_none_or(is_port) && (is_name(host) || is_v6(host))
}

/// A host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if !host.ends_with(']') => name,
        _ => host,
    }
}

/// Whether a host, with or without a port, is this machine by its very name.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// `[a-z0-9]+` and between such either `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| letter(*first) && letter(*last))
        && bytes.split(|b| letter(*b)).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= LONGEST_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, registry, repository, familiar) in [
            ("debian", "docker.io", "library/debian", "debian:latest"),
            ("debian:12", "docker.io", "library/debian", "debian:12"),
            (
                "docker.io/library/debian:12",
                "docker.io",
                "library/debian",
                "debian:12",
            ),
            (
                "index.docker.io/debian",
                "docker.io",
                "library/debian",
                "debian:latest",
            ),
            (
                "user/app:V1.0_x-y",
                "docker.io",
                "user/app",
                "user/app:V1.0_x-y",
            ),
            ("localhost/x", "localhost", "x", "localhost/x:latest"),
            (
                "localhost:5000/x",
                "localhost:5000",
                "x",
                "localhost:5000/x:latest",
            ),
            (
                "ghcr.io/org/a.b_c__d--e",
                "ghcr.io",
                "org/a.b_c__d--e",
                "ghcr.io/org/a.b_c__d--e:latest",
            ),
            (
                "docker.io/a.b/c",
                "docker.io",
                "a.b/c",
                "docker.io/a.b/c:latest",
            ),
            (
                "docker.io/library/a/b",
                "docker.io",
                "library/a/b",
                "library/a/b:latest",
            ),
            ("[::1]:5000/a/b:t", "[::1]:5000", "a/b", "[::1]:5000/a/b:t"),
            ("127.0.0.1/x", "127.0.0.1", "x", "127.0.0.1/x:latest"),
            (
                &format!("debian:12@sha256:{hex}"),
                "docker.io",
                "library/debian",
                &format!("debian@sha256:{hex}"),
            ),
        ] {
            let read: Reference = text.parse().unwrap();
            assert_eq!(
                (read.registry(), read.repository()),
                (registry, repository),
                "{text}"
            );
            assert_eq!(read.to_string(), familiar);
            assert_eq!(familiar.parse::<Reference>().unwrap(), read);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "x".repeat(256);
        for text in [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "a@sha256:12",
            "Debian",
            "a//b",
            "a/",
            "/a",
            "a b",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "a:b:c",
            "a:-t",
            "x/../y",
            "a.b:0/c",
            "a.b:99999/c",
            "https://a.b/c",
            "a:5000",
            ".a/b",
            "a_b.c/d",
            "[::1/x",
            "a.b/c/:t",
            &long,
            &format!("a:{}", &long[..129]),
            "ä",
            "a\0",
            "a.b/",
        ] {
            // `a:5000` is a tag, as docker has it.
            assert_eq!(
                text.parse::<Reference>().is_ok(),
                text == "a:5000",
                "{text:?}"
            );
        }
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host) && is_host(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.example.org",
            "128.0.0.1:5000",
            "[::2]:5000",
        ] {
            assert!(!is_loopback(host) && is_host(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(
            text in "([a-zA-Z0-9.:-]{1,12}/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,8})?"
        ) {
            if let Ok(read) = text.parse::<Reference>() {
                prop_assert_eq!(read.to_string().parse::<Reference>(), Ok(read.clone()));
                prop_assert!(!read.repository().contains(".."));
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Reference>();
        }
    }
}
