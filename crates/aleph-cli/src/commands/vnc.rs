//! `aleph vnc`: a full VM's screen at a socket of this host, for any viewer of VNC.

use super::completion::jobs;
use crate::client::Client;
use crate::context::Context;
use crate::output::{print, print_error};
use anyhow::{Context as _, Result};
use clap_complete::ArgValueCompleter;
use futures_util::{SinkExt, StreamExt};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

/// Whose screen, and where it is to be had.
#[derive(Debug, clap::Args)]
pub(crate) struct Vnc {
    /// Name or id of a full VM
    #[arg(value_name = "JOB", add = ArgValueCompleter::new(jobs::running))]
    job: String,

    /// Listen at this Unix socket [default: one in a folder of its own, which is printed]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Listen at this port of the loopback address instead, where every user of this host may look;
    /// 0 for any
    #[arg(long, value_name = "PORT", conflicts_with = "socket")]
    port: Option<u16>,
}

impl Vnc {
    pub(super) async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let id = client.job(&self.job).await?.id.to_string();
        // What cannot be is said now, and not to the viewer.
        drop(client.screen(&id).await?);
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            served = self.serve(&client, &id) => served.map(|()| 0),
            _ = interrupted.recv() => Ok(0),
            _ = terminated.recv() => Ok(0),
        }
    }

    async fn serve(&self, client: &Client, id: &str) -> Result<()> {
        if let Some(port) = self.port {
            let listener = TcpListener::bind(("127.0.0.1", port)).await;
            let listener = listener.with_context(|| format!("cannot listen at port {port}"))?;
            print(listener.local_addr()?)?;
            loop {
                let (viewer, _) = listener.accept().await?;
                show(client, id, viewer).await;
            }
        }
        // Its folder is ours alone, and goes with it.
        let folder = tempfile::Builder::new().prefix("aleph-vnc-").tempdir()?;
        let path = self.socket.clone();
        let path = path.unwrap_or_else(|| folder.path().join("vnc.sock"));
        let listener = UnixListener::bind(&path);
        let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
        let _gone = Socket(path.clone());
        print(path.display())?;
        loop {
            let (viewer, _) = listener.accept().await?;
            show(client, id, viewer).await;
        }
    }
}

/// A socket that goes with whoever listens at it.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves one viewer until it goes.
async fn show(client: &Client, id: &str, viewer: impl AsyncRead + AsyncWrite) {
    if let Err(error) = bridge(client, id, viewer).await {
        print_error(&error);
    }
}

async fn bridge(client: &Client, id: &str, viewer: impl AsyncRead + AsyncWrite) -> Result<()> {
    let (mut sink, mut messages) = client.screen(id).await?.split();
    let (mut from, mut to) = tokio::io::split(viewer);
    let done = async {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            let bytes = bytes::Bytes::copy_from_slice(&chunk[..n]);
            if sink.send(Message::Binary(bytes)).await.is_err() {
                break;
            }
        }
    };
    let shown = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if to.write_all(&bytes).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = done => {}
        () = shown => {}
    }
    Ok(())
}
