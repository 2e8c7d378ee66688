//! Connections of programs to a port that the agent listens on, over hosts that come and go.

use crate::support::{Heard, Host};
use aleph_guest_proto::{CONTROL, GUEST_STREAMS, Mount, ToGuest};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

const FIRST: u32 = GUEST_STREAMS;
const REQUEST: &[u8] = b"GET /next HTTP/1.1\r\n\r\n";

/// A port that nobody uses.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn listening() -> (Host, u16) {
    let mut host = Host::ready_with(false);
    // Somebody else may have taken a port since it was free.
    for _ in 0..20 {
        let port = free_port();
        host.say(1, &ToGuest::Listen { port });
        match host.hear() {
            (1, Heard::Done) => return (host, port),
            (1, Heard::Failed(98, _)) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("every port that was free is taken a moment later");
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn read(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Hears of a connection that is told of again, with what it has to say.
fn told_again(host: &mut Host) -> Vec<(u32, Heard)> {
    host.greet();
    host.hear_hello(true);
    let mut heard = Vec::new();
    loop {
        match host.hear() {
            (CONTROL, Heard::Ready) => return heard,
            other => heard.push(other),
        }
    }
}

#[test]
fn a_request_is_answered_on_the_guests_own_stream() {
    let (mut host, port) = listening();
    let mut program = connect(port);
    assert_eq!(host.hear(), (FIRST, Heard::Accepted(port)));
    program.write_all(REQUEST).unwrap();
    assert_eq!(host.hear(), (FIRST, Heard::Data(REQUEST.to_vec())));
    host.say(FIRST, &ToGuest::Data(b"event"));
    assert_eq!(read(&mut program, 5), b"event");
    let mut other = connect(port);
    assert_eq!(host.hear(), (FIRST + 1, Heard::Accepted(port)));
    host.say(FIRST + 1, &ToGuest::Cancel);
    assert_eq!(other.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    drop(program);
    assert_eq!(host.hear(), (FIRST, Heard::Eof));
    host.say(FIRST, &ToGuest::Eof);
    assert_eq!(host.hear(), (FIRST, Heard::Done));
}

#[test]
fn the_next_host_gets_what_nobody_has_answered_and_nothing_else() {
    let (mut host, port) = listening();
    let mut waiting = connect(port);
    assert_eq!(host.hear(), (FIRST, Heard::Accepted(port)));
    waiting.write_all(b"old").unwrap();
    assert_eq!(host.hear(), (FIRST, Heard::Data(b"old".to_vec())));
    host.say(FIRST, &ToGuest::Data(b"!"));
    assert_eq!(read(&mut waiting, 1), b"!");
    waiting.write_all(REQUEST).unwrap();
    assert_eq!(host.hear(), (FIRST, Heard::Data(REQUEST.to_vec())));
    let mut silent = connect(port);
    assert_eq!(host.hear(), (FIRST + 1, Heard::Accepted(port)));
    for _host in 0..3 {
        let heard = told_again(&mut host);
        let want = [
            (FIRST, Heard::Accepted(port)),
            (FIRST, Heard::Data(REQUEST.to_vec())),
            (FIRST + 1, Heard::Accepted(port)),
        ];
        assert_eq!(heard, want);
    }
    host.say(FIRST, &ToGuest::Data(b"event"));
    assert_eq!(read(&mut waiting, 5), b"event");
    host.say(FIRST + 1, &ToGuest::Data(b"yes?"));
    assert_eq!(read(&mut silent, 4), b"yes?");
    // Both have had their answers.
    let again = told_again(&mut host);
    let want = [FIRST, FIRST + 1].map(|stream| (stream, Heard::Accepted(port)));
    assert_eq!(again, want);
}

#[test]
fn what_is_more_than_can_be_kept_ends_with_its_host() {
    let (mut host, port) = listening();
    let mut program = connect(port);
    assert_eq!(host.hear(), (FIRST, Heard::Accepted(port)));
    let large = vec![b'x'; 9000];
    program.write_all(&large).unwrap();
    let mut came = 0;
    while came < large.len() {
        match host.hear() {
            (FIRST, Heard::Data(bytes)) => came += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told_again(&mut host), []);
    assert_eq!(program.read(&mut [0; 1]).unwrap(), 0, "it is closed");
}

#[test]
fn what_cannot_be_done_is_refused_and_the_guest_goes_on() {
    let (mut host, port) = listening();
    host.say(2, &ToGuest::Listen { port });
    assert!(matches!(host.hear(), (2, Heard::Failed(98, _))));
    let mount = Mount {
        serial: b"task",
        filesystem: b"erofs",
        target: b"/var/task",
        read_only: true,
        options: b"",
    };
    host.say(3, &ToGuest::Mount(mount));
    assert!(matches!(host.hear(), (3, Heard::Failed(19, _))));
    host.say(4, &ToGuest::Freeze);
    assert_eq!(host.hear(), (4, Heard::Done));
    host.say(FIRST, &ToGuest::Usage);
    assert!(matches!(host.hear(), (CONTROL, Heard::Fatal(why)) if why.contains("the guest's")));
}
