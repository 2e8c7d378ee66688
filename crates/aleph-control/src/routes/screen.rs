//! The screens of full VMs.

use super::JobPath;
use super::session::{self, Held, Upgrade};
use crate::server::extract::Segment;
use crate::server::{Caller, Refusal, Service};
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(vnc))
}

/// Look at a full VM's screen
///
/// A WebSocket whose binary messages are a stream of RFB (VNC, RFC 6143), each of any length. Text
/// means nothing.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/vnc", tag = "sessions", params(JobPath),
    responses((status = 101, description = "The session begins.")),
)]
async fn vnc(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    (slot, upgrade): (Held, Upgrade),
) -> Result<Response, Refusal> {
    let id = service.find(&caller, &job)?;
    let upgrade = session::accept(upgrade)?;
    let screen = service.node.screen(id).await?;
    Ok(upgrade.on_upgrade(move |socket| {
        let work = service.work.clone();
        work.track_future(async move {
            tokio::select! {
                () = bridge(socket, screen) => {}
                () = service.stopping.cancelled() => {}
            }
            drop(slot);
        })
    }))
}

/// Carries both directions until one ends. Neither is read before the other side took what came.
async fn bridge(socket: WebSocket, screen: UnixStream) {
    let (mut sink, mut messages) = socket.split();
    let (mut from, mut to) = screen.into_split();
    let shown = async {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            let bytes = Bytes::copy_from_slice(&chunk[..n]);
            if sink.send(Message::Binary(bytes)).await.is_err() {
                break;
            }
        }
    };
    let done = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if to.write_all(&bytes).await.is_err() => break,
                Message::Close(_) => break,
                Message::Binary(_) | Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    };
    tokio::select! {
        () = shown => {}
        () = done => {}
    }
}
