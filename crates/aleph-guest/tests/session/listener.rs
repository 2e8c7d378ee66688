//! Hosts that each have a connection of their own, as with vsock: here to a Unix socket.

use crate::support::{Heard, Host, Request, is_root};
use aleph_guest_proto::{CONTROL, Exit, ToGuest};
use std::io::Write;

#[test]
fn hosts_come_one_after_another_and_a_kept_command_goes_on() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let mut host = Host::first_at(&path);
    host.make_ready(false);
    host.credits = false;
    host.exec(
        1,
        &Request {
            argv: &[
                "sh",
                "-c",
                "while read line; do echo got $line; done; exit 5",
            ],
            stdin: true,
            main: true,
            keep: true,
            ..Request::default()
        },
    );
    assert!(matches!(host.hear(), (1, Heard::Started(_))));
    let mut stored = 0;
    for round in 0..20 {
        if round % 2 == 1 {
            // Some leave within a frame, and some have never said a word.
            let mut half = Vec::new();
            ToGuest::Data(&[7; 9000]).encode(1, &mut half).unwrap();
            host.say_raw(&half[..17]);
            drop(host.next_at(&path));
        }
        // The one before goes while this one waits to be taken up.
        drop(host.next_at(&path));
        let kept = host.greet_again();
        assert_eq!(kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1]);
        host.say(1, &ToGuest::Attach { stored });
        host.say(1, &ToGuest::Data(b"it\n"));
        loop {
            match host.hear() {
                (1, Heard::Data(bytes)) => {
                    assert_eq!(bytes, b"got it\n");
                    stored += bytes.len() as u64;
                    break;
                }
                (1, Heard::Credit(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        let total = stored;
        host.say(1, &ToGuest::Stored { total, end: false });
        host.say(CONTROL, &ToGuest::Ping(round));
        loop {
            match host.hear() {
                (CONTROL, Heard::Pong(n)) if n == round => break,
                (1, Heard::Credit(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    host.say(1, &ToGuest::Eof);
    assert_eq!(host.hear(), (1, Heard::Exited(Exit::Code(5))));
}

#[test]
fn a_host_in_the_queue_has_its_turn_when_the_one_before_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let mut host = Host::first_at(&path);
    host.make_ready(false);
    let mut first = host.next_at(&path);
    // It says hello meanwhile, and hears nothing while the first one is served.
    host.greet();
    let mut wire = Vec::new();
    for n in 0..200_000 {
        ToGuest::Ping(n).encode(CONTROL, &mut wire).unwrap();
    }
    // The first asks more than it reads the answers of, until it is not listened to.
    first.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(n) = first.write(&wire[sent..]) {
        sent += n;
    }
    drop(first);
    host.hear_hello(true);
    assert_eq!(host.hear(), (CONTROL, Heard::Ready));
    host.say(CONTROL, &ToGuest::Ping(7));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(7)));
}
