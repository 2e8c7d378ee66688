//! Commands that outlive their hosts, and hosts that vanish at any byte.

use crate::support::{Dice, Heard, Host, Request, is_root};
use aleph_guest_proto::{CONTROL, Exit, MARK, Put, ToGuest, WINDOW};
use std::os::unix::ffi::OsStrExt;

fn kept<'a>(argv: &'a [&'a str]) -> Request<'a> {
    Request {
        argv,
        main: true,
        keep: true,
        ..Request::default()
    }
}

/// All that a host ever got, byte by byte with the flow that it came on.
#[derive(Default)]
struct Record {
    bytes: Vec<(bool, u8)>,
}

impl Record {
    /// Takes bytes at a position; what is known there must be the same.
    fn take(&mut self, at: usize, is_error: bool, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            match self.bytes.get(at) {
                Some(known) => assert_eq!(*known, (is_error, *byte), "another byte at {at}"),
                None => self.bytes.push((is_error, *byte)),
            }
        }
    }

    fn of(&self, is_error: bool) -> Vec<u8> {
        let of_flow = self.bytes.iter().filter(|(flow, _)| *flow == is_error);
        of_flow.map(|(_, byte)| *byte).collect()
    }
}

/// A script with output on both streams, small and large, and what it prints.
const SCRIPT: &str = "i=0; while [ $i -lt 400 ]; do echo \"out $i\"; echo \"err $i\" >&2; \
    i=$((i+1)); done; seq 1 150000; seq 1 30000 >&2; i=0; while [ $i -lt 200 ]; do \
    echo \"more $i\"; i=$((i+1)); done; exit 3";

fn expected() -> (Vec<u8>, Vec<u8>) {
    use std::fmt::Write;
    let (mut out, mut err) = (String::new(), String::new());
    for i in 0..400 {
        writeln!(out, "out {i}").unwrap();
        writeln!(err, "err {i}").unwrap();
    }
    (1..=150_000).for_each(|n| writeln!(out, "{n}").unwrap());
    (1..=30_000).for_each(|n| writeln!(err, "{n}").unwrap());
    (0..200).for_each(|i| writeln!(out, "more {i}").unwrap());
    (out.into_bytes(), err.into_bytes())
}

/// Hosts come and go at random bytes, within frames both ways, some of them having stored what
/// they got and said so, some not. In the end all output was seen, in one order, and the end.
#[test]
fn no_byte_is_lost_or_doubled_however_often_the_host_vanishes() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (mut rounds, mut half_frames) = (0, 0);
    for seed in 1..=4 {
        let mut dice = Dice::new(seed);
        let mut host = Host::ready_with(false);
        host.credits = false;
        host.exec(1, &kept(&["sh", "-c", SCRIPT]));
        let mut record = Record::default();
        // What this host has got, stored and told; only what is stored outlives it.
        let (mut at, mut stored, mut told) = (0_usize, 0_usize, 0_usize);
        let exit = 'hosts: loop {
            let mut events = dice.below(12);
            while events > 0 {
                match host.hear() {
                    (1, Heard::Data(bytes)) => {
                        record.take(at, false, &bytes);
                        at += bytes.len();
                    }
                    (1, Heard::ErrorData(bytes)) => {
                        record.take(at, true, &bytes);
                        at += bytes.len();
                    }
                    (1, Heard::Exited(exit)) if dice.below(3) == 0 => {
                        let total = at as u64;
                        host.say(1, &ToGuest::Stored { total, end: true });
                        break 'hosts exit;
                    }
                    // It vanishes before it has stored that.
                    (1, Heard::Exited(_)) => break,
                    (1, Heard::Started(_)) | (CONTROL, Heard::Pong(_)) => {}
                    other => panic!("{other:?}"),
                }
                assert!(at - told <= WINDOW as usize);
                stored = dice.between(stored, at);
                if dice.below(2) == 0 || at - told > WINDOW as usize / 2 {
                    stored = at;
                    told = at;
                    let total = told as u64;
                    host.say(1, &ToGuest::Stored { total, end: false });
                }
                events -= 1;
                // Or the command may have nothing to say.
                host.say(CONTROL, &ToGuest::Ping(7));
            }
            if dice.below(2) == 0 {
                half_frames += 1;
                leave_within_a_frame(&mut host, &mut dice, &path);
            }
            rounds += 1;
            let heard = host.replace(dice.below(100_000));
            let [(1, kept)] = heard[..] else {
                panic!("{heard:?}")
            };
            assert!(kept.main && kept.stored <= stored as u64);
            assert!(kept.written >= stored as u64 && kept.stored >= told as u64);
            (at, told) = (stored, stored);
            host.say(
                1,
                &ToGuest::Attach {
                    stored: stored as u64,
                },
            );
        };
        assert_eq!(exit, Exit::Code(3));
        let (out, err) = expected();
        assert!(record.of(false) == out && record.of(true) == err);
        assert_eq!(host.end(false), "finished");
        // Nothing of a half frame was taken for a file's contents.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    assert!(rounds > 40 && half_frames > 10, "{rounds} {half_frames}");
}

