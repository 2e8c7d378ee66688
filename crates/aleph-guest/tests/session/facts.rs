//! What is at a path, what the guest uses, and connections to its ports.

use crate::support::{Heard, Host, is_root};
use aleph_guest_proto::{FileKind, ToGuest, WINDOW};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

#[test]
fn a_path_is_what_it_is_or_what_it_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("file"), "12345").unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    let mut host = Host::ready();
    for (name, follow, kind, target) in [
        ("file", false, FileKind::File, ""),
        ("link", true, FileKind::File, ""),
        ("link", false, FileKind::Link, "file"),
    ] {
        let path = at(name);
        let path = path.as_bytes();
        host.say(1, &ToGuest::Stat { path, follow });
        let size = if kind == FileKind::File { 5 } else { 4 };
        let want = Heard::Stat(kind, size, target.to_owned());
        assert_eq!(host.hear(), (1, want));
    }
    let kind_of = |host: &mut Host, path: &[u8]| {
        host.say(1, &ToGuest::Stat { path, follow: true });
        match host.hear() {
            (1, Heard::Stat(kind, ..)) => Ok(kind),
            (1, Heard::Failed(errno, _)) => Err(errno),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kind_of(&mut host, b"/usr"), Ok(FileKind::Folder));
    assert_eq!(kind_of(&mut host, b"/dev/null"), Ok(FileKind::Other));
    assert_eq!(kind_of(&mut host, b"/no/such"), Err(2));
}

#[test]
fn the_guest_says_what_it_uses() {
    let mut host = Host::ready();
    host.say(1, &ToGuest::Usage);
    let (1, Heard::Usage(usage)) = host.hear() else {
        panic!("no usage")
    };
    assert!(usage.memory_available > 0 && usage.memory_available < usage.memory_total);
    assert!(usage.disk_used > 0 && usage.disk_used < usage.disk_total);
    assert!(usage.processes > 1 && usage.uptime_us > 0);
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn connect(host: &mut Host, stream: u32, listener: &TcpListener) -> TcpStream {
    let port = listener.local_addr().unwrap().port();
    host.say(stream, &ToGuest::Connect { port });
    assert_eq!(host.hear(), (stream, Heard::Open));
    listener.accept().unwrap().0
}

#[test]
fn bytes_go_both_ways_and_each_has_its_end() {
    let (listener, _) = listen();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let mut host = Host::ready();
    let mut peer = connect(&mut host, 1, &listener);
    let server = std::thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        peer.write_all(&got).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = host.pour(1, &bytes);
    loop {
        match host.hear() {
            (1, Heard::Data(bytes)) => got.extend(bytes),
            (1, Heard::Eof | Heard::Credit(_)) => {}
            (1, Heard::Done) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == bytes);
    server.join().unwrap();

    // The other side ends first.
    let mut peer = connect(&mut host, 2, &listener);
    peer.write_all(b"bye").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(host.hear(), (2, Heard::Data(b"bye".to_vec())));
    assert_eq!(host.hear(), (2, Heard::Eof));
    host.say(2, &ToGuest::Data(b"and you"));
    host.say(2, &ToGuest::Eof);
    assert_eq!(host.hear(), (2, Heard::Done));
    let mut rest = String::new();
    peer.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "and you");
}

#[test]
fn a_connection_stops_at_the_window_and_closes_when_it_is_given_up() {
    let (listener, _) = listen();
    let mut host = Host::ready();
    host.credits = false;
    let mut peer = connect(&mut host, 1, &listener);
    peer.set_nonblocking(true).unwrap();
    let mut seen = 0;
    while seen < WINDOW as usize {
        // Only what it takes: the kernel's buffers hold some.
        let _ = peer.write(&[7; 10_000]);
        if let (1, Heard::Data(bytes)) = host.hear() {
            seen += bytes.len();
        }
    }
    assert_eq!(seen, WINDOW as usize);
    host.say(0, &ToGuest::Ping(3));
    assert_eq!(host.hear(), (0, Heard::Pong(3)));
    host.say(1, &ToGuest::Cancel);
    peer.set_nonblocking(false).unwrap();
    let mut byte = [0];
    // Closed, with or without a reset for what it had not read.
    assert!(matches!(peer.read(&mut byte), Ok(0) | Err(_)));
}

#[test]
fn a_port_without_a_listener_is_refused_and_a_hang_up_closes() {
    if !is_root() {
        return;
    }
    // The agent's process must not have the listener too.
    let mut host = Host::ready();
    let (listener, port) = listen();
    let mut peer = connect(&mut host, 1, &listener);
    host.replace(0);
    assert!(matches!(peer.read(&mut [0]), Ok(0)));
    drop(listener);
    host.say(1, &ToGuest::Connect { port });
    let why = format!("connecting to port {port}: Connection refused");
    assert_eq!(host.hear(), (1, Heard::Failed(111, why)));
}
