//! What a function answered, and how it gets to who asked: whole, or piece by piece.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | an answer is too long | [`Delivered::TooLarge`]; what was written of it stays written |
//! | it breaks off | [`Delivered::Broken`]; likewise |
//! | an error is told behind it | [`Delivered::Trailed`]; likewise |
//! | nobody takes it any more | the rest is read and written to nobody |

use super::conversation::ERROR_TYPE;
use super::response::{ResponseHead, ResponseSink};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// The longest answer that is passed on whole, in bytes: 6 MiB and what JSON needs around it.
pub(super) const MAX_ANSWER: usize = 6 * 1024 * 1024 + 1024;

/// The longest that is passed on piece by piece.
pub(super) const MAX_STREAMED: usize = 20 * 1024 * 1024;

const ERROR_BODY: &str = "lambda-runtime-function-error-body";

/// How a function answered an event.
#[derive(Debug)]
pub(super) enum Answer {
    /// Whole.
    Response { content_type: String, body: Bytes },
    /// With an error, as JSON.
    Error(Bytes),
    /// An answer that was too long to take.
    TooLarge,
    /// It broke off before it had begun, of which this is known.
    Broken(String),
    /// It has begun to.
    Streamed(Streamed),
}

/// An answer that is on its way.
#[derive(Debug)]
pub(super) struct Streamed {
    content_type: String,
    /// What comes before the body.
    prelude: Bytes,
    body: Incoming,
    /// Told whether all of it was taken.
    taken: Option<oneshot::Sender<bool>>,
    /// The task of its connection, where it has one of its own.
    connection: Option<Connected>,
}

/// A connection, for as long as this lives.
#[derive(Debug)]
pub(super) struct Connected(pub(super) AbortHandle);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Streamed {
    /// One that a runtime posts, which waits until it hears whether all of it was taken.
    pub(super) fn of_runtime(
        content_type: String,
        body: Incoming,
        taken: oneshot::Sender<bool>,
    ) -> Self {
        Self {
            content_type,
            prelude: Bytes::new(),
            body,
            taken: Some(taken),
            connection: None,
        }
    }

    /// One of a server, over a connection that ends with it.
    pub(super) fn of_server(
        (content_type, prelude): (String, Bytes),
        body: Incoming,
        connection: Connected,
    ) -> Self {
        Self {
            content_type,
            prelude,
            body,
            taken: None,
            connection: Some(connection),
        }
    }
}

/// What came of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Delivered {
    /// It is there; what was written is not here.
    Whole { content_type: String, body: Bytes },
    /// The function's error, as JSON.
    Error(Bytes),
    /// The function's error that came behind a part of its answer.
    Trailed { kind: String, body: Bytes },
    /// It is longer than this.
    TooLarge(usize),
    /// It broke off.
    Broken(String),
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) struct Delivery<'a> {
    /// Where it is written to as it comes; nowhere where somebody waits for all of it.
    pub(super) sink: Option<&'a mut ResponseSink>,
    /// How it begins, but for its type.
    pub(super) head: ResponseHead,
}

impl Delivery<'_> {
    /// Whether it goes out piece by piece.
    pub(super) fn is_streamed(&self) -> bool {
        self.sink.is_some()
    }

    /// Brings an answer to who asked.
    pub(super) async fn deliver(&mut self, answer: Answer) -> Delivered {
        match answer {
            Answer::Response { content_type, body } => {
                self.begin(&content_type);
                let body = self.pass(body).await;
                Delivered::Whole { content_type, body }
            }
            Answer::Error(error) => Delivered::Error(error),
            Answer::TooLarge => Delivered::TooLarge(MAX_ANSWER),
            Answer::Broken(why) => Delivered::Broken(why),
            Answer::Streamed(streamed) => self.forward(streamed).await,
        }
    }

    fn begin(&mut self, content_type: &str) {
        if let Some(sink) = &mut self.sink {
            let content_type = content_type.to_owned();
            let head = self.head.clone();
            sink.begin(ResponseHead {
                content_type,
                ..head
            });
        }
    }

    /// Writes a piece where it goes out piece by piece, else gives it back.
    async fn pass(&mut self, piece: Bytes) -> Bytes {
        match &mut self.sink {
            Some(sink) => {
                // A caller that went away costs the function nothing.
                let _ = sink.write(piece).await;
                Bytes::new()
            }
            None => piece,
        }
    }

    /// Passes on what comes.
    async fn forward(&mut self, streamed: Streamed) -> Delivered {
        let Streamed {
            content_type,
            prelude,
            mut body,
            taken,
            connection,
        } = streamed;
        self.begin(&content_type);
        let most = if self.is_streamed() {
            MAX_STREAMED
        } else {
            MAX_ANSWER
        };
        let mut length = prelude.len();
        let mut kept = BytesMut::from(&self.pass(prelude).await[..]);
        let mut trailed = None;
        let delivered = loop {
            let frame = match body.frame().await {
                None => break None,
                Some(Err(error)) => break Some(Delivered::Broken(error.to_string())),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(piece) => {
                    length += piece.len();
                    if length > most {
                        break Some(Delivered::TooLarge(most));
                    }
                    kept.extend_from_slice(&self.pass(piece).await);
                }
                Err(frame) => trailed = frame.into_trailers().ok().and_then(|all| error_of(&all)),
            }
        };
        if let Some(taken) = taken {
            // A runtime that is gone needs no answer.
            let _ = taken.send(!matches!(delivered, Some(Delivered::TooLarge(_))));
        }
        drop(connection);
        match (delivered, trailed) {
            (Some(failed), _) => failed,
            (None, Some((kind, body))) => Delivered::Trailed { kind, body },
            (None, None) => Delivered::Whole {
                content_type,
                body: kept.freeze(),
            },
        }
    }
}

/// The error that trailers tell of: its type, and what is said of it.
fn error_of(trailers: &HeaderMap) -> Option<(String, Bytes)> {
    let text = |name| trailers.get(name).map(HeaderValue::as_bytes);
    let (kind, body) = (text(ERROR_TYPE), text(ERROR_BODY));
    if kind.is_none() && body.is_none() {
        return None;
    }
    let kind = kind.map_or("Unknown".into(), |kind| String::from_utf8_lossy(kind));
    let body = body.unwrap_or_default();
    // Runtimes encode it; one that does not is understood as well.
    let body = BASE64_STANDARD.decode(body).unwrap_or_else(|_| body.into());
    Some((kind.into_owned(), body.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_in_trailers() {
        let trailers = |all: &[(&'static str, &str)]| {
            let all = all.iter().map(|(name, value)| {
                let name = hyper::header::HeaderName::from_static(name);
                (name, value.parse().unwrap())
            });
            error_of(&all.collect())
        };
        let both = [(ERROR_TYPE, "Own.Kind"), (ERROR_BODY, "eyJhIjoxfQ==")];
        let found = trailers(&both).unwrap();
        assert_eq!((&*found.0, &found.1[..]), ("Own.Kind", &br#"{"a":1}"#[..]));
        let plain = trailers(&[(ERROR_BODY, r#"{"a":1}"#)]).unwrap();
        assert_eq!((&*plain.0, &plain.1[..]), ("Unknown", &br#"{"a":1}"#[..]));
        assert_eq!(trailers(&[(ERROR_TYPE, "K")]).unwrap().1, "");
        assert_eq!(trailers(&[("x-other", "K")]), None);
    }
}
