//! The seam between the control plane, which keeps functions, and what runs them.

use super::deployment::{Deployment, DeploymentId};
use super::invocation::{Completed, Invocation, InvokeError};
use super::response::{ResponseHead, ResponseSink};
use crate::hypervisor::BoxFuture;
use aleph_types::Problem;
use std::sync::Arc;

/// How many invocations may run at once, and how many clones wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Concurrency {
    /// At most so many of all versions of the function together; `None` shares what the account
    /// has.
    pub reserved: Option<u32>,
    /// So many clones of this deployment are kept ready.
    pub provisioned: u32,
}

/// The clones of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clones {
    /// Those that an invocation has, or is about to get.
    pub busy: usize,
    /// Those that run and wait for one.
    pub hot: usize,
    /// Those that are paused.
    pub warm: usize,
    /// Those that are being made or paused.
    pub coming: usize,
}

/// Runs deployments.
pub trait Runner: Send + Sync {
    /// Makes a deployment ready: its template is there afterwards. One that is ready is left as
    /// it is.
    ///
    /// What is given back is the deployment that is ready: the same, but that an image without a
    /// digest has the one that its reference leads to now.
    ///
    /// The problem says what the runtime said where it failed to initialise. Where the future is
    /// dropped, what it began is given up and removed.
    fn prepare(
        &self,
        deployment: Arc<Deployment>,
    ) -> BoxFuture<'_, Result<Arc<Deployment>, Problem>>;

    /// Runs an event through it.
    fn invoke(
        &self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
    ) -> BoxFuture<'_, Result<Completed, InvokeError>>;

    /// The same, with the answer written into `sink` as it comes. Where the function fails before
    /// its answer has begun, nothing is written; one that fails later has had some of it written.
    /// What is returned has the error, and of an answer no payload.
    ///
    /// Here the answer is written once it is whole.
    fn invoke_streaming<'a>(
        &'a self,
        deployment: Arc<Deployment>,
        concurrency: Concurrency,
        invocation: Invocation,
        sink: &'a mut ResponseSink,
    ) -> BoxFuture<'a, Result<Completed, InvokeError>> {
        Box::pin(async move {
            let version = deployment.version.clone();
            let mut completed = self.invoke(deployment, concurrency, invocation).await?;
            if completed.error.is_none() {
                sink.begin(ResponseHead {
                    version,
                    content_type: completed.content_type.clone(),
                    temperature: completed.temperature,
                    timings: completed.timings,
                });
                sink.write(std::mem::take(&mut completed.payload)).await;
            }
            Ok(completed)
        })
    }

    /// How many clones a deployment keeps ready from now on.
    fn provision(&self, deployment: Arc<Deployment>, clones: u32);

    /// How many of the clones that a deployment keeps ready are ready; `None` where that is not
    /// known.
    fn provisioned(&self, deployment: &DeploymentId) -> Option<u32> {
        let _ = deployment;
        None
    }

    /// The clones that a deployment has; `None` where that is not known.
    fn clones(&self, deployment: &DeploymentId) -> Option<Clones> {
        let _ = deployment;
        None
    }

    /// Removes templates of an earlier process but those of these deployments. It is called once,
    /// before anything is prepared.
    fn keep<'a>(&'a self, deployments: &'a [DeploymentId]) -> BoxFuture<'a, ()> {
        let _ = deployments;
        Box::pin(std::future::ready(()))
    }

    /// Forgets a deployment: its clones end once they are idle, and its template goes.
    fn retire(&self, deployment: &DeploymentId) -> BoxFuture<'_, ()>;
}
