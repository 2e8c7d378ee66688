//! Commands.

use crate::support::{Heard, Host, Request, is_root};
use aleph_guest_proto::{CONTROL, Exit, Terminal, ToGuest, WINDOW};
use std::time::{Duration, Instant};

const SIZE: Terminal = Terminal {
    rows: 33,
    columns: 99,
};

fn exited(code: u8) -> Heard {
    Heard::Exited(Exit::Code(code))
}

#[test]
fn output_errors_and_code_come_back() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    let ran = host.shell(1, "echo out; echo err >&2; exit 7");
    assert_eq!(
        (&*ran.output, &*ran.errors, ran.end),
        ("out\n", "err\n", exited(7))
    );
    let ran = host.shell(1, "kill -9 $$");
    assert_eq!(ran.end, Heard::Exited(Exit::Signal(9)));
}

#[test]
fn a_program_that_cannot_be_executed_says_why() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        path(name)
    };
    let plain = write("plain", "x", 0o644);
    let garbage = write("garbage", "\x01\x02", 0o755);
    let orphan = write("orphan", "#!/nosuch\n", 0o755);
    let mut host = Host::ready();
    for (name, errno, why) in [
        ("nosuch", 2, "nosuch: command not found".to_owned()),
        ("/nosuch", 2, "/nosuch: command not found".to_owned()),
        ("", 22, "the command is empty".to_owned()),
        (&plain, 13, format!("{plain}: permission denied")),
        (&garbage, 8, format!("{garbage}: exec format error")),
        (
            &orphan,
            2,
            format!("{orphan}: the interpreter that it names is missing"),
        ),
    ] {
        let ran = host.run(
            1,
            &Request {
                argv: &[name],
                ..Request::default()
            },
        );
        assert_eq!(ran.end, Heard::Failed(errno, why));
    }
}

#[test]
fn user_workdir_and_environment_are_the_requests() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let workdir = folder.path().join("made/for/it");
    let mut host = Host::ready();
    let request = Request {
        argv: &[
            "sh",
            "-c",
            "id -u; id -g; id -G; pwd; echo $MINE $HOME; umask; env | grep -c TERM=",
        ],
        env: &["MINE=yes"],
        workdir: workdir.to_str().unwrap(),
        user: "12345:12346",
        ..Request::default()
    };
    std::fs::create_dir_all(&workdir).unwrap();
    for folder in workdir.ancestors().take(4) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::remove_dir(&workdir).unwrap();
    let ran = host.run(1, &request);
    let expected = format!(
        "12345\n12346\n12346\n{}\nyes /\n0022\n0\n",
        workdir.display()
    );
    assert_eq!((ran.output, ran.end), (expected, exited(1)));
    let ran = host.run(
        1,
        &Request {
            argv: &["id"],
            user: "no-such-user",
            ..Request::default()
        },
    );
    let why = "no user no-such-user in /etc/passwd".to_owned();
    assert_eq!(ran.end, Heard::Failed(22, why));
}

#[test]
fn a_megabyte_through_cat_is_unchanged() {
    if !is_root() {
        return;
    }
    let bytes: Vec<u8> = (0..1_u32 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let mut host = Host::ready();
    host.exec(
        1,
        &Request {
            argv: &["cat"],
            stdin: true,
            ..Request::default()
        },
    );
    let mut echoed = host.pour(1, &bytes);
    loop {
        match host.hear() {
            (1, Heard::Data(bytes)) => echoed.extend(bytes),
            (1, Heard::Exited(exit)) => break assert_eq!(exit, Exit::Code(0)),
            _ => {}
        }
    }
    assert!(echoed == bytes);
}

#[test]
fn input_that_nobody_reads_is_credited_and_dropped() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    for (stdin, script) in [(true, "exec 0<&-; sleep 30"), (false, "cat; sleep 30")] {
        host.exec(
            1,
            &Request {
                argv: &["sh", "-c", script],
                stdin,
                ..Request::default()
            },
        );
        assert!(matches!(host.hear(), (1, Heard::Started(_))));
        // More than a window: it only goes through if credit comes back.
        host.pour(1, &vec![b'x'; 3 * WINDOW as usize]);
        host.say(1, &ToGuest::Signal(15));
        let ran = host.collect(1);
        let end = Heard::Exited(Exit::Signal(15));
        assert_eq!((&*ran.output, ran.end), ("", end));
    }
}