/// Begins a file, and leaves somewhere within a frame of it.
fn leave_within_a_frame(host: &mut Host, dice: &mut Dice, path: &std::path::Path) {
    let mut wire = Vec::new();
    let put = ToGuest::Put(Put {
        path: path.as_os_str().as_bytes(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    });
    put.encode(2, &mut wire).unwrap();
    // Bytes that look like anything: marks, and the beginnings of frames.
    let mut bytes = vec![0xef; dice.between(1, 60_000)];
    for byte in &mut bytes {
        if dice.below(3) == 0 {
            *byte = MARK[dice.below(16)];
        }
    }
    if dice.below(2) == 0 {
        bytes.extend(MARK);
    }
    ToGuest::Data(&bytes).encode(2, &mut wire).unwrap();
    let cut = dice.between(1, wire.len() - 1);
    host.say_raw(&wire[..cut]);
}

#[test]
fn an_end_without_a_host_is_told_to_each_until_one_has_stored_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready_with(false);
    host.credits = false;
    host.exec(5, &kept(&["sh", "-c", "echo one; echo two >&2; exit 9"]));
    for _ in 0..3 {
        let heard = host.replace(1000);
        let [(5, _)] = heard[..] else {
            panic!("{heard:?}")
        };
        host.say(5, &ToGuest::Attach { stored: 0 });
        let ran = host.collect(5);
        assert_eq!((&*ran.output, &*ran.errors), ("one\n", "two\n"));
        assert_eq!(ran.end, Heard::Exited(Exit::Code(9)));
        // It answers other commands all the while.
        host.credits = true;
        assert_eq!(host.shell(6, "exit 2").end, Heard::Exited(Exit::Code(2)));
        host.credits = false;
    }
    let (total, end) = (8, true);
    host.say(5, &ToGuest::Stored { total, end });
    assert_eq!(host.end(false), "finished");
}

#[test]
fn a_shutdown_waits_for_the_end_of_a_kept_command_to_be_stored() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready_with(false);
    let script = "trap 'echo bye; exit 6' USR1; trap '' TERM; echo on; \
        while :; do sleep 0.05; done";
    host.credits = false;
    host.exec(1, &kept(&["sh", "-c", script]));
    while !matches!(host.hear(), (1, Heard::Data(_))) {}
    host.exec(
        2,
        &Request {
            argv: &[
                "sh",
                "-c",
                "trap 'exit 4' TERM; echo on; while :; do sleep 0.05; done",
            ],
            ..Request::default()
        },
    );
    while !matches!(host.hear(), (2, Heard::Data(_))) {}
    host.say(2, &ToGuest::Credit(3));
    let (grace_ms, signal) = (20_000, 10);
    host.say(CONTROL, &ToGuest::Shutdown { grace_ms, signal });
    assert_eq!(host.collect(2).end, Heard::Exited(Exit::Code(4)));
    // The host goes before it has heard; so does the next one, which asks again.
    for _ in 0..2 {
        host.replace(1000);
        host.say(CONTROL, &ToGuest::Shutdown { grace_ms, signal });
    }
    host.say(1, &ToGuest::Attach { stored: 3 });
    let ran = host.collect(1);
    assert_eq!(
        (&*ran.output, ran.end),
        ("bye\n", Heard::Exited(Exit::Code(6)))
    );
    // Its shell may have a word to say about the signal.
    let total = 3 + (ran.output.len() + ran.errors.len()) as u64;
    host.say(1, &ToGuest::Stored { total, end: true });
    assert_eq!(host.end(false), "finished");
}

