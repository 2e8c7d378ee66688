//! The routes of snapshots.

use super::path::part;
use super::request::Asking;
use super::{Client, ClientError};
use aleph_types::{ForkRequest, Forked, Job, RestoreRequest, Snapshot, SnapshotRequest};
use hyper::Method;

impl Client {
    /// Writes a job's guest down.
    pub(crate) async fn snapshot(&self, job: &str, stop: bool) -> Result<Snapshot, ClientError> {
        let asking = Asking::post(format!("/v1/jobs/{}/snapshots", part(job)));
        self.ask_json(asking.json(&SnapshotRequest { stop })?).await
    }

    pub(crate) async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        self.ask_json(Asking::get("/v1/snapshots")).await
    }

    /// A snapshot, as the node tells it.
    pub(crate) async fn snapshot_of(&self, id: &str) -> Result<Snapshot, ClientError> {
        self.ask_json(Asking::get(format!("/v1/snapshots/{}", part(id))))
            .await
    }

    pub(crate) async fn remove_snapshot(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{}", part(id));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    /// Takes a job that goes on from a snapshot.
    pub(crate) async fn restore(
        &self,
        id: &str,
        request: &RestoreRequest,
    ) -> Result<Job, ClientError> {
        let asking = Asking::post(format!("/v1/snapshots/{}/restore", part(id)));
        self.ask_json(asking.json(request)?).await
    }

    /// Takes copies of a job.
    pub(crate) async fn fork(
        &self,
        job: &str,
        request: &ForkRequest,
    ) -> Result<Forked, ClientError> {
        let asking = Asking::post(format!("/v1/jobs/{}/fork", part(job)));
        self.ask_json(asking.json(request)?).await
    }
}
