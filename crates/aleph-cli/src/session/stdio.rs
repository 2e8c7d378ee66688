//! Our own standard streams, each with a thread of its own: a blocking call cannot be called off.

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::io;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Something for one of our two streams.
#[derive(Debug)]
pub(crate) enum Output {
    Out(Bytes),
    Err(Bytes),
}

/// A thread that writes what it is sent, and ends with the first error or when no more comes.
pub(crate) fn writer() -> (mpsc::Sender<Output>, JoinHandle<io::Result<()>>) {
    let (chunks, mut inbox) = mpsc::channel(1);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(output) = inbox.blocking_recv() {
            match output {
                Output::Out(bytes) => write_all(rustix::stdio::stdout(), &bytes)?,
                Output::Err(bytes) => write_all(rustix::stdio::stderr(), &bytes)?,
            }
        }
        Ok(())
    });
    (chunks, writer)
}

/// Writes all of it, past every buffer; whoever gave us the stream may have made it one that
/// does not block.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stream, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready(stream, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn ready(stream: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(stream, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Standard input, read by a thread.
pub(crate) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (chunks, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let stdin = rustix::stdio::stdin();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(n @ 1..) if chunks.blocking_send(buffer[..n].to_vec()).is_ok() => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if ready(stdin, PollFlags::IN).is_ok() => {}
                _ => return,
            }
        }
    });
    receiver
}
