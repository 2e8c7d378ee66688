//! References as parts of a path, and queries.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::Write;

/// All but what RFC 3986 calls unreserved.
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An image's reference is several parts of a path, as it stands.
const PARTS: &AsciiSet = &PART.remove(b'/').remove(b':').remove(b'@');

/// A reference to a job as one part of a path.
pub(super) fn part(text: &str) -> String {
    match text {
        // Everybody between here and the node would take these for folders.
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        text => utf8_percent_encode(text, PART).to_string(),
    }
}

/// A reference to an image as the end of a path.
pub(super) fn parts(text: &str) -> String {
    utf8_percent_encode(text, PARTS).to_string()
}

/// A query, from its first pair on.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(String);

impl Query {
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let mark = if self.0.is_empty() { '?' } else { '&' };
        let value = utf8_percent_encode(value, PART);
        // Writing to a string does not fail.
        let _ = write!(self.0, "{mark}{name}={value}");
        self
    }

    pub(super) fn with_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub(super) fn flag(self, name: &str, on: bool) -> Self {
        if on { self.with(name, "true") } else { self }
    }
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_writes_stays_in_its_place() {
        assert_eq!(part("web-1_a.b"), "web-1_a.b");
        assert_eq!(part("a/../b?x#y"), "a%2F..%2Fb%3Fx%23y");
        assert_eq!(part(".."), "%2E%2E");
        assert_eq!(parts("host:5000/a/b@sha256:0"), "host:5000/a/b@sha256:0");
        let query = Query::default()
            .with("path", "/a b&c")
            .flag("force", true)
            .flag("all", false)
            .with_some("tail", None);
        assert_eq!(query.to_string(), "?path=%2Fa%20b%26c&force=true");
    }
}
