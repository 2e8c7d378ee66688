//! A response on its way out, as it comes.
//!
//! ```text
//! who runs the function                     who asked
//!   ResponseSink ── the head, once ──────▶ ResponseStream::head
//!                ── pieces, as many ─────▶ ResponseStream::next
//! Completed      ────────────────────────  (what came of it, once it is over)
//! ```
//! The two are made by [`channel`]. A sink holds at most [`PIECES`] pieces that nobody has taken;
//! whoever writes more waits, and so do the guest's connection and the function itself. A stream
//! that is dropped is a caller that went away: the rest is written to nobody, and the function runs
//! to its end.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | the function fails before its response begins | no head; the error is in [`Completed`](super::Completed) |
//! | it fails within its response | what came, then the end; the error is in `Completed` |
//! | the caller takes too long | the function's time is over; its clone is destroyed |
//! | the caller goes away | nothing: the function runs to its end |

use super::invocation::{Temperature, Timings};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How many pieces wait for the caller.
const PIECES: usize = 2;

/// The type of a response that has an [`HttpPrelude`](super::HttpPrelude) before its body.
pub const HTTP_INTEGRATION: &str = "application/vnd.awslambda.http-integration-response";

/// The type of a response where nobody says otherwise.
pub(super) const JSON: &str = "application/json";

/// How a response begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The version that runs.
    pub version: String,
    /// The type that the runtime gave it.
    pub content_type: String,
    /// What took the event.
    pub temperature: Temperature,
    /// Where the time went until now.
    pub timings: Timings,
}

impl ResponseHead {
    /// Whether status and headers come before the body, as a prelude.
    #[must_use]
    pub fn has_prelude(&self) -> bool {
        self.content_type == HTTP_INTEGRATION
    }
}

/// Where a response goes.
#[derive(Debug)]
pub struct ResponseSink {
    head: Option<oneshot::Sender<ResponseHead>>,
    pieces: mpsc::Sender<Bytes>,
}

/// Where it comes out.
#[derive(Debug)]
pub struct ResponseStream {
    head: Option<oneshot::Receiver<ResponseHead>>,
    pieces: mpsc::Receiver<Bytes>,
}

/// A way for one response.
#[must_use]
pub fn channel() -> (ResponseSink, ResponseStream) {
    let (head, began) = oneshot::channel();
    let (pieces, came) = mpsc::channel(PIECES);
    let sink = ResponseSink {
        head: Some(head),
        pieces,
    };
    let stream = ResponseStream {
        head: Some(began),
        pieces: came,
    };
    (sink, stream)
}

impl ResponseSink {
    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.head.is_none()
    }

    /// Says how it begins. Only the first head counts.
    pub fn begin(&mut self, head: ResponseHead) {
        if let Some(began) = self.head.take() {
            // Whoever asked may be gone.
            let _ = began.send(head);
        }
    }

    /// Writes a piece, once there is room for it; whether somebody takes it.
    pub async fn write(&self, piece: Bytes) -> bool {
        piece.is_empty() || self.pieces.send(piece).await.is_ok()
    }
}

impl ResponseStream {
    /// How it begins; `None` where it is over without, or was told before.
    pub async fn head(&mut self) -> Option<ResponseHead> {
        let head = self.head.as_mut()?.await.ok();
        self.head = None;
        head
    }

    /// The next piece, which is never empty; `None` at the end, whatever it is.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    fn head(content_type: &str) -> ResponseHead {
        ResponseHead {
            version: "1".into(),
            content_type: content_type.into(),
            temperature: Temperature::Hot,
            timings: Timings::default(),
        }
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_and_then_it_ends() {
        let (mut sink, mut stream) = channel();
        sink.begin(head(HTTP_INTEGRATION));
        sink.begin(head(JSON));
        assert!(sink.write(Bytes::new()).await && sink.write("a".into()).await);
        drop(sink);
        assert!(stream.head().await.is_some_and(|head| head.has_prelude()));
        assert_eq!(stream.head().await, None);
        assert_eq!(stream.next().await.as_deref(), Some(&b"a"[..]));
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test]
    async fn one_without_a_head_ends_at_once() {
        let (sink, mut stream) = channel();
        drop(sink);
        assert_eq!((stream.head().await, stream.next().await), (None, None));
    }

    #[tokio::test]
    async fn whoever_writes_waits_for_who_reads_until_that_one_is_gone() {
        let (sink, mut stream) = channel();
        for _ in 0..PIECES {
            assert!(sink.write("x".into()).await);
        }
        let mut more = Box::pin(sink.write("y".into()));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(more.as_mut().poll(&mut context), Poll::Pending);
        stream.next().await;
        assert_eq!(more.as_mut().poll(&mut context), Poll::Ready(true));
        drop((more, stream));
        assert!(!sink.write("z".into()).await);
    }
}