#[test]
fn output_stops_at_the_window() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    host.credits = false;
    let argv = ["head", "-c", "1000000", "/dev/zero"];
    host.exec(
        1,
        &Request {
            argv: &argv,
            ..Request::default()
        },
    );
    let mut seen = 0;
    while seen < WINDOW as usize {
        if let (1, Heard::Data(bytes)) = host.hear() {
            seen += bytes.len();
        }
    }
    assert_eq!(seen, WINDOW as usize);
    // The next thing that comes is the answer, although there is more output.
    host.say(CONTROL, &ToGuest::Ping(5));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(5)));
    host.credits = true;
    host.say(1, &ToGuest::Credit(WINDOW));
    let ran = host.collect(1);
    assert_eq!((ran.output.len(), ran.end), (1_000_000 - seen, exited(0)));
}

#[test]
fn a_terminal_has_size_input_and_end() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    let script =
        "stty size; trap 'stty size; exit 4' WINCH; echo $TERM; while :; do sleep 0.05; done";
    let argv = ["sh", "-c", script];
    let request = Request {
        argv: &argv,
        terminal: Some(SIZE),
        stdin: true,
        ..Request::default()
    };
    host.exec(1, &request);
    let mut output = String::new();
    while !output.contains("xterm") {
        if let (1, Heard::Data(bytes)) = host.hear() {
            output += &String::from_utf8(bytes).unwrap();
        }
    }
    host.say(
        1,
        &ToGuest::Resize(Terminal {
            rows: 40,
            columns: 120,
        }),
    );
    let ran = host.collect(1);
    assert_eq!(ran.end, exited(4));
    assert_eq!(output + &ran.output, "33 99\r\nxterm\r\n40 120\r\n");

    host.exec(
        2,
        &Request {
            argv: &["cat"],
            ..request
        },
    );
    host.pour(2, b"a line\n");
    let ran = host.collect(2);
    assert_eq!((&*ran.output, ran.end), ("a line\r\na line\r\n", exited(0)));

    host.exec(
        3,
        &Request {
            argv: &["sh", "-c", "echo on; sleep 20"],
            ..request
        },
    );
    while !matches!(host.hear(), (3, Heard::Data(_))) {}
    host.say(3, &ToGuest::Data(b"\x03"));
    assert_eq!(host.collect(3).end, Heard::Exited(Exit::Signal(2)));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    let argv = ["sh", "-c", "sleep 20 & sleep 20 & echo on; wait"];
    host.exec(
        1,
        &Request {
            argv: &argv,
            ..Request::default()
        },
    );
    while !matches!(host.hear(), (1, Heard::Data(_))) {}
    host.say(1, &ToGuest::Signal(15));
    assert_eq!(host.collect(1).end, Heard::Exited(Exit::Signal(15)));
    host.assert_no_children();
}

#[test]
fn what_a_command_leaves_behind_does_not_hold_it_and_is_collected() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    let begin = Instant::now();
    let ran = host.shell(1, "echo hi; sleep 30 & exit 3");
    assert_eq!((&*ran.output, ran.end), ("hi\n", exited(3)));
    // One that never falls silent does not hold it either.
    let ran = host.shell(2, "(timeout 30 yes &) ; exit 4");
    assert_eq!(ran.end, exited(4));
    assert!(begin.elapsed() < Duration::from_secs(15));
    host.kill_children();
}

#[test]
fn streams_are_many_but_not_without_bound_and_their_numbers_return() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    for _ in 0..50 {
        assert_eq!(host.shell(9, "exit 1").end, exited(1));
    }
    for stream in 1..=257 {
        host.exec(
            stream,
            &Request {
                argv: &["sleep", "30"],
                ..Request::default()
            },
        );
    }
    let mut started = 0;
    let refused = loop {
        match host.hear() {
            (_, Heard::Started(_)) => started += 1,
            (stream, Heard::Failed(errno, _)) => break (stream, errno),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((started, refused), (256, (257, 24)));
    for stream in 1..=256 {
        host.say(stream, &ToGuest::Signal(9));
    }
    for _ in 1..=256 {
        assert!(matches!(host.hear(), (_, Heard::Exited(Exit::Signal(9)))));
    }
}