#[test]
fn a_command_runs_on_without_a_host_up_to_a_window() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("done");
    let mut host = Host::ready_with(false);
    host.credits = false;
    let script = format!(
        "head -c 250000 /dev/zero; touch {}; exec cat",
        file.display()
    );
    let argv = ["sh", "-c", &script];
    let request = Request {
        stdin: true,
        ..kept(&argv)
    };
    host.exec(1, &request);
    host.replace(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !file.exists() {
        assert!(std::time::Instant::now() < deadline, "it waits for a host");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // Its input is the next host's.
    let [(1, kept)] = host.replace(0)[..] else {
        panic!("no command")
    };
    assert!(kept.input && !kept.ended);
    host.say(1, &ToGuest::Attach { stored: 0 });
    host.say(1, &ToGuest::Data(b"to the end"));
    host.say(1, &ToGuest::Eof);
    let ran = host.collect(1);
    assert_eq!(ran.output.len(), 250_010);
    assert!(ran.output.ends_with("to the end"));
}

#[test]
fn other_commands_go_with_their_host() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut host = Host::ready_with(false);
    // One that ends when its terminal does, one that does not, and one that hides in another
    // process group.
    let (polite, stubborn) = (path("polite"), path("stubborn"));
    let scripts = [
        format!("trap ': > {polite}; exit' HUP; echo on; while :; do sleep 0.05; done"),
        format!("trap '' HUP; touch {stubborn}; echo on; while :; do sleep 0.05; done"),
        "set -m; sleep 77 & echo on; wait".to_owned(),
    ];
    for (stream, script) in (1..).zip(&scripts) {
        let argv = ["sh", "-c", script.as_str()];
        let request = Request {
            argv: &argv,
            ..Request::default()
        };
        host.exec(stream, &request);
        while !matches!(host.hear(), (s, Heard::Data(_)) if s == stream) {}
    }
    assert_eq!(host.replace(0), []);
    host.assert_no_children();
    assert!(folder.path().join("polite").exists() && folder.path().join("stubborn").exists());
    // One alone goes when it is given up.
    host.exec(
        1,
        &Request {
            argv: &["sleep", "66"],
            ..Request::default()
        },
    );
    assert!(matches!(host.hear(), (1, Heard::Started(_))));
    host.say(1, &ToGuest::Cancel);
    host.assert_no_children();
}

#[test]
fn a_main_command_that_is_not_kept_takes_the_guest_with_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready_with(false);
    let request = Request {
        argv: &["sleep", "55"],
        main: true,
        ..Request::default()
    };
    host.exec(1, &request);
    assert!(matches!(host.hear(), (1, Heard::Started(_))));
    assert_eq!(host.replace(0), []);
    assert_eq!(host.end(false), "finished");
}

#[test]
fn a_host_cannot_claim_what_was_never_sent() {
    if !is_root() {
        return;
    }
    type Break = fn(&mut Host);
    let cases: [(&str, Break); 6] = [
        ("output is stored that was never sent", |host| {
            host.say(
                1,
                &ToGuest::Stored {
                    total: 4,
                    end: false,
                },
            );
        }),
        ("an end is stored that was never told", |host| {
            host.say(
                1,
                &ToGuest::Stored {
                    total: 3,
                    end: true,
                },
            );
        }),
        ("a kept command is attached twice", |host| {
            host.say(1, &ToGuest::Attach { stored: 3 });
        }),
        (
            "output is stored up to 4, of which there is 0 to 3",
            |host| {
                host.replace(0);
                host.say(1, &ToGuest::Attach { stored: 4 });
            },
        ),
        ("a kept command is given up", |host| {
            host.say(1, &ToGuest::Cancel);
        }),
        ("credit for a kept command", |host| {
            host.say(1, &ToGuest::Credit(1));
        }),
    ];
    for (why, break_rule) in cases {
        let mut host = Host::ready_with(false);
        host.credits = false;
        host.exec(1, &kept(&["sh", "-c", "echo on; sleep 44"]));
        while !matches!(host.hear(), (1, Heard::Data(_))) {}
        break_rule(&mut host);
        assert_eq!(host.hear_fatal(), format!("protocol violation: {why}"));
    }
}
