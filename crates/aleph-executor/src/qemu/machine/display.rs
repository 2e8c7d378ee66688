//! The screen: QEMU's VNC server, which listens nowhere. Connections are handed to it.

use crate::hypervisor::{BoxFuture, Display, VmmError};
use crate::qemu::driver::QemuVmm;
use serde_json::json;
use std::io;
use tokio::net::UnixStream;

/// The name of a connection that is handed over.
const NAME: &str = "display";

impl Display for QemuVmm {
    fn connect(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            // The name is one for all: between the two commands nobody else may hand one over.
            let _changing = self.changing().await;
            self.hand_over("getfd", json!({ "fdname": NAME }), theirs.into())
                .await
                .map_err(into_io)?;
            let client = json!({ "protocol": "vnc", "fdname": NAME, "skipauth": true });
            self.command_with("add_client", client)
                .await
                .map_err(into_io)?;
            UnixStream::from_std(ours)
        })
    }
}

fn into_io(error: VmmError) -> io::Error {
    match error {
        VmmError::Io(error) => error,
        other => io::Error::other(other),
    }
}
