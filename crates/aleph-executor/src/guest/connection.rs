//! TCP connections over a guest's loopback address: to it, and from its programs to us.

use super::bytes::{GuestReader, GuestWriter};
use super::error::AgentError;
use super::port::{Lease, StreamEvent, StreamHandle};
use super::streams::Shared;
use aleph_guest_proto::ToGuest;
use std::sync::Arc;
use tokio::io::{Join, join};

/// A connection to a port of a guest. Each direction ends by itself: shutting the writer down
/// leaves the reader open. When both halves are dropped it is closed. [`Join::into_inner`] gives
/// them to two tasks.
pub type Connection = Join<GuestReader, GuestWriter>;

/// Waits until the connection stands.
pub(super) async fn connect(shared: &Arc<Shared>, port: u16) -> Result<Connection, AgentError> {
    let mut stream = shared.open(&ToGuest::Connect { port }, false)?;
    let lease = Arc::new(Lease(stream.port.clone()));
    match stream.next().await? {
        StreamEvent::Open => {}
        _ => {
            return Err(AgentError::Protocol(
                "a connection that was not made".into(),
            ));
        }
    }
    Ok(halves(stream, lease))
}

/// Waits for a program in the guest to connect to a port that is listened on there.
pub(super) async fn accept(shared: &Arc<Shared>) -> Result<(u16, Connection), AgentError> {
    let (port, stream) = shared.accept().await?;
    let lease = Arc::new(Lease(stream.port.clone()));
    Ok((port, halves(stream, lease)))
}

fn halves(stream: StreamHandle, lease: Arc<Lease>) -> Connection {
    let writer = GuestWriter::new(stream.port.clone(), Arc::clone(&lease));
    join(GuestReader::new(stream, lease), writer)
}
