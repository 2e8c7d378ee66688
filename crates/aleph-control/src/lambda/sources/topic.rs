//! What a mapping listens to, as its only topic says.
//!
//! ```text
//! SUBJECT                      a subject of core NATS, such as orders.* or orders.>
//! jetstream:STREAM             a stream
//! jetstream:STREAM/SUBJECT     what of a stream has this subject
//! ```
//! A client's model has no field for the kind of a source, and lets any text be a topic.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest topic.
const MOST_TOPIC: usize = 249;
/// What names of streams are preceded by.
const STREAM: &str = "jetstream:";

/// What a mapping listens to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Topic {
    Subject(String),
    Stream {
        stream: String,
        subject: Option<String>,
    },
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(subject) => f.write_str(subject),
            Self::Stream {
                stream,
                subject: None,
            } => write!(f, "{STREAM}{stream}"),
            Self::Stream {
                stream,
                subject: Some(subject),
            } => write!(f, "{STREAM}{stream}/{subject}"),
        }
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> Self {
        topic.to_string()
    }
}

impl TryFrom<String> for Topic {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl Topic {
    /// # Errors
    /// Says what it has to be.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MOST_TOPIC {
            return Err(format!("a topic has at most {MOST_TOPIC} characters"));
        }
        let Some(rest) = text.strip_prefix(STREAM) else {
            return subject(text).map(Self::Subject);
        };
        let (stream, filter) = match rest.split_once('/') {
            Some((stream, filter)) => (stream, Some(subject(filter)?)),
            None => (rest, None),
        };
        let bad = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
        if stream.is_empty() || stream.contains(bad) {
            return Err(format!("{stream:?} is no name of a stream"));
        }
        Ok(Self::Stream {
            stream: stream.to_owned(),
            subject: filter,
        })
    }
}

/// A subject, which may have wildcards (<https://docs.nats.io/nats-concepts/subjects>).
fn subject(text: &str) -> Result<String, String> {
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        let last = tokens.peek().is_none();
        let good = match token {
            ">" => last,
            "*" => true,
            token => {
                let bad = |c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>';
                !token.is_empty() && !token.contains(bad)
            }
        };
        if !good {
            return Err(format!(
                "{text:?} is no subject of NATS, such as orders.new, orders.* or orders.>"
            ));
        }
    }
    // These are the server's, and those of answers to others.
    if text.starts_with(['$', '_']) {
        return Err(format!("{text:?} is a subject of NATS's own"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_subjects_or_streams() {
        for text in [
            "a",
            "orders.*.new",
            "orders.>",
            ">",
            "jetstream:S",
            "jetstream:S-1/a.>",
        ] {
            assert_eq!(Topic::parse(text).unwrap().to_string(), text);
        }
        let long = "x".repeat(250);
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "a.>.b",
            "a*",
            "a.b>",
            "$SYS.>",
            "_INBOX.>",
            "jetstream:",
            "jetstream:a.b",
            "jetstream:S/",
            "jetstream:S/a..b",
            "jetstream:S/$JS.API.>",
            &long,
        ] {
            assert!(Topic::parse(text).is_err(), "{text}");
        }
    }
}
