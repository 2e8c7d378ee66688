//! Connections of a guest that go on in another stack.

use super::super::{Kept, Stack, Stream};
use super::kernel::{Kernel, open};
use super::real::{MUCH, connected, converse, pattern};
use std::io::{Read, Write};
use std::net::TcpStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

const REQUEST: &[u8] = b"GET /next HTTP/1.1\r\n\r\n";

/// Ends a stack, and goes on with its connections in another one, by way of a file.
fn go_on(kernel: &mut Kernel, runtime: &Runtime, stack: Stack) -> (Stack, Vec<Kept>) {
    let kept = runtime.block_on(stack.kept());
    drop(stack);
    kernel.unplug();
    let written = serde_json::to_string(&kept).unwrap();
    let kept: Vec<Kept> = serde_json::from_str(&written).unwrap();
    let (stack, link) = open(runtime, &kept);
    kernel.plug(link, None);
    (stack, kept)
}

fn expect(runtime: &Runtime, served: &mut Stream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    runtime.block_on(served.read_exact(&mut heard)).unwrap();
    assert!(heard == expected, "other bytes than were said");
}

fn answer(runtime: &Runtime, served: &mut Stream, client: &mut TcpStream, answer: &[u8]) {
    let mut heard = vec![0; answer.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| client.read_exact(&mut heard).unwrap());
        runtime.block_on(served.write_all(answer)).unwrap();
    });
    assert!(heard == answer, "other bytes than were said");
}

#[test]
fn a_request_is_answered_by_another_stack() {
    let Some((mut kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let mut client = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    // Something was said both ways, so that no number is as it was at first.
    client.write_all(&pattern(100_000)).unwrap();
    expect(&runtime, &mut served, &pattern(100_000));
    answer(&runtime, &mut served, &mut client, &pattern(300_000));
    client.write_all(REQUEST).unwrap();
    expect(&runtime, &mut served, REQUEST);

    let mut stack = stack;
    let mut served = served;
    for _ in 0..3 {
        let before = served;
        let (next, kept) = go_on(&mut kernel, &runtime, stack);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].unanswered, REQUEST);
        drop(before);
        stack = next;
        served = runtime.block_on(stack.accept());
        expect(&runtime, &mut served, REQUEST);
    }
    answer(
        &runtime,
        &mut served,
        &mut client,
        b"HTTP/1.1 200 OK\r\n\r\n",
    );
    client.write_all(REQUEST).unwrap();
    expect(&runtime, &mut served, REQUEST);
    answer(&runtime, &mut served, &mut client, &pattern(MUCH));
    runtime.spawn(async move {
        let (mut from, mut to) = tokio::io::split(served);
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    converse(&mut client, &pattern(MUCH));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    // Its port is free for a connection that no other stack ever saw.
    let mut another = kernel.connect().unwrap();
    let mut served = runtime.block_on(stack.accept());
    answer(&runtime, &mut served, &mut another, b"welcome");
}

#[test]
fn each_copy_of_a_guest_goes_on_from_the_same() {
    let Some((mut kernel, stack, runtime)) = connected(None) else {
        return;
    };
    let mut clients: Vec<_> = (0..5_u8)
        .map(|index| {
            let mut client = kernel.connect().unwrap();
            client.write_all(&[index]).unwrap();
            (client, runtime.block_on(stack.accept()))
        })
        .collect();
    // One was answered, one was not read, one is being closed, and one was read too much of.
    runtime.block_on(async {
        for index in [0, 2, 3, 4] {
            clients[index].1.read_u8().await.unwrap();
        }
        clients[0].1.write_all(b"answer").await.unwrap();
        clients[3].1.shutdown().await.unwrap();
    });
    clients[4].0.write_all(&pattern(9000)).unwrap();
    expect(&runtime, &mut clients[4].1, &pattern(9000));
    let (stack, kept) = go_on(&mut kernel, &runtime, stack);
    let unanswered: Vec<_> = kept.iter().map(|kept| kept.unanswered.as_slice()).collect();
    assert_eq!(unanswered, [b"".as_slice(), &[1], &[2]]);
    // They come in their order.
    let mut clients = clients.into_iter().map(|(client, _)| client);
    for kept in &kept {
        let mut client = clients.next().unwrap();
        let mut served = runtime.block_on(stack.accept());
        expect(&runtime, &mut served, &kept.unanswered);
        let mut heard = [0; 6];
        if kept.unanswered.is_empty() {
            client.read_exact(&mut heard).unwrap();
        }
        answer(&runtime, &mut served, &mut client, b"another");
        client.write_all(b"thanks").unwrap();
        expect(&runtime, &mut served, b"thanks");
    }
    // Those that were not kept are reset as soon as their programs speak.
    for mut client in clients {
        let _ = client.write_all(b"anyone there?");
        assert!(!matches!(client.read(&mut [0; 1]), Ok(1..)));
    }
}
