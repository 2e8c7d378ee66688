//! The conversation itself: its beginning, its end, and hosts that break its rules.

use crate::support::{Heard, Host, Request, is_root};
use aleph_guest_proto::{CONTROL, Exit, MARK, MAX_PAYLOAD, ToGuest, Versions};
use std::io::Write;
use std::time::{Duration, Instant};

const SLEEP: Request<'_> = Request {
    argv: &["sleep", "30"],
    env: &[],
    workdir: "",
    user: "",
    terminal: None,
    stdin: true,
    main: false,
    keep: false,
};

#[test]
fn the_agent_answers_hello_and_pings_and_says_which_boot_it_is() {
    let mut host = Host::silent();
    // What is no beginning of a connection is for nobody.
    host.say_raw(b"from a host that is long gone");
    host.greet_as(Versions { min: 1, max: 9 });
    let boot_id = host.hear_hello(false);
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let hex: String = boot_id.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, text.trim().replace('-', ""));
    host.say(CONTROL, &ToGuest::Ping(u64::MAX));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(u64::MAX)));
}

#[test]
fn a_host_that_asks_faster_than_it_listens_gets_every_answer() {
    const COUNT: u64 = 60_000;
    let mut host = Host::ready();
    let mut wire = Vec::new();
    for number in 0..COUNT {
        let ping = ToGuest::Ping(number);
        ping.encode(CONTROL, &mut wire).unwrap();
    }
    let mut asking = host.second_stream();
    let asker = std::thread::spawn(move || asking.write_all(&wire).unwrap());
    // All that fits anywhere is under way by then, and the agent has stopped to listen.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!asker.is_finished());
    for number in 0..COUNT {
        assert_eq!(host.hear(), (CONTROL, Heard::Pong(number)));
    }
    asker.join().unwrap();
}

#[test]
fn a_setup_that_fails_is_told_and_ends_the_guest() {
    let mut host = Host::silent();
    host.greet();
    host.set_up("broken");
    assert_eq!(host.hear_fatal(), "broken as asked for");
    assert_eq!(host.end(false), "failed");
}

#[test]
fn versions_without_overlap_are_both_named() {
    let mut host = Host::silent();
    host.greet_as(Versions { min: 7, max: 8 });
    let why = "no common protocol version: this side speaks 2 to 6, the other 7 to 8";
    assert_eq!(host.hear_fatal(), why);
    assert_eq!(host.end(false), "failed");
}

#[test]
fn a_broken_rule_ends_the_guest_with_the_reason() {
    if !is_root() {
        return;
    }
    type Break = fn(&mut Host);
    let cases: [(&str, Break); 7] = [
        ("a frame begins with 0x5858, not 0xa1ef", |host| {
            host.say_raw(&[b'X'; 50]);
        }),
        ("a frame of unknown kind 0x7f", |host| {
            host.say_raw(&[0xef, 0xa1, 0x7f, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        }),
        ("stream 1 is begun twice", |host| host.exec(1, &SLEEP)),
        ("more data than the stream's window", |host| {
            for _ in 0..6 {
                host.say(1, &ToGuest::Data(&[0; MAX_PAYLOAD]));
            }
        }),
        ("credit for data that was never sent", |host| {
            host.say(1, &ToGuest::Credit(1));
        }),
        ("data after the end of a command's input", |host| {
            host.say(1, &ToGuest::Eof);
            host.say(1, &ToGuest::Data(b"x"));
        }),
        ("a message that means nothing on stream 2", |host| {
            host.credits = false;
            host.say(
                2,
                &ToGuest::Get {
                    path: b"/proc/self/exe",
                },
            );
            host.say(2, &ToGuest::Signal(9));
        }),
    ];
    for (why, break_rule) in cases {
        let mut host = Host::ready();
        host.exec(1, &SLEEP);
        break_rule(&mut host);
        let seen = host.hear_fatal();
        assert_eq!(seen, format!("protocol violation: {why}"));
        assert_eq!(host.end(false), "failed");
    }
}

#[test]
fn nothing_is_begun_before_its_time() {
    let mut host = Host::silent();
    host.say_raw(&MARK);
    host.set_up("erofs");
    assert_eq!(host.end(false), "failed");
    let mut host = Host::silent();
    host.greet();
    host.exec(1, &SLEEP);
    assert_eq!(
        host.hear_fatal(),
        "protocol violation: an operation before Setup"
    );
}

#[test]
fn messages_for_streams_that_are_gone_are_ignored() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    assert_eq!(host.shell(1, "true").end, Heard::Exited(Exit::Code(0)));
    for message in [
        ToGuest::Data(b"late"),
        ToGuest::Eof,
        ToGuest::Credit(7),
        ToGuest::Signal(9),
        ToGuest::Eof,
    ] {
        host.say(1, &message);
    }
    host.say(CONTROL, &ToGuest::Ping(3));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(3)));
}

#[test]
fn a_second_setup_changes_nothing() {
    let mut host = Host::ready();
    host.set_up("broken");
    assert_eq!(host.hear(), (CONTROL, Heard::Ready));
}

#[test]
fn the_guest_ends_with_its_main_command() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    host.exec(1, &SLEEP);
    let argv = ["sh", "-c", "seq 1 20000; exit 5"];
    let ran = host.run(
        2,
        &Request {
            argv: &argv,
            main: true,
            ..Request::default()
        },
    );
    assert_eq!(ran.end, Heard::Exited(Exit::Code(5)));
    assert!(ran.output.ends_with("\n20000\n"));
    let begin = Instant::now();
    assert_eq!(host.end(false), "finished");
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[test]
fn the_guest_ends_when_its_host_hangs_up() {
    let begin = Instant::now();
    assert_eq!(Host::ready().end(true), "hung up");
    assert!(begin.elapsed() >= Duration::from_secs(2));
}

#[test]
fn a_shutdown_asks_first_and_then_kills() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    let polite = [
        "sh",
        "-c",
        "trap 'echo bye; exit 6' TERM; echo on; while :; do sleep 0.05; done",
    ];
    let stubborn = [
        "sh",
        "-c",
        "trap '' TERM; echo on; while :; do sleep 0.05; done",
    ];
    for (stream, argv) in [(1, &polite), (2, &stubborn)] {
        host.exec(
            stream,
            &Request {
                argv,
                ..Request::default()
            },
        );
        while !matches!(host.hear(), (s, Heard::Data(_)) if s == stream) {}
    }
    let begin = Instant::now();
    host.say(
        CONTROL,
        &ToGuest::Shutdown {
            grace_ms: 5000,
            signal: 15,
        },
    );
    let ran = host.collect(1);
    assert_eq!(
        (&*ran.output, ran.end),
        ("bye\n", Heard::Exited(Exit::Code(6)))
    );
    // It answers all the while, but begins nothing.
    host.exec(3, &SLEEP);
    assert!(matches!(host.collect(3).end, Heard::Failed(11, _)));
    assert_eq!(host.collect(2).end, Heard::Exited(Exit::Signal(9)));
    assert!(begin.elapsed() >= Duration::from_secs(5));
    assert_eq!(host.end(false), "finished");
}
