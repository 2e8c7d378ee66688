//! An answer of a URL in the mode `RESPONSE_STREAM`, as its function writes it.
//!
//! What begins with a prelude has status and headers of its own; anything else is passed on as it
//! is, with the type that the runtime gave it, and is not looked into. A function that fails before
//! its response begins is answered for as one that does not stream. Where it fails later the
//! connection is broken: a client that was told the end of the body would take it for whole.

use super::answer::{Head, answer, failed};
use crate::lambda::error::LambdaError;
use crate::lambda::invocation::Answer;
use crate::lambda::streaming::Streamed;
use aleph_executor::functions::{HttpPrelude, ResponseStream};
use aleph_executor::hypervisor::BoxFuture;
use axum::body::{Body, Bytes};
use axum::response::Response;
use std::io;
use tokio::task::yield_now;

/// The answer whose body comes as it is written.
pub(super) async fn respond(streamed: Streamed) -> Result<Response, LambdaError> {
    let Streamed {
        head,
        mut body,
        end,
    } = streamed;
    let Some(began) = head else {
        return Ok(answer(&end.await?.completed).map(Body::from));
    };
    let (head, first) = if began.has_prelude() {
        match HttpPrelude::read(&mut body).await {
            Ok((prelude, first)) => (Head::of(&prelude), first),
            Err(error) => {
                tracing::debug!(%error, "a function has no prelude");
                (None, Bytes::new())
            }
        }
    } else {
        (Some(Head::of_type(&began.content_type)), Bytes::new())
    };
    let rest = Rest {
        first: Some(first).filter(|first| !first.is_empty()),
        body,
        end: Some(end),
    };
    let pieces = futures_util::stream::unfold(rest, Rest::next);
    let response = head.map(|head| head.with(Body::from_stream(pieces)));
    Ok(response.unwrap_or_else(|| failed().map(Body::from)))
}

/// What is still to come.
struct Rest {
    /// What came with the prelude.
    first: Option<Bytes>,
    body: ResponseStream,
    end: Option<BoxFuture<'static, Result<Answer, LambdaError>>>,
}

impl Rest {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if let Some(first) = self.first.take() {
            return Some((Ok(first), self));
        }
        if let Some(piece) = self.body.next().await {
            return Some((Ok(piece), self));
        }
        let ended = self.end.take()?.await;
        let whole = ended.is_ok_and(|answer| answer.completed.error.is_none());
        if whole {
            return None;
        }
        // The server sends what came before while it waits for more, and nothing after an error.
        yield_now().await;
        let broken = io::Error::other("the function failed within its response");
        Some((Err(broken), self))
    }
}
