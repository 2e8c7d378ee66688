//! Files of a guest, in and out, as tar archives.

use super::JobPath;
use crate::server::extract::{Query, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::guest::{Agent, FileKind, OwnedStat};
use aleph_executor::node::NodeError;
use aleph_types::Timestamp;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(get, head, put))
}

/// The header with what is at a path: base64 of JSON.
const STAT_HEADER: HeaderName = HeaderName::from_static("x-aleph-stat");
const TAR: &str = "application/x-tar";
/// How long a client may take to send the next piece of an archive.
const PIECE_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ArchiveQuery {
    /// An absolute path in the guest.
    #[param(
        min_length = 1,
        max_length = 4096,
        pattern = "^/",
        example = "/etc/hosts"
    )]
    path: String,
}

impl ArchiveQuery {
    fn checked(self) -> Result<String, Refusal> {
        if !self.path.starts_with('/') || self.path.contains('\0') || self.path.len() > 4096 {
            let message = format!("{:?} is no absolute path", self.path);
            return Err(Refusal::invalid("bad_path", message));
        }
        Ok(self.path)
    }
}

/// What is at a path in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ArchiveStat {
    /// The last part of the path.
    name: String,
    /// Its size in bytes.
    size: u64,
    /// Permission bits.
    mode: u16,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    mtime: Timestamp,
    /// `file`, `directory`, `symlink` or `other`.
    kind: &'static str,
    /// What a link points to; absent for all else.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

impl ArchiveStat {
    fn new(path: &str, stat: &OwnedStat) -> Self {
        let (kind, link) = match stat.kind {
            FileKind::File => ("file", false),
            FileKind::Folder => ("directory", false),
            FileKind::Link => ("symlink", true),
            FileKind::Other => ("other", false),
        };
        let name = path.trim_end_matches('/').rsplit('/').next();
        let target = String::from_utf8_lossy(&stat.target).into_owned();
        Self {
            name: name.filter(|name| !name.is_empty()).unwrap_or("/").into(),
            size: stat.size,
            mode: stat.mode,
            mtime: Timestamp::try_from(stat.modified).unwrap_or(Timestamp::UNIX_EPOCH),
            kind,
            link_target: link.then_some(target),
        }
    }

    fn header(&self) -> Result<(HeaderName, HeaderValue), Refusal> {
        let text = serde_json::to_string(self)
            .ok()
            .and_then(|json| HeaderValue::from_str(&STANDARD.encode(json)).ok());
        let value = text.ok_or_else(|| Refusal::internal("a path cannot be told"))?;
        Ok((STAT_HEADER, value))
    }
}

async fn look(
    service: &Service,
    caller: &Caller,
    job: &str,
    path: &str,
) -> Result<(Agent, ArchiveStat), Refusal> {
    let id = service.find(caller, job)?;
    let agent = service.agent(id).await?;
    let stat = agent.stat(path, false).await.map_err(NodeError::Guest)?;
    let stat = ArchiveStat::new(path, &stat);
    Ok((agent, stat))
}

/// Take a file or folder out of a guest
///
/// The header `X-Aleph-Stat` says what it is: base64 of JSON with `name`, `size`, `mode`,
/// `mtime`, `kind` and `link_target`.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/archive", tag = "files", params(JobPath, ArchiveQuery),
    responses((status = 200, description = "A tar archive.",
        body = Vec<u8>, content_type = "application/x-tar",
        headers(("X-Aleph-Stat" = String, description = "What it is.")))),
)]
async fn get(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Refusal> {
    let path = query.checked()?;
    let (agent, stat) = look(&service, &caller, &job, &path).await?;
    let reader = agent.pack(&path, "").map_err(NodeError::Guest)?;
    let stopping = service.stopping.clone();
    // An archive that breaks off breaks the response off, so that nobody takes it for whole.
    let pieces = stream::try_unfold(
        (reader, agent, stopping),
        |(mut reader, agent, stopping)| async {
            let piece = tokio::select! {
                piece = reader.next() => piece.map_err(io::Error::other)?,
                () = stopping.cancelled() => {
                    return Err(io::Error::other("the node is shutting down"));
                }
            };
            Ok(piece.map(|bytes| (Bytes::from(bytes), (reader, agent, stopping))))
        },
    );
    let headers = [
        stat.header()?,
        (CONTENT_TYPE, HeaderValue::from_static(TAR)),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Look at a file or folder in a guest
#[utoipa::path(
    head, path = "/v1/jobs/{job}/archive", tag = "files", params(JobPath, ArchiveQuery),
    responses((status = 200, description = "The header says what it is.",
        headers(("X-Aleph-Stat" = String, description = "What it is.")))),
)]
async fn head(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Refusal> {
    let path = query.checked()?;
    let (_, stat) = look(&service, &caller, &job, &path).await?;
    Ok(([stat.header()?], ()).into_response())
}

/// Put files into a guest
///
/// The archive is unpacked below the folder. Nothing is written outside of it.
#[utoipa::path(
    put, path = "/v1/jobs/{job}/archive", tag = "files", params(JobPath, ArchiveQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 204, description = "All of it is unpacked.")),
)]
async fn put(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<ArchiveQuery>,
    mut body: Body,
) -> Result<StatusCode, Refusal> {
    let path = query.checked()?;
    let id = service.find(&caller, &job)?;
    let agent = service.agent(id).await?;
    let mut sink = agent.unpack(&path, false).map_err(NodeError::Guest)?;
    loop {
        let piece = tokio::select! {
            piece = timeout(PIECE_TIME, body.frame()) => piece,
            () = service.stopping.cancelled() => return Err(Refusal::stopping()),
        };
        let Ok(piece) = piece else {
            let (status, class) = (
                StatusCode::REQUEST_TIMEOUT,
                aleph_types::ErrorClass::Invalid,
            );
            let message = "the archive stopped coming";
            return Err(Refusal::new(status, class, "body_timeout", message));
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|error| Refusal::invalid("bad_body", error.to_string()))?;
        let Ok(bytes) = piece.into_data() else {
            continue;
        };
        // Why the guest takes no more is what `finish` says.
        if sink.write_all(&bytes).await.is_err() {
            break;
        }
    }
    sink.finish().await.map_err(NodeError::Guest)?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_is_at_a_path_is_told() {
        let stat = OwnedStat {
            kind: FileKind::Link,
            size: 4,
            mode: 0o777,
            uid: 0,
            gid: 0,
            modified: SystemTime::UNIX_EPOCH,
            target: b"/etc".to_vec(),
        };
        let told = ArchiveStat::new("/a/b/", &stat);
        let (name, value) = told.header().unwrap();
        assert_eq!(name.as_str(), "x-aleph-stat");
        let json = STANDARD.decode(value.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"name":"b","size":4,"mode":511,"mtime":"1970-01-01T00:00:00Z","kind":"symlink","link_target":"/etc"}"#
        );
        assert_eq!(ArchiveStat::new("/", &stat).name, "/");
    }
}
