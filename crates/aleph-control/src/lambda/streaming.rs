//! Responses that are passed on as functions write them.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | it cannot be run | [`LambdaError`], and no response begins |
//! | the function fails before its response begins | no head; [`Streamed::end`] has the error |
//! | it fails within its response | what it wrote, and then `end` has the error |
//! | the client goes away | the function runs to its end, and nobody reads what it writes |
//! | the client reads slowly | the function waits, until its time is over |

use super::Functions;
use super::error::LambdaError;
use super::function::Function;
use super::invocation::{Answer, To};
use aleph_executor::functions::{Invocation, ResponseHead, ResponseStream, response_channel};
use aleph_executor::hypervisor::BoxFuture;
use std::sync::Arc;

/// A response under way.
pub(crate) struct Streamed {
    /// How it begins; `None` where the function failed before.
    pub(crate) head: Option<ResponseHead>,
    /// What the function writes, to be read to its end.
    pub(crate) body: ResponseStream,
    /// What became of it, once the body has ended.
    pub(crate) end: BoxFuture<'static, Result<Answer, LambdaError>>,
}

impl Functions {
    /// Runs an event, and returns as soon as its response has begun or it is over. It goes on when
    /// the client goes away. `held` is let go of once it is over.
    pub(super) async fn stream_out(
        &self,
        function: Arc<Function>,
        qualifier: Option<String>,
        invocation: Invocation,
        held: impl Send + 'static,
    ) -> Result<Streamed, LambdaError> {
        let (mut sink, mut body) = response_channel();
        let functions = self.clone();
        let work = async move {
            let to = To {
                function: &function,
                qualifier: qualifier.as_deref(),
            };
            let done = functions.carry_out_into(to, invocation, Some(&mut sink));
            let done = done.await.map_err(LambdaError::from);
            drop(held);
            done
        };
        let functions = self.clone();
        let mut end: BoxFuture<'static, _> = Box::pin(async move { functions.settle(work).await });
        let head = tokio::select! {
            biased;
            head = body.head() => head,
            answer = &mut end => {
                // What was begun and ended at once has its head all the same.
                let (answer, head) = (answer?, body.head().await);
                end = Box::pin(std::future::ready(Ok(answer)));
                head
            }
        };
        if head.is_none() {
            let answer = end.await?;
            end = Box::pin(std::future::ready(Ok(answer)));
        }
        Ok(Streamed { head, body, end })
    }
}
