//! The routes of volumes.

use super::path::{Query, part};
use super::request::{Answer, Asking};
use super::{Client, ClientError, Lines};
use aleph_types::{
    BackupForgetRequest, BackupPruneRequest, BackupVerification, BackupsForgotten, DiskImageFormat,
    MiB, Volume, VolumeAttach, VolumeAttachment, VolumeBackup, VolumeBackupRequest,
    VolumeBackupRestore, VolumeRequest, VolumeResize, VolumeSnapshotRequest, VolumeUndelete,
};
use bytes::Bytes;
use hyper::Method;
use hyper::body::Body;
use hyper::header::ACCEPT;

impl Client {
    pub(crate) async fn volumes(&self, deleted: bool) -> Result<Vec<Volume>, ClientError> {
        let query = Query::default().flag("deleted", deleted);
        self.ask_json(Asking::get(format!("/v1/volumes{query}")))
            .await
    }

    /// A volume, as the node tells it.
    pub(crate) async fn volume(&self, volume: &str) -> Result<Volume, ClientError> {
        self.ask_json(Asking::get(of(volume))).await
    }

    /// Makes an empty volume, or a copy.
    pub(crate) async fn create_volume(
        &self,
        request: &VolumeRequest,
    ) -> Result<Volume, ClientError> {
        self.ask_json(Asking::post("/v1/volumes").json(request)?)
            .await
    }

    /// Makes a volume of an image that is sent while it is read.
    pub(crate) async fn import_volume<B>(
        &self,
        name: &str,
        (format, size, encrypted): (Option<DiskImageFormat>, Option<MiB>, Option<bool>),
        image: B,
    ) -> Result<Volume, ClientError>
    where
        B: Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    {
        let format = format.map(|format| format.to_string());
        let size = size.map(|size| format!("{}m", size.0));
        let encrypted = encrypted.map(|encrypted| encrypted.to_string());
        let query = Query::default()
            .with("name", name)
            .with_some("format", format.as_deref())
            .with_some("size", size.as_deref())
            .with_some("encrypted", encrypted.as_deref());
        let asking = Asking::post(format!("/v1/volumes/import{query}"));
        self.ask_json(asking.stream("application/octet-stream", image))
            .await
    }

    /// A volume's bytes as an image.
    pub(crate) async fn export_volume(
        &self,
        volume: &str,
        snapshot: Option<&str>,
        format: DiskImageFormat,
    ) -> Result<Answer, ClientError> {
        let query = Query::default()
            .with("format", &format.to_string())
            .with_some("snapshot", snapshot);
        self.ask(Asking::get(format!("{}/export{query}", of(volume))))
            .await
    }

    pub(crate) async fn remove_volume(&self, volume: &str, now: bool) -> Result<(), ClientError> {
        let query = Query::default().flag("now", now);
        let path = format!("{}{query}", of(volume));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    pub(crate) async fn undelete_volume(
        &self,
        volume: &str,
        name: Option<String>,
    ) -> Result<Volume, ClientError> {
        let asking = Asking::post(format!("{}/undelete", of(volume)));
        self.ask_json(asking.json(&VolumeUndelete { name })?).await
    }

    pub(crate) async fn resize_volume(
        &self,
        volume: &str,
        size: MiB,
    ) -> Result<Volume, ClientError> {
        let asking = Asking::post(format!("{}/resize", of(volume)));
        self.ask_json(asking.json(&VolumeResize { size })?).await
    }

    /// Keeps a volume's present state under a name.
    pub(crate) async fn snapshot_volume(
        &self,
        volume: &str,
        name: &str,
    ) -> Result<Volume, ClientError> {
        self.by_snapshot(volume, "snapshots", name).await
    }

    pub(crate) async fn restore_volume(
        &self,
        volume: &str,
        name: &str,
    ) -> Result<Volume, ClientError> {
        self.by_snapshot(volume, "restore", name).await
    }

    pub(crate) async fn remove_volume_snapshot(
        &self,
        volume: &str,
        name: &str,
    ) -> Result<(), ClientError> {
        let path = format!("{}/snapshots/{}", of(volume), part(name));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    /// Backs a volume up, telling how far it is.
    pub(crate) async fn back_up_volume(
        &self,
        volume: &str,
        request: &VolumeBackupRequest,
    ) -> Result<Lines, ClientError> {
        let asking = Asking::post(format!("{}/backups", of(volume))).json(request)?;
        let asking = asking.header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }

    /// Makes a volume of a backup, telling how far it is.
    pub(crate) async fn restore_backup(
        &self,
        request: &VolumeBackupRestore,
    ) -> Result<Lines, ClientError> {
        let asking = Asking::post("/v1/backups/restore").json(request)?;
        let asking = asking.header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }

    /// Looks whether the backups at a place are whole, telling how far it is.
    pub(crate) async fn verify_backups(
        &self,
        request: &BackupVerification,
    ) -> Result<Lines, ClientError> {
        let asking = Asking::post("/v1/backups/verify").json(request)?;
        let asking = asking.header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }

    /// Removes backups.
    pub(crate) async fn forget_backups(
        &self,
        request: &BackupForgetRequest,
    ) -> Result<BackupsForgotten, ClientError> {
        self.ask_json(Asking::post("/v1/backups/forget").json(request)?)
            .await
    }

    /// Gets back the space of what no backup needs, telling how far it is.
    pub(crate) async fn prune_backups(
        &self,
        request: &BackupPruneRequest,
    ) -> Result<Lines, ClientError> {
        let asking = Asking::post("/v1/backups/prune").json(request)?;
        let asking = asking.header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }

    /// The backups at a place.
    pub(crate) async fn backups(
        &self,
        url: &str,
        key_file: Option<&str>,
    ) -> Result<Vec<VolumeBackup>, ClientError> {
        let query = Query::default()
            .with("url", url)
            .with_some("key_file", key_file);
        self.ask_json(Asking::get(format!("/v1/backups{query}")))
            .await
    }

    /// Attaches a volume to a job.
    pub(crate) async fn attach_volume(
        &self,
        job: &str,
        volume: &str,
        how: &VolumeAttach,
    ) -> Result<VolumeAttachment, ClientError> {
        let asking = Asking::new(Method::PUT, in_job(job, volume));
        self.ask_json(asking.json(how)?).await
    }

    /// Detaches a volume from a job, whose guest has so many seconds to let go.
    pub(crate) async fn detach_volume(
        &self,
        job: &str,
        volume: &str,
        timeout: Option<u32>,
    ) -> Result<(), ClientError> {
        let timeout = timeout.map(|seconds| seconds.to_string());
        let query = Query::default().with_some("timeout", timeout.as_deref());
        let path = format!("{}{query}", in_job(job, volume));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    async fn by_snapshot(
        &self,
        volume: &str,
        action: &str,
        name: &str,
    ) -> Result<Volume, ClientError> {
        let asking = Asking::post(format!("{}/{action}", of(volume)));
        let name = name.to_owned();
        self.ask_json(asking.json(&VolumeSnapshotRequest { name })?)
            .await
    }
}

fn in_job(job: &str, volume: &str) -> String {
    format!("/v1/jobs/{}/volumes/{}", part(job), part(volume))
}

fn of(volume: &str) -> String {
    format!("/v1/volumes/{}", part(volume))
}
