//! What TCP is for, with the kernel's own at the other end.

use super::super::core::MAX_CONNECTIONS;
use super::super::{Stack, Stream};
use super::kernel::{Kernel, LIMIT, PORT, open};
use aleph_testkit::wait_until;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

/// More than the largest answer of a function.
pub(super) const MUCH: usize = 8 * 1024 * 1024;

/// A kernel that is connected to a stack, and a runtime for what speaks over that.
pub(super) fn connected(lossy: Option<u32>) -> Option<(Kernel, Stack, Runtime)> {
    let mut kernel = Kernel::boot()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (stack, link) = open(&runtime, &[]);
    kernel.plug(link, lossy);
    Some((kernel, stack, runtime))
}

/// Serves each connection that is opened.
pub(super) fn serve<F>(
    runtime: &Runtime,
    stack: &Stack,
    serve: impl Fn(Stream) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let stack = stack.clone();
    runtime.spawn(async move {
        loop {
            tokio::spawn(serve(stack.accept().await));
        }
    });
}

pub(super) async fn echo(stream: Stream) {
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await.unwrap();
    to.shutdown().await.unwrap();
}

/// Bytes in which every misplaced piece shows.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Says something, and hears it again.
pub(super) fn converse(stream: &mut TcpStream, said: &[u8]) {
    let mut speaking = stream.try_clone().unwrap();
    let mut heard = vec![0; said.len()];
    std::thread::scope(|scope| {
        scope.spawn(move || speaking.write_all(said).unwrap());
        stream.read_exact(&mut heard).unwrap();
    });
    assert!(heard == said, "other bytes than were said");
}

fn connections(stack: &Stack) -> usize {
    stack.0.shared.core().connections.len()
}

#[test]
fn both_sides_speak_little_and_much() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    serve(&runtime, &stack, echo);
    let mut stream = kernel.connect().unwrap();
    for length in [1, 100, 8959, 8960, 8961, 70_000] {
        converse(&mut stream, &pattern(length));
    }
    converse(&mut stream, &pattern(MUCH));
    converse(&mut stream, b"still there");
}

#[test]
fn what_is_lost_is_sent_again() {
    for one_in in [12, 40] {
        let Some((kernel, stack, runtime)) = connected(Some(one_in)) else {
            return;
        };
        serve(&runtime, &stack, echo);
        let mut stream = kernel.connect().unwrap();
        converse(&mut stream, &pattern(256 * 1024));
    }
}

#[test]
fn connections_come_and_go() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    serve(&runtime, &stack, echo);
    let mut open: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| kernel.connect().unwrap())
        .collect();
    for (index, stream) in open.iter_mut().enumerate() {
        converse(stream, &pattern(1 + index * 100));
    }
    // One too many is refused, and none of the others takes harm.
    let refused = kernel.connect().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for stream in &mut open {
        converse(stream, b"still there");
    }
    drop(open);
    wait_until("connections end", LIMIT, || {
        (connections(&stack) == 0).then_some(())
    });
    for _ in 0..2 * MAX_CONNECTIONS {
        converse(&mut kernel.connect().unwrap(), b"one of many");
    }
}

#[test]
fn those_that_closed_first_make_room() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    // The side that closes first remembers a connection for a while after that.
    serve(&runtime, &stack, async |mut stream| {
        stream.write_all(b"enough").await.unwrap();
    });
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut heard = String::new();
        let mut stream = kernel.connect().unwrap();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "enough");
    }
}

#[test]
fn either_side_closes_its_half_first() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let much = Arc::new(pattern(1024 * 1024));
    let said = Arc::clone(&much);
    serve(&runtime, &stack, move |mut stream| {
        let said = Arc::clone(&said);
        async move {
            let mut heard = Vec::new();
            if stream.read_u8().await.unwrap() == b'h' {
                stream.write_all(&said).await.unwrap();
                stream.shutdown().await.unwrap();
                stream.shutdown().await.unwrap();
                let refused = stream.write_all(b"more").await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
                stream.read_to_end(&mut heard).await.unwrap();
                assert!(heard == *said);
            } else {
                stream.read_to_end(&mut heard).await.unwrap();
                assert!(heard == *said);
                stream.write_all(&said).await.unwrap();
            }
        }
    });
    for first in [b"h", b"g"] {
        let mut stream = kernel.connect().unwrap();
        stream.write_all(first).unwrap();
        let mut heard = Vec::new();
        if first == b"h" {
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&much).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        } else {
            stream.write_all(&much).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_end(&mut heard).unwrap();
        }
        assert!(heard == *much);
    }
}

#[test]
fn a_reader_that_is_slow_makes_the_writer_wait() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let mut stream = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    let said = pattern(MUCH);
    let writing = {
        let said = said.clone();
        runtime.spawn(async move { served.write_all(&said).await.map(|()| served) })
    };
    // Nothing more goes on once all buffers on the way are full.
    let sent = || stack.0.shared.core().connections[0].written;
    let mut before = 0;
    wait_until("the writer waits", LIMIT, || {
        std::thread::sleep(Duration::from_millis(100));
        let is_still = before == sent() && before > 0;
        before = sent();
        is_still.then_some(())
    });
    assert!(!writing.is_finished());
    let mut heard = vec![0; MUCH];
    stream.read_exact(&mut heard).unwrap();
    assert!(heard == said);
    drop(runtime.block_on(writing).unwrap().unwrap());
    assert_eq!(stream.read(&mut heard).unwrap(), 0);
}

#[test]
fn a_connection_is_broken_off_by_either_side() {
    let Some((kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let stream = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
    drop(stream);
    let broken = runtime.block_on(served.read_u8()).unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    let broken = runtime.block_on(served.write_all(b"more")).unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    drop(served);
    assert_eq!(connections(&stack), 0);

    // Who goes on although nobody reads any more is told so.
    let mut stream = kernel.connect().unwrap();
    drop(runtime.block_on(stack.accept()));
    wait_until("the guest is told", LIMIT, || {
        stream.write_all(&[0; 1000]).err()
    });

    let refused = kernel.connect_to(PORT + 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_stack_ends_with_its_streams_or_its_link() {
    let Some((mut kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let mut stream = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    let shared = Arc::downgrade(&stack.0.shared);
    drop(stack);
    // A stream is enough to go on.
    stream.write_all(b"a").unwrap();
    assert_eq!(runtime.block_on(served.read_u8()).unwrap(), b'a');
    kernel.unplug();
    let broken = wait_until("the link's end is seen", LIMIT, || {
        runtime.block_on(served.write_all(b"b")).err()
    });
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    drop(served);
    wait_until("the stack ends", LIMIT, || {
        shared.upgrade().is_none().then_some(())
    });

    let (stack, link) = open(&runtime, &[]);
    kernel.plug(link, None);
    let _stream = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    let reading = runtime.spawn(async move { served.read_u8().await.unwrap_err() });
    stack.close();
    let broken = runtime.block_on(reading).unwrap();
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    let shared = Arc::downgrade(&stack.0.shared);
    drop(stack);
    wait_until("the stack ends", LIMIT, || {
        shared.upgrade().is_none().then_some(())
    });
}
